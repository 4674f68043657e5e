"""Means with two spreads, differences, critical sizes, rank correlations: what claims are made of."""

import math
from itertools import zip_longest

import numpy as np
from scipy import stats

from distillery.checks import InputError, check_fraction, check_keep


def measured(accuracies: list[list[float] | None] | None) -> dict | None:
    """Summary of one row: accuracies[set][network] as fractions, None for a set that has not run.

    std_sets is the spread of the sets' means (sample standard deviation, None for one set); std_networks the spread
    over evaluation networks within a set, averaged over sets.
    """
    accuracies = [one for one in accuracies or [] if one]
    if not accuracies:
        return None
    means = [float(np.mean(one)) for one in accuracies]
    within = [float(np.std(one, ddof=1)) for one in accuracies if len(one) > 1]
    return {
        "value": float(np.mean(means)),
        "n_sets": len(means),
        "std_sets": float(np.std(means, ddof=1)) if len(means) > 1 else None,
        "n_networks": len(accuracies[0]),
        "std_networks": float(np.mean(within)) if within else None,
    }


def interval(row: dict) -> tuple[float, float, str]:
    """The 95% t-interval of a row's mean, as `measured` gives it, over its sets; over the networks of a single set.

    Means of two or three sets may happen to be alike: their spread is taken for no smaller than that which networks alone give to a mean.

    returns  (low, high, 'sets' or 'networks'), '' in place of these where there is one number
    """
    n, spread, over = row["n_sets"], row["std_sets"], "sets"
    if n == 1:
        n, spread, over = row["n_networks"], row["std_networks"], "networks"
    if spread is None:
        return row["value"], row["value"], ""
    if over == "sets":
        spread = max(spread, (row["std_networks"] or 0) / math.sqrt(row["n_networks"]))
    half = float(stats.t.ppf(0.975, n - 1)) * spread / math.sqrt(n)
    return row["value"] - half, row["value"] + half, over


def difference(ours: list[list[float]] | None, baseline: list[list[float]] | None, margin: float = 0.0) -> dict | None:
    """Difference of the means of two rows, accuracies[set][network] in the same order of seeds, with a 95% t-interval.

    Paired by seed where five pairs have run, or three and no more than a quarter of all sets is left without its other half: seeds
    carry much of the variance. Else over all sets, by Welch's interval for unequal variances (Biometrika 34, 1947). Few gaps or means
    may happen to be alike: their spread is taken for no smaller than that which networks alone give to them, as in `interval`.

    returns  {'mean', 'ci95', 'p', 'how': 'paired', 'n_pairs'} or, with 'n_sets': [ours, baseline] in place of pairs, 'how': 'welch'; p is
             of both sides, of a difference of -margin; ci95 and p None where a side has one set; None where a side has not run
    """
    pairs = [(np.array(a), np.array(b)) for a, b in zip(ours or [], baseline or []) if a and b]
    gaps = np.array([a.mean() - b.mean() for a, b in pairs])
    found = [[np.array(one) for one in side or [] if one] for side in (ours, baseline)]
    sides = [np.array([one.mean() for one in side]) for side in found]
    n = [len(side) for side in sides]
    if not all(n):
        return None
    if len(gaps) >= 5 or len(gaps) >= 3 and sum(n) - 2 * len(gaps) <= sum(n) / 4:
        mean, how = float(gaps.mean()), {"how": "paired", "n_pairs": len(gaps)}
        apart = [[a - b] if len(a) == len(b) else [a, b] for a, b in pairs]  # networks of one seed go together
        variance = max(float(gaps.var(ddof=1)), float(np.mean([sum(map(_noise, one)) for one in apart])))
        error, freedom = math.sqrt(variance / len(gaps)), len(gaps) - 1
    else:
        mean, how = float(sides[0].mean() - sides[1].mean()), {"how": "welch", "n_sets": n}
        if min(n) < 2:
            return {"mean": mean, "ci95": None, "p": None} | how
        error, freedom = _welch(sides, [float(np.mean(list(map(_noise, side)))) for side in found])
    half, away = float(stats.t.ppf(0.975, freedom) * error), abs(mean + margin)
    p = float(2 * stats.t.sf(away / error, freedom)) if error else float(not away)
    return {"mean": mean, "ci95": [mean - half, mean + half], "p": p} | how


def _noise(networks: np.ndarray) -> float:
    """The variance that networks give to the mean of a set, 0 for one network."""
    return float(networks.var(ddof=1)) / len(networks) if len(networks) > 1 else 0.0


def gap_error(gap: dict) -> float:
    """The standard error of a `difference` with an interval; of Welch's with the fewest degrees of freedom that it can have, so no larger."""
    n = gap["n_pairs"] if gap.get("how") != "welch" else min(gap["n_sets"])
    return (gap["ci95"][1] - gap["ci95"][0]) / 2 / float(stats.t.ppf(0.975, n - 1))


def total(*samples: np.ndarray) -> dict:
    """The sum of the means of independent samples, each (n,), with a 95% t-interval: Student's of one sample, else Welch's.

    returns  {'mean', 'ci95'}; ci95 None where a sample has one number
    """
    mean = float(sum(one.mean() for one in samples))
    if min(map(len, samples)) < 2:
        return {"mean": mean, "ci95": None}
    error, freedom = _welch(samples)
    half = float(stats.t.ppf(0.975, freedom) * error)
    return {"mean": mean, "ci95": [mean - half, mean + half]}


def _welch(samples, least=()) -> tuple[float, float]:
    """Standard error of a sum or difference of the means of samples of `least` variances, and its degrees of freedom (Welch-Satterthwaite)."""
    floors = zip_longest(samples, least, fillvalue=0.0)
    squared = [max(float(one.var(ddof=1)), floor) / len(one) for one, floor in floors]  # of the standard error of each mean
    error = math.sqrt(sum(squared))
    return error, error**4 / sum(s**2 / (len(one) - 1) for s, one in zip(squared, samples)) if error else 1


def counted(gap: dict) -> str:
    """What a difference is made of: '5 pairs', '2 against 5 sets'; records without 'how' are paired."""
    if gap.get("how") == "welch":
        return "{} against {} sets".format(*gap["n_sets"])
    return f"{gap['n_pairs']} pair{'s' * (gap['n_pairs'] != 1)}"


def critical_size(kept: dict[float, list[list[float] | None] | None], full: list[list[float] | None] | None, margin: float) -> dict:
    """The critical sample size: the smallest measured part of the data that, like every larger one, serves as well as all.

    BiLP's m' (ICLR version) = min {|X'| : Acc(X') >= Acc(X) - margin}, made testable: a part is non-inferior if the 95%
    interval of its difference to all data lies above -margin, inferior if it lies below, and undecided where it holds -margin.
    Parts are asked from the largest down, until one is not non-inferior; the size is undefined where that one is undecided and
    its interval reaches further below its mean than the margin.

    kept     accuracies[set][network] of each part, by fractions or by images of every class, in the order of the seeds
             of `full`
    full     accuracies[set][network] with all data
    margin   the loss of accuracy that is tolerated, a fraction, fixed before anything is measured
    returns  keep (None where none is found), why, margin, and points: for each part, largest first, its `difference`
             and its verdict: 'non-inferior', 'inferior', 'undecided' or 'not run'
    raises   InputError on a margin outside (0, 1], no part, parts that are not numbers above 0, and fractions beside numbers
    """
    check_fraction("margin", margin)
    for keep in kept:
        check_keep("keep", keep)
    if not kept or min(kept) <= 1 < max(kept):
        raise InputError(f"keep: {sorted(kept)}; accepted: fractions or images of every class, at least one")
    points = {keep: _point(difference(kept[keep], full), margin) for keep in sorted(kept, reverse=True)}
    found, why = None, f"all measured are non-inferior by {margin:.1%}; a smaller one may be too"
    for keep, point in points.items():
        if point["verdict"] == "non-inferior":
            found = keep
            continue
        why = f"{point['verdict']} at {keep:g}"
        if point["ci95"]:
            why += f": {point['mean']:+.1%} [{point['ci95'][0]:+.1%}, {point['ci95'][1]:+.1%}]"
        wide = point["ci95"] is None or point["mean"] - point["ci95"][0] > margin
        if point["verdict"] != "inferior" and wide:
            found, why = None, f"undefined, {why}: no interval as narrow as the margin"
        break
    return {"keep": found, "why": why, "margin": margin, "points": points}


def _point(gap: dict | None, margin: float) -> dict:
    if gap is None:
        return {"mean": None, "ci95": None, "n_pairs": 0, "verdict": "not run"}
    low, high = gap["ci95"] or (-math.inf, math.inf)
    return gap | {"verdict": "non-inferior" if low > -margin else "inferior" if high < -margin else "undecided"}


def rank_correlation(ours: list[float], theirs: list[float]) -> dict:
    """Spearman's correlation of two lists, with a bootstrap interval over their entries, of 2000 draws.

    returns  {'value', 'ci95'}; ci95 None with fewer than four entries, value 0 where one list is constant
    """
    ours, theirs, ci95 = np.asarray(ours, float), np.asarray(theirs, float), None
    if len(ours) > 3:
        drawn = np.random.default_rng(0).integers(len(ours), size=(2000, len(ours)))
        ci95 = [float(q) for q in np.quantile([spearman(ours[one], theirs[one]) for one in drawn], [0.025, 0.975])]
    return {"value": spearman(ours, theirs), "ci95": ci95}


def spearman(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Spearman's rank correlation, 0 where one of the two is constant."""
    return float(stats.spearmanr(ours, theirs)[0]) if np.ptp(ours) and np.ptp(theirs) else 0.0


def rank_parts(ours: list[float], theirs: list[float]) -> list[float]:
    """Spearman's correlation of n >= 3 pairs as a mean of n numbers, one a pair: pseudo-values of the jackknife (Tukey 1958).

    n times the correlation less n - 1 times that without the pair. `difference` of two such lists compares two correlations with one
    list, pair by pair; its interval held the true difference in 91% to 100% of simulated lists of 8 and 27 normal pairs.
    """
    ours, theirs, n = np.asarray(ours, float), np.asarray(theirs, float), len(ours)
    whole = spearman(ours, theirs)
    return [n * whole - (n - 1) * spearman(np.delete(ours, i), np.delete(theirs, i)) for i in range(n)]
