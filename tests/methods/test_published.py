"""Published settings of every method: each cell is complete, of known settings, and has a source."""

import pytest

from distillery.data import NORMALIZATIONS
from distillery.methods import METHODS, published, published_part
from distillery.methods.literature import KEPT

CELLS = [(name, data, size) for name, one in METHODS.items() for data, sizes in one.published.items() for size in sizes]


@pytest.mark.parametrize("name, dataset, size", CELLS)
def test_a_cell_makes_settings(name, dataset, size):
    method = METHODS[name]
    values = method.common | method.cell(dataset, size or 1, 50_000)
    settings = method.settings(dataset, size or 1, 50_000)
    unknown = set(values) - set(vars(settings)) - set(method.about)
    assert not unknown, unknown
    assert all(getattr(settings, key) == value for key, value in values.items() if key not in method.about)
    assert values.get("normalization", "own") in NORMALIZATIONS
    source = values.get("source", method.source)
    assert source.split(":")[0] in ("paper", "code", "issue", "other paper"), source
    assert method.updates(settings, size or 1) > 0 or not method.learns


def test_settings_of_one_cell_are_not_those_of_another():
    """Cells are shared: what is made of them is a copy."""
    cell = METHODS["IDM"].cell("cifar10", 1, 0)
    METHODS["IDM"].settings("cifar10", 1, own={"batch": 7})
    assert cell["batch"] == METHODS["IDM"].settings("cifar10", 1).batch == 5000


@pytest.mark.parametrize("dataset, size, rate", [("cifar10", 50, 1), ("cifar10", 100, 10), ("cifar10", 1250, 10), ("cifar100", 100, 1)])
def test_the_rate_of_dm_grows_on_cifar10_alone(dataset, size, rate):
    assert METHODS["DM"].settings(dataset, size).lr == rate


def test_published_numbers_are_pairs_in_percent():
    rows = [row for one in METHODS.values() for table in one.numbers.values() for row in table.items()]
    assert rows and all(size >= 0 and 0 < std < mean < 100 for size, (mean, std) in rows)
    assert published("cifar10", "IDM", 50) == {"mean": 0.675, "std": pytest.approx(0.001)}
    assert published("cifar10", "IDC", 1) == {"mean": 0.5, "std": pytest.approx(0.004)}
    assert published("svhn", "IDM", 1) is None


def test_published_parts_are_nine_accuracies_in_percent():
    rows = [row.split() for ways in KEPT.values() for row in ways.values()]
    assert len(rows) == 30 and all(len(row) == 9 and all(10 < float(value) < 100 for value in row) for row in rows)
    assert published_part("DTD", "FlexRand, oracle on test", 0.1) == {"mean": pytest.approx(0.5295), "std": None}
    assert published_part("DTD", "random", 0.9)["mean"] == pytest.approx(0.7461)
    for way, part in (("FlexRand, 1/2", 0.1), ("random, again", 0.1), ("random", 0.15), ("random", 1.0), ("CCS strata", 0.1)):
        assert published_part("DTD", way, part) is None
    assert published_part("digits", "random", 0.1) is None
