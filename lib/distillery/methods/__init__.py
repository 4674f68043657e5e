"""One file a method: its paper, equations, settings with sources, published numbers, and what it does.

All files of this folder are imported here; each registers its method in METHODS. See `base.py` for what a method declares.
"""

from importlib import import_module
from pkgutil import iter_modules

from distillery.methods.base import ANY, METHODS, Made, Method, Settings, register

__all__ = ["ANY", "METHODS", "Made", "Method", "Settings", "published", "published_part", "published_probe", "register"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
import_module(f"{__name__}.selected").register_selections()
published_probe = import_module(f"{__name__}.mkdt").published_probe  # without labels


def published(dataset: str, name: str, size: int) -> dict | None:
    """A published accuracy {'mean', 'std'} as fractions, None where no checked number is known.

    name  a method, or a row of `literature.py`, such as 'CAFE' or 'FTD without EMA (DATM's run)'
    """
    from distillery.methods.literature import NUMBERS

    for table in (METHODS[name].numbers if name in METHODS else {}, NUMBERS.get(name, {})):
        if size in table.get(dataset, {}):
            mean, std = table[dataset][size]
            return {"mean": mean / 100, "std": std / 100}
    return None


def published_part(dataset: str, way: str, part: float) -> dict | None:
    """The published accuracy {'mean', 'std'} of fine-tuning on a part of each class, as fractions without a deviation; None = there is none.

    way  to keep it, 'random' for example; that of 'FlexRand' chose gamma on test images, and stands beside both ways to choose it
    """
    from distillery.methods.literature import KEPT

    row, place = KEPT.get(dataset, {}).get(way.removesuffix(", oracle on test"), "").split(), round(10 * part)
    if not row or abs(10 * part - place) > 1e-9 or not 1 <= place <= len(row):
        return None
    return {"mean": float(row[place - 1]) / 100, "std": None}


DEFAULT = "DM"  # of commands that are given no method: the cheapest distiller, without inner loops or experts
TRAJECTORIES = "MTT"  # the cheapest that matches trajectories, as others start from it
