"""A set beside random images of as many pixels and of as many bytes, and the images it started from, under one protocol."""

import math

import torch
from torch import Tensor

from distillery.checks import InputError
from distillery.data import ImageSet, Splits, TensorSource
from distillery.data.synthetic import Synthetic
from distillery.evaluation import Protocol
from distillery.evaluation.judge import Judge
from distillery.report import records
from distillery.runs import Runs
from distillery.seeds import generator


def compare_with_random(
    made: Synthetic | ImageSet, splits: Splits, network, protocol: Protocol, seeds: int, seed: int = 0, start: Tensor | None = None,
    runs: Runs | None = None,
) -> list[dict]:  # fmt: skip
    """Rows of a table (`records.row`), evaluated under one protocol with paired seeds: 'set'; 'random', as many real images of each class;
    of a synthetic set also 'random, as many bytes', where its bytes (`stored_bytes`) are as many as those of several images, and 'start'.

    seeds   evaluations, each of `protocol.networks` fresh networks; the set is the same in all, the random ones are drawn anew
    start   the images that the set started from, under its targets
    runs    where finished evaluations are kept, None = nowhere
    raises  InputError if the set does not fit the data: image size, labels, classes
    """
    real, classes = isinstance(made, ImageSet), len(splits.train.classes)
    source = fitting(made, splits)
    judge, most = Judge(splits, network, runs), splits.train.counts()
    counts = source.targets.bincount(minlength=classes).tolist() if real else [max(1, round(len(source) / classes))] * classes
    compared = {"set": lambda s: source, "random": lambda s: random_images(splits, counts, s)}
    sizes = {}
    if not real:
        several = min(sum(stored_bytes(made)) // (math.prod(splits.train.shape) * classes), min(most))
        if several > counts[0]:
            compared["random, as many bytes"] = lambda s: random_images(splits, [several] * classes, s)
            sizes["random, as many bytes"] = several
    if start is not None:
        compared["start"] = lambda s: made.replace(images=start).to(splits.test.device).source()
    results = {name: [] for name in compared}
    for s in range(seed, seed + seeds):
        for name, of in compared.items():
            how = protocol.fitting(made) if name in ("set", "start") and not real else protocol
            accuracies = judge(of(s), how, s)["accuracies"]
            results[name].append({"accuracies": accuracies, "steps": 0, "seconds": 0.0, "samples": 0, "stored_numbers": None})
    ipc = counts[0] if len(set(counts)) == 1 else None
    return [records.row(name, sizes.get(name, ipc), found, results["random"]) for name, found in results.items()]


def fitting(made: Synthetic | ImageSet, splits: Splits) -> ImageSet | TensorSource:
    """What a network trains on. Raises InputError if the set does not fit the data: image size, labels, classes."""
    source, classes = made if isinstance(made, ImageSet) else made.to(splits.test.device).source(), len(splits.train.classes)
    if tuple(source.shape) != splits.test.shape:
        raise InputError(f"set: images of {tuple(source.shape)}; accepted: {splits.test.shape}, those of {splits.test.name}")
    hard = not source.targets.is_floating_point()
    if (hard and (source.targets.min() < 0 or source.targets.max() >= classes)) or (not hard and source.targets.shape[1] != classes):
        found = f"{int(source.targets.min())} to {int(source.targets.max())}" if hard else f"{source.targets.shape[1]} columns"
        raise InputError(f"set: labels {found}; accepted: the {classes} classes of {splits.test.name}")
    return source


def stored_bytes(made: Synthetic | ImageSet) -> tuple[int, int]:
    """Bytes of the images as they are stored, 4 a number unless they are bytes; and of soft labels. Hard ones are the order of the images."""
    if isinstance(made, ImageSet):
        return made.pixels.shape.numel(), 0
    images = made.tensors["images"].numel()
    return images * (1 if str(made.card.get("pixels")).startswith("bytes") else 4), 4 * (made.stored_numbers() - images)


def random_images(splits: Splits, counts: list[int], seed: int) -> TensorSource:
    """So many random training images of each class, all where it has no more."""
    draw, chosen = generator(seed, "random subset"), []
    for label, n in enumerate(counts):
        members = splits.train.of_class(label)
        chosen.append(members[torch.randperm(len(members), generator=draw)[:n]])
    rows = torch.cat(chosen)
    return TensorSource(splits.train.batch(rows), splits.train.targets[rows])
