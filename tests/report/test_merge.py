"""Merging: what several machines computed counts as stored, records stay side by side, conflicts are named and nothing is overwritten."""

import json
import shutil

import pytest

from distillery.cli import main
from distillery.notebook.session import Session
from distillery.notebook.types import Whole
from distillery.report import pooling, records
from distillery.runs import Runs
from made_up import namespace


def session(folder, n=1, **more):
    values = namespace(folder, **{"first_seed": 0} | more)
    S = Session("90_tiny", values | {"__annotations__": values["__annotations__"] | {"first_seed": Whole}})
    S.row("random", "random", 1, n)
    S.row("DM", "DM", 1, n, settings={"steps": 1, "batch": 4})
    S.claim("dm", "DM beats random images", "DM", "random")
    S.record()
    return S


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Results of two machines that share the seeds of rows, read only."""
    root = tmp_path_factory.mktemp("machines")
    return [session(root / name, first_seed=i).folder.parents[1] for i, name in enumerate("ab")]


@pytest.fixture
def machines(made, tmp_path):
    return [shutil.copytree(one, tmp_path / one.name) for one in made]


def merge(tmp_path, *folders):
    return main(["merge", *map(str, folders), "--into", str(tmp_path / "all")])


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_machines_that_share_seeds_have_computed_all(machines, tmp_path, capsys):
    a, b = machines
    (a / "link").symlink_to("/etc")
    (b / "smoke" / "90_tiny" / "runs" / "x.lock").touch()
    (b / "smoke" / "90_tiny" / ".half.tmp").write_text("half")
    assert merge(tmp_path, a, b) == 0
    out = capsys.readouterr().out
    found = records.find(tmp_path / "all")
    assert len(found) == 2 and "first_seed 1" in out and "copied" in out
    assert [row["measured"]["n_sets"] for row in pooling.pool(found)[0]["rows"]] == [2, 2]
    assert not [path for path in (tmp_path / "all").rglob("*") if path.is_symlink() or path.suffix in (".lock", ".tmp")]
    before = contents(tmp_path / "all")
    assert merge(tmp_path, a, b) == 0 and "0 file(s) copied" in capsys.readouterr().out and contents(tmp_path / "all") == before
    both = session(tmp_path / "all", 2)
    assert both.runs.computed == 0 and len(records.find(tmp_path / "all")) == 2
    assert session(tmp_path / "all", first_seed=1).here.is_relative_to(tmp_path / "all") and len(records.find(tmp_path / "all")) == 2


def changed(folder, change):
    """Store a run of a folder again after a change of its result; its id."""
    path = next(path for path in sorted((folder / "smoke" / "90_tiny" / "runs").iterdir()) if "set" in path.read_text()[:60])
    one = json.loads(path.read_text())
    change(one["result"])
    path.unlink()
    runs = Runs(folder / "smoke" / "90_tiny")
    runs.get(one["producer"], one["version"], one["inputs"], one["data"], lambda key: one["result"])
    return path.stem


@pytest.mark.parametrize("times", [True, False])
def test_of_one_run_the_first_stays(machines, tmp_path, capsys, times):
    a, _ = machines
    c = shutil.copytree(a, tmp_path / "c")
    id = changed(c, lambda result: result.update({"seconds": 9e9} if times else {"loss": [0.5]}))
    artifact = f"smoke/90_tiny/artifacts/{id}.safetensors"
    (a / artifact).unlink()  # results travel without their sets
    assert merge(tmp_path, a, c) == 0
    assert ("equal but for their times" if times else "round differently") in capsys.readouterr().out
    assert (tmp_path / "all" / "smoke/90_tiny/runs" / f"{id}.json").read_bytes() == (a / "smoke/90_tiny/runs" / f"{id}.json").read_bytes()
    assert (tmp_path / "all" / artifact).exists() == times  # no set of other numbers


def test_conflicts_are_named_and_nothing_is_copied(machines, tmp_path, capsys):
    a, b = machines
    for one in machines:
        (one / "notes.csv").write_text(one.name)
        (one / "smoke" / "90_tiny" / "log.txt").write_text(one.name)  # of which the first stays
    session(c := tmp_path / "c", networks=3)  # other parameters at the place of the record of a
    assert merge(tmp_path, a, b, c) == 2
    err = capsys.readouterr().err
    assert "notes.csv differs" in err and "record.json is of other parameters" in err and "log.txt" not in err
    assert not (tmp_path / "all").exists()
    shutil.copytree(a, tmp_path / "all")
    before = contents(tmp_path / "all")
    assert merge(tmp_path, b) == 2 and contents(tmp_path / "all") == before


@pytest.mark.parametrize("wrong", ["nowhere", "within", "broken"])
def test_refused(machines, tmp_path, capsys, wrong):
    a, b = machines
    if wrong == "broken":
        next((b / "smoke" / "90_tiny" / "runs").iterdir()).write_text('{"id": ')
    folders, into = {"nowhere": [a, b / "x"], "within": [a], "broken": [a, b]}[wrong], a / "all" if wrong == "within" else tmp_path / "all"
    assert main(["merge", *map(str, folders), "--into", str(into)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "accepted" in line and not into.exists()
