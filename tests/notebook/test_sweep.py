"""A sweep: grids are checked before anything starts, cells run apart, and what is done is not done again."""

import json
import time
from pathlib import Path

import pytest
import torch
import yaml

from distillery import cli, report
from distillery.notebook import sweep

ROOT = Path(__file__).resolve().parents[2]
BODY = """
import os, signal, time
from pathlib import Path
from distillery.notebook import parameters
from distillery.report import records
P = parameters.settings(globals())
folder = parameters.results_root(P.results_dir)
(folder / f"start {time.time()} {os.environ['OMP_NUM_THREADS']} {P.budget_minutes}").touch()
if P.fail == "crash":
    raise RuntimeError("it broke")
if P.fail == "papermill":
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)
if P.fail == "worker" and len(list(folder.glob("start *"))) == 1:
    worker = int(Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(worker, signal.SIGKILL)
    time.sleep(60)
claim = records.claim("c", "ours is better", "nobody", [[0.9], [0.92]], [[0.1], [0.11]], against="random")
records.write(folder / P.scale / "tiny" / "made-up" / "record.json", notebook="tiny", key=records.record_key("tiny", vars(P)),
              scale=P.scale, parameters=vars(P), claims=[claim], rows=[], costs={},
              data={"label": "made-up"}, missing=[])
"""


@pytest.fixture
def grid(tmp_path, tiny_notebook):
    """Write a grid over a trivial notebook; returns its path."""

    tiny = str(tiny_notebook(BODY))

    def write(axes, fixed=None, notebook=tiny, **more):
        content = {"notebook": notebook, "grid": axes} | ({"parameters": fixed} if fixed else {}) | more
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return write


def cells(path):
    return sweep.read(path, cli._find)[1]


def summary(path):
    found = json.loads((path.parent / "results" / "sweeps" / "mine" / "summary.json").read_text())
    return found["cells"]


def starts(path):
    """(cell, threads, budget in minutes) of every start of the notebook, in the order of time."""
    found = sorted(path.parent.rglob("start *"), key=lambda one: float(one.name.split()[1]))
    return [(one.parent.name, int(one.name.split()[2]), float(one.name.split()[3])) for one in found]


def test_every_combination_is_a_cell(grid):
    found = cells(grid({"seed": [0, 1], "ipc": [1, [1, 10]]}, {"rate": 1}))
    assert [cell.name for cell in found] == [
        "tiny,seed=0,ipc=1",
        "tiny,seed=0,ipc=1+10",
        "tiny,seed=1,ipc=1",
        "tiny,seed=1,ipc=1+10",
    ]
    assert found[3].given["ipc"] == [1, 10] and found[3].given["rate"] == 1.0 and found[3].given["seed"] == 1
    assert len({cell.key for cell in found}) == 4 and found[0].given["results_dir"] == str(found[0].folder)


def test_names_of_cells_are_names_of_folders(grid):
    found = cells(grid({"data_root": ["/a/b", "/a:b", "x" * 300]}))
    assert len({cell.name for cell in found}) == 3
    assert all("/" not in cell.name and len(cell.name) < 100 for cell in found)


@pytest.mark.parametrize(
    "wrong, named",
    [
        ({"axes": {"epic": [1]}}, "'epic'"),
        ({"axes": {"seed": [0]}, "fixed": {"epic": 1}}, "'epic'"),
        ({"axes": {"seed": 3}}, "seed: 3"),
        ({"axes": {"seed": []}}, "seed: []"),
        ({"axes": {}}, "empty"),
        ({"axes": [1, 2]}, "empty"),
        ({"axes": {"seed": [0]}, "notebook": []}, "empty"),
        ({"axes": {"seed": [0]}, "notebook": "99_nothing"}, "99_nothing"),
        ({"axes": {"seed": [0]}, "notebook": 7}, "7"),
        ({"axes": {"ipc": [1, 0]}}, "ipc: 0"),
        ({"axes": {"seed": [0, 0]}}, "twice"),
        ({"axes": {"seed": [0]}, "fixed": {"seed": 1}}, "'seed'"),
        ({"axes": {"results_dir": ["a", "b"]}}, "'results_dir'"),
        ({"axes": {"seed": [0]}, "seeds": 3}, "seeds"),
        ({"axes": {"seed": [0]}, "fixed": [1]}, "[1]"),
    ],
    ids=str,
)
def test_bad_grids_are_refused_before_anything_starts(grid, capsys, wrong, named):
    path = grid(**wrong)
    assert cli.main(["sweep", str(path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and named in lines[0] and "accepted" in lines[0], lines
    assert not (path.parent / "results").exists()


@pytest.mark.parametrize("text", ["[1", "- 1", "just words", "", None])
def test_files_that_are_no_grid(tmp_path, capsys, text):
    path = tmp_path / "grid.yaml"
    if text is not None:
        path.write_text(text)
    assert cli.main(["sweep", str(path)]) == 2
    assert "accepted" in capsys.readouterr().err


def test_ray_within_ray_is_refused(grid, ray, capsys):
    path = grid({"seed": [0]}, {"engine": "ray"})
    assert cli.main(["sweep", str(path), "--engine", "ray"]) == 2
    assert "'ray' in the cells" in capsys.readouterr().err and not starts(path)


def test_an_unknown_engine_is_refused(grid, capsys):
    assert cli.main(["sweep", str(grid({"seed": [0]})), "--engine", "cluster"]) == 2
    assert "'cluster'" in capsys.readouterr().err


@pytest.mark.slow
def test_failures_stay_in_their_cell_and_what_is_done_is_not_redone(grid, capfd):
    path = grid({"fail": ["crash", "", "papermill"]})
    assert cli.main(["sweep", str(path)]) == 1
    out, err = capfd.readouterr()
    crash, good, killed = summary(path)
    assert [one["status"] for one in (crash, good, killed)] == ["failed", "done", "failed"]
    assert "RuntimeError: it broke" in crash["error"] and "signal 9" in killed["error"]
    assert good["headline"].startswith("ours is better: direction reproduced, 91.0")
    assert (path.parent / "results" / "sweeps" / "mine" / good["record"]).is_file()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and "fail=crash" in errors[0] and "fail=papermill" in errors[1]
    assert "2 failed" in out and "1 done" in out
    assert [name for name, *_ in starts(path)] == [one["cell"] for one in (crash, good, killed)]

    grid({"fail": [""]})
    assert cli.main(["sweep", str(path), "--budget", "30m"]) == 0
    assert len(starts(path)) == 3  # nothing was started
    grid({"fail": [""]}, {"rate": 0.2})  # the record is of other parameters
    [cell] = cells(path)
    assert cell.record() is None and cell.state()["status"] != "done"


def test_states_are_read_from_record_and_log(grid):
    [cell] = cells(grid({"seed": [0]}))
    assert cell.state()["status"] == "not run"

    def leave(missing, log):
        report.write(
            cell.folder / "smoke" / "tiny" / "x" / "record.json",
            notebook="tiny",
            key=cell.key,
            scale="smoke",
            parameters={},
            claims=[],
            rows=[],
            costs={},
            data={},
            missing=missing,
        )
        cell.log.write_text(log)
        return cell.state()["status"]

    cell.folder.mkdir(parents=True)
    cell.log.touch()
    assert cell.state()["status"] == "failed" and "killed" in cell.state()["error"]
    assert leave([{}], "fine") == "incomplete"
    assert leave([{}], "well\nerror: not so well\n") == "failed" and cell.state()["error"] == "not so well"
    assert leave([], "error: of an earlier start") == "done"


def test_a_spent_budget_starts_nothing(grid, capsys):
    path = grid({"seed": [0, 1]})
    assert cli.main(["sweep", str(path), "--budget", "0.0001s"]) == 0
    assert [one["status"] for one in summary(path)] == ["not run", "not run"] and not starts(path)
    assert "2 not run" in capsys.readouterr().out


@pytest.mark.slow
def test_on_ray_a_killed_worker_does_not_lose_its_cell(grid, ray):
    path = grid({"fail": ["worker", ""]})
    assert cli.main(["sweep", str(path), "--engine", "ray", "--budget", "30m"]) == 0
    assert [one["status"] for one in summary(path)] == ["done", "done"]
    found = starts(path)
    assert sorted(name for name, *_ in found) == ["tiny,fail=", "tiny,fail=worker", "tiny,fail=worker"]
    assert all(threads == torch.get_num_threads() and 0 < minutes <= 30 for _, threads, minutes in found)
    assert not [*path.parent.rglob("*.lock")]


def test_the_example_is_a_grid():
    _, found = sweep.read(ROOT / "notebooks" / "params" / "sweep.example.yaml", cli._find)
    assert len(found) == 4 and {cell.notebook.stem for cell in found} == {"00_quickstart"}


@pytest.mark.slow
def test_a_real_sweep(grid):
    short = {
        "n_seeds": 2,
        "networks": 2,
        "width": 8,
        "evaluation_epochs": 2,
        "score_trials": 2,
        "score_epochs": 1,
        "steps_dm": 2,
        "steps_dc": 2,
        "epochs_whole": 2,
        "per_class": 30,
        "ipc": 1,
    }
    path = grid({"seed": [0]}, short, notebook="00_quickstart")
    assert cli.main(["sweep", str(path)]) == 0
    [cell] = summary(path)
    assert cell["status"] == "done" and "random images" in cell["headline"]
    began = time.monotonic()
    assert cli.main(["sweep", str(path)]) == 0 and time.monotonic() - began < 20
