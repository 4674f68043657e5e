"""Where methods stand on an axis, whether their order survives a change of axis, and what random images reach at a cost: the frontier."""

from collections.abc import Iterable

import numpy as np

from distillery.report.statistics import difference, spearman

Values = dict[str, list[float | None]]  # method -> its value on an axis by seed, None = not run


def frontier(points: Iterable[tuple[float, float]], cost: float) -> float:
    """What random images reach at a cost: the best accuracy of those no dearer, on a straight line over log cost between two of them.

    points  (cost, accuracy), at least one. At a cost below the cheapest it is that of the cheapest, above the dearest the best of all, so
            that a gain over it is a lower bound there, and here an upper one
    """
    costs, reached = np.array(sorted(points), float).T
    return float(np.interp(np.log(cost), np.log(costs), np.maximum.accumulate(reached)))


def means(values: Values) -> dict[str, float]:
    """The mean over seeds, without methods of which nothing has run."""
    found = {name: [one for one in by_seed if one is not None] for name, by_seed in values.items()}
    return {name: float(np.mean(one)) for name, one in found.items() if one}


def places(values: Values) -> dict[str, int]:
    """The place of each method by its mean, 1 = the largest; of equals the one named first stands before."""
    found = means(values)
    return {name: place for place, name in enumerate(sorted(found, key=lambda name: -found[name]), 1)}


def level(values: Values) -> set[str]:
    """Methods that are not told from the first: the 95% interval of their difference to it holds 0, or there is none."""
    order = list(places(values))
    split = {name: [None if one is None else [one] for one in values[name]] for name in order}
    gaps = {name: difference(split[order[0]], split[name]) for name in order[1:]}
    return {*order[:1], *(name for name, gap in gaps.items() if gap["ci95"] is None or gap["ci95"][0] <= 0)}


def agreement(ours: Values, theirs: Values) -> list[list[float] | None]:
    """Rank correlation of the order of methods under each seed on one axis and under the next seed on another, [seed][0].

    The last seed is followed by the first. Of one axis with itself it is what seeds leave of an order, the ceiling of every other axis.
    Methods that lack a value are left out; None with fewer than two seeds or three methods. Two seeds are one pair, so one number: the mean
    of both ways.
    """
    n = max(map(len, (ours | theirs).values()), default=0)
    whole = [name for name in ours if name in theirs and all(len(one[name]) == n and None not in one[name] for one in (ours, theirs))]
    if n < 2 or len(whole) < 3:
        return [None] * n
    table = [np.array([one[name] for name in whole]) for one in (ours, theirs)]  # (methods, seeds)
    found = [[spearman(table[0][:, i], table[1][:, (i + 1) % n])] for i in range(n)]
    return found if n > 2 else [[float(np.mean(found))], None]


def mean_over(values: Values, names: Iterable[str]) -> list[list[float] | None]:
    """The mean over some methods under each seed, [seed][0]; None where one has not run."""
    by_seed = zip(*(values[name] for name in names))
    return [None if None in one else [float(np.mean(one))] for one in by_seed]
