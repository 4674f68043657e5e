"""How well, and how cheaply, learning complexity (`scores/complexity.py`) ranks samples as fine-tuning does."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from torch import Tensor

from distillery.checks import InputError
from distillery.evaluation import embed, fit
from distillery.measure.roofline import seconds
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


@dataclass(frozen=True)
class Work:
    """A piece of work on all images: forward passes of one image that it takes for each, and seconds of each round."""

    passes: int
    seconds: list[float]


def work(experiment, masks: int, rounds: int = 3) -> dict[str, Work]:
    """What scores through an encoder are made of, and one epoch of fine-tuning, which comes last; complexity comes first.

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
    return {name: Work(passes, seconds(way, rounds)) for name, (passes, way) in ways.items()}
