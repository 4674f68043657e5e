"""A sweep: grids are checked before anything starts, cells run apart, and what is done is not done again."""

import json
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml

from distillery import cli
from distillery.lock import lock
from distillery.notebook import sweep
from distillery.report import records

ROOT = Path(__file__).resolve().parents[2]
BODY = """
import os
from distillery.notebook import parameters
from distillery.report import records
P = parameters.settings(globals())
folder = parameters.results_root(P.results_dir)
(folder / f"start 0 {os.environ['OMP_NUM_THREADS']} {P.budget_minutes}").touch()
if P.fail == "crash":
    raise RuntimeError("it broke")
claim = records.claim("c", "ours is better", "nobody", [[0.9], [0.92]], [[0.1], [0.11]], against="random")
records.write(folder / P.scale / "tiny" / "made-up" / "record.json", notebook="tiny", key=records.record_key("tiny", vars(P)),
              scale=P.scale, parameters=vars(P), claims=[claim], rows=[], costs={},
              data={"label": "made-up", "train": 9, "test": 5}, missing=[])
"""
# in place of `distillery run NOTEBOOK -f FILE`: it notes its start, fails as asked, or leaves the record that is laid out for it
STUB = """
import os, shutil, signal, time
from pathlib import Path
import yaml
given, folder = yaml.safe_load(Path(sys.argv[4]).read_text()), Path(sys.argv[4]).parent
mark = f"start {time.time()} {os.environ['OMP_NUM_THREADS']} {given.get('budget_minutes', 0.0)}"
(folder / mark).write_text(f"{os.getpid()} {sys.argv[1]} {sys.argv[3]}")
if (summary := folder.parent / "summary.json").exists():
    shutil.copy(summary, folder / "seen.json")
if given["fail"] == "interrupt":
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(60)
if given["fail"] == "crash":
    sys.exit("error: cell 3: RuntimeError: it broke")
if given["fail"] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if given["fail"] == "worker" and len(list(folder.glob("start *"))) == 1:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)
record = folder / "smoke" / "tiny" / "made-up" / "record.json"
record.parent.mkdir(parents=True)
shutil.copy(folder.parent.parent.parent.parent / "laid out" / folder.name, record)
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


@pytest.fixture
def stub(monkeypatch):
    """Run STUB in place of notebooks; call it with a grid to lay out the records that its cells leave."""
    monkeypatch.setattr(sweep, "COMMAND", sweep.TIED + STUB)
    claim = records.claim("c", "ours is better", "nobody", [[0.9], [0.92]], [[0.1], [0.11]], against="random")

    def lay_out(path):
        for cell in cells(path):
            made = {
                "parameters": {},
                "claims": [claim],
                "rows": [],
                "costs": {},
                "data": {"label": "x", "train": 1, "test": 1},
                "missing": [],
            }
            records.write(path.parent / "laid out" / cell.name, notebook="tiny", key=cell.key, scale="smoke", **made)
        return path

    return lay_out


def summary(path):
    found = json.loads((path.parent / "results" / "sweeps" / "mine" / "summary.json").read_text())
    return found["cells"]


def starts(path):
    """(cell, threads, budget in minutes) of every start of the notebook, in the order of time."""
    found = sorted(path.parent.rglob("start *"), key=lambda one: float(one.name.split()[1]))
    return [(one.parent.name, int(one.name.split()[2]), float(one.name.split()[3])) for one in found]


def test_every_combination_is_a_cell(grid):
    found = cells(grid({"seed": [0, 1], "ipc": [1, [1, 10]]}, {"rate": 1}))
    assert [cell.name for cell in found] == ["tiny,seed=0,ipc=1", "tiny,seed=0,ipc=1+10", "tiny,seed=1,ipc=1", "tiny,seed=1,ipc=1+10"]
    assert found[3].given["ipc"] == [1, 10] and found[3].given["rate"] == 1.0 and found[3].given["seed"] == 1
    assert len({cell.key for cell in found}) == 4 and found[0].given["results_dir"] == str(found[0].folder)


def test_names_of_cells_are_names_of_folders(grid):
    found = cells(grid({"data_root": ["/a/b", "/a:b", "x/" * 150]}))
    assert len({cell.name for cell in found}) == 3
    assert all("/" not in cell.name and len(cell.name) < 100 for cell in found)


def test_long_names_of_cells_are_cut_and_told_apart(grid, stub):
    words = ["\u6f22" * 40, "\u5b57" * 40]
    path = stub(
        grid({"data_root": [words[0]], "rate": [0.1234567890123], "engine": ["local"], "seed": [1], "ipc": [[1, 2]], "fail": words})
    )
    assert cli.main(["sweep", str(path)]) == 0 and len({one["cell"] for one in summary(path)}) == 2
    assert all(len(one["cell"].encode()) < 200 and one["status"] == "done" for one in summary(path))


def test_values_of_a_grid_are_read_as_on_the_command_line(grid):
    path = grid({"seed": [0]})
    path.write_text(f"notebook: {path.parent / 'tiny.ipynb'}\nparameters: {{rate: 5e-1}}\ngrid: {{seed: [010, 2], fail: [no, 010]}}")
    found = [cell.given for cell in cells(path)]
    assert [(one["seed"], one["fail"]) for one in found] == [(10, "no"), (10, "010"), (2, "no"), (2, "010")]
    assert {one["rate"] for one in found} == {0.5}


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
        ({"axes": {"seed": [{"a": 1}]}}, "dict"),
        ({"axes": {1: [1]}}, "1"),
        ({"axes": {"seed": [0]}, "fixed": {"results_dir": [7]}}, "7"),
        ({"axes": {"seed": [0]}, "fixed": {"results_dir": f"{__file__}/below"}}, "test_sweep.py/below"),
        ({"axes": {"seed": [0]}, "words": ["--gpus", "nan"]}, "nan"),
        ({"axes": {"seed": [0]}, "words": ["--gpus", "-1"]}, "-1"),
    ],
    ids=str,
)
def test_bad_grids_are_refused_before_anything_starts(grid, capsys, wrong, named):
    words = wrong.get("words", [])
    path = grid(**{name: value for name, value in wrong.items() if name != "words"})
    assert cli.main(["sweep", str(path), *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and named in lines[0] and "accepted" in lines[0], lines
    assert not any(one.is_file() for one in (path.parent / "results").rglob("*"))


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


def test_failures_stay_in_their_cell_and_what_is_done_is_not_redone(grid, stub, capfd):
    path = stub(grid({"fail": ["crash", "", "killed"]}))
    assert cli.main(["sweep", str(path)]) == 1
    out, err = capfd.readouterr()
    crash, good, killed = summary(path)
    assert [one["status"] for one in (crash, good, killed)] == ["failed", "done", "failed"]
    assert "RuntimeError: it broke" in crash["error"] and "signal 9" in killed["error"]
    assert good["headline"].startswith("ours is better: direction reproduced, 91.0")
    assert (path.parent / "results" / "sweeps" / "mine" / good["record"]).is_file()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and "fail=crash" in errors[0] and "fail=killed" in errors[1]
    assert "2 failed" in out and "1 done" in out
    assert [name for name, *_ in starts(path)] == [one["cell"] for one in (crash, good, killed)]
    assert all(threads == torch.get_num_threads() and minutes == 0 for _, threads, minutes in starts(path))

    assert cli.main(["sweep", str(path)]) == 1
    assert [name for name, *_ in starts(path)[3:]] == [crash["cell"], killed["cell"]]  # those that failed, once more
    stub(grid({"fail": [""]}))
    assert cli.main(["sweep", str(path), "--budget", "30m"]) == 0
    assert len(starts(path)) == 5  # nothing was started
    grid({"fail": [""]}, {"rate": 0.2})  # the record is of other parameters
    [cell] = cells(path)
    assert cell.record() is None and cell.state()["status"] != "done"


def test_states_are_read_from_record_and_log(grid):
    [cell] = cells(grid({"seed": [0]}))
    assert cell.state()["status"] == "not run"

    def leave(missing, log):
        records.write(
            cell.folder / "smoke" / "tiny" / "x" / "record.json",
            notebook="tiny",
            key=cell.key,
            scale="smoke",
            parameters={},
            claims=[],
            rows=[],
            costs={},
            data={"label": "x", "train": 1, "test": 1},
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


def test_a_budget_goes_to_the_cells(grid, stub):
    path = stub(grid({"seed": [0, 1]}, {"fail": ""}))
    assert cli.main(["sweep", str(path), "--budget", "30m"]) == 0
    minutes = [left for _, _, left in starts(path)]
    assert len(minutes) == 2 and 0 < minutes[1] < minutes[0] <= 30


def test_on_ray_a_killed_worker_does_not_lose_its_cell(grid, stub, ray):
    path = stub(grid({"fail": ["worker", ""]}))
    assert cli.main(["sweep", str(path), "--engine", "ray", "--budget", "30m"]) == 0
    assert [one["status"] for one in summary(path)] == ["done", "done"]
    found = starts(path)
    assert sorted(name for name, *_ in found) == ["tiny,fail=", "tiny,fail=worker", "tiny,fail=worker"]
    assert all(threads == torch.get_num_threads() and 0 < minutes <= 30 for _, threads, minutes in found)
    assert not [*path.parent.rglob("*.lock")]
    if sys.platform == "linux":  # a cell ends with the worker that started it; what nobody waited for has no command line
        for mark in path.parent.rglob("start *"):
            command = Path(f"/proc/{mark.read_text().split()[0]}/cmdline")
            assert not command.exists() or not command.read_bytes()


def states(found):
    return [one["status"] for one in found]


def test_a_sweep_is_told_as_it_goes_and_goes_on_after_an_interrupt(grid, stub, capfd, request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background ignores
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    path = stub(grid({"fail": ["", "interrupt"], "seed": [0, 1]}))
    assert cli.main(["sweep", str(path)]) == 130
    told = capfd.readouterr().err.splitlines()
    assert [line.split("  ")[:2] for line in told[:4]] == [
        ["begins", "tiny,fail=,seed=0"],
        ["1/4 done", "tiny,fail=,seed=0"],
        ["begins", "tiny,fail=,seed=1"],
        ["2/4 done", "tiny,fail=,seed=1"],
    ]
    assert "ours is better: direction reproduced" in told[1] and told[1].endswith(" left") and "about" in told[1]
    seen = [json.loads((cell.folder / "seen.json").read_text())["cells"] for cell in cells(path)[:3]]
    assert [states(one) for one in seen] == [["done"] * n + ["not run"] * (4 - n) for n in range(3)]
    assert states(summary(path)) == ["done", "done", "not run", "not run"]


def test_jobs_share_a_grid(grid, stub, capfd):
    path = stub(grid({"seed": list(range(5))}, {"fail": ""}))
    assert cli.main(["sweep", str(path), "--shard", "2/3"]) == 0
    assert states(summary(path)) == ["not run", "done", "not run", "not run", "done"]
    assert cli.main(["sweep", str(path), "--shard", "9/9"]) == 0 and "no cell" in capfd.readouterr().out
    assert cli.main(["sweep", str(path), "--shard", "4/3"]) == 2 and "4/3" in capfd.readouterr().err
    before = {one: one.stat().st_mtime_ns for one in path.parent.rglob("*")}
    assert cli.main(["sweep", str(path), "--dry-run"]) == 0
    assert "3 not run; nothing was started" in (out := capfd.readouterr().out) and out.count("  done") == 2
    assert before == {one: one.stat().st_mtime_ns for one in path.parent.rglob("*")}


def test_a_cell_of_another_process_is_passed_over(grid, stub, capfd):
    path = stub(grid({"seed": [0, 1]}, {"fail": ""}))
    first = cells(path)[0]
    with lock(first.lock):
        first.log.write_text("error: of now")
        assert cli.main(["sweep", str(path)]) == 0
        assert states(summary(path)) == ["running", "done"] and first.log.read_text() == "error: of now"
        assert "1/2 running  tiny,seed=0" in capfd.readouterr().err
        waiting = threading.Thread(target=cli.main, args=(["sweep", str(path), "--wait"],))
        waiting.start()
        time.sleep(0.5)
        assert waiting.is_alive() and len(starts(path)) == 1
    waiting.join(60)
    assert states(summary(path)) == ["done", "done"]


def test_the_example_is_a_grid():
    _, found = sweep.read(ROOT / "notebooks" / "params" / "sweep.example.yaml", cli._find)
    assert len(found) == 4 and {cell.notebook.stem for cell in found} == {"00_quickstart"}


@pytest.mark.slow
def test_a_real_sweep(grid, capfd):
    path = grid({"fail": ["crash", ""]})
    assert cli.main(["sweep", str(path), "--budget", "30m"]) == 1
    assert "fail=crash" in capfd.readouterr().err
    crash, good = summary(path)
    assert [one["status"] for one in (crash, good)] == ["failed", "done"]
    assert "cell 3: RuntimeError: it broke" in crash["error"] and good["headline"].startswith("ours is better")
    found = starts(path)
    assert len(found) == 2 and all(n == torch.get_num_threads() and 0 < minutes <= 30 for _, n, minutes in found)
    began = time.monotonic()
    grid({"fail": [""]})
    assert cli.main(["sweep", str(path)]) == 0 and time.monotonic() - began < 20 and starts(path) == found
