"""Places on axes, what is not told from the first, how far an order survives, and the frontier, by hand."""

import math

import pytest

from distillery.report import standing

ACCURACY = {"a": [0.9, 0.8], "b": [0.5, 0.6], "c": [0.1, 0.2], "d": [None, None]}


@pytest.mark.parametrize(
    "cost, expected",
    [(1, 0.2), (0.1, 0.2), (10, 0.6), (math.sqrt(10), 0.4), (100, 0.6), (1000, 0.9), (1e5, 0.9), (math.sqrt(1e5), 0.75)],
    ids=["at a point", "below all", "at another", "between, over log cost", "a dearer and worse one", "the last", "above all", "beyond it"],
)
def test_the_frontier_is_the_best_of_those_no_dearer(cost, expected):
    assert standing.frontier([(100, 0.5), (1, 0.2), (1000, 0.9), (10, 0.6)], cost) == pytest.approx(expected)


def test_places_go_by_means_and_leave_out_what_has_not_run():
    assert standing.places(ACCURACY) == {"a": 1, "b": 2, "c": 3}
    assert standing.places({"a": [0.1, None], "b": [0.1, 0.1], "c": [0.3]}) == {"c": 1, "a": 2, "b": 3}


def test_what_is_level_with_the_first():
    values = {"far": [0.10, 0.11, 0.12], "first": [0.90, 0.91, 0.93], "close": [0.90, 0.92, 0.90], "once": [0.2]}
    assert standing.level(values) == {"first", "close", "once"}  # of one set nothing is known
    assert standing.level({"a": [None]}) == set()


def test_an_order_is_held_against_that_of_the_next_seed():
    kept = {"a": [0.9, 0.8, 0.9], "b": [0.5, 0.6, 0.5], "c": [0.1, 0.2, 0.1], "d": [None] * 3}
    turned = {"a": [0.1, 0.9, 0.9], "b": [0.5, 0.5, 0.5], "c": [0.9, 0.1, 0.1]}
    assert standing.agreement(kept, kept) == [[1.0], [1.0], [1.0]]
    assert standing.agreement(kept, turned) == [[1.0], [1.0], [-1.0]]  # a seed's order beside the next one's, the last beside the first
    assert standing.agreement(turned, turned) == [[-1.0], [1.0], [-1.0]]
    assert standing.agreement(ACCURACY, ACCURACY) == [[1.0], None]  # two seeds are one pair
    assert standing.agreement({name: one[:1] for name, one in ACCURACY.items()}, ACCURACY) == [None, None]
    assert standing.agreement({"a": [1, 2], "b": [2, 1]}, {"a": [1, 2], "b": [2, 1]}) == [None, None]  # two methods have no order


def test_means_over_methods_are_by_seed():
    assert standing.mean_over(ACCURACY, ["a", "b"]) == [[pytest.approx(0.7)], [pytest.approx(0.7)]]
    assert standing.mean_over(ACCURACY, ["a", "d"]) == [None, None]
