"""The scores that training yields: by hand, against their plain twins, and all from one pass."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from distillery.networks import ConvNet, pool
from distillery.scores import dynamics as scores
from distillery.scores.dynamics import Dynamics, drawn_forgetting, dynamics
from distillery.seeds import generator
from distillery.training import COLLECTORS, Stats, train
from distillery.training.optimizers import SGD
from made_up import blobs

VISITS = ("loss", "correct", "margin", "confidence")
STILL = SGD(0.0, momentum=0.0, weight_decay=0.0)


def net(width=4, **options):
    return ConvNet((1, 8, 8), 3, width=width, **options)


def made(**collected):
    """A pass of these statistics (E, T, N), without networks."""
    return Dynamics({}, Stats(collected={name: torch.tensor(v) for name, v in collected.items()}))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def passed():
    """(images, pass): one pass of 3 trials and 8 epochs in which sample 3 has a wrong label."""
    images = blobs()
    targets = images.targets.clone()
    targets[3] = 2
    images = replace(images, targets=targets)
    options = dict(batch=8, collect=VISITS, checkpoints=True, snapshots=(0, 1, 8))
    return images, dynamics(net(8), images, 3, 8, generator(0, "x"), **options)


# The pass


def test_the_default_call_is_the_plain_training(tiny):
    for mean in (False, True):
        stream = generator(0, "x")
        params, stats = train(
            net(),
            net().init(stream, 2),
            tiny,
            optimizer=SGD(0.05, 0.9, 5e-4),
            generator=stream,
            epochs=3,
            batch=64,
            collect=("loss",),
            collect_mean=mean,
        )
        got = dynamics(net(), tiny, 2, 3, generator(0, "x"), collect_mean=mean)
        assert same(got.params, params) and same(got.stats.collected, stats.collected)
        assert got.checkpoint_loss is None and got.stats.snapshots == {}


def test_checkpoints_and_collectors_leave_the_training_as_it_is(tiny):
    options = dict(collect=VISITS, checkpoints=True, snapshots=(0, 2))
    bare, full = (dynamics(net(), tiny, 2, 3, generator(0, "x"), batch=9, **o) for o in ({}, options))
    assert same(bare.params, full.params)
    assert torch.equal(bare.stats.collected["loss"], full.stats.collected["loss"])


@pytest.mark.parametrize("normalization", ["instance", "batch"])
def test_checkpoint_losses_are_those_of_the_weights_after_every_epoch(tiny, as_module, normalization):
    network = net(normalization=normalization)
    got = dynamics(network, tiny, 2, 3, generator(0, "x"), batch=9, checkpoints=True, snapshots=(1, 2, 3))
    assert got.checkpoint_loss.shape == (3, 2, 24)
    for epoch, row in enumerate(got.checkpoint_loss, 1):
        for trial in range(2):
            module = as_module(network, got.stats.snapshots[epoch], trial).eval()
            wanted = F.cross_entropy(module(tiny.batch(torch.arange(24))), tiny.targets, reduction="none")
            assert torch.allclose(row[trial], wanted, atol=1e-5)
    assert scores.cumulative_loss(got).tolist() == pytest.approx(
        [sum(got.checkpoint_loss[:, :, i].flatten().tolist()) / 6 for i in range(24)], rel=1e-5
    )


def test_one_pass_yields_every_score(passed, monkeypatch):
    """8 epochs of 24 images a network, and no training behind it."""
    images, got = passed
    assert (got.stats.samples, got.stats.steps) == (8 * 24, 8 * 3)
    monkeypatch.setattr(scores, "train", None)
    p = scores.predictions(net(8), got.params, images)
    for score in (
        *(f(got) for f in (scores.mean_loss, scores.forgetting, scores.aum, scores.cumulative_loss)),
        scores.el2n(p, images.targets),
        *(f(p) for f in (scores.least_confidence, scores.entropy, scores.margin)),
        scores.grand(net(8), got.stats.snapshots[1], images),
    ):
        assert score.shape == (24,) and score.is_floating_point() and score.device.type == "cpu"
        assert score.isfinite().all()


def test_a_mislabelled_image_is_the_hardest(passed):
    images, got = passed
    for score in (scores.mean_loss, scores.aum, scores.cumulative_loss, scores.forgetting):
        assert int(score(got).argmax()) == 3, score.__name__
    early = scores.predictions(net(8), got.stats.snapshots[8], images)
    assert int(scores.el2n(early, images.targets).argmax()) == 3
    grand = scores.grand(net(8), got.stats.snapshots[8], images)
    assert int(grand.argmax()) == 3


def test_training_starts_at_the_weights_given(tiny):
    weights = net().init(generator(1, "elsewhere"), 2)
    before = {name: value.clone() for name, value in weights.items()}
    given = dict(start=weights, checkpoints=True, snapshots=(0,))
    got = dynamics(net(), tiny, 2, 1, generator(0, "x"), optimizer=STILL, **given)
    assert same(got.params, before) and same(got.stats.snapshots[0], before)
    moved = dynamics(net(), tiny, 2, 1, generator(0, "x"), **given)
    assert same(weights, before) and same(moved.stats.snapshots[0], before)
    assert not same(moved.params, before)
    logits = net().apply(before, tiny.batch(torch.arange(24)), train=False).logits[1]
    wanted = F.cross_entropy(logits, tiny.targets, reduction="none")
    assert torch.allclose(got.checkpoint_loss[0, 1], wanted, atol=1e-6)


def test_optimizer_and_augmentation_reach_the_training(tiny):
    stream = generator(0, "x")
    weights = net().init(stream, 2)
    params, _ = train(net(), weights, tiny, optimizer=SGD(0.01), generator=stream, epochs=2, batch=9, augmentation="flip")
    options = dict(batch=9, optimizer=SGD(0.01), augmentation="flip")
    assert same(dynamics(net(), tiny, 2, 2, generator(0, "x"), **options).params, params)


def test_confidence_is_the_largest_probability():
    logits = torch.tensor([[[math.log(1), math.log(2), math.log(5)]]])
    assert COLLECTORS["confidence"](logits, torch.tensor([[0]]), None).item() == pytest.approx(5 / 8)


# From the visits

SEQUENCES = [
    ([0, 1, 0, 1, 1], 1),
    ([1, 0, 1, 0, 1], 2),
    ([0, 0, 1, 1, 1], 0),
    ([1, 1, 1, 1, 0], 1),
    ([0, 0, 0, 0, 0], 5),  # never learned: E
    ([1, 1, 1, 1, 1], 0),
]


def test_forgetting_by_hand():
    rows, wanted = zip(*SEQUENCES, strict=True)
    one = made(correct=[[list(map(float, epoch))] for epoch in zip(*rows, strict=True)])  # (5, 1, 6)
    assert scores.forgetting(one).tolist() == list(wanted)
    # a second trial with the samples in reverse: the mean of both counts
    two = made(correct=[[list(map(float, e)), list(map(float, e[::-1]))] for e in zip(*rows, strict=True)])
    assert scores.forgetting(two).tolist() == [(a + b) / 2 for a, b in zip(wanted, wanted[::-1], strict=True)]
    assert scores.forgetting(made(correct=[[[1.0, 0.0]]])).tolist() == [0, 1]


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 5), (9, 4, 30)])
def test_forgetting_equals_its_definition(shape):
    right = torch.rand(shape, generator=generator(0, "right")) < 0.4
    plain = scores.forgetting_plain(right.transpose(0, 1).tolist())
    assert scores.forgetting(made(correct=right.float().tolist())).tolist() == pytest.approx(plain, rel=1e-6)


def test_el2n_by_hand(refused):
    """Probabilities (.5, .25, .25) with label 0: sqrt(.25 + 2 / 16); with label 1: sqrt(.25 + .5625 + .0625)."""
    p = torch.tensor([[[0.5, 0.25, 0.25]] * 2, [[1.0, 0, 0]] * 2])  # (2, 2, 3)
    wanted = [0.375**0.5 / 2, (0.875**0.5 + 2**0.5) / 2]
    assert scores.el2n(p, torch.tensor([0, 1])).tolist() == pytest.approx(wanted)


def test_aum_by_hand():
    """Low margins are hard: the score is the negative mean."""
    got = made(margin=[[[1.0, -2]], [[3.0, -4]]])
    assert scores.aum(got).tolist() == [-2, 3]
    assert scores.aum(made(margin=[[[2.0, -3]]])).tolist() == [-2, 3]


def test_cumulative_loss_by_hand():
    """Two epochs of two trials."""
    got = replace(made(), checkpoint_loss=torch.tensor([[[1.0, 0], [2, 0]], [[3, 0], [6, 4]]]))
    assert scores.cumulative_loss(got).tolist() == [3, 1]


# From the final weights


def test_uncertainty_by_hand(refused):
    p = torch.tensor([[[1.0, 0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]], [[1, 0, 0], [0, 0, 1], [1 / 3] * 3]])
    h = -(0.2 * math.log(0.2) + 0.3 * math.log(0.3) + 0.5 * math.log(0.5))
    assert scores.least_confidence(p).tolist() == pytest.approx([0, 0.25, (0.5 + 2 / 3) / 2])
    assert scores.entropy(p).tolist() == pytest.approx([0, math.log(2) / 2, (h + math.log(3)) / 2])
    assert scores.margin(p).tolist() == pytest.approx([0, 0.5, (0.8 + 1) / 2])
    for score in (scores.least_confidence, scores.entropy, scores.margin):
        with refused("2", "probabilities"):  # logits are no probabilities
            score(3 * p)
        with refused("nan"):
            score(p * math.nan)


@pytest.mark.parametrize("normalization", ["instance", "batch"])
def test_predictions_are_those_of_the_modules_in_evaluation_mode(tiny, as_module, normalization):
    network = net(normalization=normalization)
    params = dynamics(network, tiny, 2, 2, generator(0, "x"), batch=9).params
    p = scores.predictions(network, params, tiny)
    assert p.shape == (2, 24, 3)
    for trial in range(2):
        module = as_module(network, params, trial).eval()
        assert torch.allclose(p[trial], module(tiny.batch(torch.arange(24))).softmax(-1), atol=1e-5)


def test_predictions_in_several_chunks():
    images = blobs(per_class=200)
    params = net().init(generator(0, "x"), 2)
    whole = net().apply(params, images.batch(torch.arange(600)), train=False).logits.softmax(-1)
    assert torch.allclose(scores.predictions(net(), params, images), whole, atol=1e-6)


# GraNd


@pytest.mark.parametrize("normalization", ["instance", "batch", "layer", "group", "none"])
@pytest.mark.parametrize("k, chunk", [(1, 64), (3, 7)])
def test_grand_equals_its_definition(tiny, normalization, k, chunk, monkeypatch):
    monkeypatch.setattr(scores, "GRADIENTS", chunk)
    network = net(normalization=normalization)
    params = dynamics(network, tiny, k, 1, generator(0, "x"), batch=8).params
    plain = scores.grand_plain(network, params, tiny)
    assert scores.grand(network, params, tiny).tolist() == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("name, normalization", [("ResNet18", "batch"), ("ResNet18_AP", "instance"), ("ViT", ""), ("LeNet", "")])
def test_grand_of_modules_equals_its_definition(name, normalization):
    images = blobs(per_class=3, shape=(3, 8, 8))
    network = pool.build(name, (3, 8, 8), 3, width=0.06, normalization=normalization)
    params = dynamics(network, images, 2, 1, generator(0, "x"), batch=4, optimizer=SGD(0.01, 0.9, 5e-4)).params
    before = {key: value.clone() for key, value in params.items()}
    plain = scores.grand_plain(network, params, images)
    assert scores.grand(network, params, images).tolist() == pytest.approx(plain, rel=1e-3)
    assert same(params, before)


def test_grand_by_hand(tiny):
    """All weights of the classifier at zero: uniform p. The head alone moves, by (p - y) z and (p - y)."""
    network = net()
    params = network.init(generator(0, "x"), 1)
    params |= {name: torch.zeros_like(params[name]) for name in ("head.weight", "head.bias")}
    z = network.embed(params, tiny.batch(torch.arange(24)))[0]  # (24, F)
    error = math.sqrt((2 / 3) ** 2 + 2 * (1 / 3) ** 2)
    wanted = error * (z.square().sum(1) + 1).sqrt()
    assert torch.allclose(scores.grand(network, params, tiny), wanted, rtol=1e-5)


def test_ties_of_forgetting_are_drawn_and_no_event_is_passed_over():
    events = torch.tensor([0.0, 0.25, 0.5]).repeat(200)  # of four networks
    passed = SimpleNamespace(images=range(600), tunings=4, tuned=lambda seed: {"forgetting": events})
    first, again, other = (drawn_forgetting(passed, seed, 1) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    by_events = [first[events == value] for value in (0.0, 0.25, 0.5)]
    assert by_events[0].max() < by_events[1].min() and by_events[1].max() < by_events[2].min()
    assert len(first.unique()) > 590
