"""How much gradients and trajectories vary: partitions into batches, and copies of one initialization."""

import math

import pytest
import torch

from distillery.checks import RunFailed
from distillery.data import TensorSource
from distillery.encoders.regression_set import RegressionSet
from distillery.encoders.teacher import TeacherTraining
from distillery.measure.spread import (
    Pairs,
    Spread,
    epoch_gradient,
    factor,
    of_trajectories,
    partition_variance,
    problems,
    rate_for,
    trajectory_variance,
    variance,
)
from distillery.networks import ConvNet, trainable
from distillery.networks.encoder import head_names
from distillery.seeds import generator, split
from distillery.training import cross_entropy, loop, squared_error
from distillery.training.contrastive import barlow_twins, simclr
from distillery.training.optimizers import SGD, Adam
from distillery.training.views import TwoViews, Views

F64 = torch.float64
PLAIN = SGD(0.1, 0.0, 0.0)


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=generator(seed, "normal"), dtype=dtype)


def student(normalization="instance", dtype=F64):
    network = ConvNet((1, 8, 8), 5, width=4, normalization=normalization)
    params = network.init(generator(0, "student"), 1)
    return network, {name: value.to(dtype) for name, value in params.items()}


def regression(n=12):
    return TensorSource(normal(n, 1, 8, 8), normal(n, 5, seed=2))


def pairs():
    return Pairs(torch.stack([normal(12, 1, 8, 8), normal(12, 1, 8, 8, seed=1)], 1), torch.zeros(12))


CONTRASTIVE = {
    "simclr": lambda output, target: simclr(*output.chunk(2, 1)),
    "barlow-twins": lambda output, target: barlow_twins(*output.chunk(2, 1)),
}


# Gradients over partitions


def test_variance_by_hand():
    """(0, 0) and (2, 4): halves of 4 + 16 squared apart; mean (1, 2)."""
    assert variance(torch.tensor([[0.0, 0], [2, 4]])) == (10, 5)


def test_sums_over_samples_have_no_variance_over_partitions():
    """Proposition D.1: knowledge distillation, batches of unequal size, float64; BatchNorm breaks it."""
    for normalization in ("instance", "batch"):
        found = partition_variance(*student(normalization), regression(), squared_error, 5, generator(0, "p"))
        ratio = found.variance / found.squared_mean
        assert ratio < 1e-28 if normalization == "instance" else ratio > 1e-4


def test_the_published_student_has_no_variance_over_partitions():
    """ConvNet-3 of width 128 with as many outputs as a ResNet-18 has features."""
    network = ConvNet((3, 32, 32), 512, width=128)
    params = {name: value.double() for name, value in network.init(generator(0, "student"), 1).items()}
    source = TensorSource(normal(6, 3, 32, 32), normal(6, 512, seed=2))
    found = partition_variance(network, params, source, squared_error, 2, generator(0, "p"), 3)
    assert found.variance < 1e-28 * found.squared_mean


def test_means_over_unequal_batches_vary():
    """The mean over a batch that training descends: the same for every partition into equal batches alone."""

    def mean(output, target):
        return squared_error(output, target).mean(1)

    for batch, least, most in ((5, 1e-3, 1), (4, 0, 1e-28)):
        found = partition_variance(*student(), regression(), mean, batch, generator(0, "p"))
        assert least <= found.variance / found.squared_mean < most


@pytest.mark.parametrize("loss", CONTRASTIVE)
def test_contrastive_losses_have_variance_over_partitions(loss):
    found = partition_variance(*student(), pairs(), CONTRASTIVE[loss], 4, generator(0, "p"))
    assert found.variance > 1e-4 * found.squared_mean
    whole = partition_variance(*student(), pairs(), CONTRASTIVE[loss], 12, generator(0, "p"), 3)
    assert whole.variance < 1e-24 * whole.squared_mean  # one batch holds all


def test_the_gradient_of_an_epoch_is_the_sum_over_its_batches():
    network, params = student()
    source = TensorSource(normal(6, 1, 8, 8), normal(6, 5, seed=2))
    found = epoch_gradient(network, params, source, squared_error, [torch.tensor([3, 1, 0]), torch.tensor([2, 5, 4])])
    weights = {name: value.clone().requires_grad_() for name, value in params.items()}
    loss = (network.apply(weights, source.images[None]).logits[0] - source.targets).square().mean(1).sum()
    wanted = torch.autograd.grad(loss, list(weights.values()))
    assert torch.allclose(found, torch.cat([grad.flatten() for grad in wanted]), rtol=1e-10, atol=1e-12)


def test_gradients_refuse(refused):
    network, params = student()
    source = TensorSource(normal(6, 1, 8, 8), normal(6, 5, seed=2))
    source.targets[0] = math.nan
    with refused("gradient", "NaN"):
        epoch_gradient(network, params, source, squared_error, [torch.arange(6)])
    with refused("gradients", 1):
        variance(torch.zeros(1, 3))


def test_pairs_are_one_draw_of_the_views(tiny):
    _, _, found = problems(tiny, torch.zeros(24, 5), None, None, Views(), 24, 3)["SSL, SimCLR"]
    fresh = TwoViews(tiny, Views(), 3)
    at = torch.tensor([[4, 0]])
    assert len(found) == 24 and found.shape == (1, 8, 8) and found.batch(at).shape == (1, 4, 1, 8, 8)
    assert torch.equal(found.batch(at)[0], fresh.batch(torch.arange(24)[None])[0, [4, 0, 28, 24]].double())


# Weights of trajectories


def test_losses_are_compared_at_equal_randomness_and_displacement(tiny):
    """Rates move all copies as far as those of KD in an epoch within a tenth, and full batches move all copies as one: no loss draws views."""
    found = problems(tiny, normal(24, 5), ConvNet(tiny.shape, 3, width=4), ConvNet(tiny.shape, 5, width=4), Views(flip=0.0), 24, 0)
    for batch, least, most in ((8, 1e-6, 2.0), (24, 0.0, 1e-8)):
        spreads = of_trajectories(found, 0.05, batch, 3, 2, 0, "cpu")
        assert list(spreads) == ["SL", "KD", "SSL, Barlow Twins", "SSL, SimCLR"] and spreads["KD"][0] == 0.05
        start = spreads["KD"][1][0].distance
        for rate, curve in spreads.values():
            assert rate > 0 and len(curve) == 2 and curve[0].distance == pytest.approx(start, rel=0.25)
            assert all(least <= one.ratio <= most for one in curve)


def test_a_factor_in_words():
    ours = [[Spread(9.0, 1.0), Spread(8.0, 2.0)], None, [Spread(1.0, 1.0)]]
    theirs = [[Spread(5.0, 1.0), Spread(1.0, 1.0)], [Spread(1.0, 1.0)], [Spread(1.0, 9.0)]]
    assert factor(ours, theirs) == "6 (4 to 9 over seeds)" and factor([None], theirs) == "an unknown number of"


def test_a_rate_is_found_by_bisection():
    def distance(rate):
        if rate > 1:
            raise RunFailed("farther than any goal")
        return rate**2

    for first in (1e-3, 0.29, 50.0):
        assert distance(rate_for(0.09, distance, first)) == pytest.approx(0.09, rel=0.1)
    with pytest.raises(RunFailed, match="not reached"):
        rate_for(0.09, lambda rate: 0.0, 0.1)


@pytest.mark.parametrize("kind", ["labels", "targets", "fixed views"])
def test_full_batches_move_all_copies_as_one(kind):
    """Float64: only the order of a sum differs. With fixed views even a contrastive loss is one function of the weights."""
    source, loss = {
        "labels": (TensorSource(normal(12, 1, 8, 8), torch.arange(12) % 5), cross_entropy),
        "targets": (regression(), squared_error),
        "fixed views": (pairs(), CONTRASTIVE["simclr"]),
    }[kind]
    for batch, least, most in ((12, 0, 1e-24), (4, 1e-4, 2)):
        found = trajectory_variance(*student(), source, loss, PLAIN, epochs=3, repeats=3, batch=batch, generator=generator(0, "x"))
        assert len(found) == 3 and all(least <= one.ratio < most for one in found)


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("loss", ["simclr", "barlow-twins"])
def test_fresh_views_move_copies_apart(tiny, monkeypatch, loss, at_once):
    """Full batches too: every copy has views of its own, whether they are trained in one stack or one by one."""
    monkeypatch.setattr(loop, "networks_at_once", lambda *_: at_once)
    recipe = TeacherTraining(loss, epochs=3, warmup=0, batch=24)
    found = trajectory_variance(
        *student(dtype=torch.float32),
        TwoViews(tiny, Views(), 0),
        recipe.objective,
        PLAIN,
        epochs=3,
        repeats=3,
        batch=24,
        generator=generator(0, "x"),
    )
    assert all(1e-3 < one.ratio < 1.5 for one in found)
    assert found[0].distance < found[-1].distance and found[0].variance < found[-1].variance


@pytest.mark.parametrize("kind", ["targets", "fixed views"])
def test_one_step_has_the_variance_of_the_gradient(kind):
    """One batch of 8 of 12 images an epoch: lr^2 times the variance over the batches that the streams of the copies draw."""
    source, loss = {"targets": (regression(), squared_error), "fixed views": (pairs(), CONTRASTIVE["simclr"])}[kind]
    network, params = student()
    gradients = []
    for stream in split(generator(3, "x"), 6):
        at = torch.randperm(12, generator=stream)[None, :8]
        weights = {name: value.clone().requires_grad_() for name, value in params.items()}
        value = loss(network.apply(weights, source.batch(at)).logits, source.targets[at]).mean()
        grads = torch.autograd.grad(value, list(weights.values()))
        gradients.append(torch.cat([grad.flatten() for grad in grads]))
    wanted = variance(torch.stack(gradients))
    (found,) = trajectory_variance(
        network, params, source, loss, PLAIN, epochs=1, repeats=6, batch=8, generator=generator(3, "x"), whole_batches=True
    )
    assert found.variance == pytest.approx(0.01 * wanted.variance, rel=1e-9)
    squares = torch.stack(gradients).square().sum(1).mean()
    assert found.distance == pytest.approx(0.01 * float(squares), rel=1e-9)


def test_spread_is_that_of_a_plain_loop(as_module):
    """Two epochs of SGD with momentum by torch, copy after copy; batches of 5, 5 and 2."""
    network, params = student()
    source, optimizer, ends = regression(), SGD(0.1, 0.9, 1e-3), [[], []]
    for stream in split(generator(0, "x"), 4):
        module = as_module(network, params, 0).double()
        sgd = torch.optim.SGD(module.parameters(), 0.1, 0.9, weight_decay=1e-3)
        for epoch in range(2):
            for indices in torch.randperm(12, generator=stream).split(5):
                loss = (module(source.images[indices]) - source.targets[indices]).square().mean()
                sgd.zero_grad()
                loss.backward()
                sgd.step()
            ends[epoch].append({n: v.detach().clone() for n, v in module.named_parameters()})
    for out in (set(), head_names(network)):
        options = {"epochs": 2, "repeats": 4, "batch": 5, "generator": generator(0, "x"), "without": out}
        found = trajectory_variance(network, params, source, squared_error, optimizer, **options)
        for spread, copies in zip(found, ends, strict=True):
            total = distance = 0.0
            for name in copies[0].keys() - out:
                mean = sum(copy[name] for copy in copies) / 4
                total += sum((copy[name] - mean).square().sum() for copy in copies) / 3
                distance += sum((copy[name] - params[name][0]).square().sum() for copy in copies) / 4
            assert tuple(spread) == pytest.approx((float(total), float(distance)), rel=1e-9)


def test_statistics_do_not_count_and_the_start_is_left_alone(tiny):
    network, params = student("batch", torch.float32)
    before = {name: value.clone() for name, value in params.items()}
    arguments = {"epochs": 2, "repeats": 2, "batch": 10}
    runs = [
        trajectory_variance(network, params, tiny, cross_entropy, Adam(), generator=generator(seed, "x"), **arguments) for seed in (0, 0, 1)
    ]
    options = arguments | {"generator": generator(0, "x"), "without": trainable(params)}
    assert trajectory_variance(network, params, tiny, cross_entropy, Adam(), **options) == [Spread(0, 0)] * 2
    assert all(torch.equal(value, before[name]) for name, value in params.items())
    assert runs[0] == runs[1] != runs[2]


def test_students_of_images_are_a_source(tiny):
    """Real images, standardized, with targets of a teacher."""
    source = RegressionSet(tiny, normal(24, 5, dtype=torch.float32), tiny.digest)
    found = trajectory_variance(
        *student(dtype=torch.float32), source, squared_error, PLAIN, epochs=2, repeats=3, batch=10, generator=generator(0, "x")
    )
    assert all(1e-4 < one.ratio < 1.5 for one in found)


def test_spread_by_hand():
    assert Spread(4.0, 16.0).ratio == 0.25 and math.isnan(Spread(0.0, 0.0).ratio)


def test_trajectories_refuse(refused):
    network, params = student()
    arguments = {"epochs": 1, "repeats": 2, "batch": 4, "generator": generator(0, "x")}
    for change in ({"repeats": 1}, {"repeats": 0}, {"epochs": 0}):
        (name, value) = next(iter(change.items()))
        with refused(name, value):
            trajectory_variance(network, params, regression(), squared_error, PLAIN, **arguments | change)
    with pytest.raises(RunFailed, match="not finite after epoch 1; accepted"):
        trajectory_variance(network, params, regression(), squared_error, SGD(1e200), **arguments)
