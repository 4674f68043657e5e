"""The pieces of work whose cost is measured, each as its plain twin and as the fast path, on the same images.

Plain: one network, one class at a time, float32, uncompiled. Fast: what experiments run with the given options.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from distillery.data import ImageSet, TensorSource
from distillery.data.synthetic import Synthetic
from distillery.evaluation import Protocol, accuracy, evaluate
from distillery.matching.distribution import DistributionMatching, distribution_loss_plain
from distillery.matching.gradient import GradientMatching, gradient_loss_plain
from distillery.networks import ConvNet
from distillery.networks.precision import MixedPrecision
from distillery.sampling import RealBatches, Uniform
from distillery.seeds import generator, split
from distillery.training import train, train_plain
from distillery.training.dsa import DSA, draw
from distillery.training.optimizers import SGD

Paths = dict[str, Callable[[], object]]  # 'plain' and 'fast'


def module_of(network: ConvNet, seed: int, device: torch.device) -> torch.nn.Module:
    """A freshly initialized nn.Module of the architecture."""
    module, params = network.module(), network.init(generator(seed, "module"), 1)
    module.load_state_dict({name: value[0] for name, value in params.items()})
    return module.to(device)


def first_of_class(images: ImageSet, n: int) -> Synthetic:
    """The first n images of every class as a synthetic set."""
    chosen = torch.cat([images.of_class(label)[:n] for label in range(len(images.classes))])
    return Synthetic({"images": images.batch(chosen), "targets": images.targets[chosen]}, images.classes)


def training(network: ConvNet, fast, source: TensorSource, k: int, batch: int, augmentation: str = DSA) -> Paths:
    """One epoch of k networks over `source`."""
    device, sgd = source.images.device, SGD()
    modules = [module_of(network, i, device) for i in range(k)]
    params = {name: value.to(device) for name, value in network.init(generator(0, "stack"), k).items()}

    def plain():
        for i, module in enumerate(modules):
            stream = generator(i, "order")
            train_plain(module, source, sgd, stream=stream, epochs=1, batch=batch, augmentation=augmentation)

    def stacked():
        stream = generator(0, "order")
        train(fast, params, source, optimizer=sgd, generator=stream, epochs=1, batch=batch, augmentation=augmentation)

    return {"plain": plain, "fast": stacked}


def evaluation(network: ConvNet, fast, source: TensorSource, test: ImageSet, protocol: Protocol) -> Paths:
    """Fresh networks trained on a small set and tested."""
    how = {"batch": protocol.batch, "augmentation": protocol.augmentation}

    def plain():
        scores = []
        for i in range(protocol.networks):
            module = module_of(network, i, test.device)
            train_plain(module, source, SGD(), stream=generator(i, "order"), epochs=protocol.epochs + 1, **how)
            weights = {name: value[None] for name, value in module.state_dict().items()}
            scores.append(accuracy(network, weights, test))
        return scores

    return {"plain": plain, "fast": lambda: evaluate(fast, source, protocol, test, generator(0, "networks"))}


def distribution_step(
    network: ConvNet, precision: str, compiled: bool, images: ImageSet, ipc: int, batch: int, augmentation: str = DSA
) -> Paths:
    """One DM gradient on the pixels of ipc images a class."""
    synthetic, real = MixedPrecision(network, compiled=compiled), MixedPrecision(network, precision, compiled)
    objective = DistributionMatching(synthetic, batch, augmentation, real)

    def plain(params, real, weights, grouped, labels, drawn):
        return distribution_loss_plain(network, params, real, weights, grouped, drawn)

    return _matching(network, objective, {}, 2, plain, images, ipc, batch, augmentation)


def gradient_step(
    network: ConvNet, precision: str, compiled: bool, images: ImageSet, ipc: int, batch: int, augmentation: str = DSA
) -> Paths:
    """One DC gradient on the pixels of ipc images a class, at a fresh network."""
    objective = GradientMatching(network, 1, 1, batch, augmentation, real_network=MixedPrecision(network, precision, compiled))
    spent = {"updates": torch.tensor(1)}  # the next step draws a fresh network
    return _matching(network, objective, spent, 3, partial(gradient_loss_plain, network), images, ipc, batch, augmentation)


def _matching(network, objective, state, streams, plain_loss, images: ImageSet, ipc, batch, augmentation) -> Paths:
    made, sampler, device = first_of_class(images, ipc), Uniform(images.targets), images.device
    state = objective.start(made, generator(0, "start")) | state
    labels, members = made.classes_present()

    def batches() -> RealBatches:
        return RealBatches(images, sampler, generator(1, "real"))

    def plain() -> Tensor:
        weights_stream, *_, augment_stream = split(generator(2, "step"), streams)
        params = {name: value.to(device) for name, value in network.init(weights_stream, 1).items()}
        drawn, weights = batches().classes(labels, batch)
        real = drawn[:]
        drawn = draw(augmentation, len(labels), 1, augment_stream, siamese=True)
        pixels, total = made.tensors["images"].detach().requires_grad_(), 0.0
        for c in range(len(labels)):  # the graph of one class at a time
            here = slice(c, c + 1)
            ours, siamese = pixels[members[here]], None if drawn is None else drawn[here]
            loss = plain_loss(params, real[here], weights[here], ours, labels[here].to(device), siamese)
            total = total + torch.autograd.grad(loss, pixels)[0]
        return total

    return {"plain": plain, "fast": lambda: objective.step(made, state, batches(), generator(2, "step"))}
