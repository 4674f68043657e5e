r"""MTT, matching training trajectories (arXiv 2203.11932).

$$\min_{S,\,\eta} \frac{\|\theta_N - \tau_{t+M}\|^2}{\|\tau_t - \tau_{t+M}\|^2}, \qquad
\theta_{n+1} = \theta_n - \eta\,\nabla l(\theta_n; A(x_n)), \quad \theta_0 = \tau_t$$

with the weights $\tau_t$ of an expert after $t$ epochs on real images, and N steps of a student on augmented batches $x_n$ of the set.
"""

from distillery.methods.base import SUBSET, TINY, register
from distillery.methods.trajectories import Trajectories, row


@register
class MTT(Trajectories):
    """A student on the set ends where an expert on real images ends; the student's rate is learned.

    Numbers are from InfoUtil's table [other paper], those of subsets of ImageNet and of other networks from FTD's.
    """

    name, paper = "MTT", "2203.11932"
    source = "other paper: commands of the authors in DC-bench, arXiv 2207.09639"
    published = {
        "cifar10": {
            1: row(50, 2, 2, 100, 1e-7, 0.01, normalization="zca"),
            10: row(30, 2, 20, 100, 1e-5, 0.001, normalization="zca"),
            50: row(30, 2, 40, 1000, 1e-5, 0.001),
        },
        "cifar100": {
            1: row(20, 3, 20, 1000, 1e-5, 0.01, normalization="zca"),
            10: row(20, 2, 20, 1000, 1e-5, 0.01, normalization="published:cifar10"),
            50: row(80, 2, 40, 1000, 1e-5, 0.01, student_batch=125, normalization="zca"),
        },
        "tiny-imagenet": {
            1: row(10, 2, 10, 10000, 1e-4, 0.01, **TINY),
            10: row(20, 2, 40, 10000, 1e-4, 0.01, student_batch=200, **TINY),
            50: row(20, 2, 40, 10000, 1e-4, 0.01, student_batch=300, **TINY),
        },
        "imagenet-subset": {
            1: row(20, 2, 10, 100000, 1e-6, 0.01, **SUBSET),
            10: row(20, 2, 10, 100000, 1e-6, 0.01, student_batch=20, **SUBSET),
        },
    }
    numbers = {
        "cifar10": {1: (46.3, 0.8), 10: (65.3, 0.7), 50: (71.6, 0.2)},
        "cifar100": {1: (24.3, 0.3), 10: (40.1, 0.4), 50: (47.7, 0.2)},
        "tiny-imagenet": {1: (8.8, 0.3), 10: (23.2, 0.2), 50: (28.0, 0.3)},
        # 10 classes of ImageNet each, 128 x 128
        "imagenette": {1: (47.7, 0.9), 10: (63.0, 1.3)}, "imagewoof": {1: (28.6, 0.8), 10: (35.8, 1.8)},
        "imagefruit": {1: (26.6, 0.8), 10: (40.3, 1.3)}, "imagemeow": {1: (30.7, 1.6), 10: (40.4, 2.2)},
        # distilled on the ConvNet, evaluated on another network
        "cifar10 on ResNet18": {50: (61.9, 0.7)}, "cifar10 on VGG11": {50: (55.4, 0.8)}, "cifar10 on AlexNet": {50: (48.2, 1.0)},
    }  # fmt: skip
