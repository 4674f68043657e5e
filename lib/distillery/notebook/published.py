"""Whether a row was run as its published number was: the question behind every verdict *reproduced*."""

from dataclasses import asdict

from distillery.checks import InputError
from distillery.methods import METHODS
from distillery.methods.base import SUBSETS
from distillery.networks import ConvNet
from distillery.recipe import Recipe
from distillery.training.dsa import DSA, DSA_NO_FLIP

IMAGES = {  # of the published sets: for training, for tests
    "mnist": (60_000, 10_000), "fashion-mnist": (60_000, 10_000), "svhn": (73_257, 26_032), "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000), "tiny-imagenet": (100_000, 10_000),
}  # fmt: skip


def measured_by(experiment, method: str, size: int):
    """The protocol of a method's published numbers, that of the experiment where none is known."""
    how = experiment.presets.dataset, size, experiment.protocol, "flip" in experiment.augmentation
    return METHODS[method].published_protocol(*how, numbers=True) or experiment.protocol


def as_published(experiment, recipe: Recipe, p, dataset: str) -> bool:
    """Whether data, standardization, network, settings and evaluation are those of a method's published numbers.

    Images held out for validation are not the data's fault: a method that draws batches runs the published loop on fewer images, and its
    claims say so. An epoch of nine tenths of the images has nine tenths of the steps, so a loop that counts epochs is another one.

    p        parameters of the notebook
    dataset  the published data set
    """
    method, size, n, flip = METHODS[recipe.method], recipe.size, len(experiment.real), dataset not in ("mnist", "svhn")
    if (method.judged or method.numbers_by) is None or (method.by_epochs and len(experiment.data.validation)):
        return False
    judged = recipe.evaluate
    if recipe.start or recipe.batches or judged.lr or judged.equal_steps or judged.labels != "own":
        return False
    named = "imagenet-subset" if dataset in SUBSETS else dataset
    try:
        cell, settings = method.common | method.cell(named, size, n), method.settings(named, size, n)
    except InputError:  # none are published
        return False
    whole = ConvNet(experiment.real.shape, len(experiment.classes), 128, **({"depth": cell["depth"]} if "depth" in cell else {}))
    return (
        _original(experiment.data, p, dataset, cell.get("side", 0))
        and _standardization(p, dataset) == cell.get("normalization", "published")
        and experiment.network.spec() == whole.spec()
        and experiment.augmentation == (DSA if flip else DSA_NO_FLIP)
        and experiment.protocol == method.published_protocol(named, size, experiment.protocol, flip, numbers=True)
        and _decisive(method, experiment.job(recipe).settings, size) == _decisive(method, settings, size)
    )


def reconstructed(recipe: Recipe) -> str:
    """What of a row's published protocol is not known and is filled in by us, '' = nothing: then its gain is compared, not its value."""
    if recipe.prune and recipe.prune.rule != "random":
        return "network, trials and epochs of the scores behind the published number are not stated"
    if METHODS[recipe.method].selects not in ("", "random"):
        return "the network behind the published selection is not stated"
    return ""


def _original(data, p, dataset: str, side: int) -> bool:
    """Whether images are the published ones: all of a set by its name or copied into a folder, or ten classes of ImageNet at the published size.

    Copies in a folder count by their number; that they may have been compressed again is for claims to say. Of each of ImageNet's classes 732 to 1,300 images are for training and 50 for tests.
    """
    if any(getattr(p, name, 0) for name in ("per_class", "test_per_class", "max_side")):
        return False
    if dataset not in SUBSETS:
        total = len(data.train) + len(data.validation), len(data.test)
        copied = p.dataset == "folder" and getattr(p, "published_for", "") == dataset and total == IMAGES.get(dataset)
        return (copied or p.dataset == dataset) and not getattr(p, "resize", 0)
    counts = [sum(parts) for parts in zip(data.train.counts(), data.validation.counts(), strict=True)]
    return p.dataset == "folder" and p.resize == side and data.test.counts() == [50] * 10 and all(732 <= one <= 1300 for one in counts)


def _decisive(method, settings, size: int) -> dict:
    """Settings, with the number of updates in place of the several ways to give it."""
    values = {name: value for name, value in asdict(settings).items() if name not in ("steps", "iterations")}
    return values | {"updates": method.updates(settings, size)}


def _standardization(p, dataset: str) -> str:
    """How images are standardized; a folder says so of which set it is a copy."""
    own = f"published:{dataset}"
    return "published" if dataset not in SUBSETS and p.dataset == "folder" and p.normalization == own else p.normalization
