r"""FRePo, neural feature regression with pooling (arXiv 2206.00719): a ridge regression on features of networks trained on the set.

$$\min_{S, y_S}\; \mathrm{mean}\, \tfrac{1}{2} \big\| K_{TS} (K_{SS} + \lambda I)^{-1} y_S - y_T \big\|^2
- \mathrm{mean}_s \min\big(y_s^{(1)} - y_s^{(2)},\, \tfrac{1}{C}\big), \qquad K = \phi \phi^T, \quad \lambda = 10^{-6}\,\mathrm{tr}(K_{SS}) / |S|$$

with the last features $\phi$ of a network from a pool, and the two largest entries $y^{(1)}, y^{(2)}$ of a learned label (`label_loss`).
A network that a step has seen trains a step on the set. Slow reference: `frepo_loss_plain`.

Our choices: a network of the pool trains on the images before their update, and is drawn anew as soon as it is too old; gray images of
28 x 28 are padded to 32 x 32.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from distillery.checks import check_positive_int
from distillery.data import TensorSource
from distillery.data.synthetic import Synthetic
from distillery.matching.ridge import label_loss, label_loss_plain
from distillery.methods.base import ANY, TINY, register
from distillery.methods.regression import Regression, RegressionSettings, TrainedPool, widening
from distillery.networks import ModuleNetwork, Params
from distillery.networks.ridge import kernel_ridge_plain
from distillery.seeds import split
from distillery.training import train
from distillery.training.losses import centred, half_squared_error
from distillery.training.optimizers import Adam
from distillery.upload import to_device


class FeatureRegression(TrainedPool):
    """FRePo. The pool's networks are of `frepo_network`, judged by their features in evaluation mode.

    width       channels of the first block, twice as many in each next one
    pool, age   networks, which start at staggered ages; steps after which one is drawn anew
    network_lr  of their training on the synthetic set, Adam
    flip        whether the regression also sees mirrored synthetic images
    Others as `KernelRegression`; batch is of all classes. Defaults are the published ones. Learned labels add `label_loss`.
    """

    name, learns, moments = "FRePo", ("images", "targets"), ("first", "second")

    def __init__(self, network, batch: int = 1024, real_network=None, *, rho: float = 1e-6, width: int = 128,
                 pool: int = 10, age: int = 100, network_lr: float = 3e-4, flip: bool = True, labels: bool = True):  # fmt: skip
        super().__init__(network, batch, real_network, rho=rho, labels=labels)
        check_positive_int("pool", pool)
        check_positive_int("age", age)
        self.pool, self.age, self.flip, self.optimizer = pool, age, flip, Adam(network_lr)
        self.label_scale = 1 / math.sqrt(self.classes / 10)
        self.own = frepo_network(network.shape, self.classes, width)

    def start(self, synthetic: Synthetic, generator: Generator) -> dict[str, Tensor]:
        """State: the pool 'net.NAME' (P, ...), its Adam 'first.NAME', 'second.NAME', 'steps' and 'age' (P,)."""
        return self.new(synthetic.device, generator, self.pool) | {"age": torch.arange(self.pool) * max(1, self.age // self.pool)}

    def new(self, device: torch.device, generator: Generator, k: int = 1) -> dict[str, Tensor]:
        return super().new(device, generator, k) | {"steps": torch.zeros(k, dtype=torch.int64)}

    def aged(self, synthetic, one: dict[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        source = self._labelled(synthetic)
        chosen = torch.randperm(len(source), generator=generator)[:500]
        chosen = to_device(chosen, synthetic.device)
        new = self.stepped(one, source.batch(chosen), source.targets[chosen], half_squared_error, int(one["steps"]))
        new["steps"] = one["steps"] + 1
        return new if int(new["age"]) <= self.age else self.new(synthetic.device, generator)

    def _labelled(self, synthetic: Synthetic) -> TensorSource:
        return synthetic.replace(targets=self.labels_of(synthetic).float()).source()

    def fresh(self, synthetic: Synthetic, generator: Generator) -> Params:
        """A network trained on the set as long as the pool's oldest."""
        init, order = split(generator, 2)
        params = {name: value.to(synthetic.device) for name, value in self.own.init(init, 1).items()}
        how = {"generator": order, "steps": self.age, "batch": 500}
        return train(self.own, params, self._labelled(synthetic), half_squared_error, self.optimizer, **how)[0]

    def support(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if not self.flip:
            return images, labels
        return torch.cat([images, images.flip(-1)]), torch.cat([labels, labels])

    def error(self, outputs: Tensor, targets: Tensor, weights: Tensor, made: Synthetic) -> Tensor:
        """Half the squared error and the label loss. Slow reference: `frepo_loss_plain`."""
        loss = 0.5 * (weights * (outputs - centred(targets, self.classes)).square().sum(1)).sum()
        return loss + label_loss(made.tensors["targets"].double()) if self.labels else loss


def frepo_network(shape: tuple[int, int, int], classes: int, width: int) -> ModuleNetwork:
    """FRePo's network: blocks of convolution, ReLU and pooling, twice as wide each, BatchNorm before all but the first.

    Gray images of 28 x 28 are padded to 32 x 32 in the first convolution. Statistics of BatchNorm follow the last batch by nine tenths.
    """
    padded = 4 if tuple(shape) == (1, 28, 28) else 0

    def block(i: int, channels: int, wide: int) -> list[nn.Module]:
        norm = [nn.BatchNorm2d(channels, momentum=0.9)] if i else []
        return [*norm, nn.Conv2d(channels, wide, 3, padding=1 if i else 1 + padded // 2), nn.ReLU()]

    return widening("FRePo", shape, classes, width, block, padded)


def frepo_loss_plain(
    features: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, real: Tensor, real_labels: Tensor, weights: Tensor, flip: bool
) -> Tensor:
    """FRePo: weighted mean over targets of half the squared error, summed over classes, plus the label term, () float64.

    Source: 2206.00719 and its released code. K(x, x') = h(x).h(x'); ridge 1e-6 tr(K_SS) / |S|. Images, labels and weights as
    `kip.kip_loss_plain`.

    features  (n, c, h, w) -> (n, F): flattened last activations of one network, in eval mode
    flip      append mirrored copies of the images, labels repeated, before the regression: |S| = 2 m. The targets are not mirrored, and
              the label term is of the m labels
    """
    support, support_labels = images, labels
    if flip:
        support, support_labels = torch.cat([images, images.flip(3)]), torch.cat([labels, labels])  # (2 m, c, h, w), (2 m, C)
    h_s, h_t = features(support), features(real)  # (|S|, F), (n, F)
    kernel_ss, kernel_ts = h_s @ h_s.T, h_t @ h_s.T  # (|S|, |S|), (n, |S|)
    penalty = 1e-6 * torch.trace(kernel_ss) / len(support)
    predictions = kernel_ridge_plain(kernel_ss, support_labels, kernel_ts, penalty)  # (n, C)
    wrong = [(prediction - truth).square().sum() / 2 for prediction, truth in zip(predictions, real_labels, strict=True)]
    return label_loss_plain(labels) + sum(weight * one for weight, one in zip(weights, wrong, strict=True))


@dataclass(frozen=True, kw_only=True)
class FRePoSettings(RegressionSettings):
    """Settings of FRePo, as `FeatureRegression`."""

    width: int
    pool: int
    age: int
    flip: bool


@register
class FRePo(Regression):
    """Last features of a network from a pool that trains on the set along the way; learned labels."""

    name, paper = "FRePo", "2206.00719"
    source = "code: yongchaoz/FRePo"
    objective, Settings = FeatureRegression, FRePoSettings
    learns = ("images", "targets")
    common = {
        "optimizer": "lamb", "schedule": "cosine to a tenth", "lr": 3e-4, "batch": 1024, "iterations": 500_000, "rho": 1e-6, "width": 128,
        "pool": 10, "age": 100, "flip": False, "labels": True, "normalization": "zca",
    }  # fmt: skip
    published = {
        "cifar10": {ANY: {"flip": True}},
        "cifar100": {1: {"flip": True}, 10: {}, 50: {}},
        **dict.fromkeys(("mnist", "fashion-mnist"), {ANY: {"normalization": "published"}}),
        "tiny-imagenet": {1: TINY | {"flip": True}, 10: TINY},
    }
