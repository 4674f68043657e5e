"""Whether a row of ours may be held against its published number."""

from dataclasses import asdict

from distillery.methods import METHODS
from distillery.networks import ConvNet
from distillery.recipe import Recipe


def as_published(experiment, recipe: Recipe, p, dataset: str) -> bool:
    """Whether data, standardization, network, settings and evaluation are those of a method's published numbers.

    p        parameters of the notebook
    dataset  the published data set
    """
    method = METHODS[recipe.method]
    limited = any(getattr(p, name, 0) for name in ("per_class", "test_per_class", "max_side", "resize"))
    if p.dataset != dataset or method.judged is None or limited:
        return False
    size, n = recipe.size, len(experiment.real)
    cell = method.common | method.cell(dataset, size, n)
    whole = ConvNet(experiment.real.shape, len(experiment.classes), 128, **({"depth": cell["depth"]} if "depth" in cell else {}))
    protocol = experiment.protocol
    judged = {"epochs": protocol.epochs, "batch": protocol.batch, "augmented": bool(protocol.augmentation)}
    return (
        p.normalization == cell.get("normalization", "published")
        and experiment.network.spec() == whole.spec()
        and judged == method.judged
        and _decisive(method, experiment.job(recipe).settings, size) == _decisive(method, method.settings(dataset, size, n), size)
    )


def _decisive(method, settings, size: int) -> dict:
    """Settings, with the number of updates in place of the several ways to give it."""
    values = {name: value for name, value in asdict(settings).items() if name not in ("steps", "iterations")}
    return values | {"updates": method.updates(settings, size)}
