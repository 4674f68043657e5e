"""A sweep: a grid over notebooks, seeds and any other parameter, every combination a cell in a folder of its own.

The file of a grid is as `notebooks/params/sweep.example.yaml`. Each cell is one `distillery run` in a process of its own, mapped over an engine, into
`<results>/sweeps/<grid>/<cell>/`. What a cell came to is read from its record and its log, so a sweep goes on where it
was stopped, and cells that are done are passed over.
"""

import itertools
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml

from distillery import engine, store
from distillery.checks import InputError, is_number
from distillery.lock import Busy, held, lock
from distillery.notebook import parameters
from distillery.notebook.progress import duration
from distillery.report import records, tables

# ends a program with the worker that started it, so that a cell never runs twice (Linux; 1 = PR_SET_PDEATHSIG)
TIED = """
import ctypes, sys
libc = ctypes.CDLL(None)
hasattr(libc, "prctl") and libc.prctl(1, 9)
"""
COMMAND = TIED + "from distillery.cli import main\nsys.exit(main())"  # what Python runs for a cell: `distillery`
STATES = ("done", "incomplete", "failed", "running", "not run")
STOPPED = "stopped; the same sweep goes on with it"


@dataclass(frozen=True)
class Cell:
    """One combination: a notebook, its checked parameters without paths of results, and the varied ones among them."""

    name: str
    notebook: Path
    given: dict
    varied: dict
    folder: Path
    key: str = field(repr=False)  # of the record that makes it done
    limited: bool = True  # whether the notebook has a budget

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def lock(self) -> Path:
        return self.folder / "cell.lock"

    def record(self) -> dict | None:
        """Its record, finished or not."""
        return next((one for one in records.find(self.folder) if one.get("key") == self.key), None)

    def state(self) -> dict:
        """Its line in the summary: 'status' is one of STATES, 'headline' the first claim, 'error' why it failed."""
        record, error = self.record(), None
        status = "not run" if record is None else "incomplete" if record["missing"] else "done"
        if status != "done" and held(self.lock):
            status = "running"
        elif status != "done" and self.log.exists() and STOPPED not in (text := self.log.read_text(errors="replace")):
            lines = text.splitlines()
            errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
            if errors or record is None:
                status = "failed"
                error = errors[-1] if errors else "it ended without its record: killed, or out of memory"
        first = record["claims"][0] if record and record["claims"] else None
        headline = first and f"{first['statement']}: {first['verdict']}, {tables.found(first)[0]}"
        path = str(Path(record["path"]).relative_to(self.folder.parent)) if record else None
        line = {"cell": self.name, "notebook": self.notebook.stem, "parameters": self.varied}
        return line | {"status": status, "record": path, "headline": headline, "error": error}


def read(path: str | Path, find) -> tuple[Path, list[Cell]]:
    """(folder of the sweep, its cells) of a grid file, everything checked.

    find    name of a notebook -> its path
    raises  InputError on a grid, a notebook or a parameter that is not accepted
    """
    path, grid = Path(path), parameters.read_values(path)
    if not {"notebook", "grid"} <= set(grid) <= {"notebook", "parameters", "grid"}:
        raise InputError(f"{path} holds {', '.join(map(str, grid))}; accepted: notebook, grid and, if need be, parameters")
    fixed, axes = grid.get("parameters") or {}, grid["grid"]
    notebooks = grid["notebook"] if isinstance(grid["notebook"], list) else [grid["notebook"]]
    if not isinstance(fixed, dict) or not all(isinstance(one, str) for one in notebooks):
        raise InputError(f"{path}: parameters {parameters.typed(fixed)!r}, notebook {notebooks!r}; accepted: NAME: VALUE; names")
    if not isinstance(axes, dict) or not axes or not notebooks:
        raise InputError(f"{path}: its grid is empty; accepted: a notebook and NAME: [VALUE, ...]")
    for name, values in axes.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"grid: {name}: {parameters.typed(values)!r} is not a list of values; accepted: [VALUE, ...]")
        if name in fixed or name in ("results_dir", "budget_minutes"):
            raise InputError(f"grid: {name!r} is the same in all cells; accepted: other parameters")
    root = parameters.check({"results_dir": str}, {"results_dir": parameters.typed(fixed.pop("results_dir", ""), str)})
    folder = parameters.results_root(root["results_dir"]) / "sweeps" / path.stem
    cells = []
    for notebook in map(find, notebooks):
        for values in itertools.product(*axes.values()):
            cells.append(_cell(notebook, fixed, dict(zip(axes, values)), folder))
    if twice := [name for name, n in Counter(cell.name for cell in cells).items() if n > 1]:
        raise InputError(f"grid: {twice[0]!r} is there twice; accepted: each combination once")
    return folder, cells


def _cell(notebook: Path, fixed: dict, varied: dict, folder: Path) -> Cell:
    types, _ = parameters.declared(notebook)
    fixed, varied = (parameters.typed(values, types) for values in (fixed, varied))
    name = ",".join([notebook.stem, *(f"{key}={_spell(value)}" for key, value in varied.items())])
    if len(name.encode()) > 200:  # a folder's name may have 255 bytes
        name = f"{name.encode()[:180].decode(errors='ignore')}-{store.identity('cell', 1, {}, name)[:8]}"
    if "results_dir" not in types:
        raise InputError(f"{notebook.name} has no parameter results_dir; accepted: a notebook with one")
    given, values = parameters.planned(notebook, fixed | varied | {"results_dir": str(folder / name)})
    key = records.record_key(notebook.stem, values)
    return Cell(name, notebook, given, varied, folder / name, key, "budget_minutes" in types)


def _spell(value) -> str:
    """A value as a part of a folder's name; what does not fit into one is told apart by a digest."""
    text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    fit = re.sub(r"[^\w.+-]", "-", text)[:40]
    return fit if fit == text else f"{fit}-{store.identity('value', 1, {}, text)[:6]}"


def shard(cells: list[Cell], text: str) -> list[Cell]:
    """Every n-th cell from the i-th on, of a text 'i/n'. Raises InputError on any other text."""
    match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text)
    if not match or int(match[1]) > int(match[2]):
        raise InputError(f"--shard: {text!r}; accepted: i/n with i from 1 to n, as 2/16")
    return cells[int(match[1]) - 1 :: int(match[2])]


def run(
    folder: Path,
    cells: list[Cell],
    where: str = "local",
    minutes: float = 0.0,
    gpus: float = 0.0,
    *,
    whole: Sequence[Cell] = (),
    wait: bool = False,
) -> list[dict]:
    """Run the cells that are not done, a line on stderr as each begins and ends; returns their lines in the summary, in the order of the cells.

    `summary.json` is written after every cell. A failure ends its own cell only; a cell that another process is running is passed over. On
    Ray a cell takes as many CPUs as torch has threads here.

    minutes  start no new run in any cell after so many minutes, 0 = no limit
    gpus     what a cell is given on Ray, a fraction packs several on one GPU
    whole    the cells of the whole sweep, of which `cells` are a part; () = these
    wait     for cells that another process is running
    raises   InputError on an unknown engine, no number of GPUs, cells that would start Ray within Ray, and folders that are not writable
    """
    engine.check(where)
    if not is_number(gpus) or gpus < 0:
        raise InputError(f"gpus: {gpus!r}; accepted: a number, 0 or more")
    if where == "ray" and any(cell.given.get("engine") == "ray" for cell in cells):
        raise InputError("engine: 'ray' in the cells of a sweep on Ray; accepted: one of the two, the other local")
    for cell in cells:
        parameters.writable(cell.log)
    until = time.time() + 60 * minutes if minutes else float("inf")
    todo = [cell for cell in cells if cell.state()["status"] != "done"]
    for cell in todo:
        if not held(cell.lock):
            cell.log.unlink(missing_ok=True)
    _summary(folder, whole or cells)
    threads, command, began, before = torch.get_num_threads(), COMMAND, time.monotonic(), len(cells) - len(todo)
    if before:
        print(f"{before}/{len(cells)} done before", file=sys.stderr)

    done = []

    def ended(i: int, seconds: float) -> None:
        done.append(i)
        _summary(folder, whole or cells)
        state, passed, left = todo[i].state(), time.monotonic() - began, len(todo) - len(done)
        told = [
            f"{before + len(done)}/{len(cells)} {state['status']}",
            state["cell"],
            state["headline"] or state["error"],
            duration(seconds),
        ]
        more = f", about {duration(passed / len(done) * left)} left" if left else ""
        print("  ".join(filter(None, told)) + more, file=sys.stderr, flush=True)

    try:
        with suppress(engine.WorkerDied):  # told by its log
            engine.map(lambda cell: _run(cell, until, threads, command, wait), todo, where, cpus=threads, gpus=gpus, ended=ended)
    finally:
        _summary(folder, whole or cells)
    return [cell.state() for cell in cells]


def _run(cell: Cell, until: float, threads: int, command: str, wait: bool) -> float:
    """Run a cell in a process of its own, unless another one does; its seconds."""
    began = time.monotonic()
    with suppress(Busy), lock(cell.lock, wait):
        left = (until - time.time()) / 60
        if left <= 0 or cell.state()["status"] == "done":
            return 0.0
        print(f"begins  {cell.name}", file=sys.stderr, flush=True)
        given = dict(cell.given)
        if cell.limited and left < float("inf"):
            given["budget_minutes"] = min(left, given.get("budget_minutes") or left)
        chosen = store.write_bytes(cell.folder / "parameters.yaml", yaml.safe_dump(given).encode())
        words = [sys.executable, "-c", command, "run", str(cell.notebook), "-f", str(chosen)]
        library = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([library, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
        store.write_bytes(cell.log, b"")
        with open(cell.log, "a") as log:  # to append: a kernel may outlive a killed cell by a second
            try:
                ended = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
            except KeyboardInterrupt:
                log.write(f"\n{STOPPED}\n")
                raise
            if ended.returncode < 0:
                log.write(f"\nerror: ended by signal {-ended.returncode}\n")
    return time.monotonic() - began


def _summary(folder: Path, cells: list[Cell]) -> None:
    store.write_json(folder / "summary.json", {"grid": folder.name, "cells": [cell.state() for cell in cells]})
