"""Pooling: records that differ by their seeds are one, with differences and verdicts over the sets of all."""

import pytest

from distillery.cli import main
from distillery.notebook.session import Session
from distillery.notebook.types import Whole
from distillery.report import pooling, records, statistics
from made_up import namespace


@pytest.fixture
def cell(tmp_path):
    """Run a small notebook as a cell of a sweep: its session."""

    def run(n=2, **changes):
        name = ",".join(["90_tiny", *(f"{key}={value}" for key, value in changes.items())])
        values = namespace(tmp_path / "sweeps" / "grid" / name, **{"first_seed": 0} | changes)
        S = Session("90_tiny", values | {"__annotations__": values["__annotations__"] | {"first_seed": Whole}})
        S.row("random", "random", 1, n)
        S.row("DM", "DM", 1, n, settings={"steps": 1, "batch": 4})
        S.claim("dm", "DM beats random images", "DM", "random")
        S.claim_values("classes", "ones are above zeros", [[1.0]] * 3, [[0.0]] * 3, "zeros")
        S.record()
        return S

    return run


def test_a_sweep_over_seeds_is_one_table(cell, tmp_path, capsys):
    sessions = [cell(seed=seed) for seed in (0, 5)]
    capsys.readouterr()
    for folder in (tmp_path, tmp_path / "sweeps" / "grid"):
        assert main(["report", "--results", str(folder)]) == 0
        out = capsys.readouterr().out
        assert out.count("DM beats random images") == 1 and out.count("4 x 2") == 3 and "| DM | 1 |" in out  # a claim, two rows
        assert out.count("ones are above zeros") == 2 and "digits, seed 5, smoke" in out
    [one] = pooling.pool(records.find(tmp_path, sweeps=True))
    ours, theirs = ([acc for S in sessions for acc in S.accuracies(name)] for name in ("DM", "random"))
    row = next(row for row in one["rows"] if row["method"] == "DM")
    assert row["accuracies"] == ours and row["measured"] == statistics.measured(ours)
    assert row["difference"] == one["claims"][0]["difference"] == statistics.difference(ours, theirs)
    assert row["seconds"] == pytest.approx(sum(result["seconds"] for S in sessions for result in S.results["DM"]))
    assert not records.find(tmp_path)  # pages are of notebooks alone


def test_a_set_counts_once(cell, tmp_path):
    cell(seed=3)
    cell(seed=3, first_seed=1)  # seeds 3 and 4, then 4 and 5
    [one] = pooling.pool(records.find(tmp_path, sweeps=True))
    assert [row["measured"]["n_sets"] for row in one["rows"]] == [3, 3]
    assert one["claims"][0]["difference"]["n_pairs"] == 3


def test_other_rows_and_incomplete_records_stay_apart(cell, tmp_path):
    cell(seed=0)
    cell(seed=1, ipc=[2])
    cell(seed=2)
    found = records.find(tmp_path, sweeps=True)
    found[2]["missing"] = [{}]
    assert pooling.pool(found) == found


def test_a_gain_stays_a_gain_and_a_row_without_a_set_is_kept(cell, tmp_path):
    for seed in (0, 5):
        cell(seed=seed)
    found = records.find(tmp_path, sweeps=True)
    for record in found:
        record["claims"][0]["equal"] = True
        record["rows"].append(record["rows"][0] | {"name": "nothing", "accuracies": [], "measured": None, "difference": None})
    [one] = pooling.pool(found)
    assert one["claims"][0]["equal"] and "p" not in one["claims"][0]["difference"]
    assert one["rows"][-1]["name"] == "nothing" and one["rows"][-1]["measured"] is None
