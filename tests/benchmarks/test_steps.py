"""What a step costs: training, distribution matching, gradient matching, evaluation.

Published shapes: ConvNet-3 of width 128 on 3 x 32 x 32, 256 real images a class and step, 10 classes, all augmented (DSA).
"""

import pytest
import torch
import torch.nn.functional as F
from published_shapes import CLASSES, DEVICE
from torch import nn

from distillery.data import TensorSource
from distillery.evaluation import Protocol
from distillery.measure import workloads
from distillery.networks import ConvNet
from distillery.networks.precision import MixedPrecision
from distillery.seeds import generator
from distillery.training import train
from distillery.training.dsa import DSA, augment, draw
from distillery.training.optimizers import SGD

PATHS = ("bare", "plain", "fast")
BF16 = ("avx512_bf16", "amx_bf16")  # CPUs that multiply bfloat16 faster than float32
CPU, GPU = DEVICE.type == "cpu", DEVICE.type == "cuda"
LOW = ("bfloat16", True)  # precision, compiled


@pytest.fixture(scope="session")
def fast(network):
    return MixedPrecision(network, *LOW)


def bare_training(modules, source, epochs, batch, augmentation=DSA):
    """The loop of a tutorial, one network after another, with the augmentation of the field."""
    stream = generator(0, "bare")
    for module in modules:
        optimizer = torch.optim.SGD(module.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
        for _ in range(epochs):
            for indices in torch.randperm(len(source), generator=stream).split(batch):
                indices = indices.to(DEVICE)
                images = source.images[indices]
                if augmentation:
                    images = augment(images[None], draw(augmentation, 1, len(indices), stream))[0]
                optimizer.zero_grad()
                F.cross_entropy(module(images), source.targets[indices]).backward()
                optimizer.step()


def training(network, fast, path, source, k, batch, augmentation=DSA):
    if path == "bare":
        modules = [workloads.module_of(network, i, DEVICE) for i in range(k)]
        return lambda: bare_training(modules, source, 1, batch, augmentation)
    return workloads.training(network, fast, source, k, batch, augmentation)[path]


def some(photographs, n):
    return TensorSource(photographs.batch(torch.arange(n, device=DEVICE)), photographs.targets[:n])


@pytest.mark.parametrize("path", PATHS)
def test_training_step_of_256(measure, network, fast, photographs, path):
    work = training(network, fast, path, some(photographs, 512), 1, 256)
    measure("training step of 256", path, work, 2.5 if CPU else None, BF16, per=2)


@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize("path", PATHS)
def test_training_of_32_networks(measure, network, fast, photographs, path):
    work = training(network, fast, path, some(photographs, 1024), 32, 256)
    measure("training of 32 networks, step of 256", path, work, 4.0, per=4)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("batch", "least"), [(10, 2.5), (256, 0.9)])
def test_smoke_training_of_10_networks(measure, path, batch, least):
    """Never slower at batch 256, where both run one by one: 0.9 leaves room for the clock."""
    small, stream = ConvNet((1, 8, 8), 10, 32), generator(0, "smoke")
    images = torch.randn(10 * batch, 1, 8, 8, generator=stream)
    targets = torch.randint(10, (len(images),), generator=stream)
    source = TensorSource(images.to(DEVICE), targets.to(DEVICE))
    work = training(small, small, path, source, 10, batch, "")
    measure(f"10 networks, 8 x 8, width 32, step of {batch}", path, work, least, per=10, rounds=9)


def scores(network, source, k, batch):
    """One epoch of k networks over `source`, both by `train`: plain without and fast with the mean loss of every image."""
    params = {name: value.to(source.images.device) for name, value in network.init(generator(0, "stack"), k).items()}

    def path(collect):
        return lambda: train(
            network,
            params,
            source,
            optimizer=SGD(),
            generator=generator(0, "order"),
            epochs=1,
            batch=batch,
            collect=collect,
            collect_mean=True,
        )

    return {"plain": path(()), "fast": path(("loss",))}


@pytest.mark.parametrize("path", ["plain", "fast"])
def test_scores(measure, path):
    """Scores may cost 1.1 times the training they are taken from, at small steps, where they cost most."""
    small, stream = ConvNet((1, 8, 8), 10, 32), generator(0, "scores")
    images = torch.randn(320, 1, 8, 8, generator=stream)
    source = TensorSource(images.to(DEVICE), torch.randint(10, (320,), generator=stream).to(DEVICE))
    work = scores(small, source, 5, 64)[path]
    measure("5 networks, 8 x 8, step of 64, with scores", path, work, 1 / 1.1, per=5, rounds=20)


# Distribution and gradient matching: one class after another with one nn.Module, as public code does it


def bare_matching(network, photographs, ipc, loss_of):
    stream, module = generator(1, "loop"), workloads.module_of(network, 0, DEVICE)
    made = workloads.first_of_class(photographs, ipc)
    images = made.tensors["images"].clone().requires_grad_()
    members = [photographs.of_class(c) for c in range(CLASSES)]

    def step():
        for c in range(CLASSES):
            indices = members[c][torch.randperm(len(members[c]), generator=stream)[:256].to(DEVICE)]
            drawn = draw(DSA, 1, 1, stream, siamese=True)
            real = augment(photographs.batch(indices)[None], drawn)[0]
            ours = augment(images[made.tensors["targets"] == c][None], drawn)[0]
            loss_of(module, real, ours, c).backward()

    return step


def bare_distribution(module, real, ours, c):
    features = nn.Sequential(*list(module)[:-1])
    with torch.no_grad():
        mean = features(real).mean(0)
    return (mean - features(ours).mean(0)).square().sum()


def bare_gradient(module, real, ours, c):
    weights = [value for value in module.parameters() if value.ndim > 1]
    grads = []
    for images, graph in ((real, False), (ours, True)):
        loss = F.cross_entropy(module(images), torch.full((len(images),), c, device=DEVICE))
        grads.append(torch.autograd.grad(loss, weights, create_graph=graph))
    total = 0.0
    for b, a in zip(*grads):
        a, b = a.flatten(1), b.flatten(1)
        total = total + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()
    return total


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("ipc", [1, 10])
@pytest.mark.parametrize("method", ["DM", "DC"])
def test_matching_step(measure, network, photographs, path, ipc, method):
    make, bare = {"DM": (workloads.distribution_step, bare_distribution), "DC": (workloads.gradient_step, bare_gradient)}[method]
    if path == "bare":
        work = bare_matching(network, photographs, ipc, bare)
    else:
        work = make(network, *LOW, photographs, ipc, 256)[path]
    least = {"DM": 4.0 if CPU else 5.0, "DC": 2.0 if CPU else None}[method]
    measure(f"{method} step, ipc {ipc}", path, work, least, BF16 if CPU else (), rounds=3)


# Evaluation


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("ipc", [1, 10])
def test_evaluation_of_10_networks(measure, network, fast, photographs, path, ipc):
    """Ten fresh networks, a few epochs on the set, tested on 100 images."""
    source = workloads.first_of_class(photographs, ipc).source()
    test = photographs.subset(torch.arange(0, len(photographs), 50, device=DEVICE)[:100])
    protocol = Protocol(networks=10, epochs=1, augmentation=DSA)

    def bare():
        modules = [workloads.module_of(network, i, DEVICE) for i in range(10)]
        bare_training(modules, source, protocol.epochs + 1, 256)
        with torch.no_grad():
            for module in modules:
                (module(test.batch(torch.arange(100, device=DEVICE))).argmax(1) == test.targets).sum().item()

    paths = {"bare": bare} | workloads.evaluation(network, fast, source, test, protocol)
    least = (2.0 if ipc == 10 else None) if CPU else (8.0 if ipc == 1 else None)
    measure(f"evaluation of 10 networks, ipc {ipc}", path, paths[path], least, BF16 if CPU else (), rounds=3, per=2)
