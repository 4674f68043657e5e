"""Progress: a line a finished run, with what is left where that is known; several processes share one folder."""

import subprocess
import sys

import pytest

from distillery.checks import InputError
from distillery.notebook.progress import Progress, duration
from distillery.runs import Runs

RUN = {"run": "DM ipc 10 seed 0", "accuracies": [0.86, 0.864], "seconds": 41.0}


def lines(tmp_path, events, **known):
    progress = Progress(tmp_path / "events", tmp_path / "log.txt", **known)
    return [line for line in map(progress.line, events) if line]


@pytest.mark.parametrize(
    "known, told",
    [
        ({}, ["[  1] DM ipc 10 seed 0  86.2%  41 s, 2 more of this row, about 82 s left", "[  2] DM ipc 10 seed 0  86.2%  stored"]),
        ({"total": 28}, ["[ 1/28] DM ipc 10 seed 0  86.2%  41 s, about 18 min left", "[ 2/28] DM ipc 10 seed 0  86.2%  stored"]),
        ({"left": 3}, ["[  1] DM ipc 10 seed 0  86.2%  41 s, about 82 s left", "[  2] DM ipc 10 seed 0  86.2%  stored"]),
        ({"total": 1, "left": 0}, ["[1/1] DM ipc 10 seed 0  86.2%  41 s", "[  2] DM ipc 10 seed 0  86.2%  stored"]),  # no wrong total
    ],
)
def test_a_line_a_run(tmp_path, known, told):
    assert lines(tmp_path, [{"row": 3}, RUN, RUN | {"seconds": None}], **known) == told


def test_scores_and_numbers_that_are_no_accuracies(tmp_path):
    events = [{"scores": "loss seed 0", "seconds": 3.2}, RUN | {"accuracies": {"task": [0.5]}}, RUN | {"accuracies": None}]
    assert lines(tmp_path, events) == ["       scores: loss seed 0  3.2 s", *(f"[{n:>3}] DM ipc 10 seed 0  41 s" for n in (1, 2))]
    assert [duration(s) for s in (600, 7200)] == ["10 min", "2.0 h"]


def test_runs_are_followed_as_they_finish(tmp_path, capfd):
    runs = Runs(tmp_path, events=tmp_path / "events")
    with Progress(tmp_path / "events", tmp_path / "log.txt"):
        for _ in range(2):
            runs.try_get("outer", 1, {}, "d", lambda key: runs.try_get("inner", 1, {}, "d", lambda key: {"accuracies": [0.5]}), "one")
    told = capfd.readouterr().err
    assert told == (tmp_path / "log.txt").read_text() and told.splitlines() == ["[  1] one  50.0%  0.0 s", "[  2] one  50.0%  stored"]
    assert runs.counts == {"asked": 2, "computed": 2, "reused": 1, "missing": []}


SHARED = """
import sys, time
from distillery.runs import Runs
runs = Runs(sys.argv[1], wait=sys.argv[2] == "wait")
def compute(key):
    time.sleep(0.3)
    return {"accuracies": [0.5]}
for i in range(5):
    assert runs.get("made", 1, {"seed": i}, "d", compute) == {"accuracies": [0.5]}
print(runs.computed)
"""


def test_two_processes_share_a_folder(tmp_path):
    both = [subprocess.Popen([sys.executable, "-c", SHARED, tmp_path, "wait"], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sum(int(one.communicate(timeout=120)[0]) for one in both) == 5 and not any(one.returncode for one in both)
    assert len(list((tmp_path / "runs").iterdir())) == 5


def test_without_wait_a_run_under_way_is_refused(tmp_path):
    runs = Runs(tmp_path)
    with pytest.raises(InputError, match="is being produced by process"):
        runs.get("made", 1, {}, "d", lambda key: runs.get("made", 1, {}, "d", lambda key: {}))
