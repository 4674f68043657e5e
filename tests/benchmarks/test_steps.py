"""What a step costs: training, distribution matching, gradient matching, evaluation.

Published shapes: ConvNet-3 of width 128 on 3 x 32 x 32, 256 real images a class and step, 10 classes, all augmented (DSA).
"""

import pytest
import torch
import torch.nn.functional as F
from published_shapes import CLASSES, DEVICE
from torch import nn

from distillery.augment import DSA, Draw, augment, draw
from distillery.evaluation import Protocol, accuracy, evaluate
from distillery.fast import Fast
from distillery.matching.distribution import DistributionMatching, distribution_loss_plain
from distillery.matching.gradient import GradientMatching, gradient_loss_plain
from distillery.networks import ConvNet
from distillery.sampling import RealBatches, Uniform
from distillery.seeds import generator, split
from distillery.synthetic import Synthetic
from distillery.training import SGD, TensorSource, train, train_plain

PATHS = ("bare", "plain", "fast")
BF16 = ("avx512_bf16", "amx_bf16")  # CPUs that multiply bfloat16 faster than float32
CPU, GPU = DEVICE.type == "cpu", DEVICE.type == "cuda"


@pytest.fixture(scope="session")
def fast(network):
    return Fast(network, "bfloat16", compiled=True)


@pytest.fixture(scope="session")
def fused(network):
    """Float32 and compiled, for synthetic images that are differentiated once."""
    return Fast(network, "float32", compiled=True)


def one_module(network, seed=0):
    module = network.module()
    params = network.init(generator(seed, "module"), 1)
    module.load_state_dict({name: value[0] for name, value in params.items()})
    return module.to(DEVICE)


def stacked(network, k, seed=0):
    return {name: value.to(DEVICE) for name, value in network.init(generator(seed, "stack"), k).items()}


def tensors(images, n):
    """The first n images of every class as a synthetic set."""
    chosen = torch.cat([torch.arange(n) + 512 * c for c in range(CLASSES)]).to(DEVICE)
    return Synthetic({"images": images.batch(chosen), "targets": images.targets[chosen]})


def bare_training(module, images, targets, epochs, batch, lr=0.01, augmentation=DSA):
    """The loop of a tutorial, with the augmentation of the field."""
    optimizer = torch.optim.SGD(module.parameters(), lr, momentum=0.9, weight_decay=5e-4)
    stream = generator(0, "bare")
    for _ in range(epochs):
        for indices in torch.randperm(len(images), generator=stream).split(batch):
            batch_images = images[indices.to(DEVICE)]
            if augmentation:
                drawn = draw(augmentation, 1, len(indices), stream)
                batch_images = augment(batch_images[None], drawn)[0]
            optimizer.zero_grad()
            F.cross_entropy(module(batch_images), targets[indices.to(DEVICE)]).backward()
            optimizer.step()


# Training


def training(network, fast, path, source, *, k, batch, steps, augmentation=DSA):
    """`steps` steps of k networks, as a function to time."""
    modules = [one_module(network, i) for i in range(k)]
    params, sgd = stacked(network, k), SGD()
    some = TensorSource(
        source.batch(torch.arange(batch * steps, device=DEVICE)), source.targets[: batch * steps]
    )

    def bare():
        for module in modules:
            bare_training(module, some.images, some.targets, 1, batch, augmentation=augmentation)

    def plain():
        for i, module in enumerate(modules):
            train_plain(
                module, some, sgd, stream=generator(i, "x"), epochs=1, batch=batch, augmentation=augmentation
            )

    def stack():
        train(
            fast, params, some, optimizer=sgd, generator=generator(0, "x"), epochs=1, batch=batch,
            augmentation=augmentation,
        )  # fmt: skip

    return {"bare": bare, "plain": plain, "fast": stack}[path]


@pytest.mark.parametrize("path", PATHS)
def test_training_step_of_256(measure, network, fast, photographs, path):
    work = training(network, fast, path, photographs, k=1, batch=256, steps=2)
    measure("training step of 256", path, work, 2.5 if CPU else None, BF16, per=2)


@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize("path", PATHS)
def test_training_of_32_networks(measure, network, fast, photographs, path):
    work = training(network, fast, path, photographs, k=32, batch=256, steps=4)
    measure("training of 32 networks, step of 256", path, work, 4.0, per=4)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("batch", "least"), [(10, 2.5), (256, 1.0)])
def test_smoke_training_of_10_networks(measure, path, batch, least):
    small = ConvNet((1, 8, 8), 10, 32)
    stream = generator(0, "smoke")
    source = TensorSource(
        torch.randn(batch, 1, 8, 8, generator=stream).to(DEVICE),
        torch.randint(10, (batch,), generator=stream).to(DEVICE),
    )
    one = training(small, small, path, source, k=10, batch=batch, steps=1, augmentation="")

    def ten():
        for _ in range(10):
            one()

    # the same convolutions one by one are a tie at batch 256: 0.9 leaves room for the clock
    measure(
        f"10 networks, 8 x 8, width 32, step of {batch}",
        path,
        ten,
        least if least > 1 else 0.9,
        per=10,
        rounds=9,
    )


# Distribution and gradient matching


def loop_over_classes(network, photographs, made, loss_of):
    """One class after another with one nn.Module, as public code does it: (module, real, synthetic) -> loss."""
    stream = generator(1, "loop")
    module = one_module(network)
    images = made.tensors["images"].clone().requires_grad_()
    for c in range(CLASSES):
        indices = (torch.randperm(512, generator=stream)[:256] + 512 * c).to(DEVICE)
        drawn = draw(DSA, 1, 1, stream, siamese=True)
        real = augment(photographs.batch(indices)[None], drawn)[0]
        ours = augment(images[made.tensors["targets"] == c][None], drawn)[0]
        loss_of(module, real, ours, c).backward()
    return images.grad


def bare_distribution(module, real, ours, c):
    features = nn.Sequential(*list(module)[:-1])
    return (features(real).detach().mean(0) - features(ours).mean(0)).square().sum()


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


def matching_step(network, path, photographs, made, objective, plain_loss, bare_loss):
    """One gradient on the pixels from 256 fresh real images a class, as a function to time."""
    sampler = Uniform(photographs.targets)
    state = objective.start(made, generator(0, "start"))
    labels = torch.arange(CLASSES, device=DEVICE)

    def plain():
        weights_stream, augment_stream = split(generator(2, "step"), 2)
        params = {name: value.to(DEVICE) for name, value in network.init(weights_stream, 1).items()}
        real, weights = RealBatches(photographs, sampler, generator(3, "real")).classes(labels, 256)
        drawn = draw(DSA, CLASSES, 1, augment_stream, siamese=True)
        images = made.tensors["images"].detach().requires_grad_()
        grouped = images[made.classes_present()[1]]
        loss = plain_loss(network, params, real, weights, grouped, labels, drawn)
        return torch.autograd.grad(loss, images)

    def step():
        objective.step(
            made, state, RealBatches(photographs, sampler, generator(3, "real")), generator(2, "step")
        )

    return {
        "bare": lambda: loop_over_classes(network, photographs, made, bare_loss),
        "plain": plain,
        "fast": step,
    }[path]


def plain_distribution(network, params, real, weights, grouped, labels, drawn: Draw | None):
    return distribution_loss_plain(network, params, real, weights, grouped, drawn)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("ipc", [1, 10])
def test_distribution_matching_step(measure, network, fast, fused, photographs, path, ipc):
    objective = DistributionMatching(fused, augmentation=DSA, real_network=fast)
    work = matching_step(
        network,
        path,
        photographs,
        tensors(photographs, ipc),
        objective,
        plain_distribution,
        bare_distribution,
    )
    measure(f"DM step, ipc {ipc}", path, work, 4.0 if CPU else 5.0, BF16)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("ipc", [1, 10])
def test_gradient_matching_step(measure, network, fast, photographs, path, ipc):
    objective = GradientMatching(network, updates=1, augmentation=DSA, real_network=fast)
    work = matching_step(
        network, path, photographs, tensors(photographs, ipc), objective, gradient_loss_plain, bare_gradient
    )
    measure(f"DC step, ipc {ipc}", path, work, 2.0 if CPU else None, BF16)


# Evaluation


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("ipc", [1, 10])
def test_evaluation_of_10_networks(measure, network, fast, photographs, path, ipc):
    """Ten fresh networks, two epochs on the set, tested on 500 images."""
    source = tensors(photographs, ipc).source()
    test = photographs.subset(torch.arange(0, len(photographs), 10, device=DEVICE)[:500])
    protocol = Protocol(networks=10, epochs=4, augmentation=DSA)

    def tested(module):
        module.eval()
        with torch.no_grad():
            return sum(
                (module(test.batch(part)).argmax(1) == test.targets[part]).sum()
                for part in torch.arange(len(test), device=DEVICE).split(500)
            )

    def bare():
        for i in range(10):
            module = one_module(network, i)
            bare_training(module, source.images, source.targets, protocol.epochs + 1, 256)
            tested(module)

    def plain():
        for i in range(10):
            module = one_module(network, i)
            train_plain(
                module, source, SGD(), stream=generator(i, "x"), epochs=protocol.epochs + 1, batch=256, augmentation=DSA
            )  # fmt: skip
            accuracy(network, {name: value[None] for name, value in module.state_dict().items()}, test)

    def stack():
        evaluate(fast, source, protocol, test, generator(0, "x"))

    least = (2.0 if ipc == 10 else None) if CPU else (8.0 if ipc == 1 else None)
    measure(
        f"evaluation of 10 networks, ipc {ipc}", path, {"bare": bare, "plain": plain, "fast": stack}[path],
        least, BF16 if CPU else (), rounds=3, per=5,
    )  # fmt: skip
