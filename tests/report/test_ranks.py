"""Claims on rank correlations have one value a ranked thing, and can be decided."""

import numpy as np
import pytest

from distillery.report.records import claim
from distillery.report.statistics import rank_correlation, rank_parts


@pytest.mark.parametrize(("noise", "expected"), [(0.1, "direction reproduced"), (3.0, "inconclusive")])
def test_a_claim_on_ranks_can_be_decided(noise, expected):
    """A set that ranks 27 networks almost as all images do against one that does not, and one that is as bad."""
    draws = np.random.default_rng(0)
    whole = draws.standard_normal(27)
    ours, theirs = (whole + scale * draws.standard_normal(27) for scale in (noise, 3.0))
    assert np.mean(rank_parts(ours, whole)) == pytest.approx(rank_correlation(ours, whole)["value"], abs=0.05)
    both = ([[part] for part in rank_parts(one, whole)] for one in (ours, theirs))
    assert claim("search", "a ranks better than b", "p", *both, against="b", unit="correlation")["verdict"] == expected


def test_the_parts_of_a_perfect_ranking_are_ones():
    assert rank_parts([1, 2, 3, 4], [10, 20, 30, 50]) == pytest.approx([1] * 4)
    by_hand = rank_parts([1, 2, 4, 3], [1, 2, 3, 4])  # .8 of four, .5 without one of the first two, 1 without one of the last two
    assert by_hand == pytest.approx([4 * 0.8 - 3 * 0.5] * 2 + [4 * 0.8 - 3] * 2)
