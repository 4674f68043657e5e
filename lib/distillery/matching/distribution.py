r"""Distribution matching (DM, arXiv 2110.04181): class means of the features of fresh random networks.

$$L = \sum_c \Big\| \tfrac{1}{|B_c|}\sum_{x \in B_c} \phi(A(x)) - \tfrac{1}{|S_c|}\sum_{s \in S_c} \phi(A(s)) \Big\|^2$$

with a new never-trained network $\phi$ in every step and one siamese augmentation $A$ per class for real and synthetic
images. Networks whose samples do not couple see all classes in one forward pass, which is exact; with BatchNorm one
forward of all classes is the published variant. Slow reference, class by class: `distribution_loss_plain`.
"""

import torch
from torch import Generator, Tensor

from distillery.augment import Draw, augment, draw
from distillery.matching import classes_at_once, gradient_by_classes
from distillery.networks import Params, trainable
from distillery.seeds import split
from distillery.synthetic import Synthetic

MAP_LIMIT = (
    2**28
)  # numbers in the widest feature map of the real images of a chunk of classes, without gradient


def distribution_loss(
    network, params: Params, real: Tensor, weights: Tensor, synthetic: Tensor, drawn: Draw | None
) -> Tensor:
    """The sum over classes of squared distances between mean embeddings, () float.

    real       (classes, n, C, H, W)
    weights    (classes, n), each row sums to one
    synthetic  (classes, m, C, H, W), differentiable
    drawn      one siamese draw a class, or None
    Source: DM, the loss above. Slow reference: `distribution_loss_plain`.
    """
    with torch.no_grad():
        features = _embed(network, params, augment(real, drawn))  # (classes, n, F)
        real_mean = (features * weights[..., None]).sum(1)  # (classes, F)
    synthetic_mean = _embed(network, params, augment(synthetic, drawn)).mean(1)  # (classes, F)
    return (real_mean - synthetic_mean).square().sum()


def _embed(network, params: Params, images: Tensor) -> Tensor:
    classes, n = images.shape[:2]
    return network.embed(params, images.flatten(0, 1))[0].unflatten(0, (classes, n))


def distribution_loss_plain(
    network, params: Params, real: Tensor, weights: Tensor, synthetic: Tensor, drawn: Draw | None
) -> Tensor:
    """One class after another, as published. Networks with BatchNorm see another batch here, so it is no twin for them."""
    total = torch.zeros(())
    for c in range(len(real)):
        siamese = None if drawn is None else drawn[c : c + 1]
        real_features = network.embed(params, augment(real[c : c + 1], siamese)[0])[0]  # (n, F)
        synthetic_features = network.embed(params, augment(synthetic[c : c + 1], siamese)[0])[0]  # (m, F)
        gap = (weights[c, :, None] * real_features.detach()).sum(0) - synthetic_features.mean(0)
        total = total + gap.square().sum()
    return total


class DistributionMatching:
    """The DM objective.

    network       architecture whose fresh weights are matched in every step
    batch         real images a class and step (published: 256)
    augmentation  DSA families, '' for none
    """

    name = "DM"
    learns = ("images",)
    uses_real_batches = True

    def __init__(self, network, batch: int = 256, augmentation: str = ""):
        self.network, self.batch, self.augmentation = network, batch, augmentation

    def start(self, synthetic: Synthetic, generator: Generator) -> dict[str, Tensor]:
        """No state: every step has a new network."""
        return {}

    def step(self, synthetic: Synthetic, state: dict, draw_real, generator: Generator):
        """One gradient on the pixels: (gradients by name, state, log)."""
        weights_stream, augment_stream = split(generator, 2)
        device = synthetic.device
        params = {name: value.to(device) for name, value in self.network.init(weights_stream, 1).items()}
        labels = synthetic.decode()[1].unique()
        real, weights = draw_real.classes(labels, self.batch)
        drawn = draw(self.augmentation, len(labels), 1, augment_stream, siamese=True)
        coupled = len(trainable(params)) < len(
            params
        )  # BatchNorm: one forward pass of all classes, as published
        size = len(labels) if coupled else classes_at_once(self.network, real.shape[1], real.shape, MAP_LIMIT)

        def one(images: Tensor, _: Tensor, here: slice) -> Tensor:
            siamese = None if drawn is None else drawn[here]
            return distribution_loss(self.network, params, real[here], weights[here], images[here], siamese)

        loss, gradient = gradient_by_classes(synthetic, size, one)
        return {"images": gradient}, state, {"loss": loss}
