"""What rows of paper scale would take: timed on small images, multiplied, and beside what is done."""

import time

import pytest

from distillery.cli import main
from distillery.methods import METHODS
from distillery.notebook import paper, timing
from distillery.report import records

SMALL = {"width": "4", "networks": "1", "device": "cpu"}


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setenv("DISTILLERY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(paper, "SHAPES", {"cifar10": (10, 3, 8, 200)})
    monkeypatch.setattr(paper, "SHORT", 100)


def rows(*asked):
    head, _, *lines, empty, told = paper.lines(*asked, SMALL)
    assert not empty and " missing; about " in told
    names = [name.strip() for name in head.strip("|").split("|")]
    return [dict(zip(names, (cell.strip() for cell in line.strip("|").split("|")), strict=True)) for line in lines]


def test_minutes_are_seconds_times_what_is_published_for_what_is_missing():
    (dc,) = rows(["01_bilp.paper-cifar10-jpeg"], ["DC"], 2.0)
    (mtt,) = [row for row in rows(["05_provable.paper-cifar10"], ["MTT"], 2.0) if row["size"] == "1"]
    record = records.load(paper.places.ROOT / "results" / "paper" / "01_bilp" / "cifar10" / "record.json")
    done = next(len(row["accuracies"]) for row in record["rows"] if row["name"] == "DC")
    assert [dc[name] for name in ("data", "updates", "sets")] == ["CIFAR-10 (JPEG folders)", "1000", "5"]
    assert [dc[name] for name in ("done", "missing")] == [str(done), str(5 - done)] and done > 0
    assert [mtt[name] for name in ("updates", "sets", "done", "missing")] == ["5000", "5", "0", "5"]
    assert dc["s of experts"] == "0" and float(mtt["s of experts"]) > 0
    for row in (dc, mtt):
        step, evaluation, shared = (float(row[name]) for name in ("s an update", "s an evaluation", "s of experts"))
        total = int(row["missing"]) * (int(row["updates"]) * step + evaluation) + shared
        assert step > 0 < evaluation and float(row["minutes"]) == pytest.approx(total / 60, rel=0.02)


def test_rows_are_those_of_the_notebook_that_have_published_settings():
    session = paper._session(paper.places.NOTEBOOKS / "params" / "03_ftd.paper-cifar10.yaml", SMALL)
    asked = paper.asked(session)
    assert {("FTD", 10), ("MTT", 1), ("TESLA", 1), ("DM", 10)} <= set(asked)
    assert ("TESLA", 10) not in asked and not any(name == "random" for name, _ in asked)


def test_a_row_that_takes_too_long_is_given_up():
    (row,) = rows(["01_bilp.paper-cifar10."], ["DC"], 0.001)
    assert row["minutes"] == "not timed in 0.004 s"


def test_what_was_timed_on_this_device_is_not_timed_again(monkeypatch):
    once = rows(["01_bilp.paper-cifar10-jpeg"], ["DC"], 0.5)
    monkeypatch.setattr(paper, "measured", None)  # which cannot be called
    assert rows(["01_bilp.paper-cifar10-jpeg"], ["DC"], 0.5) == once


@pytest.mark.parametrize("content", ["{", "[1]", '{"a": 1}', "null"])
def test_damaged_times_are_measured_anew(tmp_path, content):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "paper-times.json").write_text(content)
    times = paper.Times()
    assert times.get("row", lambda: (1.0, 2.0, 0.0)) == (1.0, 2.0, 0.0) and paper.Times().get("row", None) == (1.0, 2.0, 0.0)


def test_rate_takes_ever_more_at_once():
    asked = []
    assert timing.rate(lambda n: asked.append(n) or 0.1 * n, 100, 4.0) == pytest.approx(0.1)
    assert asked == [2, 40] and timing.rate(lambda n: n, 1, 60.0) == 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        ["09_none"],
        ["--method", "DN"],
        ["--each", "soon"],
        ["01_bilp.paper-cifar10-jpeg", "--run", "--budget", "0"],
        ["-p", "device", "tpu"],
        ["--run"],
        ["01_bilp.paper-cifar10-jpeg", "--run", "-p", "colour", "red"],
    ],
)
def test_refused(wrong, capsys):
    assert main(["paper", *wrong]) == 2 and "accepted" in capsys.readouterr().err


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


def test_what_is_missing_is_run_and_gone_on_with(tmp_path, monkeypatch, capsys):
    """Two rows of digits in place of a published set, one loop of two updates in place of 20,000."""
    path = tmp_path / "01_bilp.paper-digits.yaml"
    path.write_text("dataset: digits\nscale: paper\nipc: [1, 2]\nn_seeds: 2\nper_class: 12\nevaluation_epochs: 2\nmax_side: 8\n")
    monkeypatch.setattr(paper, "SHAPES", {"cifar10": (10, 1, 8, 12)})
    monkeypatch.setattr(paper, "files", lambda named, methods: [path])
    monkeypatch.setattr(METHODS["DM"], "common", METHODS["DM"].common | {"iterations": 2}, raising=False)
    words = ["-p", "results_dir", str(tmp_path), *(word for name, value in SMALL.items() for word in ("-p", name, value))]
    asked = ["paper", "--method", "DM", "--run", *words, "-p", "published_for", "cifar10"]
    assert main([*asked, "-p", "n_seeds", "1"]) == 0
    told = capsys.readouterr().out
    assert "1 of 1 sets to do" in told and "DM at 1, seed 0: " in told and "DM at 2, seed 0: " in told and "seed 1" not in told
    kept = {one: one.stat().st_mtime_ns for one in tmp_path.rglob("runs/*.json")}
    assert main([*asked, "--budget", "10m"]) == 0
    told = capsys.readouterr().out
    assert (
        "1 of 2 sets to do" in told
        and "DM at 2, seed 1: " in told
        and kept
        and all(one.stat().st_mtime_ns == at for one, at in kept.items())
    )
    assert main([*asked, "--budget", "0.00001s"]) == 0 and "the same command goes on" in capsys.readouterr().out
