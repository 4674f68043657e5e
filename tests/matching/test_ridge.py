"""Ridge regressions of all methods: steps and losses against plain twins, whole distillations, and what is refused."""

from functools import partial

import pytest
import torch

from distillery.distill import Optimizer, distill
from distillery.evaluation import Protocol, evaluate
from distillery.matching.ridge import label_loss, label_loss_plain
from distillery.methods.frepo import FeatureRegression, frepo_loss_plain
from distillery.methods.kip import KernelInducingPoints, kip_loss_plain
from distillery.methods.rfad import RandomFeatures, rfad_loss_plain
from distillery.networks import ModuleNetwork
from distillery.sampling import Importance, RealBatches, Uniform
from distillery.seeds import generator, split
from distillery.training.losses import centred
from made_up import first, normal, smooth_features

F64 = torch.float64


KINDS = {
    "KIP": lambda net, **more: KernelInducingPoints(net, 4, **more),
    "KIP of two layers": lambda net, **more: KernelInducingPoints(net, 4, layers=2, **more),
    "FRePo": lambda net, **more: FeatureRegression(net, 12, width=4, pool=3, age=6, **more),
    "FRePo, fixed labels": lambda net, **more: FeatureRegression(net, 12, width=4, pool=2, labels=False, flip=False, **more),
    "RFAD": lambda net, **more: RandomFeatures(net, 12, width=4, networks=2, eval_networks=8, **more),
    "RFAD, squared error": lambda net, **more: RandomFeatures(net, 12, width=4, networks=3, eval_networks=8, platt=False, labels=True, **more),
}  # fmt: skip


def apart(made):
    """The set moved off the real images, where kernels have a kink, with labels that are not one-hot."""
    stream = generator(0, "apart")
    moved = {n: v + 0.1 * torch.randn(v.shape, generator=stream) for n, v in made.tensors.items() if v.is_floating_point()}  # fmt: skip
    return made.replace(**moved)


def rate(objective):
    return {name: Optimizer(0.05, kind="adam") for name in objective.learned}


def twin(objective, params, made, real, targets, weights):
    """The loss of a step by the plain twins, in float64."""
    images, labels = made.tensors["images"].double(), objective.labels_of(made)
    truth = centred(targets, 3)
    rest = real.double(), truth, weights.double()
    wide = {name: value.double() for name, value in params.items()}
    if objective.name == "KIP":
        return kip_loss_plain(images, labels, *rest, depth=objective.layers)
    if objective.name == "FRePo":
        loss = frepo_loss_plain(lambda x: objective.own.embed(wide, x, False)[0], images, labels, *rest, objective.flip)
        return loss if objective.labels else loss - label_loss_plain(labels)
    networks = [
        lambda x, i=i: objective.own.embed({n: v[i : i + 1] for n, v in wide.items()}, x, False)[0] for i in range(objective.networks)
    ]
    scale = made.tensors["log_scale"].double() if objective.platt else None
    return rfad_loss_plain(networks, images, labels, *rest, scale)


@pytest.mark.parametrize("kind", ["KIP", "FRePo", "RFAD"])
def test_real_images_of_a_step_have_their_labels_and_weights_that_sum_to_one(kind, tiny, net):
    """Also where batches are balanced: class by class."""
    real, targets, weights = KINDS[kind](net).draw_batch(RealBatches(tiny, Uniform(tiny.targets), generator(0, "real")))
    assert weights.shape == targets.shape == (12,) and float(weights.sum()) == pytest.approx(1)
    same = (real[:, None] == tiny.batch(torch.arange(24))).flatten(2).all(2)  # (12, 24)
    assert torch.equal(tiny.targets[same.int().argmax(1)], targets) and same.any(1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_its_twin(kind, tiny, net):
    objective = KINDS[kind](net)
    made = apart(objective.prepare(first(tiny, 2)))
    state = objective.start(made, generator(0, "start"))
    stream, seen = generator(0, "step"), split(generator(0, "step"), 2)[0]
    params = objective.networks_of_step(made, state, seen)
    real, targets, weights = objective.draw_batch(RealBatches(tiny, Uniform(tiny.targets), generator(0, "real")))
    learned = {n: v.detach().clone().requires_grad_() for n, v in made.tensors.items() if v.is_floating_point()}
    wanted = twin(objective, params, made.replace(**learned), real, targets, weights)
    expected = torch.autograd.grad(wanted, list(learned.values()))
    draw = RealBatches(tiny, Uniform(tiny.targets), generator(0, "real"))
    grads, _, log = objective.step(made, state, draw, stream)
    # features are float32: their error is what the inverse of K_SS makes of it
    close = {"rtol": 1e-6, "atol": 1e-7} if objective.name == "KIP" else {"rtol": 2e-3, "atol": 2e-4}
    torch.testing.assert_close(log["loss"], wanted.detach(), **close)
    assert set(grads) == set(objective.learned)
    for name, value in zip(learned, expected, strict=True):
        gap = (grads[name] - value).norm() / value.norm()
        assert gap < (1e-4 if objective.name == "KIP" else 2e-2), (name, float(gap))


@pytest.mark.parametrize("kind", KINDS)
def test_a_distillation_lowers_its_loss_and_repeats_its_bits(kind, tiny, net):
    objective = KINDS[kind](net)

    def go(steps=40, **more):
        start = objective.prepare(first(tiny))
        return distill(start, objective, tiny, Uniform(tiny.targets), rate(objective), steps, generator(0, "go"), **more)

    done, again = go(), go()
    for name, value in done.last.tensors.items():
        assert torch.equal(value, again.last.tensors[name]), name
    begin = objective.prepare(first(tiny))
    params = objective.fresh(begin, generator(0, "judge"))  # the same networks before and after
    each = torch.full((len(tiny),), 1 / len(tiny))
    before, after = (objective.error(objective.outputs(m, params, tiny), tiny.targets, each, m) for m in (begin, done.last))  # fmt: skip
    if objective.name == "FRePo":  # its networks follow the set
        before, after = done.log["loss"][:10].mean(), done.log["loss"][-10:].mean()
    assert after < before
    assert done.cost["samples"] == 40 * (12 if not objective.balanced else 3 * 4)
    accuracy = objective.accuracy(done.last, tiny, generator(0, "judge"))
    assert 0 <= accuracy <= 1 and accuracy == objective.accuracy(done.last, tiny, generator(0, "judge"))
    logits = objective.predict(done.last, objective.start(done.last, generator(0, "s")), tiny, generator(0, "p"))
    assert logits.shape == (len(tiny), 3) and bool(logits.isfinite().all())
    if "log_scale" not in objective.learned:
        wrong = [float(torch.nn.functional.cross_entropy(k * logits, tiny.targets)) for k in (0.8, 1, 1.25)]
        assert wrong[1] == min(wrong)  # their scale is that of the labels


@pytest.mark.parametrize("kind", ["KIP", "FRePo", "RFAD"])
@pytest.mark.parametrize("optimizer", ["lamb", "adabelief"])
def test_resumes_with_the_same_bits(kind, optimizer, tiny, net, tmp_path, monkeypatch):
    """Killed after any step: pool, moments, importance and the counters of timm's optimizers are in the checkpoint."""
    objective = KINDS[kind](net)
    optimizers = {name: Optimizer(0.02, kind=optimizer, schedule="cosine to a tenth") for name in objective.learned}

    def go(path=None, validate=None):
        sampler = Importance(tiny, 0.5, every=2, reweight=True, generator=generator(0, "look"))
        return distill(
            objective.prepare(first(tiny)), objective, tiny, sampler, optimizers, 7, generator(0, "go"),
            checkpoint=path, checkpoint_seconds=0.0, validate=validate, validate_every=2 if validate else 0,
        )  # fmt: skip

    class Kill(Exception):
        pass

    wanted = go(validate=lambda made, step: step / 10)
    path, calls = tmp_path / "checkpoint.safetensors", []

    def killing(made, step):
        calls.append(step)
        if len(calls) == 2:
            raise Kill
        return step / 10

    with pytest.raises(Kill):
        go(path, killing)
    done = go(path, lambda made, step: step / 10)
    for name, value in wanted.last.tensors.items():
        assert torch.equal(value, done.last.tensors[name]), name
    assert torch.equal(done.log["validation"].nan_to_num(-1), wanted.log["validation"].nan_to_num(-1))
    assert done.cost["samples"] == wanted.cost["samples"]


def test_learned_labels_are_evaluated_with_squared_error_alone(tiny, net, refused):
    made = KINDS["FRePo"](net).prepare(first(tiny))
    with refused("squared error"):
        evaluate(net, made.source(), Protocol(1, 1), tiny, generator(0, "x"))
    accuracies = evaluate(net, made.source(), Protocol(2, 1, loss="half squared error"), tiny, generator(0, "x"))
    hard = evaluate(net, first(tiny).source(), Protocol(2, 1, loss="half squared error"), tiny, generator(0, "x"))
    assert accuracies.shape == (2,)
    # with 3 classes the labels of FRePo are larger than one-hot ones: another target, the same protocol
    assert hard.shape == (2,)


@pytest.mark.parametrize("bad", [{"rho": 0.0}, {"rho": -1.0}])
def test_a_ridge_is_above_zero(bad, net, refused):
    with refused(str(bad["rho"])):
        KernelInducingPoints(net, 4, **bad)


def test_a_network_without_a_shape_is_refused(refused):
    module = ModuleNetwork(lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)), "plain")
    with refused("plain", "ConvNet"):
        KernelInducingPoints(module, 4)


def test_label_loss_is_its_twin():
    labels = torch.randn(7, 5, generator=generator(0, "y"), dtype=torch.float64)
    torch.testing.assert_close(label_loss(labels), label_loss_plain(labels))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([[0.75, -0.25, -0.25, -0.25]], -0.25),  # a full gap is cut at 1 / C
        ([[0.2, 0.1, 0.0, -0.3]], -0.1),
        ([[0.0, 0.0, -1.0, 0.0]], 0.0),  # a tie at the top
        ([[-0.3, -0.1, -0.2, -0.4]], -0.1),  # the sign of the entries does not matter
        ([[0.75, -0.25, -0.25, -0.25], [0.2, 0.1, 0.0, -0.3]], -0.175),
        ([[1.0, 0.8]], -0.2),
        ([[1.0, 0.0]], -0.5),
    ],
)
def test_label_loss_by_hand(labels, expected):
    found = label_loss_plain(torch.tensor(labels, dtype=F64))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=F64))


def test_label_loss_gradient_by_hand():
    # Two images: the first is short of 1 / C = 1/3 and is pulled apart, the second is past it and left alone.
    labels = torch.tensor([[0.0, 0.2, 0.1], [1.0, 0.0, 0.0]], dtype=F64, requires_grad=True)
    (gradient,) = torch.autograd.grad(label_loss_plain(labels), labels)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, -0.5, 0.5], [0.0, 0.0, 0.0]], dtype=F64))


def rfad_platt(images, labels, real, truth, weights):
    return rfad_loss_plain([smooth_features(1), smooth_features(2)], images, labels, real, truth, weights, torch.tensor(0.5, dtype=F64))


LOSSES = {
    "kip 1": partial(kip_loss_plain, depth=1),
    "kip 2": partial(kip_loss_plain, depth=2),
    "frepo": partial(frepo_loss_plain, smooth_features(1), flip=False),
    "frepo flip": partial(frepo_loss_plain, smooth_features(1), flip=True),
    "rfad": partial(rfad_loss_plain, [smooth_features(1), smooth_features(2)]),
    "rfad platt": rfad_platt,
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_by_finite_differences(regression, name):
    images, labels, real, truth, weights = regression
    # Off the kink of the NTK, where the first target is the first image.
    real = real + 0.5
    loss = lambda images, labels: LOSSES[name](images, labels, real, truth, weights)  # noqa: E731
    assert torch.autograd.gradcheck(loss, (images.requires_grad_(), labels.requires_grad_()), atol=1e-7, fast_mode=True)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_finite_where_a_target_is_a_synthetic_image(regression, name):
    images, labels, *rest = regression
    loss = LOSSES[name](images.requires_grad_(), labels.requires_grad_(), *rest)
    for gradient in torch.autograd.grad(loss, (images, labels)):
        assert gradient.isfinite().all() and gradient.abs().max() > 0


@pytest.mark.parametrize("name", LOSSES)
def test_a_weight_is_a_count(regression, name):
    # Weights (.1, .4, .2, .3, 0) are a uniform mean over ten targets with repeats.
    images, labels, real, truth, weights = regression
    repeated = torch.tensor([0] + [1] * 4 + [2] * 2 + [3] * 3)
    found = LOSSES[name](images, labels, real[repeated], truth[repeated], torch.full((10,), 0.1, dtype=F64))
    torch.testing.assert_close(found, LOSSES[name](images, labels, real, truth, weights))


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "frepo flip"])
def test_the_ridge_follows_the_trace(name):
    # One image predicting itself: the loss depends on its label alone. A detached ridge would leave a slope.
    image = normal(1, 2, 3, 4).requires_grad_()
    label, truth = torch.tensor([[0.7, -0.3, -0.4]], dtype=F64), centred(torch.tensor([1]), 3)
    loss = LOSSES[name](image, label, image, truth, torch.ones(1, dtype=F64))
    (slope,) = torch.autograd.grad(loss, image)
    assert slope.abs().max() < 1e-12
