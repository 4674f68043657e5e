"""An encoder: trained layers of a network under a fresh classifier."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator

from distillery import store
from distillery.networks.convnet import Params
from distillery.networks.precision import unwrapped


@dataclass(frozen=True, eq=False)
class Encoder:
    """A network of the downstream task with trained `weights`, leading axis 1, all but the classifier's, from where `name` says."""

    network: object
    weights: Params
    name: str = "encoder"

    @cached_property
    def digest(self) -> str:
        """sha256 of the weights."""
        return store.tensor_digest(self.weights)

    def start(self, generator: Generator, k: int = 1) -> Params:
        """k networks with these weights and classifiers of their own, drawn as those of `k` fresh networks are."""
        device = next(iter(self.weights.values())).device
        fresh = {name: value.to(device) for name, value in self.network.init(generator, k).items()}
        return fresh | {name: value.expand(k, *value.shape[1:]).clone() for name, value in self.weights.items()}

    @property
    def params(self) -> Params:
        """One network whose classifier is zero: enough for features."""
        return {name: value if name in self.weights else torch.zeros_like(value) for name, value in self.start(Generator()).items()}

    def to(self, device) -> "Encoder":
        return Encoder(self.network, {name: value.to(device) for name, value in self.weights.items()}, self.name)


def head_names(network) -> set[str]:
    """Names of the tensors of the classifier: the last linear layer."""
    network = unwrapped(network)
    if not hasattr(network, "head"):
        return {"head.weight", "head.bias"}
    name = next(name for name, one in network.skeleton.named_modules() if one is network.head)
    return {f"{name}.{part}" for part, _ in network.head.named_parameters()}
