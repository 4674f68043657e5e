"""Finished runs: computed once, stored as JSON with their inputs and a digest, read ever after; what the budget does not reach is listed."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from distillery.allocator import give_back
from distillery.checks import InputError, RunFailed
from distillery.lock import lock
from distillery.store import canonical, identity, read_json, write_json


class DependencyMissing(Exception):
    """A run that another one stands on has not run within the budget, or its set was not kept on this machine."""


class Runs:
    """The finished runs of one notebook: `<folder>/runs/<id>.json`, tensors beside them in `<folder>/artifacts/`.

    A pickled copy works beside others on the same folder and within the same budget: it waits for runs that they are computing, and counts
    for itself.
    """

    def __init__(
        self,
        folder: str | Path,
        budget_minutes: float = 0.0,
        *,
        wait: bool = False,
        events: str | Path = "",
        also: Iterable[str | Path] = (),
    ):
        """Where runs are stored.

        budget_minutes  start no new run after so many minutes, 0 = no limit
        wait            for runs that another process is computing, instead of an InputError
        events          the file to which `tell` appends, '' = none
        also            folders of other notebooks, whose finished runs and kept sets are read where `folder` has none; nothing is written there
        """
        self.folder, self.wait, self.events = Path(folder), wait, str(events)
        self.also = tuple(map(Path, also))
        self.deadline = time.time() + 60 * budget_minutes if budget_minutes > 0 else float("inf")
        self.asked = self.computed = self.reused = 0
        self.missing: list[dict] = []
        self.within = False  # a run that asks for others

    def __getstate__(self) -> dict:
        return self.__dict__ | {"wait": True, "asked": 0, "computed": 0, "reused": 0, "missing": []}

    @property
    def counts(self) -> dict:
        """What was 'asked' for by itself, 'computed', 'reused' and 'missing' so far."""
        return {name: getattr(self, name) for name in ("asked", "computed", "reused", "missing")}

    def add(self, counts: dict) -> None:
        """Count what a copy has counted, as its `counts` say."""
        for name, more in counts.items():
            setattr(self, name, getattr(self, name) + more)

    def tell(self, **event) -> None:
        """Append what has happened to the file of events as a line of JSON."""
        if self.events:
            with suppress(OSError), open(self.events, "a") as file:
                file.write(json.dumps(event) + "\n")

    def spent(self) -> bool:
        """Whether the budget is."""
        return time.time() >= self.deadline

    def path(self, key: str) -> Path:
        return self._found(f"runs/{key}.json")

    def artifact(self, key: str, suffix: str = ".safetensors") -> Path:
        return self._found(f"artifacts/{key}{suffix}")

    def own(self, key: str, suffix: str = ".safetensors") -> Path:
        """Where an artifact is written, whatever other folders hold: checkpoints of another notebook are its own."""
        return self.folder / "artifacts" / f"{key}{suffix}"

    def lock(self, key: str):
        """Hold what this folder stores under an id against other processes."""
        return lock(self.folder / "runs" / f"{key}.lock", self.wait)

    def _found(self, name: str) -> Path:
        """Where a file lies: in the first folder that has it, else where it will be."""
        own = self.folder / name
        return next((path for path in (own, *(folder / name for folder in self.also)) if path.exists()), own)

    def get(self, producer: str, version: int, inputs: dict, data_digest: str, compute: Callable[[str], dict]):
        """The result of a run, a dict fit for JSON: read if it is there, else computed from its id within the budget and stored, else None."""
        key = identity(producer, version, inputs, data_digest)
        path = self.path(key)
        if not path.exists() and not self.spent():
            with self.lock(key):
                if not path.exists() and not self.spent():  # else another worker made it, or waiting took all the time
                    result = compute(key)
                    run = {"id": key, "producer": producer, "version": version, "inputs": inputs, "data": data_digest}
                    write_json(path, run | {"digest": _digest(result), "result": result})
                    self.computed += 1
                    give_back()
                    return result
        if path.exists():
            self.reused += 1
            return self.read(key)
        self.missing.append(inputs)
        return None

    def try_get(self, producer: str, version: int, inputs: dict, data_digest: str, compute: Callable[[str], dict], called: str = ""):
        """`get`, where a run that cannot be finished is listed as missing, with the reason, and stops no other; told under what it is called."""
        began, computed, within, found = time.monotonic(), self.computed, self.within, None
        self.within, self.asked = True, self.asked + (not within)
        try:
            found = self.get(producer, version, inputs, data_digest, compute)
        except DependencyMissing:
            self.missing.append(inputs)
        except RunFailed as error:
            self.missing.append(inputs | {"stopped": str(error).split(";")[0]})
        finally:
            self.within = within
        if found and not within:
            spent = time.monotonic() - began if self.computed > computed else None
            self.tell(run=called or producer, accuracies=found.get("accuracies"), seconds=spent)
        return found

    def read(self, key: str) -> dict:
        """The result of a stored run by its id. Raises InputError if it is not there, or does not match its digest."""
        path = self.path(key)
        run = read_json(path)
        if not isinstance(run, dict) or run.get("id") != key or run.get("digest") != _digest(run.get("result")):
            raise InputError(f"{path} is corrupt: it does not match its digest; accepted: the file as saved; remove it to compute it again")
        return run["result"]


def _digest(result) -> str:
    return hashlib.sha256(canonical(result).encode()).hexdigest()


def subsample(log: Tensor) -> list[float]:
    """At most 100 evenly spaced values of a log, rounded to 6 significant digits, NaN left out."""
    values = log[~log.isnan()]
    chosen = values[torch.linspace(0, len(values) - 1, min(100, len(values))).long()] if len(values) else values
    return [float(f"{value:.6g}") for value in chosen.tolist()]
