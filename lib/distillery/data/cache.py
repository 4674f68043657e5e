"""Pixels of data sets on disk: bytes in shards that are mapped, made once, gone on with after a kill, and read by rows.

A set KEY is a folder of that name: its shards 00000.npy, 00001.npy, ..., and a manifest with labels, the digest of each shard, and what was met.
While it is made, the folder is .KEY.part, and `seen` notes every few seconds which rows are there.
"""

import hashlib
import math
import os
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distillery import store
from distillery.checks import InputError, first_line, local_path
from distillery.data.archives import first_names, shown
from distillery.data.images import LazyImages
from distillery.lock import lock

VERSION = 1  # of the folder
SHARD = 1 << 28  # bytes of a shard
NOTED = 20.0  # seconds between two notes of what is there
SHARE = 0.25  # of the memory that the pixels of a set may take
SETTLED = 3.0  # seconds after which a further change of a file shows in its times
DONE = 1  # bit of `seen` of every row that is written; the others are the writer's
_MANIFEST, _SEEN, _FILES = "manifest.safetensors", "seen.npy", "files.txt"


@dataclass
class Decoded:
    """A data set as arrays: the first `n_train` images are for training, the rest, if any, for testing."""

    name: str
    pixels: Tensor | LazyImages  # (N, C, H, W) uint8, in memory or still on disk
    targets: Tensor  # (N,) int64 class labels
    n_train: int
    classes: list[str]
    notes: list[str]
    skipped: list[str] = field(default_factory=list)  # files of the plan that could not be decoded, where that is asked for


class Shards:
    """Pixels (N, C, H, W) uint8 in the shards of a folder, read by rows. A copy in another process maps the files of the same folder."""

    def __init__(self, folder: Path):
        """Raises OSError or ValueError where a shard is not there, not whole, or of another shape."""
        self.folder, names = Path(folder), sorted(path.name for path in Path(folder).glob("[0-9]*.npy"))
        arrays = [np.load(self.folder / name, mmap_mode="c") for name in names]  # "c": as torch wants it, writable but never written
        if names != [_shard(i) for i in range(len(names))] or not arrays:
            raise ValueError(f"{len(names)} shards, not numbered from 0")
        if len({array.shape[1:] for array in arrays}) > 1 or len({len(array) for array in arrays[:-1]}) > 1:
            raise ValueError("shards of different shapes")
        self.arrays, self.each = [torch.from_numpy(array) for array in arrays], len(arrays[0])
        self.shape = torch.Size([sum(map(len, arrays)), *arrays[0].shape[1:]])

    def __len__(self) -> int:
        return self.shape[0]

    def __reduce__(self):
        return _opened, (self.folder,)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Read images: rows of any shape (...) -> (..., C, H, W) uint8."""
        flat = rows.reshape(-1)
        if len(self.arrays) == 1:
            found = self.arrays[0].index_select(0, flat)
        else:
            found = torch.empty(len(flat), *self.shape[1:], dtype=torch.uint8)
            where = flat // self.each
            for shard in where.unique().tolist():
                here = torch.nonzero(where == shard)[:, 0]
                found[here] = self.arrays[shard].index_select(0, flat[here] - shard * self.each)
        return found.view(*rows.shape, *self.shape[1:])


def _opened(folder: Path) -> Shards:
    """The shards of a folder, in another process or on another machine. Raises InputError where they are not there."""
    try:
        return Shards(folder)
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read the pixels in {folder}: {first_line(error)}; accepted: a cache folder that all machines share"
        ) from error


class Building:
    """Pixels that are being written, row by row in any order and from any thread: in memory, or in shards of a folder.

    shape  (N, C, H, W); a set that was begun in color stays so
    seen   (N,) uint8, 0 = not written yet
    """

    def __init__(self, shape: tuple[int, ...], folder: Path | None = None):
        """In a folder that was begun, what is there stays. Raises InputError where there is no space for all of it."""
        self.folder, self.seen, self._noted = folder, np.zeros(shape[0], np.uint8), time.monotonic()
        if folder is None:
            self.shape, self.each, self.arrays = tuple(shape), max(1, shape[0]), [np.empty(shape, np.uint8)]
            return
        begun, first = _array(folder / _SEEN), _array(folder / _shard(0))
        if first is not None and first.ndim == 4 and first.shape[1] == 3 and first.shape[2:] == tuple(shape[2:]):
            shape = shape[0], 3, *shape[2:]
        self.shape, self.each = tuple(shape), max(1, SHARD // math.prod(shape[1:]))
        if begun is not None and begun.shape == self.seen.shape and begun.dtype == np.uint8:
            self.seen[:] = begun
        self.arrays = []
        with store.writing(folder / _shard(0)):
            for i, start in enumerate(range(0, shape[0], self.each)):
                size = min(self.each, shape[0] - start), *shape[1:]
                array = _array(folder / _shard(i), "r+")
                if array is None or array.shape != size:
                    array, self.seen[start : start + self.each] = _reserved(folder / _shard(i), size), 0
                self.arrays.append(array)
            for other in set(folder.glob("[0-9]*.npy")) - {folder / _shard(i) for i in range(len(self.arrays))}:
                other.unlink()
        self.note()

    def __getitem__(self, row: int) -> np.ndarray:
        """The row (C, H, W), to be written."""
        return self.arrays[row // self.each][row % self.each]

    def fill(self, pixels: np.ndarray) -> "Building":
        """Write all rows."""
        for i, array in enumerate(self.arrays):
            array[:] = pixels[i * self.each : i * self.each + len(array)]
        self.seen[:] = DONE
        return self

    def note(self, every: float = 0.0) -> None:
        """Note on disk what is there, if so many seconds have passed since that was done."""
        if self.folder is None or time.monotonic() < self._noted + every:
            return
        for array in self.arrays:
            array.flush()  # before the note, so that it holds even after a loss of power
        with store.replacing(self.folder / _SEEN) as file:
            np.save(file, self.seen)
        self._noted = time.monotonic()

    def pixels(self) -> Tensor:
        """What is in memory of the rows that were written."""
        pixels = torch.from_numpy(self.arrays[0])
        return pixels if self.seen.all() else pixels[torch.from_numpy(self.seen > 0)]


def cache_folder(cache_dir: str | Path = "") -> Path:
    """The folder of cached pixels: as given, else $DISTILLERY_CACHE, else ~/.cache/distillery. May be removed any time."""
    return local_path("cache_dir", cache_dir or os.environ.get("DISTILLERY_CACHE") or "~/.cache/distillery")


def memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def known_digest(where, folder: Path) -> str:
    """The digest of a folder or archive (`data.archives.origin`), read again only where names, sizes or times of its files have changed.

    folder  where it is remembered, once no file is younger than a few seconds; if it cannot be written, each process reads again
    """
    path = where.path.resolve()
    below = (*where.listing.folders, *where.listing.files) if path.is_dir() else ()  # through links, as they are read
    files = [(str(one), one.stat()) for one in (path, *(path / name for name in below)) if one.exists()]
    stamp = hashlib.sha256(repr(sorted((name, at.st_size, at.st_mtime_ns, at.st_ctime_ns) for name, at in files)).encode()).hexdigest()
    note = folder / ".digests" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"
    with suppress(InputError, TypeError, KeyError):
        known = store.read_json(note)
        if known["stamp"] == stamp:
            return known["digest"]
    began, digest = time.time(), where.digest()
    if max(at.st_ctime for _, at in files) < began - SETTLED:
        with suppress(InputError):
            store.write_json(note, {"path": shown(path), "stamp": stamp, "digest": digest})
    return digest


def cached(folder: Path | None, key: str, name: str, produce: Callable, mapped: bool | None = False) -> Decoded:
    """What `produce` gives, kept in `folder` (None = nowhere) under a key. Of processes that make one set, one does and the others wait.

    produce  called with allocate(shape) -> `Building` to fill; returns it, targets of the rows that were written, and a card of 'classes',
             'n_train', 'notes' and perhaps 'skipped', and 'files', the name of every row
    mapped   leave the pixels on disk, where their digest is not checked on reading; None = where they take more than SHARE of the memory
    raises   InputError if `mapped` and the folder cannot be written. Otherwise that is noted, as are damaged files, whose rows are made again
    """
    if folder is None:
        built, targets, card = produce(Building)
        return Decoded(name, built.pixels(), targets, **_without_files(card))
    home, part, begun = folder / key, folder / f".{key}.part", []
    notes: list[str] = []  # on the folder
    if home.exists():
        with suppress(_Damaged):
            return _read(home, name, mapped)
    with ExitStack() as owned:

        def allocate(shape: tuple[int, ...]) -> Building:
            try:
                if not begun:
                    with store.writing(home):
                        owned.enter_context(lock(folder / f".{key}.lock", wait=True))
                    begun.append(part)
                    notes.extend(_cleared(home, part, name, mapped))
                return Building(shape, part)
            except InputError:
                if mapped:
                    raise
                notes.append("the cache folder cannot be written: decoded anew each time")
                return Building(shape)

        try:
            built, targets, card = produce(allocate)
        except _Made as other:
            return other.found
        except InputError:
            if begun:
                shutil.rmtree(part, ignore_errors=True)
            raise
        if built.folder is None:
            card["notes"] += notes
            return Decoded(name, built.pixels(), targets, **_without_files(card))
        _finish(built, targets, card, home)
    try:
        found = _read(home, name, mapped)
    except _Damaged as error:
        raise InputError(f"{home}: not as it was written a moment ago; accepted: a disk that keeps it, or cache_dir on another") from error
    found.notes += notes
    return found


def _without_files(card: dict) -> dict:
    return {key: value for key, value in card.items() if key != "files"}


class _Made(Exception):
    """Another process has made the set meanwhile."""

    def __init__(self, found: Decoded):
        super().__init__()
        self.found = found


class _Damaged(Exception):
    """A set that is not as it was written; `shards` = which are not, None = none can be kept."""

    def __init__(self, message: str, shards: list[int] | None = None):
        super().__init__(message)
        self.shards = shards


def _finish(built: Building, targets: Tensor, card: dict, home: Path) -> None:
    """Turn what was written into the set."""
    built.note()
    shards = [store.file_digest(built.folder / _shard(i)) for i in range(len(built.arrays))]
    store.write_bytes(built.folder / _FILES, "".join(f"{shown(name)}\n" for name in card.get("files", [])).encode())
    tensors = {"targets": targets, "seen": torch.from_numpy(built.seen)}
    store.save_tensors(built.folder / _MANIFEST, tensors, _without_files(card) | {"version": VERSION, "shards": shards})
    with store.writing(home):
        os.rename(built.folder, home)


def _read(home: Path, name: str, mapped: bool | None) -> Decoded:
    """What `_finish` has stored. Raises _Damaged where it is not as it was."""
    if not (home / _MANIFEST).exists():
        raise _Damaged("")
    try:
        tensors, card = store.load_tensors(home / _MANIFEST)
        targets, seen, digests, version = tensors["targets"], tensors["seen"], card.pop("shards"), card.pop("version")
        rows = torch.nonzero(seen)[:, 0]
        if version != VERSION or len(rows) != len(targets):
            raise ValueError
    except (InputError, OSError, ValueError, TypeError, KeyError) as error:
        raise _Damaged("the cached pixels had a damaged manifest and have been decoded again") from error
    bad = [i for i, digest in enumerate(digests) if (array := _array(home / _shard(i))) is None or array.ndim != 4]
    if mapped is None and not bad:
        mapped = len(rows) * math.prod(_array(home / _shard(0)).shape[1:]) > SHARE * memory()
    if not mapped:
        bad += [i for i, digest in enumerate(digests) if i not in bad and store.file_digest(home / _shard(i)) != digest]
    try:
        shards = None if bad else Shards(home)
    except (OSError, ValueError):
        bad = list(range(len(digests)))
    if bad or len(shards) != len(seen):
        raise _Damaged(f"cached pixels were corrupt and have been decoded again: {first_names([_shard(i) for i in bad])}", bad)
    return Decoded(name, LazyImages(shards, rows) if mapped else shards[rows], targets, **card)


def _cleared(home: Path, part: Path, name: str, mapped: bool | None) -> list[str]:
    """Turn a damaged set into one that was begun, without its bad shards; notes on it. Raises _Made where it is whole."""
    if not home.exists():
        return []
    try:
        raise _Made(_read(home, name, mapped))
    except _Damaged as error:
        shutil.rmtree(part, ignore_errors=True)
        if error.shards is None:
            shutil.rmtree(home)
            return [str(error)] if str(error) else []
        tensors, _ = store.load_tensors(home / _MANIFEST)
        os.rename(home, part)
        for file in (_MANIFEST, *map(_shard, error.shards)):
            (part / file).unlink(missing_ok=True)
        with store.replacing(part / _SEEN) as file:
            np.save(file, tensors["seen"].numpy())
        return [str(error)]


def _shard(i: int) -> str:
    return f"{i:05d}.npy"


def _array(path: Path, mode: str = "r") -> np.ndarray | None:
    """A mapped array file, None where it is not there or not whole."""
    try:
        return np.load(path, mmap_mode=mode)
    except (OSError, ValueError, EOFError):
        return None


def _reserved(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A new mapped array file, its space reserved: writing to a mapped full disk kills the process."""
    path.unlink(missing_ok=True)
    array = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
