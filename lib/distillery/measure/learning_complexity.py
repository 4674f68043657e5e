"""How well, and how cheaply, learning complexity (`scores/complexity.py`) ranks samples as fine-tuning does."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from torch import Tensor

from distillery.checks import InputError
from distillery.evaluation import embed, fit
from distillery.measure.roofline import timed
from distillery.recipe import Recipe
from distillery.report.statistics import spearman
from distillery.scores import complexity, geometry
from distillery.scores.cached import CachedScores
from distillery.seeds import generator


def within_classes(ours: Tensor, theirs: Tensor, targets: Tensor) -> np.ndarray:
    """Spearman's rank correlation of two scores (N,) within each class, (C,); 0 where one of them is constant."""
    return np.array([spearman(ours[targets == label].numpy(), theirs[targets == label].numpy()) for label in targets.unique()])


def agreement(
    scores: CachedScores, reference: Tensor, numbers: Sequence[int], interval: float, draws: int, seed: int
) -> dict[tuple[str, str], dict[int, np.ndarray]]:
    """How the complexity by several kinds and numbers of masks ranks each class as a reference score does.

    reference  (N,)
    numbers    of masks; all divide the largest, so that one path of masks serves them all
    interval   of the schedule 'geometric', see `complexity.shares`
    draws      of random masks, whose correlations are averaged
    returns    (how, schedule) -> number -> rank correlation in each class, (C,)
    raises     InputError on numbers that do not divide the largest
    """
    most, found, targets = max(numbers), {}, scores.images.targets.cpu()
    if any(most % one for one in numbers):
        raise InputError(f"numbers of masks: {list(numbers)}; accepted: numbers that divide the largest")
    for how, schedule in product(complexity.MASKS, complexity.SCHEDULES):
        path = {"steps": most, "schedule": schedule, "interval": interval, "how": how}
        paths = [scores.along(path, seed + i)["losses"] for i in range(draws if how == "random" else 1)]  # each (most, N)
        for n in numbers:
            # even shares of n masks are every (most / n)-th of the longest path
            parts = [one[:: most // n] if schedule == "linear" else one[:n] for one in paths]
            ranks = [within_classes(part.mean(0), reference, targets) for part in parts]
            found.setdefault((how, schedule), {})[n] = np.mean(ranks, 0)
    return found


def curves(found: dict[tuple[str, str], dict[int, np.ndarray]]) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """What `agreement` found as curves over the number of masks for `figures.lines`: mean over classes, standard error; side by side."""
    made = {}
    for i, (kind, by_number) in enumerate(found.items()):
        ranks = np.array([*by_number.values()])  # (numbers of masks, classes)
        made[": ".join(kind)] = np.array([*by_number]) * 1.02**i, ranks.mean(1), ranks.std(1, ddof=1) / ranks.shape[1] ** 0.5
    return made


def knowing(scores: CachedScores, path: dict) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the weights that are zero along a path of masks and the accuracies of the prototypes, in percent, (T,) each."""
    full = complexity.settled(path)
    shares = complexity.shares(full["steps"], full["schedule"], full.get("interval", 0.02))
    return 100 * np.array(shares), 100 * scores.along(path)["accuracies"].numpy()


def shift(experiment, ways: dict, keep: Sequence[float], seeds: Sequence[int]) -> dict[tuple[str, float], list[list[float]]]:
    """Squared MMD between the encoder's features of all images and of those that each way keeps: (way, part) -> [[value]] by seed."""
    features, found = experiment.scores.free()["features"], {}
    for (name, way), part in product(ways.items(), keep):
        kept = [experiment.kept(Recipe("whole", 0, seed, prune=way(part))) for seed in seeds]
        found[name, part] = [[geometry.mmd(features, one)] for one in kept]
    return found


def savings(ours: Sequence[dict | None], theirs: Sequence[dict | None]) -> dict[str, list[list[float]]]:
    """How many times the 'seconds' and 'visits' of a training others took, for each seed that has run on both sides."""
    pairs = [(a, b) for a, b in zip(ours, theirs) if a and b]
    return {name: [[b[of] / a[of]] for a, b in pairs] for name, of in (("seconds", "seconds"), ("visits", "samples"))}


@dataclass(frozen=True)
class Work:
    """A piece of work on all images: forward passes of one image that it takes for each, and seconds of each round."""

    passes: int
    seconds: list[float]


def work(experiment, masks: int, rounds: int = 3) -> dict[str, Work]:
    """What scores through an encoder are made of, and one epoch of fine-tuning, which comes last; complexity comes first. One round more is
    run before, and not counted.

    experiment  with an encoder, and a protocol that fine-tunes it
    """
    fast, real, targets = experiment.fast, experiment.real, experiment.labels
    encoder = experiment.encoder.to(real.device)
    params, tenth = encoder.params, max(1, min(real.counts()) // 10)
    once = replace(experiment.protocol, epochs=1, networks=1)

    def epoch():
        return fit(fast, real, once, generator(0, "cost"), encoder=encoder, device=real.device)

    ways = {
        f"complexity, {masks} masks": (masks, lambda: complexity.prototype_path(fast, params, real, masks)),
        "prototype loss (1 mask)": (1, lambda: complexity.prototype_path(fast, params, real, 1)),
        "features alone": (1, lambda: embed(fast, params, real)),
        "k-center, a tenth": (1, lambda: geometry.k_center(embed(fast, params, real)[0].cpu(), targets, tenth)),
        "one epoch of fine-tuning": (3, epoch),  # a gradient counts two forward passes
    }
    found = {name: [] for name in ways}
    for name in [*ways] * (rounds + 1):  # round by round, so that what else runs on a machine slows all of them alike
        found[name].append(timed(ways[name][1])[1])
    return {name: Work(passes, found[name][1:]) for name, (passes, _) in ways.items()}
