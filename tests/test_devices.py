"""What is registered, and what is measured, runs on another device than the CPU and agrees with it: on a pretended one, and on a GPU where there is one."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch.utils._pytree import tree_leaves

from distillery import replay
from distillery.data import LazyImages, Splits, clips
from distillery.encoders.regression_set import RegressionSet
from distillery.evaluation import FineTuning, Probing, Protocol
from distillery.evaluation.judge import Judge
from distillery.experiment import Experiment, Presets, ScoreSettings
from distillery.measure import coverage, regimes
from distillery.measure.gates import Gates
from distillery.methods import METHODS
from distillery.networks import ConvNet
from distillery.networks.encoder import Encoder, head_names
from distillery.networks.video import ConvNet3D, PerFrame
from distillery.recipe import Prune, Recipe
from distillery.runs import Runs
from distillery.scores import SCORES, tdds
from distillery.seeds import generator
from elsewhere import There, pretended
from experiments import SHORT, TINY, experiment, made_for, unlabelled, untrained
from made_up import blobs


@contextmanager
def gpu():
    """Steps are graphs from the second one of a kind on."""
    worth, replay.WORTH = replay.WORTH, 1
    try:
        yield torch.device("cuda")
    finally:
        replay.WORTH = worth


HAS = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
THERE = pytest.mark.parametrize("there", [pretended, pytest.param(gpu, marks=[pytest.mark.cuda, HAS])], ids=["pretended", "cuda"])


def both(work, there):
    """What work(device) gives on the CPU and elsewhere."""
    expected = work(torch.device("cpu"))
    with there() as device:
        return expected, work(device)


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x + torch.ones(3),
        lambda x: x.sum() * torch.ones(3),
        lambda x: torch.where(x > 0, x, torch.zeros(3)),
        lambda x: torch.stack([x.sum(), torch.tensor(1.0)]),
        lambda x: torch.cat([x, torch.ones(1)]),
        lambda x: x.index_add(0, torch.tensor([1]), torch.ones(1)),
        lambda x: torch.ones(3)[x.long()],
        lambda x: x.index_put_((torch.tensor([0, 1]),), torch.ones(2)),
        lambda x: x.normal_(generator=generator(0, "x")),
        lambda x: torch.randperm(3, generator=generator(0, "x"), device=x.device),
        lambda x: x.numpy(),
    ],
)
def test_the_pretended_device_refuses_what_a_gpu_refuses(work):
    with pretended() as device, pytest.raises((RuntimeError, TypeError)):
        work(torch.zeros(3, device=device))


def test_the_pretended_device_computes():
    """With gradients, in place, and beside numbers and indices of the CPU."""
    with pretended() as device:
        x = torch.arange(6.0).to(device).view(2, 3).requires_grad_()
        y = (x[torch.tensor([1])] * torch.tensor(2.0) + torch.tensor([1.0, 0.0, -1.0], device=device)).square().sum()
        (gradient,) = torch.autograd.grad(y, x)
        assert isinstance(gradient, There) and gradient.tolist() == [[0, 0, 0], [28, 32, 36]] and y.tolist() == 7**2 + 8**2 + 9**2
        z = torch.zeros_like(gradient)
        z[0, torch.tensor([True, False, True])] += 1
        z.t_()
        assert z.shape == (3, 2) and z.cpu().tolist() == [[1, 0], [0, 0], [1, 0]] and z.device == device


@THERE
@pytest.mark.parametrize("method", METHODS)
def test_a_method_agrees_with_the_cpu(method, there, splits, tmp_path):
    """Its set moves as far and its networks are as good, but for rounding; what is read again is on the device."""
    one = METHODS[method]
    prune = Prune(0.5, "lowest" if one.labels is not False else "random") if one.prunes else None
    size = 4 if one.labels is False else 1
    recipe = Recipe(method, size * one.makes_set, 3, prune, "random" if method == "DATM" else "")

    def run(device):
        here = made_for(method, splits.to(device), untrained(splits), tmp_path / device.type)
        result = here.run(recipe)
        made = here.synthetic(result)
        found = {} if made is None else made.tensors | {name: value for name, value in made.card.items() if value is not None}
        assert all(value.device.type == device.type for value in found.values())
        return result, {name: value.cpu().double() for name, value in found.items()}

    (expected, tensors), (result, ours) = both(run, there)
    for name, value in tensors.items():
        moved = float((value - tensors["start"]).norm()) if name == "images" and "start" in tensors else 0.0
        assert float((ours[name] - value).norm()) <= 0.05 * moved + 1e-4 * float(value.norm()), name
    assert result["loss"] == pytest.approx(expected["loss"], rel=0.02)
    assert tree_leaves(result["accuracies"]) == pytest.approx(tree_leaves(expected["accuracies"]), abs=0.03)


PAIRS = ("DBP", "SSP")  # of two images alone in a cluster, which are as far from its centre, rounding says which is taken first


@THERE
@pytest.mark.parametrize("name", SCORES)
def test_a_score_agrees_with_the_cpu(name, there, splits, tmp_path, monkeypatch):
    monkeypatch.setattr(tdds, "EPOCHS", 12)

    def run(device):
        folder, here = tmp_path / device.type, splits.to(device)
        if SCORES[name].labels is False:
            return unlabelled(here, folder).scores.get(name, 3, 2)
        how = {"protocol": FineTuning(epochs=4, networks=2), "encoder": untrained(splits), "scores": ScoreSettings((2, 1), (2, 3))}
        return experiment(here, folder, TINY, **how).scores.get(name, 3, 2)

    expected, scores = both(run, there)
    assert scores.device.type == "cpu" and scores.dtype == expected.dtype
    assert float(torch.corrcoef(torch.stack([expected, scores]))[0, 1]) > (0.8 if name in PAIRS else 0.99)


# What is measured: (device, splits, folder) -> numbers by name


def covered(device, splits, folder):
    here = experiment(splits.to(device), folder, encoder=untrained(splits))
    [found] = coverage.run(here, (0.5,), 1, 0)
    return {way: numbers for way, numbers in found["0.5"].items() if way not in PAIRS}


def damaged(device, splits, folder):
    """Images under each regime, and weighted samples of them."""
    train, found = splits.train.to(device), {}
    for regime in regimes.REGIMES:
        worse = regimes.damaged(train, regime, 0.3, 0)
        found[regime] = torch.cat([worse.pixels.flatten().double(), worse.targets.double()]).tolist()
    quality = regimes.sample_quality(train, splits.test.to(device), 4, 1e-2, sizes=[40], trials=2, failure=0.1, seed=0)
    return found | {name: [*tree_leaves(one.accuracies), one.whole, one.dimension] for name, one in quality.items()}


def filmed(device, splits, folder):
    """Clips: sets for networks of frames, whose dropout is the same everywhere, tested with and without motion."""
    data, found = clips.moving_shapes(6, 4, 8).to(device), {}
    shape, n = data.train.shape, len(data.train.classes)
    tests = {"still": clips.still(data.test, 4), "shuffled": clips.shuffled(data.test, 4, generator(0, "shuffled")), "all": data.test}
    for network in (ConvNet3D(shape, n, 4, 8), PerFrame(ConvNet((1, 8, 8), n, 8), 4)):
        protocol, presets = Protocol(2, 3), Presets("cifar10", SHORT)
        here = Experiment(data, network, protocol, Runs(folder), augmentation="", presets=presets, scores=ScoreSettings((2, 1)))
        recipe = Recipe("DM", 1, 0, Prune(0.5))
        found[network.name] = [*here.run(recipe)["loss"], *tree_leaves(here.elsewhere(recipe, tests)["accuracies"])]
    return found


def gated(device, splits, folder):
    """The gates of pre-training, by a teacher's targets, of which the first components are learned."""
    images = blobs(per_class=8)
    net = ConvNet(images.shape, 6, width=4, depth=1)
    teacher = Encoder(net, {name: v for name, v in net.init(generator(7, "t"), 1).items() if name not in head_names(net)}, "teacher")
    task = Splits(images, blobs(6, seed=4), blobs(4, seed=5)).to(device)
    real = RegressionSet.of(teacher.to(device), task.train).components(5)
    network, changes = ConvNet(images.shape, 5, width=4, depth=1), SHORT | TINY | {"expert_lr": 0.5, "expert_batch": 8, "batch": 4}
    presets = Presets("cifar10", changes | {"lr_images": 1.0})
    here = Experiment(real, network, Probing(1, 2, labels=(0.5,)), Runs(folder), presets=presets, tasks={"own": task})
    gates = Gates(here, task, range(1))
    gates.untrained(network), gates.encoder("teacher", teacher), gates.ceiling(4, 0.0)
    for method, ask in {"MKDT": gates.matching, "KRR-ST": lambda *row: gates.regression(*row, teacher)}.items():
        recipe = Recipe(method, 4, 0)
        result = here.run(recipe)
        print(here.runs.missing)
        ask([here.job(recipe)], [here.synthetic(result)])
    return {name: tree_leaves(value) for name, value in gates.found.items()}


def judged(device, splits, folder):
    """Rates chosen on validation images, and networks under a teacher's labels of every batch."""
    here, judge = (
        experiment(splits.to(device), folder),
        Judge(splits.to(device), ConvNet(splits.train.shape, 10, 4), Runs(folder / "judge")),
    )
    teacher = judge.teacher(Protocol(1, 2, 0.05), 0, 4.0)
    return {"rates": tree_leaves(here.best_rate(Recipe("random", 2, 0), [0.1])["tried"])} | {
        "taught": judge(here.real.subset(torch.arange(40)), Protocol(1, 3), 0, teacher)["accuracies"]
    }


def mapped(device, splits, folder):
    """Images that stay on disk."""
    parts = {name: getattr(splits, name) for name in ("train", "validation", "test")}
    lazy = replace(splits, **{name: replace(one, pixels=LazyImages(one.pixels, torch.arange(len(one)))) for name, one in parts.items()})
    here = experiment(lazy.to(device), folder, TINY)
    return {name: here.run(Recipe(name, 1, 0, Prune(0.5)))["accuracies"] for name in ("DM", "RDED", "patches", "omni-supervised")}


@THERE
@pytest.mark.parametrize("measure", [covered, damaged, filmed, gated, judged, mapped])
def test_a_measure_agrees_with_the_cpu(measure, there, splits, tmp_path):
    expected, found = both(lambda device: measure(device, splits, tmp_path / device.type), there)
    assert found.keys() == expected.keys()
    for name, numbers in expected.items():
        assert found[name] == pytest.approx(numbers, rel=0.02, abs=0.03), name
