r"""KIP, kernel inducing points (arXiv 2011.00050): a kernel ridge regression on the set, by the kernel of an infinitely wide network.

$$\min_S\; \tfrac{1}{2}\, \mathrm{mean}\, \big( K_{TS} (K_{SS} + \lambda I)^{-1} y_S - y_T \big)^2, \qquad \lambda = 10^{-6}\,\mathrm{tr}(K_{SS}) / |S|$$

with the neural tangent kernel $K$ of a fully connected network, in closed form (`networks.ridge.ntk`), a class-balanced batch $T$ of
real images and centred one-hot labels. Slow reference: `kip_loss_plain`.

Left out: the convolutional kernels. Published are the settings of the public notebook, whose stored outputs end after 300 steps.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from distillery.checks import check_positive_int
from distillery.matching.ridge import KernelRegression
from distillery.methods.base import ANY, register
from distillery.methods.regression import Regression, RegressionSettings
from distillery.networks import Params
from distillery.networks.ridge import kernel_ridge_plain, ntk, ntk_plain


class KernelInducingPoints(KernelRegression):
    """KIP with the kernel of a fully connected network of infinite width and `layers` hidden layers.

    Others as `KernelRegression`; batch is of each class (published: 500, of 10 classes).
    """

    name, balanced = "KIP", True

    def __init__(self, network, batch: int = 500, real_network=None, *, layers: int = 1, **options):
        super().__init__(network, batch, real_network, **options)
        check_positive_int("layers", layers)
        self.layers = layers

    def features(self, params: Params, images: Tensor, real: bool) -> Tensor:
        return images.flatten(1).double()

    def kernel(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        return ntk(a, b, self.layers)


def ntk_matrix_plain(left: Tensor, right: Tensor, depth: int) -> Tensor:
    """The NTK of all pairs: left (n, c, h, w) and right (m, c, h, w) images -> (n, m)."""
    return torch.stack([torch.stack([ntk_plain(x.flatten(), y.flatten(), depth) for y in right]) for x in left])


def kip_loss_plain(images: Tensor, labels: Tensor, real: Tensor, real_labels: Tensor, weights: Tensor, depth: int = 1) -> Tensor:
    """KIP: half the weighted mean over targets of the mean over classes of the squared error, () float64.

    Source: 2011.00050, kernel ridge regression loss; ridge 1e-6 tr(K_SS) / m as in the released code.

    images, real  (m, c, h, w) and (n, c, h, w) float64: synthetic images, targets; labels (m, C) and centred one-hot real_labels (n, C)
    weights       (n,) float64
    depth         hidden layers of the network of `ntk_plain`
    """
    kernel_ss, kernel_ts = ntk_matrix_plain(images, images, depth), ntk_matrix_plain(real, images, depth)  # (m, m), (n, m)
    penalty = 1e-6 * torch.trace(kernel_ss) / len(images)
    predictions = kernel_ridge_plain(kernel_ss, labels, kernel_ts, penalty)  # (n, C)
    loss = torch.zeros_like(penalty)
    for weight, prediction, truth in zip(weights, predictions, real_labels, strict=True):
        loss = loss + weight * (prediction - truth).square().mean() / 2
    return loss


# Accuracy on CIFAR-10's test images of 100 images with fixed labels, by updates: stored outputs of the public notebook, one run. Others of KIP
# are of convolutional kernels.
STORED = {0: 0.2426, 20: 0.414, 100: 0.454, 200: 0.462, 300: 0.467}


@dataclass(frozen=True, kw_only=True)
class KIPSettings(RegressionSettings):
    """Settings of KIP; batch is of each class, layers are hidden ones."""

    layers: int


@register
class KIP(Regression):
    """The neural tangent kernel of a fully connected network of infinite width; balanced batches, fixed labels."""

    name, paper = "KIP", "2011.00050"
    source = "code: google-research/kip"
    objective, Settings = KernelInducingPoints, KIPSettings
    drawn = False
    common = {
        "optimizer": "adam", "schedule": "constant", "lr": 0.04, "batch": 500, "iterations": 300, "layers": 1, "rho": 1e-6,
        "labels": False, "normalization": "published",
    }  # fmt: skip
    published = {name: {ANY: {}} for name in ("cifar10", "svhn", "mnist", "fashion-mnist")}
