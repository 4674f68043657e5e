"""LRS and ARS: numbers worked by hand, their intervals, and what the public package stumbles over."""

import math

import numpy as np
import pytest
from scipy import stats

from distillery.report.robustness import WEIGHTS, normalized, robustness
from distillery.report.statistics import difference, total

REAL, HARD, OWN, RANDOM = [[0.85]], [[0.45]], [[0.55]], [[0.35]]
PLAIN, RANDOM_PLAIN = [[0.40]], [[0.30]]


@pytest.mark.parametrize("advantage, score", [(0, 0.2689), (0.1, 0.3137), (-0.2, 0.1918), (-0.3, 0.1587), (1, 1), (-1, 0)])
def test_a_score_by_hand(advantage, score):
    assert normalized(advantage) == pytest.approx(score, abs=5e-5)


def test_scores_by_hand():
    """HLR .85 - .45, IOR .55 - .35, alpha = .5 * .2 - .5 * .4 = -.1; gaps .2 and .1, beta = .15."""
    found = robustness(REAL, HARD, OWN, RANDOM, PLAIN, RANDOM_PLAIN)
    gaps = {"hlr": 0.4, "ior": 0.2, "gap_augmented": 0.2, "gap_plain": 0.1}
    assert {name: found[name]["mean"] for name in gaps} == pytest.approx(gaps)
    assert found["lrs"]["value"] == pytest.approx((math.exp(-0.1) - 1 / math.e) / (math.e - 1 / math.e))
    assert found["ars"]["value"] == pytest.approx((math.exp(0.15) - 1 / math.e) / (math.e - 1 / math.e))
    assert all(found[name]["ci95"] is None for name in (*gaps, "lrs", "ars"))  # one set, one network


def test_curves_go_from_one_term_to_the_other():
    found = robustness(REAL, HARD, OWN, RANDOM, PLAIN, RANDOM_PLAIN)
    lrs, ars = ([one["value"] for one in found[name]] for name in ("lrs_curve", "ars_curve"))
    assert lrs == pytest.approx([normalized(0.2 * w - 0.4 * (1 - w)) for w in WEIGHTS])
    assert ars == pytest.approx([normalized(0.2 * gamma + 0.1 * (1 - gamma)) for gamma in WEIGHTS])
    assert [one["weight"] for one in found["lrs_curve"]] == list(WEIGHTS) and found["lrs_curve"][5] == found["lrs"]


def test_intervals_are_over_sets_paired_by_seed_and_over_the_networks_of_the_real_images():
    hard, own, random = [[0.4, 0.42], [0.5, 0.46]], [[0.55, 0.57], [0.6, 0.6]], [[0.35, 0.35], [0.39, 0.41]]
    real = [[0.8, 0.84, 0.85]]
    found = robustness(real, hard, own, random, own, random)
    gaps = [0.21, 0.20]
    half = 12.706 * np.std(gaps, ddof=1) / math.sqrt(2)
    assert found["ior"]["ci95"] == pytest.approx([0.205 - half, 0.205 + half], rel=1e-4)
    alpha = stats.ttest_ind([0.5 * (0.21 + 0.41), 0.5 * (0.20 + 0.48)], 0.5 * np.array(real[0]), equal_var=False).confidence_interval()
    assert found["lrs"]["ci95"] == pytest.approx([normalized(alpha.low), normalized(alpha.high)])
    assert found["lrs_curve"][-1]["ci95"] == pytest.approx([normalized(bound) for bound in found["ior"]["ci95"]])


def test_a_total_is_students_interval_of_one_sample_and_welchs_of_two():
    one, two = np.array([0.1, 0.2, 0.4]), np.array([0.3, 0.1])
    low, high = stats.ttest_1samp(one, 0).confidence_interval()
    assert total(one)["ci95"] == pytest.approx([low, high])
    assert total(one, -two)["ci95"] == pytest.approx(difference([[v] for v in one], [[v] for v in two])["ci95"])


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"own": [[55.0]], "random": [[35.0]]}, ("own", "55 is no fraction")),  # LRS -0.157, ARS 1.9e11
        ({"own": [[0.55, 45.0]]}, ("own", "45 is no fraction")),
        ({"real": [[85.0]]}, ("real", "85 is no fraction")),
        ({"hard": [[-0.1]]}, ("hard", "-0.1")),
        ({"hard": [[math.nan]]}, ("hard", "nan")),  # the mean of an empty list, which the public package reports
        ({"random": []}, ("random", "none")),
        ({"real": [[]]}, ("real", "none")),
        ({"own": OWN * 2}, ("hard 1, own 2",)),  # one list longer than the others, found when all was trained
    ],
)
def test_what_the_public_package_computes_with_is_refused(changes, words, refused):
    given = {"real": REAL, "hard": HARD, "own": OWN, "random": RANDOM, "own_plain": PLAIN, "random_plain": RANDOM_PLAIN}
    with refused(*words):
        robustness(**given | changes)
