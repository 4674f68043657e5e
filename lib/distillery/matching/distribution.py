r"""Distribution matching (DM, arXiv 2110.04181): class means of the features of fresh random networks.

The equation is in `methods/dm.py`: a new never-trained network in every step, one siamese augmentation per class for both sides. Networks
whose samples do not couple see all classes in one forward pass, which is exact; with BatchNorm one forward of all classes is the
published variant. Slow reference, class by class: `distribution_loss_plain`.
"""

import torch
from torch import Generator, Tensor

from distillery.data.synthetic import Synthetic
from distillery.matching.effects import Separable
from distillery.matching.step import StepContext, couples
from distillery.networks import Params
from distillery.networks.precision import images_at_once
from distillery.replay import ReplayedLoss
from distillery.seeds import split
from distillery.training.dsa import Draw, augment, draw
from distillery.upload import to_device


@torch.no_grad()
def _embedded(network, params: Params, images: Tensor, train_mode: bool) -> Tensor:
    """Embeddings of images (n, C, H, W), (n, F), a few at a time unless BatchNorm couples them."""
    size = len(images) if train_mode and couples(params) else images_at_once(network, images.shape, images.device)
    return torch.cat([network.embed(params, part, train=train_mode)[0] for part in images.split(size)])


def distribution_loss_plain(network, params: Params, real: Tensor, weights: Tensor, synthetic: Tensor, drawn: Draw | None) -> Tensor:
    """One class after another, as published. Networks with BatchNorm see another batch here, so it is no twin for them."""
    total = torch.zeros(())
    for c in range(len(real)):
        siamese = None if drawn is None else drawn[c : c + 1]
        real_features = network.embed(params, augment(real[c : c + 1], siamese)[0])[0]  # (n, F)
        synthetic_features = network.embed(params, augment(synthetic[c : c + 1], siamese)[0])[0]  # (m, F)
        gap = (weights[c, :, None] * real_features.detach()).sum(0) - synthetic_features.mean(0)
        total = total + gap.square().sum()
    return total


class DistributionMatching(Separable):
    """The DM objective.

    network       architecture whose fresh weights are matched in every step
    batch         real images a class and step (published: 256)
    augmentation  DSA families, '' for none
    """

    name, learns = "distribution matching", ("images",)
    map_limit = 2**28  # of real images, without gradient

    def __init__(self, network, batch: int = 256, augmentation: str = "", real_network=None):
        self.network, self.batch, self.augmentation = network, batch, augmentation
        self.real_network, self.replayed = real_network or network, ReplayedLoss(self.loss_of_augmented)

    def start(self, synthetic: Synthetic, generator: Generator) -> dict[str, Tensor]:
        """There is no state: every step has a new network."""
        return {}

    def step(self, synthetic: Synthetic, state: dict, draw_real, generator: Generator):
        """One gradient on the pixels: (gradients by name, state, log)."""
        weights_stream, augment_stream = split(generator, 2)
        labels, _ = synthetic.classes_present()
        params, labels = to_device((self.network.init(weights_stream, 1), labels), synthetic.device)
        drawn = draw(self.augmentation, len(labels), 1, augment_stream, siamese=True)
        loss, gradient = self.pixels(StepContext(params, labels, drawn), synthetic, draw_real)
        return {"images": gradient}, state, {"loss": loss}

    def loss(self, context: StepContext, real: Tensor, weights: Tensor, images: Tensor, here: slice) -> Tensor:
        """The sum over some classes of squared distances between mean embeddings, (). Slow reference: `distribution_loss_plain`."""
        drawn = context.drawn_for(here)
        images, real = augment(images, drawn), augment(real[here], drawn)
        return self.replayed(context.params, real, weights[here], images, train=context.train_mode)

    def loss_of_augmented(self, params: Params, real: Tensor, weights: Tensor, images: Tensor, *, train: bool) -> Tensor:
        """`loss` of real (classes, n, C, H, W) and synthetic images as the network sees them."""
        means = self.real_means(params, real, weights, train)
        features = self.network.embed(params, images.flatten(0, 1), train)[0].unflatten(0, images.shape[:2])
        return (means - features.mean(1)).square().sum()

    def real_means(self, params: Params, real: Tensor, weights: Tensor, train: bool) -> Tensor:
        """Weighted mean embeddings of real images (classes, n, C, H, W), without a graph: (classes, F)."""
        features = _embedded(self.real_network, params, real.flatten(0, 1), train)
        return (features.unflatten(0, real.shape[:2]) * weights[..., None]).sum(1)

    def statistic(self, context: StepContext, images: Tensor, c: int) -> Tensor:
        """Embeddings of real images (n, C, H, W) of class c: (n, F)."""
        return _embedded(self.network, context.params, self.augmented(context, images[None], c)[0], context.train_mode)

    def distance(self, context: StepContext, images: Tensor, means: Tensor, c: int) -> Tensor:
        """Squared distance of the mean embedding of images (rows, m, C, H, W) to each of means (rows, F): (rows,)."""
        features = self.network.embed(context.params, images.flatten(0, 1), context.train_mode)[0].unflatten(0, images.shape[:2])
        return (means - features.mean(1)).square().sum(1)
