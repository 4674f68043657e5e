"""A set beside random images of as many pixels and of as many bytes, and the images it started from, under one protocol."""

import math

from torch import Tensor

from distillery.checks import InputError
from distillery.data import Splits, TensorSource
from distillery.data.synthetic import Synthetic
from distillery.evaluation import Protocol, evaluate
from distillery.report import records
from distillery.seeds import generator
from distillery.selection import select


def compare_with_random(
    made: Synthetic, splits: Splits, network, protocol: Protocol, seeds: int, seed: int = 0, start: Tensor | None = None
) -> list[dict]:
    """Rows of a table (`records.row`), evaluated under one protocol with paired seeds: 'set'; 'random', as many real images; 'random, as
    many bytes', where a set of 4-byte numbers takes as many as several images of bytes; and 'start'.

    seeds   evaluations, each of `protocol.networks` fresh networks; the set is the same in all, the random ones are drawn anew
    start   the images that the set started from, under its targets
    raises  InputError if the set does not fit the data: image size, labels, classes
    """
    images, targets = made.decode()
    classes = len(splits.train.classes)
    if tuple(images.shape[1:]) != splits.test.shape:
        raise InputError(f"set: images of {tuple(images.shape[1:])}; accepted: {splits.test.shape}, those of {splits.test.name}")
    hard = not targets.is_floating_point()
    if (hard and (targets.min() < 0 or targets.max() >= classes)) or (not hard and targets.shape[1] != classes):
        found = f"{int(targets.min())} to {int(targets.max())}" if hard else f"{targets.shape[1]} columns"
        raise InputError(f"set: labels {found}; accepted: the {classes} classes of {splits.test.name}")
    ipc, most = max(1, round(len(images) / classes)), min(splits.train.counts())
    several = min(4 * made.stored_numbers() // (math.prod(splits.train.shape) * classes), most)
    first = made.replace(images=start) if start is not None else None
    device, results = splits.test.device, {"set": []}
    for s in range(seed, seed + seeds):
        sources = {"set": made.to(device).source(), "random": _random(splits, min(ipc, most), s)}
        sources |= {"random, as many bytes": _random(splits, several, s)} if several > ipc else {}
        sources |= {"start": first.to(device).source()} if first else {}
        for name, source in sources.items():
            how = protocol.fitting(made) if name in ("set", "start") else protocol
            accuracies = evaluate(network, source, how, splits.test, generator(s, "evaluation"))
            one = {"accuracies": accuracies.tolist(), "steps": 0, "seconds": 0.0, "samples": 0, "stored_numbers": None}
            results.setdefault(name, []).append(one)
    sizes = {"random, as many bytes": several}
    return [records.row(name, sizes.get(name, ipc), found, results["random"]) for name, found in results.items()]


def _random(splits: Splits, n: int, seed: int) -> TensorSource:
    """n random training images of each class."""
    chosen = select(None, n, splits.train.targets.cpu(), "random", generator(seed, "random subset")).to(splits.train.device)
    return TensorSource(splits.train.batch(chosen), splits.train.targets[chosen])
