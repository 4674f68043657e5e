"""One file a method: its paper, equations, settings with sources, published numbers, and what it does.

All files of this folder are imported here; each registers its method in METHODS. See `base.py` for what a method declares.
"""

from importlib import import_module
from pkgutil import iter_modules

from distillery.methods.base import ANY, METHODS, Made, Method, Settings, register

__all__ = ["ANY", "METHODS", "Made", "Method", "Settings", "published", "published_probe", "register"]

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
