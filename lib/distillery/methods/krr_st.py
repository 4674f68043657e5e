r"""KRR-ST (arXiv 2310.06511): a kernel ridge regression on the synthetic set predicts a self-supervised teacher's targets of real images.

With features $F$ of a network from a pool, in evaluation mode and with a 1 appended, of synthetic images $X_s$ and real ones
$X_b$, the learned targets $Y_s$ and the teacher's $g(x_b)$, what is descended in $X_s$ and $Y_s$ is

$$\mathrm{MSE}\left(K_{bs} (K_{ss} + \lambda I)^{-1} Y_s,\; g(x_b)\right), \qquad K_{bs} = F_b F_s^T, \quad K_{ss} = F_s F_s^T, \quad
\lambda = 10^{-6}\,\mathrm{tr}(K_{ss})$$

with a $\lambda$ that is no part of the gradient. A network of the pool that a step has seen takes a step of its own on
$\mathrm{MSE}(f(X_s), Y_s)$ over the whole set: no augmentation, so that neither loss is random but for the real batch. Slow reference:
`krrst_loss_plain`.

Published are sets of 1000 images (CIFAR-100, ImageNet-1K at 64 x 64) and 2000 (Tiny-ImageNet), real ones at first, not balanced over
classes; for CIFAR-10 there are none, and MKDT's authors took those of CIFAR-100.

Our choices: real batches are not augmented and the teacher's targets made once (the public code crops and flips each batch and asks the
teacher again). Synthetic images are standardized as the real ones are (there they are pixels in [0, 1] that meet networks as they are, at
the same rates). A network trains on the set before its update (there: after it), and is of age 0 when it is drawn anew (there its age stays
at the limit, so that it is drawn anew in each later use: in the end no network is trained). Solves are in float64.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from distillery.checks import check_positive_int
from distillery.data.synthetic import Synthetic
from distillery.distill import Optimizer
from distillery.matching.step import under
from distillery.methods.base import ANY, TINY, Made, made, register
from distillery.methods.regression import LoopSettings, TrainedPool, widening
from distillery.methods.self_supervised import WithoutLabels
from distillery.methods.trajectories import moved
from distillery.networks import ModuleNetwork, Params
from distillery.networks.precision import float32_matmul
from distillery.networks.ridge import kernel_ridge_plain
from distillery.seeds import split
from distillery.training import squared_error
from distillery.training.optimizers import SGD


class SelfSupervisedRegression(TrainedPool):
    """KRR-ST. The pool's networks are of `krrst_network`, with as many outputs as the network of the experiment: the width D of the targets.

    width       channels of the first block, twice as many in each next one (published: 128 at 32 x 32, 64 at 64 x 64)
    pool        networks. One of age a has taken a steps; the first ages are uniform from 1 to `age` - 1, and `start` trains that long
    age         at which a network that was seen is drawn anew
    network_lr  of their training on the synthetic set, SGD with momentum .9 and weight decay 1e-3
    rho         lambda over the trace of K_SS, not over its mean diagonal
    Others as `KernelRegression`; batch is of all classes. Defaults are the published ones. Targets are (n, D) where there are labels
    elsewhere, so that `predict` and `accuracy` have no meaning.
    """

    name, learns, moments = "KRR-ST", ("images", "targets"), ("velocity",)

    def __init__(self, network, batch: int = 1024, real_network=None, *, rho: float = 1e-6, width: int = 128, pool: int = 10,
                 age: int = 1000, network_lr: float = 0.1):  # fmt: skip
        super().__init__(network, batch, real_network, rho=rho, labels=True)
        for name, value in {"width": width, "pool": pool, "age": age}.items():
            check_positive_int(name, value)
        self.pool, self.age, self.optimizer = pool, age, SGD(network_lr, 0.9, 1e-3)
        self.own = krrst_network(network.shape, self.classes, width)

    def start(self, synthetic: Synthetic, generator: Generator) -> dict[str, Tensor]:
        """State: the pool 'net.NAME' (P, ...), its momentum 'velocity.NAME', and 'age' (P,)."""
        ages, *nets = split(generator, 1 + self.pool)
        ages = torch.randint(1, max(2, self.age), (self.pool,), generator=ages)
        pool = [self._trained(synthetic, int(age), net) for age, net in zip(ages, nets, strict=True)]
        return {name: torch.cat([one[name] for one in pool]) for name in pool[0]}

    def _trained(self, synthetic: Synthetic, steps: int, generator: Generator) -> dict[str, Tensor]:
        one = self.new(synthetic.device, generator)
        for _ in range(steps):
            one = self._train(synthetic, one)
        return one

    def _train(self, synthetic: Synthetic, one: dict[str, Tensor]) -> dict[str, Tensor]:
        source = synthetic.source()
        return self.stepped(one, source.images, source.targets, squared_error)

    def aged(self, synthetic, one: dict[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        return self.new(synthetic.device, generator) if int(one["age"]) >= self.age else self._train(synthetic, one)

    def fresh(self, synthetic: Synthetic, generator: Generator) -> Params:
        """A network trained on the set as long as the pool's oldest."""
        return under(self._trained(synthetic, self.age, generator), "net.")

    def features(self, params: Params, images: Tensor, real: bool) -> Tensor:
        """Those of the pool's network and a 1, (n, F + 1) float64."""
        found = super().features(params, images, real)
        return torch.cat([found, found.new_ones(len(found), 1)], 1)

    def ridge(self, k_ss: Tensor) -> Tensor:
        """Lambda, (), without gradient."""
        return self.rho * k_ss.detach().trace()

    def error(self, outputs: Tensor, targets: Tensor, weights: Tensor, made: Synthetic) -> Tensor:
        """Mean squared error over images and outputs. Slow reference: `krrst_loss_plain`."""
        return (weights * (outputs - targets).square().mean(1)).sum()

    def report(self, *_) -> dict[str, Tensor]:
        """Nothing: there are no labels."""
        return {}


def krrst_network(shape: tuple[int, int, int], outputs: int, width: int) -> ModuleNetwork:
    """KRR-ST's network: blocks of convolution, BatchNorm, ReLU and pooling, twice as wide each; published: 3 at 32 x 32, 4 at 64 x 64."""

    def block(i: int, channels: int, wide: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.ReLU()]

    return widening("KRR-ST", shape, outputs, width, block)


def krrst_loss_plain(
    features, images: Tensor, targets: Tensor, real: Tensor, real_targets: Tensor, weights: Tensor, rho: float = 1e-6
) -> Tensor:
    """KRR-ST: weighted mean over real images of the mean over outputs of the squared error, () float64.

    Source: 2310.06511 and its released code. K(x, x') = f(x).f(x') + 1; ridge 1e-6 tr(K_SS), which is a constant. Features as
    `frepo.frepo_loss_plain`; images (m, c, h, w), targets (m, D), real (n, c, h, w), real_targets (n, D), weights (n,), all float64.
    """
    f_s = torch.cat([features(images), torch.ones(len(images), 1, dtype=images.dtype)], 1)  # (m, F + 1)
    f_b = torch.cat([features(real), torch.ones(len(real), 1, dtype=real.dtype)], 1)  # (n, F + 1)
    k_bs, k_ss = f_b @ f_s.T, f_s @ f_s.T  # (n, m), (m, m)
    penalty = rho * torch.trace(k_ss.detach())
    predictions = kernel_ridge_plain(k_ss, targets, k_bs, penalty)  # (n, D)
    loss = torch.zeros_like(penalty)
    for weight, prediction, truth in zip(weights, predictions, real_targets, strict=True):
        loss = loss + weight * (prediction - truth).square().mean()
    return loss


@dataclass(frozen=True, kw_only=True)
class KRRSTSettings(LoopSettings):
    """Settings of KRR-ST, as `SelfSupervisedRegression`. The public code has AdamW with a weight decay of 0, which is Adam."""

    width: int
    pool: int
    age: int
    network_lr: float


@register
class KRRST(WithoutLabels):
    """Images and targets on which a ridge regression predicts the teacher's embeddings of real images."""

    name, kind, paper = "KRR-ST", "kernel regression", "2310.06511"
    source = "code: db-Lee/selfsup_dd, arXiv 2310.06511"
    Settings = KRRSTSettings
    objective, learns = SelfSupervisedRegression, SelfSupervisedRegression.learns
    no_batches = "real images without labels are drawn uniformly"
    start = "random"
    common = {
        "optimizer": "adam", "schedule": "linear to a thousandth", "iterations": 160000, "batch": 1024, "rho": 1e-6, "pool": 10,
        "age": 1000, "network_lr": 0.1, "normalization": "own",
    }  # fmt: skip
    published = {"cifar100": {ANY: {"lr": 1e-4, "width": 128}}}
    published |= dict.fromkeys(("tiny-imagenet", "imagenet-1k"), {ANY: {"lr": 1e-5, "width": 64} | TINY})

    def cell(self, dataset: str, size: int, n: int) -> dict:
        return super().cell("cifar100" if dataset == "cifar10" else dataset, size, n)

    def regression(self, job) -> SelfSupervisedRegression:
        """The objective of a job."""
        s = job.settings
        return SelfSupervisedRegression(job.network, s.batch, rho=s.rho, width=s.width, pool=s.pool, age=s.age, network_lr=s.network_lr)

    def optimizers(self, job) -> dict[str, Optimizer]:
        s = job.settings
        return dict.fromkeys(self.learns, Optimizer(s.lr, kind=s.optimizer, schedule=s.schedule))

    def refuse(self, job) -> None:
        super().refuse(job)
        self.regression(job), self.optimizers(job)

    def make(self, job) -> Made:
        objective, steps, start = self.regression(job), self.updates(job.settings, job.recipe.size), job.first()
        with float32_matmul("float32"):
            done = job.distill(start, objective, self.optimizers(job), steps)
        return made(start, done, moved=moved(start, done.last))
