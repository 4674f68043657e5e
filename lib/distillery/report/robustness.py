r"""Label- and augmentation-robust scores of a set, LRS and ARS, with intervals: the fair comparison of DD-Ranking (arXiv 2505.13300).

$$\mathrm{HLR} = a(\text{real, hard}) - a(\text{set, hard}), \qquad \mathrm{IOR} = a(\text{set, any}) - a(\text{random, any})$$
$$\mathrm{LRS} = \frac{e^\alpha - e^{-1}}{e - e^{-1}}, \quad \alpha = w\,\mathrm{IOR} - (1 - w)\,\mathrm{HLR}, \qquad
\mathrm{ARS} = \frac{e^\beta - e^{-1}}{e - e^{-1}}, \quad \beta = \gamma\,g(\text{augmented}) + (1 - \gamma)\,g(\text{not})$$

with $a$ the accuracy of networks trained under hard labels or under those that a method brings ("any"), and $g$ the accuracy of the set less
that of random images, with or without augmentation. Accuracies are fractions: only then do both scores lie in [0, 1], .2689 standing for no
gain. Published are $w = \gamma = 1/2$, an arbitrary choice, so that both scores are also given as curves.
"""

import math
from collections.abc import Sequence

import numpy as np

from distillery.checks import InputError
from distillery.report.statistics import total

WEIGHTS = tuple(i / 10 for i in range(11))  # of a curve
Accuracies = Sequence[Sequence[float]]  # [set][network], fractions


def normalized(advantage: float) -> float:
    r"""$(e^x - e^{-1}) / (e - e^{-1})$: [-1, 1] to [0, 1], 0 to .2689."""
    return (math.exp(advantage) - math.exp(-1)) / (math.e - math.exp(-1))


def robustness(
    real: Accuracies, hard: Accuracies, own: Accuracies, random: Accuracies, own_plain: Accuracies, random_plain: Accuracies
) -> dict:
    """HLR, IOR, LRS, both gaps and ARS of a set, with 95% intervals.

    real          accuracies[set][network] of networks trained on all real images under hard labels; their networks are what varies
    hard          of networks trained on the sets under hard labels
    own, random   on the sets under the labels they bring, and on as many random images under labels of the same kind
    own_plain, random_plain  both without augmentation; all but `real` in the same order of seeds, by which they are paired
    returns       'hlr', 'ior', 'gap_augmented', 'gap_plain': {'mean', 'ci95'}; 'lrs', 'ars': {'weight': 1/2, 'value', 'ci95'}; 'lrs_curve' and
                  'ars_curve', the same at WEIGHTS of IOR and of the augmented gap. ci95 is None where a side has one number
    raises        InputError on no accuracy, on percent or other numbers outside [0, 1], and where pairs lack a half
    """
    given = {"hard": hard, "own": own, "random": random, "own, not augmented": own_plain, "random, not augmented": random_plain}
    hard, own, random, own_plain, random_plain = means = [_means(name, one) for name, one in given.items()]
    if len({len(one) for one in means}) > 1:
        found = ", ".join(f"{name} {len(one)}" for name, one in zip(given, means))
        raise InputError(f"sets: {found}; accepted: as many of each, in the order of their seeds")
    real = _fractions("real", [value for one in real for value in one])

    def lrs(w: float) -> dict:
        apart = [] if w == 1 else [-(1 - w) * real]
        return _score(w, total(w * (own - random) + (1 - w) * hard, *apart))

    def ars(gamma: float) -> dict:
        return _score(gamma, total(gamma * (own - random) + (1 - gamma) * (own_plain - random_plain)))

    gaps = {"ior": total(own - random), "gap_augmented": total(own - random), "gap_plain": total(own_plain - random_plain)}
    curves = {"lrs_curve": [lrs(w) for w in WEIGHTS], "ars_curve": [ars(gamma) for gamma in WEIGHTS]}
    return {"hlr": total(real, -hard)} | gaps | {"lrs": lrs(0.5), "ars": ars(0.5)} | curves


def _score(weight: float, advantage: dict) -> dict:
    """A score and its interval from those of alpha or beta, of which it is a rising function."""
    bounds = advantage["ci95"] and [normalized(min(1.0, max(-1.0, bound))) for bound in advantage["ci95"]]
    return {"weight": weight, "value": normalized(advantage["mean"]), "ci95": bounds}


def _means(name: str, accuracies: Accuracies) -> np.ndarray:
    """The mean of each set, (sets,)."""
    return np.array([_fractions(name, one).mean() for one in accuracies]) if len(accuracies) else _fractions(name, [])


def _fractions(name: str, values: Sequence[float]) -> np.ndarray:
    """Accuracies that are there, and fractions."""
    values = np.asarray(values, float)
    if not values.size:
        raise InputError(f"accuracies, {name}: none; accepted: at least one")
    for value in values[~((values >= 0) & (values <= 1))]:
        raise InputError(f"accuracies, {name}: {value:g} is no fraction; accepted: 0 to 1, where 45% is 0.45")
    return values
