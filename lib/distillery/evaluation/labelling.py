r"""Labels by a trained network: one soft label stored for each image, or new ones for every batch, of the images as they are augmented.

Sources: labels for every batch are those of SRe2L (arXiv 2306.13092) and RDED (2312.03526), which match them by the Kullback-Leibler
divergence at a temperature; its factor $T^2$, by which gradients keep their size at any temperature, is of Hinton et al. (1503.02531).

$$l = T^2\, \mathrm{KL}\big(\mathrm{softmax}(z_{teacher} / T)\, \|\, \mathrm{softmax}(z / T)\big)$$

At $T = 1$ it differs from cross-entropy with soft labels by a constant.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from distillery import store
from distillery.checks import check_positive
from distillery.data import TensorSource
from distillery.networks import Output, Params


@dataclass(frozen=True, eq=False)
class Teacher:
    """A network with trained weights, leading axis 1, that gives labels. Raises InputError on a temperature that is not above 0."""

    network: object
    weights: Params
    temperature: float = 1.0

    def __post_init__(self):
        check_positive("temperature", self.temperature)

    def spec(self) -> dict:
        """What identifies its labels of a batch."""
        return {"network": self.network.spec(), "weights": store.tensor_digest(self.weights)[:16], "temperature": self.temperature}

    @property
    def bytes(self) -> int:
        """Of its weights and statistics as they are stored."""
        return sum(value.numel() * value.element_size() for value in self.weights.values())

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W) in evaluation mode."""
        return self.network.apply(self.weights, images, train=False).logits[0]

    def stored(self, source, batch: int = 500) -> TensorSource:
        """The images of a source under one soft label each: the softmax of the logits of the image as it is, whatever the temperature."""
        images = source.batch(torch.arange(len(source), device=source.device))
        labels = torch.cat([self.logits(part) for part in images.split(batch)]).softmax(-1)
        return TensorSource(images, labels)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss of outputs (K, B, 2 * classes) of `Taught`, the labels of the set unused: (K, B)."""
        log_own, log_taught = ((logits / self.temperature).log_softmax(-1) for logits in output.chunk(2, -1))
        return self.temperature**2 * (log_taught.exp() * (log_taught - log_own)).sum(-1)


class Taught:
    """A network in training beside a teacher that sees the same images: its outputs are its own logits, then those of the teacher."""

    def __init__(self, network, teacher: Teacher):
        self.network, self.teacher, self.classes = network, teacher, network.classes

    def init(self, generator: Generator, k: int = 1) -> Params:
        return self.network.init(generator, k)

    def apply(self, params: Params, images: Tensor, train: bool = True) -> Output:
        """images (K, B, C, H, W) -> logits (K, B, 2 * classes)."""
        own = self.network.apply(params, images, train)
        seen = self.teacher.logits(images.flatten(0, 1)).unflatten(0, images.shape[:2])  # (K, B, classes)
        return own._replace(logits=torch.cat([own.logits, seen], -1))
