"""Training several networks at once, three ways: one after another, stacked by `torch.func.vmap`, and as grouped convolutions."""

from collections.abc import Callable, Sequence

import torch

from distillery.data import ImageSet, TensorSource
from distillery.measure import roofline
from distillery.networks import ConvNet, ModuleNetwork
from distillery.seeds import generator
from distillery.training import train

WAYS = ("one by one", "vmap", "grouped")


def step(network: ConvNet, way: str, images: ImageSet, k: int, b: int) -> Callable[[], object]:
    """A training step of k networks with b images each."""
    net = ModuleNetwork(network.module, "ConvNet as a module", vmap=True) if way == "vmap" else network
    params = {name: value.to(images.device) for name, value in net.init(generator(0, "stack"), k).items()}
    source = TensorSource(images.batch(torch.arange(b, device=images.device)), images.targets[:b])
    chunk = 1 if way == "one by one" else k
    return lambda: train(net, params, source, generator=generator(0, "x"), steps=1, batch=b, chunk=chunk)


def seconds(network: ConvNet, images: ImageSet, ks: Sequence[int], batches: Sequence[int], rounds: int = 3) -> dict:
    """Seconds a network of a training step, the best of some rounds: (way, networks, images) -> seconds."""
    return {(way, k, b): min(roofline.seconds(step(network, way, images, k, b), rounds)) / k for way in WAYS for k in ks for b in batches}
