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
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distillery.checks import InputError, check_choice, is_number
from distillery.evaluation import fit_ridge
from distillery.measure import many_splits
from distillery.recipe import Prune, Recipe
from distillery.report.statistics import spearman
from distillery.scores.geometry import BLOCK, check_features, groups

LARGEST = 300.0  # distance whose power is still a number


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


def of_ways(experiment, ways: dict[str, Callable[[float], Prune]], keep: Sequence[float], seeds: Sequence[int]) -> list[dict]:
    """'way', 'part', 'seed', the three of `coverage` of validation images, and 'accuracy' of a linear probe on test images, of every kept set.

    ways  as `many_splits.probed`; features are of unit length for the coverage, and as they are for the probe
    """
    along, targets = many_splits.features(experiment)
    rows, n, m = along[0], len(experiment.data.train), len(experiment.data.test)
    unit, middle = F.normalize(rows), slice(n, len(rows) - m)
    found = []
    for part in keep:
        cells = [{"way": name, "part": part, "seed": seed} for name in ways for seed in seeds]
        kept = [experiment.kept(Recipe("whole", 0, one["seed"], prune=ways[one["way"]](part))) for one in cells]
        classifiers = fit_ridge(rows[:n], targets[:n], torch.stack(kept))
        right = many_splits.accuracies(*classifiers, rows[-m:], targets[-m:])
        told = [coverage(unit[middle], unit[some], targets[middle], targets[some])._asdict() for some in kept]
        found += [cell | each | {"accuracy": one} for cell, each, one in zip(cells, told, right)]
    return found


def foretold(found: Sequence[dict], by: str = "mean") -> list[float]:
    """Of each part and seed the rank correlation of accuracy with coverage over the ways, its sign turned: 1 = the better covered, the better.

    by  one of the fields of `Coverage`. Raises InputError on another
    """
    check_choice("by", by, Coverage._fields)
    cells: dict[tuple, list[dict]] = {}
    for one in found:
        cells.setdefault((one["part"], one["seed"]), []).append(one)
    columns = ([np.array([one[what] for one in some]) for what in (by, "accuracy")] for some in cells.values())
    return [spearman(-far, right) for far, right in columns]
