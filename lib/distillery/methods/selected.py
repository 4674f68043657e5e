"""Selections: real images chosen by each of the registered starts, kept as they are. No loop, nothing learned.

Random selection of the same size is what every method stands beside.
"""

from dataclasses import dataclass

from distillery.checks import check_choice
from distillery.data.synthetic import INTERPOLATIONS
from distillery.evaluation import Protocol
from distillery.methods.base import Method, Settings, register
from distillery.starts import STARTS

# of random and herded images [other paper]: the tables call their evaluation that of DC and DSA, which differ; DC's is taken, whose table they
# were first in. Under that of DATM those of random images are higher. Random images of CIFAR-10 at 1 a class: quoted, not read in DC's PDF
NUMBERS_BY = Protocol(epochs=300)
NUMBERS = {
    "random": {
        "cifar10": {1: (14.4, 2.0), 10: (26.0, 1.2), 50: (43.4, 1.0)},
        "cifar100": {1: (4.2, 0.3), 10: (14.6, 0.5), 50: (30.0, 0.4)},
        "tiny-imagenet": {1: (1.4, 0.1), 10: (5.0, 0.2), 50: (15.0, 0.4)},
    },
    "herding": {
        "cifar10": {1: (21.5, 1.2), 10: (31.6, 0.7), 50: (40.4, 0.6)},
        "cifar100": {1: (8.4, 0.3), 10: (17.3, 0.3), 50: (33.7, 0.5)},
    },
}


def register_selections() -> None:
    """Every start that is a selection becomes a method, once all are registered. Raises InputError on a name that a method has."""
    for one in STARTS.values():
        if one.selection:
            declared = {"name": one.name, "labels": one.labels, "selects": one.name, "__doc__": one.choose.__doc__}
            known = {"numbers": NUMBERS[one.name], "numbers_by": NUMBERS_BY} if one.name in NUMBERS else {}
            register(type("Selected", (Method,), declared | known))


@dataclass(frozen=True)
class PackedSettings(Settings):
    """How real images shrink: 'bilinear' as the first images of IDM, 'nearest' as those of IDC."""

    interpolation: str = "bilinear"

    def __post_init__(self):
        super().__post_init__()
        check_choice("interpolation", self.interpolation, INTERPOLATIONS)


@register
class RandomPacked(Method):
    """Random images shrunk to a quarter, four in each stored one: as many stored pixels, four times as many images to train on."""

    name, selects = "random, packed", "random"
    Settings = PackedSettings

    def stored(self, job) -> tuple[int, str, str]:
        return job.recipe.size, "partition2", job.settings.interpolation
