"""Score real images by how hard they are, for pruning and for first images.

All files of this folder are imported here; each registers its scores in SCORES. See `registry.py` for what a score is, and
`cached.py` for the passes over the images that many scores share.
"""

from importlib import import_module
from pkgutil import iter_modules

from distillery.scores.registry import ORDERS, SCORES, Score, register_score

__all__ = ["ORDERS", "SCORES", "Score", "register_score"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
