r"""DSA, differentiable siamese augmentation (arXiv 2102.08259): DC with one augmentation a class on both sides, and real first images.

$$\min_S \sum_c D\big(\nabla_\theta l(A_\omega(S_c)),\ \nabla_\theta l(A_\omega(B_c))\big)$$

with DC's distance $D$ and the parameters $\omega$ of one augmentation $A$ drawn for both sides in every step.
"""

from distillery.evaluation import Protocol
from distillery.methods.base import register
from distillery.methods.dc import DC
from distillery.training.dsa import DSA as FAMILIES


@register
class DSA(DC):
    """Gradient matching of images that are augmented alike; see `training/dsa.py` for the augmentation and its plain twin."""

    name, paper = "DSA", "2102.08259"
    start = "random"
    common = DC.common | {"augmented": True}
    judged, judged_on = Protocol(augmentation=FAMILIES), {}
    numbers = {  # tables of FTD, DATM and KIP [other paper]
        "cifar10": {1: (28.8, 0.7), 10: (52.1, 0.5), 50: (60.6, 0.5)},
        "cifar100": {1: (13.9, 0.3), 10: (32.3, 0.3), 50: (42.8, 0.4)},
        "mnist": {1: (88.7, 0.6), 10: (97.8, 0.1), 50: (99.2, 0.1)},
        "fashion-mnist": {1: (70.6, 0.6), 10: (84.6, 0.3), 50: (88.7, 0.2)},
        "svhn": {1: (27.5, 1.4), 10: (79.2, 0.5), 50: (84.4, 0.4)},
    }
