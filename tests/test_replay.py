"""Steps as graphs: recorded on a CPU, operator by operator, they give the bits of the steps themselves; on a GPU so do CUDA graphs."""

from functools import partial

import pytest
import torch

from distillery import replay
from distillery.data import ImageSet, Standardize
from distillery.data.synthetic import Synthetic
from distillery.distill import Optimizer, distill
from distillery.matching.distribution import DistributionMatching
from distillery.matching.gradient import GradientMatching
from distillery.methods.idc import MultiFormation
from distillery.methods.idm import QueueMatching
from distillery.networks import ConvNet, block
from distillery.networks.precision import MixedPrecision, float32_matmul
from distillery.networks.video import ConvNet3D, PerFrame
from distillery.replay import Replay, ReplayedLoss
from distillery.sampling import Uniform
from distillery.seeds import generator
from distillery.training import Plan, train
from distillery.training.optimizers import GSAM, SGD, Adam
from recording import recording

SHAPE, FAMILIES = (3, 8, 8), "color_crop_cutout_flip"  # whose derivatives have the same bits every time on a GPU


def network(**options):
    return ConvNet(SHAPE, 3, width=4, **options)


def images(device):
    pixels = torch.randint(0, 256, (24, *SHAPE), generator=generator(0, "pixels"), dtype=torch.uint8)
    transform = Standardize(torch.full((3,), 0.5), torch.full((3,), 0.25))
    return ImageSet(pixels, torch.arange(24) % 3, ("a", "b", "c"), transform).to(device)


def trained(device, length=4, k=2, optimizer=SGD(0.05, drops=(7,)), augmentation=FAMILIES, plan=None, net=None, **options):
    """Weights, momentum and what was collected in some epochs, whose last batch is smaller."""
    net, real, kept = net or network(**options), images(device), []
    params = {name: value.to(device) for name, value in net.init(generator(0, "x"), k).items()}
    how = {"optimizer": optimizer, "augmentation": augmentation, "collect": ("loss", "margin"), "plan": plan, "chunk": k}
    how["after_epoch"] = lambda epoch, weights, momentum: kept.extend(momentum)
    weights, stats = train(net, params, real, generator=generator(0, "y"), epochs=length, batch=10, snapshots=(2,), **how)
    return [*weights.values(), *stats.snapshots[2].values(), *stats.collected.values(), *kept]


def distilled(device, length=5, *, make, formation="identity", net=None):
    """The set and its losses after some steps; classes in two chunks of unequal size."""
    tensors = {"images": torch.randn(6, *SHAPE, generator=generator(0, "set")), "targets": torch.arange(6) // 2}
    objective, real = make(net or network()), images(device)
    objective.map_limit = 2 * 8 * objective.network.channels * 64  # two classes of 8 images
    made, how = Synthetic(tensors, formation=formation).to(device), {"images": Optimizer(0.1, momentum=0.5)}
    done = distill(made, objective, real, Uniform(real.targets), how, length, generator(0, "z"))
    return [done.last.tensors["images"], done.log["loss"]]


def scaled(epoch, stats):
    """Weights, and a rate that changes in every epoch."""
    return Plan(torch.arange(24), torch.linspace(0.5, 1.5, 24), 1 + epoch / 8)


CLIPS = ConvNet3D(SHAPE, 3, 3, width=4)
STEPS = {
    "training": trained,
    "training, batch norm": partial(trained, k=1, normalization="batch"),
    "training, flat": partial(trained, k=1, optimizer=GSAM(0.05, 0.9, 5e-4)),
    "training, weights and rates": partial(trained, k=1, plan=scaled, augmentation=""),
    "training, clips": partial(trained, net=CLIPS),
    "training, frames": partial(trained, net=PerFrame(ConvNet((1, 8, 8), 3, width=4), 3)),
    "training, Adam": partial(trained, k=1, optimizer=Adam()),
    "DM": partial(distilled, make=lambda net: DistributionMatching(net, 8, FAMILIES)),
    "DM, low precision": partial(distilled, make=lambda net: DistributionMatching(net, 8, "", MixedPrecision(net, "bfloat16"))),
    "DM, clips": partial(distilled, make=lambda net: DistributionMatching(net, 8), net=CLIPS),
    "DC": partial(distilled, make=lambda net: GradientMatching(net, 3, 4, 8)),
    "DSA": partial(distilled, make=lambda net: GradientMatching(net, 3, 4, 8, FAMILIES)),
    "IDM": partial(distilled, make=lambda net: QueueMatching(net, 8, interval=2, train_steps=2, train_batch=8)),
    "IDC": partial(
        distilled, make=lambda net: MultiFormation(net, 8, inner=4, n_data=16, train_batch=8, most=3), formation="partition2"
    ),
}  # fmt: skip


COMPILED = partial(distilled, make=lambda net: DistributionMatching(net, 8, "", MixedPrecision(net, compiled=True)))


def same(ours, others):
    return len(ours) == len(others) and all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(ours, others, strict=True))


@pytest.mark.parametrize("name", STEPS)
def test_recorded_steps_have_the_bits_of_the_steps(name, monkeypatch):
    monkeypatch.setattr(block, "library", lambda: None)  # whose passes are no operators
    plain = STEPS[name]("cpu")
    with recording(monkeypatch) as captured:
        assert same(STEPS[name]("cpu"), plain)
    assert bool(captured) == (name != "training, Adam")  # whose every step has numbers of its own


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("step", [*STEPS.values(), COMPILED], ids=[*STEPS, "DM, compiled"])
def test_graphs_have_the_bits_of_the_steps(step, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(replay, "WORTH", 1)
    monkeypatch.setenv("DISTILLERY_GRAPHS", "0")
    plain = step("cuda")
    monkeypatch.setenv("DISTILLERY_GRAPHS", "1")
    assert same(step("cuda"), plain)  # a capture that fails warns, which is an error here


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", STEPS)
def test_no_step_copies_from_memory_that_is_not_pinned(name, monkeypatch):
    """More steps have as many such copies: those of what is prepared once."""
    monkeypatch.setattr(replay, "WORTH", 1)
    copies = []
    for length in (6, 12):
        with torch.profiler.profile() as seen:
            STEPS[name]("cuda", length)
        copies.append(sum("HtoD (Pageable" in event.name for event in seen.events()))
    assert copies[0] == copies[1]


def test_a_kind_is_captured_when_it_is_met_again(monkeypatch):
    """Until then, and on the CPU always, the function is called; other shapes and other fixed values are other kinds."""
    calls = []

    def double(values, *, factor):
        calls.append(factor)
        return [factor * values]

    with recording(monkeypatch) as captured:
        step = Replay(double)
        found, called = [], []
        for i in range(5):
            found.append(float(step(torch.full((2,), float(i)), factor=2)[0][0]))
            called.append(len(calls))
        assert found == [0, 2, 4, 6, 8] and len(captured) == 1
        assert called[0] == 1 < called[1] == called[-1]
        assert step(torch.ones(3), factor=2)[0].tolist() == [2, 2, 2] and step(torch.ones(2), factor=3)[0].tolist() == [3, 3]
        assert len(captured) == 1
    before = len(calls)
    step(torch.ones(2), factor=2)
    assert len(calls) == before + 1


def test_values_of_the_host_stay_what_they_were(monkeypatch):
    """What the stand-in is for: it finds what is no argument."""
    factor = 1
    with recording(monkeypatch):
        step = Replay(lambda values: [factor * values])
        for _ in range(2):
            step(torch.ones(1))
        factor = 5
        assert step(torch.ones(1))[0].item() == 1


def test_what_a_step_writes_is_handed_on_without_a_copy(monkeypatch):
    with recording(monkeypatch):
        step = Replay(lambda total, value: (total.add_(value), total * 2))
        total, places = torch.zeros(2), set()
        for i in range(5):
            total, twice = step(total, torch.full((2,), float(i)))
            places.add(total.data_ptr())
            assert total.tolist() == [sum(range(i + 1))] * 2 and torch.equal(twice, 2 * total)
        assert len(places) == 2  # its own before the capture, one place after


def test_the_least_recently_used_capture_goes_first(monkeypatch):
    with recording(monkeypatch) as captured:
        step = Replay(lambda values: [values + 1], most=2)
        for n in (1, 1, 2, 2, 1, 3, 3, 1, 2):
            assert step(torch.zeros(n))[0].tolist() == [1] * n
        assert len(captured) == 3 and len(step.known) == 2


def test_a_capture_that_fails_is_said_once_and_the_function_called(monkeypatch):
    def refuse(*_):
        raise RuntimeError("operation not permitted\nmore")

    monkeypatch.setattr(replay, "possible", lambda tensors: True)
    monkeypatch.setattr(replay, "capture", refuse)
    step = Replay(lambda values: [values + 1])
    for _ in range(replay.WORTH):
        step(torch.zeros(1))
    with pytest.warns(RuntimeWarning, match="without CUDA graphs.*operation not permitted$") as told:
        for _ in range(3):
            assert step(torch.zeros(1))[0].item() == 1
    assert len(told) == 1


def test_products_in_another_precision_are_another_kind(monkeypatch):
    with recording(monkeypatch) as captured:
        step = Replay(lambda values: [values + 1])
        for precision in ("float32", "tf32", "tf32", "float32"):
            with float32_matmul(precision):
                step(torch.zeros(1))
        assert len(captured) == 2


def test_a_loss_is_differentiable_once_in_its_last_tensor(monkeypatch):
    with recording(monkeypatch):
        loss, found = ReplayedLoss(lambda factor, values, *, power: (factor * values**power).sum()), []
        for i in range(4):
            leaf = torch.full((2,), 3.0, requires_grad=True)
            value = loss(torch.tensor([1.0, i]), 2 * leaf, power=2)
            found.append((value.item(), torch.autograd.grad(3 * value, leaf)[0].tolist()))
    assert found == [(36 * (1 + i), [72, 72 * i]) for i in range(4)]


def test_graphs_can_be_left_out(monkeypatch):
    class OnGPU(torch.Tensor):
        is_cuda = True

    there = {"a": [torch.zeros(1).as_subclass(OnGPU), None]}
    assert replay.possible(there) and not replay.possible([there, torch.zeros(1)])
    monkeypatch.setenv("DISTILLERY_GRAPHS", "0")
    assert not replay.possible(there)
