"""Results folders of several machines as one: everything is checked first, then copied, and nothing is ever overwritten.

A folder of a record, with its figures and exported sets, is one thing: of two with the same parameters the first stays, one of other seeds or
images is put beside it under the name that a notebook gives it. A run is known by its id: of two the first stays, whether or not machines
round alike. Anything else of one name must be the same, byte for byte.
"""

import filecmp
import os
import stat
from collections import Counter
from pathlib import Path

from distillery import store
from distillery.checks import InputError
from distillery.report import pooling, records
from distillery.runs import Runs

MADE_ANEW = ("log.txt", "parameters.yaml", "summary.json")  # and *.md and executed notebooks: of two the first stays
EQUAL = "run(s) of several folders are equal but for their times: the first one's stay"
ROUNDED = "run(s) of several folders differ in their numbers, as machines round differently: the first one's stay"
RECORDS = "record(s) of several folders are of the same parameters: the first one's stay"


class _Plan:
    """What a merged folder will hold: `files`, where each lies now, by its place there; `units` are the records by their folders."""

    def __init__(self):
        self.files: dict[Path, Path] = {}
        self.units: dict[Path, dict] = {}
        self.rounded: set[str] = set()  # runs whose numbers are not those of another folder's
        self.notes, self.beside, self.conflicts = Counter(), [], []

    def add(self, root: Path) -> None:
        """Put the files of a results folder beside those that are there."""
        found = _files(root)
        units = {file.parent: records.load(root / file) for file in found if file.name == "record.json" and _is_record(root / file)}
        places = {folder: self._place(folder, record, root) for folder, record in units.items()}
        for file in sorted(found, key=lambda one: (one.parent.name == "artifacts", one)):  # runs first
            folder = next((parent for parent in file.parents if parent in units), None)
            if folder is None:
                self._put(file, root / file)
            elif (place := places[folder]) is not None:
                self._put(place / file.relative_to(folder), root / file)

    def _place(self, folder: Path, record: dict, root: Path) -> Path | None:
        """Where the folder of a record comes to lie; None where it does not: one of the same parameters is there, or a conflict."""
        seeds, digest = pooling.seeds_of(record["parameters"]), record["data"].get("digest", "")
        near = (one for place, one in self.units.items() if place.parent == folder.parent and one["key"] == record["key"])
        if twin := next(near, None):
            self.notes[RECORDS] += not filecmp.cmp(twin["path"], record["path"], shallow=False)
            return None
        for place in (folder, pooling.beside(folder, seeds, digest)):
            other = self.units.setdefault(place, record)
            if other is record:
                if place != folder:
                    self.beside.append(f"{place}: {', '.join(f'{name} {value}' for name, value in seeds.items())}, of {root}")
                return place
            if (seeds, digest) == (pooling.seeds_of(other["parameters"]), other["data"].get("digest", "")):
                break
        self.conflicts.append(f"{folder / 'record.json'} is of other parameters in {root} than in {_root(other, place)}")
        return None

    def _put(self, place: Path, file: Path) -> None:
        if place.parent.name == "runs" and place.suffix == ".json":
            run = _run(file)
        before = self.files.setdefault(place, file)
        if place.parent.name == "artifacts" and before == file and place.name.split(".")[0].split("-")[0] in self.rounded:
            del self.files[place]  # the set of a run whose other numbers stay
        elif before == file or filecmp.cmp(before, file, shallow=False):
            return
        elif place.parent.name == "runs" and place.suffix == ".json":
            one = _run(before)
            if {**one, "result": 0, "digest": 0} != {**run, "result": 0, "digest": 0}:
                self.conflicts.append(f"{place} is of other inputs in {file} than in {before}")
            same = _untimed(one["result"]) == _untimed(run["result"])
            self.notes[EQUAL if same else ROUNDED] += 1
            self.rounded |= set() if same else {place.stem}
        elif place.parent.name != "artifacts" and place.name not in MADE_ANEW and not place.name.endswith((".executed.ipynb", ".md")):
            self.conflicts.append(f"{place} differs: {before} and {file}")


def merge(folders: list[Path], into: Path) -> tuple[list[str], list[str]]:
    """Copy results folders into one, which is the first of them where it is there: (what was done, conflicts), in lines.

    Links, locks, checkpoints and temporary files are left out. Nothing is copied where there is a conflict. Raises InputError on folders that
    are not there or lie in one another, on a file that cannot be read, and on a run that does not match its digest.
    """
    folders, into = [Path(one).resolve() for one in folders], Path(into).resolve()
    for one in folders:
        if not one.is_dir():
            raise InputError(f"{one} is no folder; accepted: results folders")
        if one != into and (one.is_relative_to(into) or into.is_relative_to(one)):
            raise InputError(f"--into: {into} and {one} lie in one another; accepted: folders apart")
    plan = _Plan()
    for one in dict.fromkeys([into, *folders] if into.is_dir() else folders):
        plan.add(one)
    if plan.conflicts:
        return [], plan.conflicts
    if into.exists() and not into.is_dir():
        raise InputError(f"--into: {into} is no folder; accepted: a results folder, or a name that is free")
    new = {place: file for place, file in plan.files.items() if file != into / place}
    for place, file in new.items():
        store.copy_file(file, into / place)
    notes = [f"{n} {note}" for note, n in plan.notes.items() if n]
    return [f"{len(new)} file(s) copied into {into}", *notes, *(f"put beside another record: {one}" for one in plan.beside)], []


def _files(root: Path) -> list[Path]:
    """The files of a results folder, relative to it, that are finished and its own."""

    def refuse(error: OSError) -> None:
        raise InputError(f"cannot read {error.filename}: {error.strerror}; accepted: a readable folder")

    found = [Path(folder) / name for folder, _, names in os.walk(root, onerror=refuse) for name in names]
    found = [one for one in found if stat.S_ISREG(one.lstat().st_mode) and not one.name.startswith(".")]
    return [one.relative_to(root) for one in found if not one.name.endswith((".lock", ".checkpoint.safetensors"))]


def _is_record(path: Path) -> bool:
    try:
        return bool(records.load(path))
    except records.ForeignRecord:
        return False


def _root(record: dict, place: Path) -> Path:
    return Path(str(record["path"]).removesuffix(str(place / "record.json")))


def _run(path: Path) -> dict:
    """A stored run whose result matches its digest."""
    Runs(path.parents[1]).read(path.stem)
    return store.read_json(path)


def _untimed(value):
    """A result without what it took."""
    if isinstance(value, dict):
        return {name: _untimed(one) for name, one in value.items() if not name.startswith("seconds") and name != "untimed"}
    return [_untimed(one) for one in value] if isinstance(value, list) else value
