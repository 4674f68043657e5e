"""What rows of paper scale would take: timed on small images, multiplied, and beside what is done."""

import time

import pytest

from distillery.cli import main
from distillery.notebook import paper_check, timing

SMALL = {"width": 4, "networks": 1}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(paper_check, "SHAPES", {"cifar10": (10, 3, 8, 200)})
    monkeypatch.setattr(paper_check, "SHORT", 100)


def rows(*asked):
    head, _, *lines = paper_check.lines(*asked, "cpu", SMALL)
    names = [name.strip() for name in head.strip("|").split("|")]
    return [dict(zip(names, (cell.strip() for cell in line.strip("|").split("|")), strict=True)) for line in lines]


def test_half_hours_are_seconds_times_what_is_published():
    (dc,) = rows(["01_bilp.paper-cifar10-jpeg"], ["DC"], 2.0)
    (mtt,) = [row for row in rows(["05_provable.paper-cifar10"], ["MTT"], 2.0) if row["size"] == "1"]
    assert (dc["data"], dc["updates"], dc["sets"], dc["done"]) == ("CIFAR-10 (JPEG folders)", "1000", "5", "3")
    assert (mtt["updates"], mtt["sets"], mtt["done"]) == ("5000", "5", "0")
    assert dc["s of experts"] == "0" and float(mtt["s of experts"]) > 0
    for row in (dc, mtt):
        step, evaluation, shared = (float(row[name]) for name in ("s an update", "s an evaluation", "s of experts"))
        total = 5 * (int(row["updates"]) * step + evaluation) + shared
        assert step > 0 < evaluation and float(row["half hours"]) == pytest.approx(total / 1800, rel=0.02)


def test_rows_are_those_of_the_notebook_that_have_published_settings():
    session = paper_check._session(paper_check.places.NOTEBOOKS / "params" / "03_ftd.paper-cifar10.yaml", SMALL | {"device": "cpu"})
    asked = paper_check.asked(session)
    assert {("FTD", 10), ("MTT", 1), ("TESLA", 1), ("DM", 10)} <= set(asked)
    assert ("TESLA", 10) not in asked and not any(name == "random" for name, _ in asked)


def test_a_row_that_takes_too_long_is_given_up():
    (row,) = rows(["01_bilp.paper-cifar10."], ["DC"], 0.001)
    assert row["half hours"] == "not timed in 0.004 s"


def test_rate_takes_ever_more_at_once():
    asked = []
    assert timing.rate(lambda n: asked.append(n) or 0.1 * n, 100, 4.0) == pytest.approx(0.1)
    assert asked == [2, 40] and timing.rate(lambda n: n, 1, 60.0) == 1.0


@pytest.mark.parametrize("wrong", [["09_none"], ["--method", "DN"], ["--budget", "soon"], ["--device", "tpu"]])
def test_refused(wrong, capsys):
    assert main(["paper-check", *wrong]) == 2 and "accepted" in capsys.readouterr().err


def test_what_takes_too_long_is_said_so_whatever_becomes_of_the_interrupt():
    """torch's compiler wraps it; other errors stay what they are."""

    def wrapped():
        try:
            time.sleep(30)
        except timing.TooLong as error:
            raise RuntimeError("the compiler failed") from error

    with pytest.raises(timing.TooLong), timing.within(0.05):
        wrapped()
    with pytest.raises(KeyError), timing.within(30):
        raise KeyError
