"""What a step costs: training, distribution, gradient and trajectory matching, evaluation.

Published shapes: ConvNet-3 of width 128 on 3 x 32 x 32, 256 real images a class and step, 10 classes, all augmented (DSA). The bare loop has the
structure of the public code: one nn.Module, one class after another, float32, memory as the system gives it out. 'fast' is what
notebooks run unless told otherwise; 'low' is bfloat16, compiled, where the processor multiplies in it.
"""

import pytest
import torch
import torch.nn.functional as F
from published_shapes import CLASSES, DEVICE
from torch import nn

from distillery.data import TensorSource
from distillery.data.synthetic import Synthetic
from distillery.evaluation import Protocol
from distillery.experts import Experts
from distillery.matching.trajectory import StartEpochs, TrajectoryMatching
from distillery.measure import workloads
from distillery.networks import ConvNet
from distillery.networks.precision import MixedPrecision
from distillery.seeds import generator
from distillery.training import train
from distillery.training.dsa import DSA, augment, draw
from distillery.training.optimizers import GSAM, SGD

CPU, GPU = DEVICE.type == "cpu", DEVICE.type == "cuda"
UNITS = GPU or any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))  # that multiply bfloat16
PATHS = ("bare", "plain", "fast", *["low"] * UNITS)
HOW = {"plain": ("float32", False), "fast": ("float32", False), "low": ("bfloat16", True)}  # precision, compiled


@pytest.fixture(scope="session")
def fast(network):
    return {path: MixedPrecision(network, *how) for path, how in HOW.items()}


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
    return of(path, workloads.training(network, fast[path], source, k, batch, augmentation))


def of(path, paths):
    """One of the paths of a workload, whose fast one runs in the precision that it was made for."""
    return paths["plain" if path == "plain" else "fast"]


def some(photographs, n):
    return TensorSource(photographs.batch(torch.arange(n, device=DEVICE)), photographs.targets[:n])


@pytest.mark.parametrize("product", ["a matrix of 2,048 x 2,048", "a 3 x 3 convolution of 128 channels, 64 maps of 16 x 16"])
def test_peak(measure, product):
    """The fastest float32 product of this machine, of which every row states a share."""
    a, x, w = (
        torch.randn(shape, generator=generator(0, "peak")).to(DEVICE) for shape in ((2048, 2048), (64, 128, 16, 16), (128, 128, 3, 3))
    )
    work = {True: lambda: a @ a, False: lambda: F.conv2d(x, w, padding=1)}["matrix" in product]
    measure(product, "peak", work, rounds=20)


@pytest.mark.parametrize("path", PATHS)
def test_training_step_of_256(measure, network, fast, photographs, path):
    work = training(network, fast, path, some(photographs, 512), 1, 256)
    measure("training step of 256", path, work, {"fast": 1.8, "low": 2.5}.get(path) if CPU else None, per=2)


def bare_gsam(module, source, batch):
    """FTD's descent (GSAM) in a loop: the gradients at the weights and at the perturbed ones, then one step."""
    weights = list(module.parameters())

    def gradients(x, y):
        return torch.autograd.grad(F.cross_entropy(module(x), y), weights)

    stream = generator(0, "bare")
    for at in range(0, len(source), batch):
        x = augment(source.images[at : at + batch][None], draw(DSA, 1, batch, stream))[0]
        y = source.targets[at : at + batch]
        first = gradients(x, y)
        scale = 0.01 / torch.cat([(w.abs() * g).flatten() for w, g in zip(weights, first)]).norm()
        moved = [w.detach().square() * g * scale for w, g in zip(weights, first)]
        with torch.no_grad():
            torch._foreach_add_(weights, moved)
        second = gradients(x, y)
        share = sum((a * b).sum() for a, b in zip(first, second)) / sum(b.square().sum() for b in second)
        with torch.no_grad():
            torch._foreach_sub_(weights, moved)
            for w, a, b in zip(weights, first, second):
                w -= 0.01 * (b - 1.0 * (a - share * b))


@pytest.mark.parametrize("path", ["bare", "fast"])
def test_gsam_step_of_256(measure, network, photographs, path):
    source = some(photographs, 512)
    params = {name: value.to(DEVICE) for name, value in network.init(generator(0, "gsam"), 1).items()}
    module, how = workloads.module_of(network, 0, DEVICE), GSAM(0.01, 0.0, 0.0, rho=0.01, alpha=1.0)

    def fast():
        train(network, params, source, optimizer=how, generator=generator(0, "order"), epochs=1, batch=256, augmentation=DSA)

    measure("GSAM step of 256", path, fast if path == "fast" else lambda: bare_gsam(module, source, 256), 1.8 if CPU else None, per=2)


@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize("path", PATHS)
def test_training_of_32_networks(measure, network, fast, photographs, path):
    work = training(network, fast, path, some(photographs, 1024), 32, 256)
    measure("training of 32 networks, step of 256", path, work, 4.0 if path == "low" else None, per=4)


@pytest.mark.parametrize("path", ["bare", "plain", "fast"])
@pytest.mark.parametrize(("batch", "least"), [(10, 2.5), (256, 0.9)])
def test_smoke_training_of_10_networks(measure, path, batch, least):
    """Never slower at batch 256, where both run one by one: 0.9 leaves room for the clock."""
    small, stream = ConvNet((1, 8, 8), 10, 32), generator(0, "smoke")
    images = torch.randn(10 * batch, 1, 8, 8, generator=stream)
    targets = torch.randint(10, (len(images),), generator=stream)
    source = TensorSource(images.to(DEVICE), targets.to(DEVICE))
    work = training(small, {"plain": small, "fast": small}, path, source, 10, batch, "")
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
        work = of(path, make(network, *HOW[path], photographs, ipc, 256))
    least = {"DM": {"fast": 2.5, "low": 4.0}, "DC": {"fast": 2.0, "low": 2.0}} if CPU else {"DM": {"low": 5.0}, "DC": {}}
    measure(f"{method} step, ipc {ipc}", path, work, least[method].get(path), rounds=2)


@pytest.mark.parametrize("path", ["bare", "plain", "fast"])
@pytest.mark.parametrize(("side", "width", "steps", "least"), [(32, 128, 20, 1.1), (8, 32, 20, 0.95)])
def test_trajectory_step(measure, path, side, width, steps, least):
    """One gradient of MTT at ipc 1, for each of its student steps."""
    net, stream = ConvNet((3 if side == 32 else 1, side, side), CLASSES, width), generator(0, "trajectory")
    first = {name: value.to(DEVICE) for name, value in net.init(stream, 1).items()}
    bank = Experts({name: torch.stack([value, value + 0.01], 1) for name, value in first.items()})
    images = torch.randn(CLASSES, *net.shape, generator=stream)
    made = Synthetic({"images": images, "targets": torch.arange(CLASSES), "step_size": torch.tensor(0.01)}).to(DEVICE)
    objective = TrajectoryMatching(
        net, bank, steps, 1, StartEpochs(0, 1), augmentation=DSA, gradient="unrolled" if path == "plain" else "exact"
    )
    state, module = objective.start(made, generator(0, "start")), workloads.module_of(net, 0, DEVICE)

    def bare():
        order, pixels = generator(0, "bare"), made.tensors["images"].clone().requires_grad_()
        rate, theta = made.tensors["step_size"].clone().requires_grad_(), {name: value[0] for name, value in first.items()}
        theta = {name: value.clone().requires_grad_() for name, value in theta.items()}
        for _ in range(steps):
            x = augment(pixels[None], draw(DSA, 1, len(pixels), order))[0]
            loss = F.cross_entropy(torch.func.functional_call(module, theta, x), made.tensors["targets"])
            grads = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
            theta = {name: value - rate * grad for (name, value), grad in zip(theta.items(), grads)}
        gap = sum((value - first[name][0] - 0.01).square().sum() for name, value in theta.items())
        torch.autograd.grad(gap, [pixels, rate])

    work = bare if path == "bare" else lambda: objective.step(made, state, None, generator(0, "step"))
    measure(f"MTT student step, ipc 1, {side} x {side}", path, work, least if CPU else None, per=steps, rounds=3)


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

    work = bare if path == "bare" else of(path, workloads.evaluation(network, fast[path], source, test, protocol))
    least = {"fast": 1.3, "low": 2.0 if ipc == 10 else None} if CPU else {"low": 8.0 if ipc == 1 else None}
    measure(f"evaluation of 10 networks, ipc {ipc}", path, work, least.get(path), rounds=2, per=2)
