"""A set beside random images of the same size, under one protocol."""

from distillery.checks import InputError
from distillery.data import Splits, TensorSource
from distillery.data.synthetic import Synthetic
from distillery.evaluation import Protocol, evaluate
from distillery.report import records
from distillery.seeds import generator
from distillery.selection import select


def compare_with_random(made: Synthetic, splits: Splits, network, protocol: Protocol, seeds: int, seed: int = 0) -> list[dict]:
    """Rows of a table (`records.row`): the set, and random real images of the same size, evaluated under one protocol with paired seeds.

    seeds   evaluations, each of `protocol.networks` fresh networks; the set is the same in all, the random one is drawn anew
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
    ipc = max(1, round(len(images) / classes))
    device, results = splits.test.device, {"set": [], "random": []}
    for s in range(seed, seed + seeds):
        chosen = select(None, ipc, splits.train.targets.cpu(), "random", generator(s, "random subset")).to(device)
        random = TensorSource(splits.train.batch(chosen), splits.train.targets[chosen])
        for name, source in (("set", made.to(device).source()), ("random", random)):
            how = protocol.fitting(made) if name == "set" else protocol
            accuracies = evaluate(network, source, how, splits.test, generator(s, "evaluation"))
            results[name].append({"accuracies": accuracies.tolist(), "steps": 0, "seconds": 0.0, "samples": 0, "stored_numbers": None})
    return [records.row(name, ipc, results[name], results["random"]) for name in ("set", "random")]
