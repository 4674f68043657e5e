r"""How well a kept set covers held-out samples in the features of a pre-trained encoder, and whether that tells the accuracy it trains to.

After Spread, "On Measuring the Intrinsic Few-Shot Hardness of Datasets" (Zhao, EMNLP 2022, arXiv 2211.09113), which goes by the distances of test
samples to the few that are learned from. Of held-out samples $z_i$ with labels $y_i$ and a kept set $K$:

$$d_i = \min_{j \in K:\, y_j = y_i} \|z_i - z_j\|_2, \qquad T = \{i : d_i \ge q(d)\}, \qquad
\text{mean } \bar d, \quad \text{tail } \operatorname{mean}_{i \in T} d_i, \quad \text{power } \operatorname{mean}_{i \in T} 10^{d_i}$$

with $q$ the 99.9th percentile. High = badly covered, hard to learn from. The power of the tail is that of the released notebook, which holds distances as numbers
alone: to which kept sample, in which norm and features is unknown; the nearest one of the same class by Euclidean distance is ours, and so are
validation samples in the place of tests. At the 100th percentile the tail is the radius that k-center makes small.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from distillery.checks import InputError, check_choice, is_number
from distillery.evaluation import fit_ridge
from distillery.evaluation.probe import RIDGE
from distillery.measure import many_splits
from distillery.report.statistics import spearman
from distillery.scores import complexity
from distillery.scores.clip_selection import clip_selection
from distillery.scores.concepts import concepts
from distillery.scores.geometry import BLOCK, check_features, groups
from distillery.seeds import generator, split
from distillery.selection import BASELINES, prune

VERSION = 1  # of what a stored split holds
LARGEST = 300.0  # distance whose power is still a number
WAYS = {name: (score, BASELINES[name][1]) for name, score in many_splits.FREE.items()}  # score of (features, complexity, targets), and rule
WAYS |= {
    "easiest": (lambda rows, hard, targets: hard, "lowest"),
    "hardest": (lambda rows, hard, targets: hard, "highest"),
    "alignment + spread": (lambda rows, hard, targets: clip_selection(rows, targets), "lowest"),
    "DBP": (lambda rows, hard, targets: concepts(rows, targets, generator(0, "concepts")), "lowest"),
    "SSP": (lambda rows, hard, targets: concepts(rows, targets, generator(0, "concepts"), "size"), "lowest"),
}


class Coverage(NamedTuple):
    """Mean distance to the kept set, mean over the tail, and the same of its powers, 10^d; all high = badly covered."""

    mean: float
    tail: float
    power: float


def coverage(
    held_out: Tensor, kept: Tensor, targets: Tensor | None = None, kept_targets: Tensor | None = None, percentile: float = 99.9
) -> Coverage:
    """How far held-out features (M, F) lie from those kept, (K, F), of their class where there are labels, (M,) and (K,).

    percentile  from which a distance counts as of the tail, in [0, 100]
    raises      InputError as `check_features`, on another width, labels of one side alone, a class of which none is kept, a percentile that is none,
                and distances above 300, whose powers are no numbers
    Slow reference: `coverage_plain`.
    """
    check_features(held_out, name="held_out")
    check_features(kept, None if kept_targets is None else len(kept_targets), "kept")
    if held_out.shape[1] != kept.shape[1]:
        raise InputError(f"kept: {kept.shape[1]} columns; accepted: {held_out.shape[1]}, those of the held-out features")
    if (targets is None) != (kept_targets is None):
        raise InputError("labels: of one side alone; accepted: of held-out and of kept samples, or of neither")
    if not is_number(percentile) or not 0 <= percentile <= 100:
        raise InputError(f"percentile: {percentile!r} is not accepted; accepted: a number from 0 to 100")
    distance = torch.empty(len(held_out), dtype=torch.float64)
    for members, rows in groups(held_out, targets):
        own = kept.double() if kept_targets is None else kept[kept_targets == targets[members[0]]].double()
        if not len(own):
            raise InputError(f"kept: none of class {int(targets[members[0]])}; accepted: at least one of each class that is held out")
        distance[members] = torch.cat(
            [torch.cdist(block, own, compute_mode="donot_use_mm_for_euclid_dist").amin(1) for block in rows.split(BLOCK)]
        )
    if not distance.max() <= LARGEST:
        raise InputError(f"distances: up to {float(distance.max()):.4g}; accepted: at most {LARGEST:g}, as of features of unit length")
    tail = distance[distance >= torch.quantile(distance, percentile / 100)]
    return Coverage(float(distance.mean()), float(tail.mean()), float((10**tail).mean()))


def coverage_plain(held_out: Tensor, kept: Tensor, targets: list[int], kept_targets: list[int], percentile: float = 99.9) -> Coverage:
    """Sample by sample; the percentile lies between two distances in proportion."""
    d = [min(math.dist(z, k) for k, c in zip(kept.tolist(), kept_targets) if c == y) for z, y in zip(held_out.tolist(), targets)]
    place, ordered = percentile / 100 * (len(d) - 1), sorted(d)
    below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
    tail = [one for one in d if one >= below + (place % 1) * (above - below)]
    return Coverage(sum(d) / len(d), sum(tail) / len(tail), sum(10**one for one in tail) / len(tail))


def run(experiment, keep: Sequence[float], splits: int, seed: int) -> list[dict | None]:
    """Of each split of `many_splits.run`, None = not run: part -> way -> [mean, tail, power, accuracy], coverage of its validation images by what
    the way keeps, in features of unit length, and accuracy of a linear probe on its test images. Every split is stored by itself.
    """
    data, scores, found = experiment.data, experiment.scores, []
    counts = [part.counts() for part in (data.train, data.validation, data.test)]
    inputs = {"encoder": experiment.encoder.digest, "network": experiment.network.spec(), "transform": scores.transform}
    inputs |= {"path": scores.path, "keep": list(keep), "ways": sorted(WAYS), "ridge": RIDGE, "seed": seed}
    for i in range(splits):

        def compute(key: str, i: int = i) -> dict:
            along, targets = many_splits.features(experiment)
            cut, draws = split(generator(seed, "many splits", i), 2)
            return one_split(along, targets, many_splits.drawn(targets, counts, cut), keep, draws)

        found.append(experiment.runs.try_get("coverage", VERSION, inputs | {"split": i}, data.digest, compute, f"coverage, split {i}"))
    return found


def one_split(along: Tensor, targets: Tensor, rows: Sequence[Tensor], keep: Sequence[float], stream: Generator) -> dict:
    """What `run` stores of one split; arguments as `many_splits.one_split`."""
    train, validation, test = rows
    seen, labels, unit = along[0][train], targets[train], F.normalize(along[0])
    hard = complexity.losses_along(along[:, train], labels).losses.mean(0)
    scores, found = {name: score(seen, hard, labels) for name, (score, _) in WAYS.items()}, {}
    for part in keep:
        kept = {"random": prune(None, part, labels, "random", stream)}
        kept |= {name: prune(scores[name], part, labels, rule, stream) for name, (_, rule) in WAYS.items()}
        classifiers = fit_ridge(seen, labels, torch.stack([*kept.values()]))
        right = many_splits.accuracies(*classifiers, along[0][test], targets[test])
        far = [coverage(unit[validation], unit[train[one]], targets[validation], labels[one]) for one in kept.values()]
        found[f"{part:g}"] = {name: [round(value, 6) for value in (*one, told)] for name, one, told in zip(kept, far, right)}
    return found


def foretold(found: Sequence[dict | None], by: str = "mean") -> list[list[float] | None]:
    """Of each split the rank correlation of accuracy with coverage over the ways, its sign turned, mean over parts: 1 = the better covered, the better.

    by  one of the fields of `Coverage`. Raises InputError on another
    """
    check_choice("by", by, Coverage._fields)
    at = Coverage._fields.index(by)

    def rank(ways: dict[str, list[float]]) -> float:
        values = np.array([*ways.values()])  # (ways, 4)
        return spearman(-values[:, at], values[:, -1])

    return [one and [float(np.mean([rank(ways) for ways in one.values()]))] for one in found]


def dots(found: Sequence[dict | None], part: float, by: str = "mean") -> dict[str, tuple[float, float]]:
    """Of each way at a part the coverage and the accuracy in percent, means over the splits that were run."""
    done, at = [one[f"{part:g}"] for one in found if one], Coverage._fields.index(by)
    means = {name: np.mean([one[name] for one in done], 0) for name in done[0]} if done else {}
    return {name: (float(one[at]), 100 * float(one[-1])) for name, one in means.items()}
