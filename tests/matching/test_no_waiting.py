"""No step waits for the device: loops run on the `meta` device, where reading a value is impossible, and are watched.

A tensor on `meta` has no values, so `.item()`, `.cpu()`, `bool(tensor)`, `.unique()` and the like raise there as surely as they
would stall a GPU. What does not raise is a blocking copy to the device; the watcher below counts those.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distillery import distill as loop
from distillery.data import ImageSet, Standardize, TensorSource
from distillery.data.synthetic import Synthetic
from distillery.distill import Optimizer, distill
from distillery.evaluation import accuracy
from distillery.matching.distribution import DistributionMatching
from distillery.matching.gradient import GradientMatching
from distillery.methods.idc import MultiFormation
from distillery.methods.idm import QueueMatching
from distillery.networks import ConvNet
from distillery.networks.precision import MixedPrecision
from distillery.networks.video import ConvNet3D, PerFrame
from distillery.sampling import TreatmentEffect, Uniform
from distillery.seeds import generator
from distillery.training import Plan, train
from distillery.training.dsa import DSA
from distillery.training.optimizers import SGD
from distillery.training.views import TwoViews, Views

META = torch.device("meta")


class BlockingCopies(TorchDispatchMode):
    """Counts copies from the CPU to the device that the CPU waits for; a single number costs no copy."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.ops.aten._to_copy.default and not kwargs.get("non_blocking", False):
            goes, comes = kwargs.get("device"), args[0].device
            self.count += goes is not None and torch.device(goes) == META and comes != META and args[0].ndim > 0
        if function is torch.ops.aten.copy_.default and args[0].device != args[1].device:
            self.count += not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        if function is torch.ops.aten.index.Tensor and args[0].device == META:
            self.count += sum(index is not None and index.device != META for index in args[1])
        return function(*args, **kwargs)


@pytest.fixture
def watched():
    with BlockingCopies() as copies:
        yield copies


def network():
    return ConvNet((3, 8, 8), 3, width=4)


class Source(TensorSource):
    device = META


def source(n=12):
    labels = torch.arange(n) % 3
    return Source(torch.zeros(n, 3, 8, 8, device=META), labels.to(META, non_blocking=True))


def test_the_watcher_sees_what_it_should(watched):
    values = torch.zeros(3, device=META)
    for read in (lambda: values.sum().item(), values.cpu, values.unique, lambda: bool(values.any())):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read()
    torch.zeros(3).to(META, non_blocking=True)
    assert watched.count == 0
    torch.zeros(3).to(META)
    values[torch.tensor([0, 1])]
    assert watched.count == 2


@pytest.mark.parametrize("views", [False, True])
def test_reading_images_never_waits(watched, views):
    """Nor do two views of them."""
    images = ImageSet(torch.zeros(12, 3, 8, 8, dtype=torch.uint8), torch.arange(12) % 3, ("a", "b", "c"), Standardize(*torch.ones(2, 3)))
    images, before = images.to(META), watched.count
    read = TwoViews(images, Views(), 0) if views else images
    assert read.batch(torch.zeros(2, 5, dtype=torch.long, device=META)).shape == (2, 10 if views else 5, 3, 8, 8)
    assert watched.count == before


def test_weights_of_a_plan_may_live_on_the_device(watched):
    params = {name: torch.empty_like(v, device=META) for name, v in network().init(generator(0, "x")).items()}
    plan = Plan(torch.arange(12), torch.ones(12, device=META))
    train(network(), params, source(), generator=generator(0, "y"), steps=3, batch=5, plan=lambda *_: plan)
    assert watched.count == 0


def test_cutmix_never_waits(watched):
    params = {name: torch.empty_like(v, device=META) for name, v in network().init(generator(0, "x"), 2).items()}
    train(network(), params, source(), generator=generator(0, "y"), epochs=2, batch=5, augmentation="color+crop", cutmix=0.5)
    assert watched.count == 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(
    "net", [network(), ConvNet3D((3, 8, 8), 3, 3, width=4), PerFrame(ConvNet((1, 8, 8), 3, width=4), 3)], ids=["images", "clips", "frames"]
)
def test_training_never_waits(watched, net, k, precision):
    params = {name: torch.empty_like(v, device=META) for name, v in net.init(generator(0, "x"), k).items()}
    trained, stats = train(
        MixedPrecision(net, precision),
        params,
        source(),
        optimizer=SGD(drops=(3,)),
        generator=generator(0, "y"),
        epochs=2,
        batch=5,
        augmentation=DSA,
        collect=("loss",),
        chunk=k,
    )
    assert stats.steps == 6 and trained["head.bias"].device == META
    assert watched.count == 0


def test_testing_waits_once(watched, monkeypatch):
    """The only read is the final count of right answers."""
    reads = []
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: reads.append(self.shape) or torch.zeros(self.shape))
    params = {name: torch.empty_like(v, device=META) for name, v in network().init(generator(0, "x"), 2).items()}
    accuracy(network(), params, source(), batch=4)
    assert reads == [(1, 2)]  # one count of right answers, of two networks
    assert watched.count == 0


@pytest.mark.parametrize("effects", [False, True])
@pytest.mark.parametrize("method", ["DM", "DC", "DC, inner training", "IDM", "IDC"])
def test_distillation_steps_never_wait(watched, monkeypatch, method, effects):
    """Beyond the look for NaN every CHECK_EVERY steps and the end, nothing is read."""
    monkeypatch.setattr(loop, "_check_finite", lambda *_: None)
    monkeypatch.setattr(loop, "_stack_log", lambda log: {"steps": torch.tensor(len(log))})
    cpu = torch.arange(3).repeat_interleave(4)
    real = Source(torch.zeros(12, 3, 8, 8, device=META), cpu.to(META, non_blocking=True))
    made = Synthetic({"images": torch.zeros(6, 3, 8, 8, device=META), "targets": torch.zeros(6, dtype=torch.long, device=META)})
    # the classes of a set are looked at once, before the loop
    made._groups.update(labels=torch.arange(3), members=torch.arange(6).view(3, 2).to(META, non_blocking=True))
    options = {"augmentation": DSA, "real_network": MixedPrecision(network(), "bfloat16")}
    if method == "DM":
        objective = DistributionMatching(network(), 4, **options)
    elif method == "IDM":
        objective = QueueMatching(network(), 4, interval=1, train_steps=2, train_batch=4, **options)
    elif method == "IDC":
        transform = Standardize(torch.full((3,), 0.5), torch.full((3,), 0.2))
        objective = MultiFormation(
            network(),
            4,
            real_network=options["real_network"],
            formation="identity",
            inner=3,
            n_data=8,
            train_batch=4,
            most=1,
            transform=transform,
        )
    else:
        objective = GradientMatching(network(), 1 if method == "DC" else 3, 1, 4, **options)
    sampler = TreatmentEffect(cpu, 0.2, every=2) if effects else Uniform(cpu)
    sampler.state = {name: value.to(META, non_blocking=True) for name, value in sampler.state.items()}
    done = distill(made, objective, real, sampler, {"images": Optimizer(0.1, momentum=0.5)}, 4, generator(0, "x"))
    assert done.log["steps"] == 4
    assert watched.count == 0


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_training_on_a_gpu_never_waits():
    params = {name: value.cuda() for name, value in network().init(generator(0, "x"), 3).items()}
    images = TensorSource(torch.zeros(12, 3, 8, 8).cuda(), (torch.arange(12) % 3).cuda())
    torch.cuda.set_sync_debug_mode("error")
    try:
        train(network(), params, images, generator=generator(0, "y"), epochs=2, batch=5, augmentation=DSA)
    finally:
        torch.cuda.set_sync_debug_mode("default")
