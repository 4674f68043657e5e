"""Learning from less data: prune what does not matter, distill what does, and measure it.

    from distillery import ConvNet, Experiment, Protocol, Prune, Recipe, Runs, data

The names below are imported when they are first used, so that the command line answers at once.
"""

from importlib import import_module

from distillery.allocator import keep_freed_memory

__version__ = "0.1.0"

keep_freed_memory()  # before the first large block

_MODULES = ("data", "scores", "selection")
_NAMES = {
    "experiment": "Experiment Presets Compute Validation",
    "recipe": "Recipe Prune Effect ByLoss Evaluate",
    "methods": "METHODS",
    "scores": "SCORES",
    "scores.cached": "ScoreSettings",
    "starts": "STARTS",
    "evaluation": "Protocol FineTuning Probing evaluate",
    "networks": "ConvNet",
    "runs": "Runs",
    "data.synthetic": "Synthetic",
    "checks": "InputError",
}
_PUBLIC = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = ["__version__", *_MODULES, *_PUBLIC]


def __getattr__(name: str):
    if name in _MODULES:
        return import_module(f"distillery.{name}")
    if name in _PUBLIC:
        return getattr(import_module(f"distillery.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'distillery' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
