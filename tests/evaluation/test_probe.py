"""Probing: labels drawn, the linear classifier against other solvers, pre-training on real-valued targets, frozen features."""

import math
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from distillery.data import TensorSource
from distillery.data.synthetic import Synthetic
from distillery.encoders.regression_set import RegressionSet
from distillery.evaluation import Probing, embed, fit, fit_linear, linear_probe, probe
from distillery.evaluation.probe import fit_linear_plain, fit_ridge, fit_ridge_plain, label_count
from distillery.networks import ConvNet
from distillery.seeds import generator, split
from distillery.training.optimizers import SGD
from made_up import blobs

PROBE = sys.modules[probe.__module__]


def network(width=5, **options):
    return ConvNet((1, 8, 8), width, width=4, depth=1, **options)


def features(n=40, width=6, classes=3, seed=0, scale=1.0):
    """Overlapping clouds of features far from zero, and their labels."""
    stream = generator(seed, "features")
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, width, generator=stream)
    return (3 + centres[labels] + torch.randn(n, width, generator=stream)) * scale, labels


def regression(images, width=5, seed=0):
    targets = torch.randn(len(images), width, generator=generator(seed, "targets"))
    return RegressionSet(images, targets, images.digest)


def objective(x, labels, weight, bias, penalty):
    return F.cross_entropy(x.double() @ weight.T + bias, labels) + penalty * weight.square().sum()


# The protocol


def test_the_published_protocol():
    protocol = Probing()
    assert protocol.spec() == {
        "networks": 3,
        "epochs": 20,
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "batch": 256,
        "augmentation": "",
        "kind": "probe",
        "labels": (0.01, 0.05),
        "penalty": 1e-3,
        "stratified": False,
    }
    for n, steps in [(1000, 80), (2500, 200), (2000, 160), (5000, 400)]:
        assert protocol.optimizer(n) == (SGD(0.1, 0.9, 1e-4), steps)


def test_a_learned_step_size_is_the_rate(tiny):
    made = Synthetic({"images": tiny.batch(torch.arange(4)), "targets": torch.zeros(4, 5)})
    assert Probing().fitting(made) == Probing()
    learned = Probing().fitting(made.replace(step_size=torch.tensor(0.25)))
    assert learned == Probing(lr=0.25)


@pytest.mark.parametrize(
    "options, word",
    [
        ({"loss": "cross-entropy"}, "squared error"),
        ({"epochs": 0}, 0),
        ({"labels": ()}, "()"),
        ({"labels": 0.01}, 0.01),
        ({"labels": (0.01, 5)}, 5),
        ({"labels": (0.0,)}, 0.0),
        ({"penalty": 0.0}, 0.0),
        ({"penalty": math.nan}, "nan"),
    ],
)
def test_refused_options(options, word, refused):
    with refused(word):
        Probing(**options)


# Pre-training


def test_exact_passes_lower_the_squared_error(tiny):
    source, protocol = regression(tiny), Probing(networks=2, epochs=15, batch=10)
    params, stats = fit(network(), source, protocol, generator(0, "e"))
    assert stats.steps == 15 * 3 and stats.samples == 15 * 24
    start = network().init(split(generator(0, "e"), 1)[0], 2)

    def error(weights):
        outputs = network().apply(weights, tiny.batch(torch.arange(24)), train=False).logits
        return (outputs - source.targets).square().mean((1, 2))

    assert (error(params) < 0.8 * error(start)).all()
    _, longer = fit(network(), source, protocol, generator(0, "e"), steps_of=41)
    assert longer.steps == 15 * 5


def test_one_step_by_hand(tiny):
    """The error is a mean over images and outputs, the rate .1 and the decay 1e-4."""
    source = regression(tiny)
    params, stats = fit(network(), source, Probing(networks=1, epochs=1), generator(0, "e"))
    start = network().init(split(generator(0, "e"), 1)[0], 1)
    start = {name: value.requires_grad_() for name, value in start.items()}
    outputs = network().apply(start, tiny.batch(torch.arange(24))).logits[0]
    error = sum(((o - t) ** 2).sum() / 5 for o, t in zip(outputs, source.targets)) / 24
    gradients = torch.autograd.grad(error, list(start.values()))
    assert stats.steps == 1
    for (name, value), gradient in zip(start.items(), gradients):
        assert torch.allclose(params[name], value - 0.1 * (gradient + 1e-4 * value), atol=1e-6)


def test_every_source_of_real_valued_targets_is_the_same(tiny):
    source, protocol = regression(tiny), Probing(networks=1, epochs=2, batch=10)
    images = tiny.batch(torch.arange(24))
    made = Synthetic({"images": images, "targets": source.targets})
    first, *others = (
        fit(network(), s, protocol, generator(0, "e"))[0] for s in (source, TensorSource(images, source.targets), made.source())
    )
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


def test_classes_and_other_widths_are_no_targets(tiny, refused):
    for targets, word in [(tiny.targets, "int64"), (torch.zeros(24, 4), "(24, 4)"), (torch.zeros(24), "(24,)")]:
        with refused("targets", word, "(24, 5)"):
            fit(network(), TensorSource(tiny.batch(torch.arange(24)), targets), Probing(), generator(0, "e"))


# Labels


def test_fewer_labels_than_classes_is_a_warning():
    targets = torch.arange(200) % 8
    with pytest.warns(UserWarning, match="^labels: 6 for 8 classes[^\n]*$"):
        assert label_count(targets, 0.03) == 6
    with pytest.warns(UserWarning, match="^labels: 1 for 8 classes"):
        assert label_count(targets, 1e-4) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert label_count(targets, 0.04) == 8


@pytest.mark.filterwarnings("ignore:labels")  # fewer than classes
@pytest.mark.parametrize(
    "n, classes, counts",
    [
        (50_000, 10, [500, 2500]),  # CIFAR-10
        (50_000, 100, [500, 2500]),  # CIFAR-100
        (100_000, 200, [1000, 5000]),  # Tiny ImageNet
        (12_000, 120, [120, 600]),  # Stanford Dogs
        (1020, 102, [10, 51]),  # Flowers-102
        (6667, 100, [67, 333]),  # Aircraft, published 66 and 333
        (5994, 200, [60, 300]),  # CUB-2011, published 59 and 299
    ],
)
def test_published_counts_of_labels(n, classes, counts):
    """Of 1% and 5% of the training images; the public code rounds down."""
    assert [label_count(torch.arange(n) % classes, fraction) for fraction in Probing().labels] == counts


# The linear classifier


@pytest.mark.parametrize(
    "n, width, classes, penalty, scale",
    [(40, 6, 3, 1e-3, 1), (40, 6, 3, 1e-1, 10), (20, 50, 4, 1e-3, 1), (30, 4, 2, 1e-2, 1), (7, 5, 5, 1e-3, 0.1)],
)
def test_the_classifier_is_its_plain_twin(n, width, classes, penalty, scale):
    x, labels = features(n, width, classes, scale=scale)
    found = fit_linear(x, labels, penalty)
    weight, bias = fit_linear_plain(x, labels, penalty)
    assert found.converged and found.iterations > 0 and found.classes.tolist() == list(range(classes))
    ours, theirs = (objective(x, labels, *w, penalty) for w in ((found.weight, found.bias), (weight, bias)))
    assert abs(ours - theirs) < 1e-8
    assert torch.allclose(found.weight, weight, atol=1e-3 * float(weight.abs().max()))
    # biases are free up to a common shift
    assert torch.allclose(found.bias - found.bias.mean(), bias - bias.mean(), atol=1e-3 * (1 + bias.abs().max()))


def test_the_gradient_of_the_objective_is_zero():
    x, labels = features()
    found = fit_linear(x, labels, 1e-3)
    weight, bias = found.weight.clone().requires_grad_(), found.bias.clone().requires_grad_()
    for gradient in torch.autograd.grad(objective(x, labels, weight, bias, 1e-3), [weight, bias]):
        assert gradient.abs().max() < 2e-5
    away = objective(x, labels, weight * 1.1, bias, 1e-3)
    assert away > objective(x, labels, weight, bias, 1e-3) + 1e-3


def test_another_solver_of_scikit_learn_agrees():
    x, labels = features(60, 8, 4)
    found = fit_linear(x, labels, 1e-2)
    newton = LogisticRegression(C=1 / (2 * 1e-2 * 60), solver="newton-cg", tol=1e-9, max_iter=1000)
    newton.fit(x.double().numpy(), labels.numpy())
    assert torch.allclose(found.weight, torch.from_numpy(newton.coef_), atol=1e-4)


def test_the_bias_is_not_penalized():
    """A shift moves into the bias, and one-sided labels are met however large the penalty."""
    x, labels = features()
    plain, shifted = fit_linear(x, labels, 1e-1), fit_linear(x + 50, labels, 1e-1)
    assert torch.allclose(plain.weight, shifted.weight, atol=1e-4)
    asked, _ = features(100, seed=1)
    assert torch.equal(plain.predict(asked), shifted.predict(asked + 50))
    skewed = torch.tensor([0] * 30 + [1] * 10)
    prior = fit_linear(x, skewed, 1e6)
    assert prior.weight.abs().max() < 1e-4
    assert float(prior.bias[0] - prior.bias[1]) == pytest.approx(math.log(3), abs=1e-3)


def test_two_features_and_two_classes_by_hand():
    """Points -1 and 1 on a line: weights -w and w with w = sigmoid(-2 w) / (2 penalty) = 1 at this penalty."""
    penalty = float(torch.sigmoid(torch.tensor(-2.0))) / 2
    found = fit_linear(torch.tensor([[-1.0], [1.0]]), torch.tensor([4, 7]), penalty)
    assert torch.allclose(found.weight, torch.tensor([[-1.0], [1.0]], dtype=torch.float64), atol=1e-5)
    assert found.bias.abs().max() < 1e-5
    assert found.predict(torch.tensor([[-3.0], [0.1]])).tolist() == [4, 7]


def test_classes_without_labels_are_never_predicted():
    x, labels = features(30, classes=3)
    seen = labels != 1
    found = fit_linear(x[seen], labels[seen] * 2, 1e-3)
    assert found.classes.tolist() == [0, 4] and set(found.predict(x).tolist()) == {0, 4}


def test_one_class_is_always_predicted():
    x, _ = features()
    found = fit_linear(x[:3], torch.full((3,), 2), 1e-3)
    assert found.converged and found.iterations == 0
    assert (found.predict(x) == 2).all()


def test_constant_features_give_the_most_frequent_class():
    found = fit_linear(torch.ones(6, 3), torch.tensor([0, 1, 1, 1, 2, 0]), 1e-3)
    assert found.converged and (found.predict(torch.randn(5, 3, generator=generator(0, "x"))) == 1).all()


def test_a_classifier_that_stops_early_says_so(monkeypatch, tiny):
    monkeypatch.setattr(PROBE, "ITERATIONS", 2)
    x, labels = features()
    with pytest.warns(RuntimeWarning, match="40 labels has not converged in 2 iterations"):
        assert not fit_linear(x, labels, 1e-3).converged
    params = network().init(generator(0, "x"), 1)
    with pytest.warns(RuntimeWarning):
        _, info = probe(network(), params, tiny, tiny, Probing(labels=(1.0,)), generator(0, "p"))
    assert info["converged"] == [[False]] and info["iterations"] == [[2]]


# The probe


@pytest.mark.parametrize("side, depth, width", [(32, 3, 2048), (64, 3, 8192), (32, 4, 512), (64, 4, 2048)])
def test_published_widths_of_features(side, depth, width):
    """What the classifier sees is the flattened last map, of any depth on images of any size."""
    net, images = ConvNet((3, side, side), 5, depth=depth), blobs(1, 2, (3, side, side))
    assert embed(net, net.init(generator(0, "x"), 1), images).shape == (1, 2, width)


@pytest.mark.parametrize("normalization", ["instance", "batch"])
def test_the_probe_image_by_image(tiny, normalization):
    """Features are those of evaluation mode: an image's do not depend on the images beside it, with BatchNorm neither."""
    net, test = network(normalization=normalization), blobs(6, seed=1)
    protocol = Probing(networks=2, epochs=3, batch=8, labels=(0.25, 0.5))
    params, _ = fit(net, regression(tiny), protocol, generator(0, "e"))
    accuracies, info = probe(net, params, tiny, test, protocol, generator(0, "p"))
    for k, stream in enumerate(split(generator(0, "p"), 2)):
        one = {name: value[[k]] for name, value in params.items()}
        drawn = torch.randperm(24, generator=stream)[:12]
        known = torch.cat([net.embed(one, tiny.batch(i[None]), train=False)[0] for i in drawn])
        for j, n in enumerate((6, 12)):
            classifier = fit_linear(known[:n], tiny.targets[drawn[:n]], protocol.penalty)
            right = [
                classifier.predict(net.embed(one, test.batch(torch.tensor([i])), train=False)[0]) == test.targets[i]
                for i in range(len(test))
            ]
            assert float(accuracies[k, j]) == pytest.approx(sum(map(int, right)) / len(test))
    assert accuracies.shape == (2, 2) and accuracies.dtype == torch.float64
    assert info["labels"] == [6, 12] and info["classes_seen"] == [[3, 3], [3, 3]]
    assert info["converged"] == [[True, True], [True, True]]


def test_the_features_of_batchnorm_in_training_are_others(tiny):
    """Were the mode not the same, the test above could not tell."""
    net = network(normalization="batch")
    params = net.init(generator(0, "x"), 1)
    images = tiny.batch(torch.arange(24))
    assert not torch.allclose(net.embed(params, images, train=True), embed(net, params, tiny), atol=1e-2)


def test_each_image_is_embedded_once_a_network(tiny, monkeypatch):
    sizes = []
    real = embed
    monkeypatch.setattr(PROBE, "embed", lambda n, p, x: sizes.append(len(x)) or real(n, p, x))
    protocol = Probing(labels=(0.25, 0.5, 0.125))
    probe(network(), network().init(generator(0, "x"), 2), tiny, tiny, protocol, generator(0, "p"))
    assert sizes == [12, 24] * 2


def test_methods_under_one_seed_see_the_same_labels(tiny, monkeypatch):
    drawn = []
    real = fit_linear
    monkeypatch.setattr(PROBE, "fit_linear", lambda x, y, p: drawn.append(y.tolist()) or real(x, y, p))
    small, large = regression(tiny.subset(torch.arange(0, 24, 3))), regression(tiny, seed=1)
    protocol = Probing(networks=2, epochs=2, batch=4, labels=(0.5,))
    for source in (small, large):
        params, _ = fit(network(), source, protocol, generator(0, "e"))
        probe(network(), params, tiny, tiny, protocol, generator(0, "p"))
    assert drawn[:2] == drawn[2:] and drawn[0] != drawn[1]


def test_networks_trained_on_targets_are_probed(tiny):
    protocol = Probing(networks=2, epochs=2, batch=8, labels=(0.25, 1.0))
    params, _ = fit(network(), regression(tiny), protocol, generator(0, "e"))
    found, _ = probe(network(), params, tiny, tiny, protocol, generator(0, "p"))
    assert found.shape == (2, 2) and (found[:, 1] == 1).all()


def test_one_label_in_the_probe(tiny):
    params = network().init(generator(0, "x"), 3)
    with pytest.warns(UserWarning, match="labels: 1 for 3 classes"):
        found, info = probe(network(), params, tiny, tiny, Probing(labels=(0.01,)), generator(0, "p"))
    assert torch.allclose(found, torch.full((3, 1), 1 / 3, dtype=torch.float64))
    assert info["classes_seen"] == [[1]] * 3 and info["converged"] == [[True]] * 3


def test_features_that_are_not_finite_are_refused(tiny, refused):
    params = network().init(generator(0, "x"), 2)
    params["conv0.weight"][1] = math.inf
    with refused("features of network 1"):
        probe(network(), params, tiny, tiny, Probing(labels=(0.5,)), generator(0, "p"))


def test_the_standardized_probe_is_that_of_scikit_learn(tiny):
    """A pipeline of its own StandardScaler and LogisticRegression, on images that are hard to tell."""
    hard = type(tiny)(tiny.pixels, tiny.targets.roll(5), tiny.classes, tiny.transform)
    test = blobs(20, seed=1)
    params = network().init(generator(3, "x"), 2)
    found = linear_probe(network(), params, hard, test)
    for k in range(2):
        x, asked = embed(network(), params, hard)[k].double(), embed(network(), params, test)[k].double()
        mean, spread = x.mean(0), x.std(0, correction=0)
        known = ((x - mean) / spread).numpy()
        pipeline = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000).fit(known, hard.targets.numpy())
        assert float(found[k]) == pytest.approx(pipeline.score(((asked - mean) / spread).numpy(), test.targets.numpy()))


# Least squares


def test_least_squares_of_many_subsets_are_those_of_each():
    rows, labels = features(60, 7, classes=3)
    subsets = torch.stack([torch.randperm(60, generator=generator(i, "rows"))[:30] for i in range(4)])
    weights, biases = fit_ridge(rows, labels, subsets, 0.01)
    for some, weight, bias in zip(subsets, weights, biases, strict=True):
        wanted = fit_ridge_plain(rows[some], labels[some], 0.01)
        assert torch.allclose(weight.double(), wanted[0], atol=1e-4) and torch.allclose(bias.double(), wanted[1], atol=1e-3)
    few = torch.tensor([[0, 3, 1, 4]])  # classes 0 and 1, fewer rows than features: the third is never told
    weights, biases = fit_ridge(rows, labels, few)
    assert set((rows @ weights[0] + biases[0]).argmax(1).tolist()) == {0, 1}


def test_least_squares_tell_as_much_as_the_softmax_classifier():
    rows, labels = features(400, 6, classes=3)
    weights, biases = fit_ridge(rows, labels, torch.arange(200)[None])
    softmax = fit_linear(rows[:200], labels[:200], 1 / 400)
    ours, theirs = (
        (one == labels[200:]).double().mean() for one in ((rows @ weights[0] + biases[0])[200:].argmax(1), softmax.predict(rows[200:]))
    )
    assert abs(ours - theirs) < 0.03 and ours > 0.5
