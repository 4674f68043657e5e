r"""DC, dataset condensation by gradient matching (arXiv 2006.05929).

$$\min_S \sum_c \sum_{\mathrm{layers}} \sum_i \Big(1 - \frac{\langle a_i, b_i\rangle}{\|a_i\|\,\|b_i\| + 10^{-6}}\Big)$$

with rows $a_i$, $b_i$ of the gradients of one network on synthetic and on real images of a class; see `matching/gradient.py`.
"""

from distillery.evaluation import Protocol
from distillery.matching.gradient import GradientMatching, loops
from distillery.methods.base import register
from distillery.methods.matched import Matched


@register
class DC(Matched):
    """Gradients of the loss on synthetic images point where those on real images do, along the training of many networks.

    An iteration is one network with T updates of the set, T by its size (`matching.gradient.loops`).
    """

    name, kind, paper = "DC", "gradient matching", "2006.05929"
    source = "code: VICO-UoE/DatasetCondensation"
    objective = GradientMatching
    start = "noise"
    common = {"iterations": 1000, "lr": 0.1, "momentum": 0.5, "batch": 256, "augmented": False}
    judged = Protocol(epochs=300)
    judged_on = {"mnist": Protocol(epochs=1000, augmentation="crop_scale_rotate")}
    numbers = {  # tables of FTD, DATM and KIP [other paper]
        "cifar10": {1: (28.3, 0.5), 10: (44.9, 0.5), 50: (53.9, 0.5)},
        "cifar100": {1: (12.8, 0.3), 10: (25.2, 0.3)},
        "mnist": {1: (91.7, 0.5), 10: (97.4, 0.2), 50: (98.8, 0.1)},
        "fashion-mnist": {1: (70.5, 0.6), 10: (82.3, 0.4), 50: (83.6, 0.4)},
        "svhn": {1: (31.2, 1.4), 10: (76.1, 0.6), 50: (82.3, 0.3)},
        "cifar10 on ResNet18": {50: (20.8, 1.0)}, "cifar10 on VGG11": {50: (38.8, 1.1)}, "cifar10 on AlexNet": {50: (28.7, 0.7)},
    }  # fmt: skip

    def updates(self, settings, size: int) -> int:
        return settings.steps or settings.iterations * loops(size)[0]
