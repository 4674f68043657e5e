"""How many operators a step is, at published shapes: bounds, and what classes and networks add."""

import pytest
import torch

from distillery.data import TensorSource
from distillery.data.synthetic import Synthetic
from distillery.experts import Experts
from distillery.matching.distribution import DistributionMatching
from distillery.matching.gradient import GradientMatching
from distillery.matching.recorded import RecordedSweep
from distillery.matching.trajectory import StartEpochs, TrajectoryMatching
from distillery.networks import ConvNet
from distillery.sampling import RealBatches, Uniform
from distillery.seeds import generator
from distillery.training import train
from distillery.training.dsa import DSA
from distillery.training.optimizers import GSAM, SGD
from launches import META, as_graphs, launched, launched_a_step

SHAPE = (3, 32, 32)


def zeros(*shape, **options):
    return torch.zeros(*shape, device=META, **options)


def on_device(params):
    return {name: torch.empty_like(value, device=META) for name, value in params.items()}


def synthetic(classes=10):
    """One image a class; the classes of a set are looked at once, before all steps."""
    made = Synthetic({"images": zeros(classes, *SHAPE), "targets": zeros(classes, dtype=torch.long), "step_size": zeros(())})
    made._groups.update(labels=torch.arange(classes), members=zeros(classes, 1, dtype=torch.long))
    return made


def matching(kind, augmentation="", classes=10):
    """A step at 8 real images a class, all classes at once."""
    labels, made, net = torch.arange(classes).repeat_interleave(10), synthetic(classes), ConvNet(SHAPE, classes)
    real = TensorSource(zeros(len(labels), *SHAPE), zeros(len(labels), dtype=torch.long))
    objective = kind(net, batch=8, augmentation=augmentation)
    state = objective.start(made, generator(0, "start"))

    def step():
        objective.step(made, state, RealBatches(real, Uniform(labels), generator(0, "real")), generator(0, "step"))

    return launched(step)


def training(k=1, optimizer=SGD(0.01, 0.9, 5e-4), augmentation=""):
    """A step of K networks on 10 images, an epoch."""
    net, source = ConvNet(SHAPE, 10), TensorSource(zeros(10, *SHAPE), zeros(10, dtype=torch.long))
    params, how = on_device(net.init(generator(0, "x"), k)), {"optimizer": optimizer, "augmentation": augmentation, "chunk": k}
    return launched_a_step(lambda steps: train(net, params, source, generator=generator(0, "y"), steps=steps, **how))


def student():
    """A student step and its reverse, colors changed."""
    net = ConvNet(SHAPE, 10)
    start, bank = on_device(net.init(generator(0, "x"), 1)), Experts({"conv0.bias": torch.arange(2.0).view(1, 2, 1)})
    objective, made = TrajectoryMatching(net, bank, 1, 1, StartEpochs(0, 1), augmentation="color"), synthetic()
    recorded = RecordedSweep(objective.step_loss, objective.learns, made, start)

    def steps(n):
        objective.student_steps = n
        recorded(made, {}, start, start, objective.draws(made, generator(0, "a"), generator(0, "b")))

    return launched_a_step(steps)


STEPS = {  # operators, copies to the device, and operators where graphs are replayed
    "DM": (lambda: matching(DistributionMatching), 63, 2, 19),
    "DM, augmented": (lambda: matching(DistributionMatching, DSA), 263, 4, 219),
    "DC": (lambda: matching(GradientMatching), 696, 2, 20),
    "DSA": (lambda: matching(GradientMatching, DSA), 930, 4, 254),
    "training": (training, 42, 1, 5),
    "flat training, augmented": (lambda: training(1, GSAM(), "color"), 276, 1, 17),
    "evaluation of 5 networks": (lambda: training(5, augmentation="color"), 56, 1, 17),
    "student, both ways": (student, 623, 0, 7),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_so_many_operators(name, monkeypatch):
    step, operators, copies, replayed = STEPS[name]
    found = step()
    assert found.operators <= 1.05 * operators and found.copies <= copies
    as_graphs(monkeypatch)
    found = step()
    assert found.operators <= 1.05 * replayed and found.copies <= copies


def test_operators_grow_with_neither_classes_nor_networks():
    assert matching(DistributionMatching, classes=40) == matching(DistributionMatching)
    assert training(20) == training(5)
    more, few = (matching(GradientMatching, classes=classes).operators for classes in (40, 10))
    assert more - few <= 2 * 30  # torch differentiates grouped convolutions twice in a loop over groups, two a class
