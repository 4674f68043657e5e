r"""TESLA (arXiv 2211.10586): MTT with the memory of one student step, by a gradient that holds its multiplier.

With $\lambda = 2 (\theta_N - \tau_{t+M}) / \|\tau_t - \tau_{t+M}\|^2$ the gradient on the images is

$$-\eta \sum_n \partial_x \langle \lambda, \nabla_\theta l(\theta_n; x_n) \rangle$$

which drops the way later steps depend on earlier ones: it is exact for N = 1 alone. The sweep of `matching/trajectory.py` changes
$\lambda$ on its way back, and is exact at the same memory.
"""

from dataclasses import dataclass

from distillery.distill import Optimizer
from distillery.methods.base import TINY, register
from distillery.methods.trajectories import Trajectories, TrajectorySettings, row


@dataclass(frozen=True, kw_only=True)
class TESLASettings(TrajectorySettings):
    gradient_scale: float  # of the rate of the pixels: the public code's pixel gradient is half its formula, so our rate is half of its


@register
class TESLA(Trajectories):
    """MTT's loss, with the published approximation of its gradient.

    ImageNet-1K is published with labels that the expert assigns in every iteration; here labels are hard. Numbers are from the
    tables of FTD, DATM or PAD [other paper], as those on ImageNet-1K, 64 x 64.
    """

    name, paper = "TESLA", "2211.10586"
    source = "code: README of justincui03/tesla"
    Settings = TESLASettings
    common = Trajectories.common | {"iterations": 10000, "gradient": "frozen", "gradient_scale": 0.5}
    published = {
        "cifar10": {1: row(50, 2, 5, 1000, 1e-7, 0.01)},
        "cifar100": {50: row(80, 2, 40, 1000, 1e-5, 0.01, student_batch=125, normalization="zca")},
        # whether images were whitened is not stated
        "imagenet-1k": {1: row(10, 3, 10, 10000, 1e-4, 0.01, student_batch=100, experts=50, **TINY)},
    }
    numbers = {
        "cifar10": {1: (48.5, 0.8), 10: (66.4, 0.8), 50: (72.6, 0.7)},
        "cifar100": {1: (24.8, 0.4), 10: (41.7, 0.3), 50: (47.9, 0.3)},
        "imagenet-1k": {1: (7.7, 0.2), 10: (17.8, 1.3), 50: (27.9, 1.2)},
    }

    def optimizers(self, job) -> dict[str, Optimizer]:
        s = job.settings
        return super().optimizers(job) | {"images": Optimizer(s.lr_images * s.gradient_scale, s.momentum)}
