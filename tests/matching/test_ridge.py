"""KIP, FRePo and RFAD: fast paths against their plain twins, whole distillations, and what is refused."""

import math

import pytest
import torch

from distillery.checks import InputError, RunFailed
from distillery.data.synthetic import Synthetic
from distillery.distill import Optimizer, distill
from distillery.evaluation import Protocol, evaluate
from distillery.matching.kernel import (
    FeatureRegression,
    KernelInducingPoints,
    RandomFeatures,
    frepo_loss_plain,
    frepo_network,
    kip_loss_plain,
    label_loss,
    label_loss_plain,
    ntk_matrix_plain,
    rfad_kernel_plain,
    rfad_loss_plain,
)
from distillery.networks import ConvNet, ModuleNetwork, trainable
from distillery.networks.ridge import embeddings, gaussian, kernel_ridge_plain, ntk, platt, regress
from distillery.sampling import Importance, RealBatches, Uniform
from distillery.seeds import generator
from distillery.training.losses import centred

KINDS = {
    "KIP": lambda net, **more: KernelInducingPoints(net, 4, **more),
    "KIP of two layers": lambda net, **more: KernelInducingPoints(net, 4, layers=2, **more),
    "FRePo": lambda net, **more: FeatureRegression(net, 12, width=4, pool=3, age=6, **more),
    "FRePo, fixed labels": lambda net, **more: FeatureRegression(
        net, 12, width=4, pool=2, labels=False, flip=False, **more
    ),
    "RFAD": lambda net, **more: RandomFeatures(net, 12, width=4, networks=2, judged=8, **more),
    "RFAD, squared error": lambda net, **more: RandomFeatures(
        net, 12, width=4, networks=3, judged=8, platt=False, labels=True, **more
    ),
}


@pytest.fixture
def net(tiny):
    return ConvNet(tiny.shape, 3, width=4)


def first(tiny, k=1):
    chosen = torch.cat([torch.nonzero(tiny.targets == c)[:k, 0] for c in range(3)])
    return Synthetic({"images": tiny.batch(chosen), "targets": tiny.targets[chosen]}, tiny.classes)


def apart(made):
    """The set moved off the real images, where kernels have a kink, with labels that are not one-hot."""
    stream = generator(0, "apart")
    moved = {
        n: v + 0.1 * torch.randn(v.shape, generator=stream) for n, v in made.tensors.items() if v.is_floating_point()
    }
    return made.replace(**moved)


def rate(objective):
    return {name: Optimizer(0.05, kind="adam") for name in objective.learned}


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("same", [True, False])
def test_ntk_is_its_twin(depth, same):
    x, y = (torch.randn(n, 1, 3, 4, generator=generator(0, "x", n), dtype=torch.float64) for n in (5, 4))
    y = x if same else torch.cat([y, x[:1]])  # one pair at an angle of 0
    found = ntk(x.flatten(1), None if same else y.flatten(1), depth)
    torch.testing.assert_close(found, ntk_matrix_plain(x, y, depth), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("depth", [1, 2])
def test_the_gradient_of_the_ntk_is_its_twins_on_the_diagonal_too(depth):
    grads = []
    for way in (lambda x: ntk(x.flatten(1), None, depth), lambda x: ntk_matrix_plain(x, x, depth)):
        x = torch.randn(4, 1, 2, 5, generator=generator(0, "x"), dtype=torch.float64).requires_grad_()
        weights = torch.randn(4, 4, generator=generator(0, "w"), dtype=torch.float64)
        grads.append(torch.autograd.grad((weights * way(x)).sum(), x)[0])
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("points", [1, 6])
def test_regress_is_its_twin_with_one_ridge_and_with_one_for_each_point(points):
    rows = torch.randn(points, 9, generator=generator(0, "x"), dtype=torch.float64)
    labels = torch.randn(points, 3, generator=generator(0, "y"), dtype=torch.float64)
    kernel = rows @ rows.T
    torch.testing.assert_close(kernel @ regress(kernel, labels, 0.3), kernel_ridge_plain(kernel, labels, kernel, 0.3))
    # weights w in the primal problem are a ridge lambda / w in the dual one
    w = torch.rand(points, generator=generator(0, "w"), dtype=torch.float64) + 0.1
    gram = rows.T @ (w[:, None] * rows) + 0.3 * torch.eye(9, dtype=torch.float64)
    primal = torch.linalg.solve(gram, rows.T @ (w[:, None] * labels))
    torch.testing.assert_close(rows.T @ regress(kernel, labels, 0.3 / w), primal, rtol=1e-9, atol=1e-10)


def test_a_solve_that_fails_says_its_conditioning(refused):
    bad = torch.diag(torch.tensor([1.0, -3.0], dtype=torch.float64))
    with refused("eigenvalues", "-3"):
        regress(bad, torch.eye(2, dtype=torch.float64), 1e-6)
    with pytest.raises(RunFailed):
        regress(bad, torch.eye(2, dtype=torch.float64), 1e-6)
    with refused("penalty", "0.0"):
        regress(torch.eye(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64), 0.0)


def test_label_loss_is_its_twin():
    labels = torch.randn(7, 5, generator=generator(0, "y"), dtype=torch.float64)
    torch.testing.assert_close(label_loss(labels), label_loss_plain(labels))


def test_platt_finds_the_scale_of_probabilities():
    """Labels drawn from softmax(3 f): the fitted scale is 3, whatever f is multiplied by."""
    stream = generator(0, "platt")
    f = torch.randn(20_000, 3, generator=stream, dtype=torch.float64)
    targets = torch.multinomial((3 * f).softmax(1), 1, generator=stream)[:, 0]
    assert platt(f, targets) == pytest.approx(3, rel=0.05)
    assert platt(f / 100, targets) == pytest.approx(300, rel=0.05)


def twin(objective, params, made, real, targets, weights):
    """The loss of a step by the plain twins, in float64."""
    images, labels = made.tensors["images"].double(), objective.first_labels(made)
    truth = centred(targets, 3)
    rest = real.double(), truth, weights.double()
    wide = {name: value.double() for name, value in params.items()}
    if objective.name == "KIP":
        return kip_loss_plain(images, labels, *rest, depth=objective.layers)
    if objective.name == "FRePo":
        loss = frepo_loss_plain(lambda x: objective.own.embed(wide, x, False)[0], images, labels, *rest, objective.flip)
        return loss if objective.labels else loss - label_loss_plain(labels)
    networks = [
        lambda x, i=i: objective.own.embed({n: v[i : i + 1] for n, v in wide.items()}, x, False)[0]
        for i in range(objective.drawn)
    ]
    scale = made.tensors["log_scale"].double() if objective.platt else None
    return rfad_loss_plain(networks, images, labels, *rest, scale)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_its_twin(kind, tiny, net):
    objective = KINDS[kind](net)
    made = apart(objective.prepare(first(tiny, 2)))
    state = objective.start(made, generator(0, "start"))
    seen, _ = torch.Generator(), None
    stream = generator(0, "step")
    from distillery.seeds import split

    seen = split(generator(0, "step"), 2)[0]
    params = objective.moment(made, state, seen)
    real, targets, weights = objective._draw(RealBatches(tiny, Uniform(tiny.targets), generator(0, "real")))
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


def test_the_kernel_of_rfad_is_its_twin(tiny, net):
    objective = KINDS["RFAD"](net)
    params = objective.moment(first(tiny), {}, generator(0, "x"))
    rows = tiny.batch(torch.arange(6))
    networks = [
        lambda x, i=i: objective.own.embed({n: v[i : i + 1] for n, v in params.items()}, x, False)[0] for i in range(2)
    ]
    a, b = (objective.features(params, one, False) for one in (rows[:4], rows[3:]))
    torch.testing.assert_close(
        objective.kernel(a, b), rfad_kernel_plain(networks, rows[:4], rows[3:]).double(), rtol=1e-5, atol=1e-6
    )


def test_random_networks_are_drawn_as_published(net):
    params = gaussian(ConvNet((3, 16, 16), 3, 64, normalization="none"), generator(0, "x"), 3, torch.device("cpu"))
    assert params["conv1.weight"].std() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.02)
    assert params["conv1.bias"].std() == pytest.approx(0.1, rel=0.2)


def test_features_of_several_networks_lie_side_by_side(tiny):
    network = ConvNet(tiny.shape, 3, 4, normalization="none")
    params = network.init(generator(0, "x"), 3)
    images = tiny.batch(torch.arange(5))
    one_by_one = [network.embed({n: v[i : i + 1] for n, v in params.items()}, images)[0] for i in range(3)]
    torch.testing.assert_close(embeddings(network, params, images), torch.cat(one_by_one, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_distillation_lowers_its_loss_and_repeats_its_bits(kind, tiny, net):
    objective = KINDS[kind](net)

    def go(steps=40, **more):
        start = objective.prepare(first(tiny))
        return distill(
            start, objective, tiny, Uniform(tiny.targets), rate(objective), steps, generator(0, "go"), **more
        )

    done, again = go(), go()
    for name, value in done.last.tensors.items():
        assert torch.equal(value, again.last.tensors[name]), name
    begin = objective.prepare(first(tiny))
    params = objective.fresh(begin, generator(0, "judge"))  # the same networks before and after
    each = torch.full((len(tiny),), 1 / len(tiny))
    before, after = (
        objective.error(objective.outputs(m, params, tiny), tiny.targets, each, m) for m in (begin, done.last)
    )
    if objective.name == "FRePo":  # its networks follow the set
        before, after = done.log["loss"][:10].mean(), done.log["loss"][-10:].mean()
    assert after < before
    assert done.cost["samples"] == 40 * (12 if not objective.balanced else 3 * 4)
    accuracy = objective.accuracy(done.last, tiny, generator(0, "judge"))
    assert 0 <= accuracy <= 1 and accuracy == objective.accuracy(done.last, tiny, generator(0, "judge"))
    logits = objective.predict(done.last, objective.start(done.last, generator(0, "s")), tiny, generator(0, "p"))
    assert logits.shape == (len(tiny), 3) and bool(logits.isfinite().all())


@pytest.mark.parametrize("kind", ["KIP", "FRePo", "RFAD"])
@pytest.mark.parametrize("optimizer", ["lamb", "adabelief"])
def test_resumes_with_the_same_bits(kind, optimizer, tiny, net, tmp_path, monkeypatch):
    """Killed after any step: pool, moments, importance and the counters of timm's optimizers are in the checkpoint."""
    objective = KINDS[kind](net)
    optimizers = {name: Optimizer(0.02, kind=optimizer, schedule="cosine to a tenth") for name in objective.learned}

    def go(path=None, validate=None):
        sampler = Importance(tiny, 0.5, every=2, reweight=True, generator=generator(0, "look"))
        return distill(
            objective.prepare(first(tiny)),
            objective,
            tiny,
            sampler,
            optimizers,
            7,
            generator(0, "go"),
            checkpoint=path,
            checkpoint_seconds=0.0,
            validate=validate,
            validate_every=2 if validate else 0,
        )

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


def test_the_pool_of_frepo_trains_one_network_a_step_and_renews_old_ones(tiny, net):
    objective = FeatureRegression(net, 12, width=4, pool=2, age=3)
    made = objective.prepare(first(tiny))
    state = objective.start(made, generator(0, "start"))
    assert state["age"].tolist() == [0, 1] and state["steps"].tolist() == [0, 0]
    renewed = 0
    for i in range(14):
        draw = RealBatches(tiny, Uniform(tiny.targets), generator(0, "real", i))
        _, new, _ = objective.step(made, state, draw, generator(0, "step", i))
        changed = [j for j in range(2) if not torch.equal(new["net.0.weight"][j], state["net.0.weight"][j])]
        assert len(changed) == 1
        (j,) = changed
        if new["age"][j] == 0:
            assert state["age"][j] == 3 and new["steps"][j] == 0 and not new["first.0.weight"][j].any()
            renewed += 1
        else:
            assert new["age"][j] == state["age"][j] + 1 and new["steps"][j] == state["steps"][j] + 1
        state = new
    assert renewed


@pytest.mark.parametrize(
    "shape, sizes", [((3, 32, 32), [(4, 3), (8, 4), (16, 8)]), ((1, 28, 28), [(4, 1), (8, 4), (16, 8)])]
)
def test_the_network_of_frepo(shape, sizes):
    """Twice the channels in each block, BatchNorm before the second and third alone, with momentum .9."""
    network = frepo_network(shape, 10, 4)
    params = network.init(generator(0, "x"), 1)
    kernels = [tuple(v.shape[1:3]) for v in params.values() if v.ndim == 5]
    assert kernels == sizes
    norms = [m for m in network.skeleton.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert [m.num_features for m in norms] == [4, 8] and all(m.momentum == 0.9 for m in norms)
    assert network.embed(params, torch.zeros(2, *shape), False).shape == (1, 2, 16 * 16)
    assert len(trainable(params)) == 12


def test_learned_labels_are_evaluated_with_squared_error_alone(tiny, net, refused):
    made = KINDS["FRePo"](net).prepare(first(tiny))
    with refused("squared error"):
        evaluate(net, made.source(), Protocol(1, 1), tiny, generator(0, "x"))
    accuracies = evaluate(net, made.source(), Protocol(2, 1, loss="squared error"), tiny, generator(0, "x"))
    hard = evaluate(net, first(tiny).source(), Protocol(2, 1, loss="squared error"), tiny, generator(0, "x"))
    assert accuracies.shape == (2,)
    # with 3 classes the labels of FRePo are larger than one-hot ones: another target, the same protocol
    assert hard.shape == (2,)


def test_a_loss_goes_with_training_from_scratch(refused):
    with refused("squared error", "probe"):
        Protocol(kind="probe", loss="squared error")
    assert "loss" not in Protocol().spec() and Protocol(loss="squared error").spec()["loss"] == "squared error"


@pytest.mark.parametrize("bad", [{"rho": 0.0}, {"rho": -1.0}])
def test_a_ridge_is_above_zero(bad, net, refused):
    with refused(str(bad["rho"])):
        KernelInducingPoints(net, 4, **bad)


def test_a_network_without_a_shape_is_refused(refused):
    module = ModuleNetwork(lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)), "plain")
    with refused("plain", "ConvNet"):
        KernelInducingPoints(module, 4)
    assert issubclass(RunFailed, InputError)
