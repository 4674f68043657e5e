"""Selections: real images chosen by each of the registered starts, kept as they are. No loop, nothing learned.

Random selection of the same size is what every method stands beside.
"""

from distillery.methods.base import METHODS, Made, Method, register
from distillery.starts import STARTS


class Selected(Method):
    """The real images that a start chooses."""

    def chooses(self, job) -> str:
        return self.name

    def make(self, job) -> Made:
        return Made(job.packed(job.chosen(self.name)))


# of random and herded images under the evaluation of DC and DSA; a published zero-shot of the same size is not known elsewhere
NUMBERS = {
    "random": {
        "cifar10": {10: (26.0, 1.2), 50: (43.4, 1.0)},
        "cifar100": {1: (4.2, 0.3), 10: (14.6, 0.5), 50: (30.0, 0.4)},
        "tiny-imagenet": {1: (1.4, 0.1), 10: (5.0, 0.2), 50: (15.0, 0.4)},
    },
    "herding": {
        "cifar10": {1: (21.5, 1.2), 10: (31.6, 0.7), 50: (40.4, 0.6)},
        "cifar100": {1: (8.4, 0.3), 10: (17.3, 0.3), 50: (33.7, 0.5)},
    },
}


for _one in STARTS.values():
    if _one.selection:
        _declared = {"name": _one.name, "labels": _one.labels, "numbers": NUMBERS.get(_one.name, {}), "__doc__": _one.choose.__doc__}
        METHODS[_one.name] = type("Selected", (Selected,), _declared)()


@register
class RandomPacked(Method):
    """Random images shrunk to a quarter, four in each stored one: as many stored pixels, four times as many images to train on."""

    name = "random, packed"

    def stored(self, job) -> tuple[int, str, str]:
        return job.recipe.size, "partition2", "bilinear"

    def make(self, job) -> Made:
        return Made(job.packed(job.chosen("random")))
