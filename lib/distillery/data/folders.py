"""Image files to a data set: class folders, plain or in an archive, decoded once and cached as safetensors.

The steps: an origin lists its files (`archives.py`), `arrange` finds classes, training and test files in the listing,
`decode` turns the files into one uint8 array (`decoding.py`), `cached` keeps it under the digest of the files and the
options. `check` reports on a folder or archive without loading it.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distillery import store
from distillery.checks import InputError
from distillery.data.archives import EXTENSIONS, Folder, Listing, is_image, origin, shown
from distillery.data.decoding import check_sides, decode
from distillery.data.mapped import MappedPixels

CACHE_FROM = 1 << 20  # smaller files are decoded faster than they are worth a cache file
VERSION = 1  # of the decoding: a change makes older cache files stale


@dataclass
class Decoded:
    """A data set as arrays: the first `n_train` images are for training, the rest, if any, for testing.

    pixels   (N, C, H, W) uint8, perhaps still on disk
    targets  (N,) int64 class labels
    """

    pixels: Tensor
    targets: Tensor
    n_train: int
    classes: tuple[str, ...]
    name: str
    notes: list[str]


@dataclass
class Plan:
    """The files of a data set in order: by part, class, name. `n_train` of them are for training."""

    files: list[str]
    labels: list[int]
    n_train: int
    classes: list[str]
    notes: list[str] = field(default_factory=list)


def load_files(
    path: str | Path,
    *,
    resize: int = 0,
    max_side: int = 0,
    cache_dir: str | Path = "",
    mapped: bool = False,
    progress: bool = False,
    max_unpacked_gb: float = 64.0,
) -> Decoded:
    """Decode the class folders at `path`, a folder or an archive, or read them from the cache.

    options  as in `data.load`
    raises   InputError on anything that cannot be decoded as asked
    """
    check_sides(resize, max_side)
    where = origin(path, max_unpacked_gb)
    plan = _plan(where) if isinstance(where, Folder) else None  # an archive is listed only if not cached
    options = {"resize": resize, "max_side": max_side}
    key = store.identity("decoded images", VERSION, options, where.digest())

    def produce(allocate):
        arranged = plan or _plan(where)
        notes = list(arranged.notes)
        card = {"classes": arranged.classes, "n_train": arranged.n_train, "notes": notes}
        targets = torch.tensor(arranged.labels)
        pixels, more = decode(where, arranged, resize, max_side, progress, lambda shape: allocate(shape, targets, card))
        notes += more
        return pixels, targets, card

    worth = bool(cache_dir) or mapped or where.nbytes >= CACHE_FROM
    return cached(cache_folder(cache_dir) if worth else None, key, shown(where.name), produce, mapped)


def split_folders(names: set[str]) -> set[str]:
    """Of the top folder names, those that matter: train/ and its test folders if they are there, else all."""
    parts = {name for name in names if name.casefold() in ("train", *_TEST)}
    return parts if {name.casefold() for name in parts} > {"train"} else set(names)


_TEST = ("test", "val", "valid", "validation")
_TINY = "/val/val_annotations.txt"


def _plan(where) -> Plan:
    listing = where.listing(split_folders)
    label = shown(where.root)
    table = next((name for name in listing.files if f"/{name}".endswith(_TINY)), None)
    return arrange(listing, label) if table is None else arrange_tiny(listing, label, where, table)


def arrange(listing: Listing, label: str) -> Plan:
    """Find classes and splits in a listing. One top folder is entered.

    Accepted are class folders at the top, or inside train/ and test/; where no test/ holds classes, val/ (valid/,
    validation/) serves as test and that is noted. Classes match between the two parts without regard to case.

    raises  InputError on fewer than two classes, an empty class, other files in a class folder, or a class that is
            not in both parts
    """
    base = _base(listing)
    tops = {name.removeprefix(base) for name in _below(listing.folders, base)}
    named: dict[str, str] = {}
    for top in sorted(tops):
        if top.casefold() in ("train", *_TEST) and named.setdefault(top.casefold(), top) != top:
            raise InputError(f"{label} holds both {named[top.casefold()]!r} and {top!r}; accepted: one of them")
    notes = []
    outside = sum(map(is_image, _below(listing.files, base)))
    if outside:
        notes.append(f"{outside} image(s) outside the class folders passed over")
    held_out = [named[name] for name in _TEST if name in named]
    if "train" not in named or not held_out:
        members = _class_folders(listing, base, label)
        return _ordered([members], sorted(members), notes)
    train = _class_folders(listing, f"{base}{named['train']}/", label)
    classes = sorted(train)

    def shares_classes(part: str) -> bool:
        below = _below(listing.folders, f"{base}{part}/")
        return bool({_key(name.rpartition("/")[2]) for name in below} & set(map(_key, classes)))

    part = next(filter(shares_classes, held_out), held_out[0])
    test = _class_folders(listing, f"{base}{part}/", label)
    if part.casefold() != "test":
        notes.append(f"{part}/ serves as test: there is no test/ with these classes")
    elif len(held_out) > 1:
        notes.append(f"{held_out[1]}/ passed over: validation images are drawn from {named['train']}/")
    spelled = _match(classes, sorted(test), label, part)
    other = sorted(f"{theirs!r} as {ours!r}" for ours, theirs in spelled.items() if ours != theirs)
    if other:
        more = f" and {len(other) - 5} more" if len(other) > 5 else ""
        notes.append(f"class folders of {part}/ matched in other spelling: {', '.join(other[:5])}{more}")
    return _ordered([train, {name: test[spelled[name]] for name in classes}], classes, notes)


def _match(classes: list[str], test: list[str], label: str, part: str) -> dict[str, str]:
    """The folder of the test part for every class: the same name, else the same but for case and Unicode form."""
    if test == classes:
        return dict(zip(classes, classes))
    ours, theirs = Counter(map(_key, classes)), Counter(map(_key, test))
    odd = [name for name in classes + test if not (ours[_key(name)] and theirs[_key(name)])]
    if odd:
        more = f" and {len(odd) - 10} more" if len(odd) > 10 else ""
        raise InputError(f"{label}: classes {odd[:10]}{more} are not in both train and {part}; accepted: the same class folders in both")
    twice = [name for name in classes + test if ours[_key(name)] + theirs[_key(name)] > 2]
    if twice:
        raise InputError(f"{label}: classes {twice[:10]} differ only in case; accepted: the same class folders in train and {part}")
    by_key = {_key(name): name for name in test}
    return {name: by_key[_key(name)] for name in classes}


def arrange_tiny(listing: Listing, label: str, where, table: str) -> Plan:
    """The layout of Tiny-ImageNet: train/<class>/images/*, val/images/* with labels in val/val_annotations.txt (`table`).

    The validation images serve as test images; those of test/ have no labels and are passed over.
    """
    accepted = "train/<class>/images/*.JPEG, val/images/*.JPEG and val/val_annotations.txt"
    top = table.removesuffix("val/val_annotations.txt")
    _, content = next(iter(where.read([table])))
    text = content.read_bytes() if isinstance(content, Path) else content
    rows = [line.split("\t")[:2] for line in text.decode("utf-8", "replace").splitlines() if line.strip()]
    train: dict[str, list[str]] = {}
    for name in sorted(listing.files):
        parts = name.removeprefix(top).split("/")
        if name.startswith(top) and len(parts) == 4 and parts[0] == "train" and parts[2] == "images":
            if not is_image(name):
                raise InputError(f"{label}: {name!r} is no image; accepted: {' '.join(EXTENSIONS)}")
            train.setdefault(parts[1], []).append(name)
    classes = sorted(train)
    if len(classes) < 2:
        raise InputError(f"{label} holds {len(classes)} class folder(s) in train/; accepted: at least 2")
    test: dict[str, list[str]] = {name: [] for name in classes}
    for row in rows:
        file = f"{top}val/images/{row[0]}"
        if len(row) < 2 or row[1] not in test or file not in listing.files:
            raise InputError(f"{label}: val_annotations.txt names {row!r}, which is not there; accepted: {accepted}")
        test[row[1]].append(file)
    empty = [name for name in classes if not test[name]]
    if empty:
        raise InputError(f"{label}: classes {empty[:5]} have no image in val/; accepted: at least one in every class")
    return _ordered([train, test], classes, ["the published validation images serve as test"])


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _below(names: Iterable[str], base: str) -> list[str]:
    """The names directly inside the folder `base` ('' or ending in '/')."""
    return [name for name in names if name.startswith(base) and "/" not in name[len(base) :]]


def _base(listing: Listing) -> str:
    """The single top folder of an archive, which is entered unless it is itself a class folder."""
    base = ""
    for _ in range(3):
        tops, files = _below(listing.folders, base), _below(listing.files, base)
        inner = f"{tops[0]}/" if len(tops) == 1 and not any(map(is_image, files)) else ""
        if not inner or any(map(is_image, _below(listing.files, inner))) or not _below(listing.folders, inner):
            break
        base = inner
    return base


def _class_folders(listing: Listing, base: str, label: str) -> dict[str, list[str]]:
    """Sorted image files by class folder below `base`; any other file in a class folder is refused with a count."""
    found = {name[len(base) :]: [] for name in _below(listing.folders, base)}
    foreign: dict[str, list[str]] = {name: [] for name in found}
    here = f"{label}/{shown(base)}".rstrip("/")
    if len(found) < 2:
        raise InputError(f"{here} holds {len(found)} class folder(s); accepted: at least 2")
    for name in sorted([*listing.files, *listing.folders]):
        name_parts = name[len(base) :].split("/")
        if name.startswith(base) and len(name_parts) == 2:
            good = name in listing.files and is_image(name)
            (found if good else foreign)[name_parts[0]].append(name)
    for name in found:
        if foreign[name]:
            first = foreign[name][0].rpartition("/")[2]
            raise InputError(
                f"{here}/{shown(name)}: {len(foreign[name])} non-image file(s), first {first!r}; accepted: {' '.join(EXTENSIONS)}"
            )
        if not found[name]:
            raise InputError(f"class {name!r} in {here} is empty; accepted: at least one image in every class folder")
    return found


def _ordered(parts: list[dict[str, list[str]]], classes: list[str], notes: list[str]) -> Plan:
    files = [name for part in parts for label in classes for name in part[label]]
    labels = [label for part in parts for label, name in enumerate(classes) for _ in part[name]]
    return Plan(files, labels, sum(map(len, parts[0].values())), classes, notes)


def cache_folder(cache_dir: str | Path = "") -> Path:
    """The folder of cached pixels: as given, else $DISTILLERY_CACHE, else ~/.cache/distillery. May be removed any time."""
    chosen = str(cache_dir) or os.environ.get("DISTILLERY_CACHE", "") or "~/.cache/distillery"
    return Path(os.path.expanduser(chosen))


def cached(folder: Path | None, key: str, name: str, produce: Callable, mapped: bool = False) -> Decoded:
    """What `produce` gives, read from `folder` if it is there, else stored there.

    produce  called with allocate(shape, targets, card) -> array; returns pixels (N, C, H, W), targets (N,) and a card
             with 'classes', 'n_train' and 'notes'
    mapped   leave the pixels on disk and decode straight to there; their digest is then not checked on reading
    folder   None = store nothing
    A corrupt file is produced again, a folder that cannot be written is passed over; both are noted. Raises
    InputError if `mapped` and the folder cannot be written.
    """
    path = folder / f"{key}.safetensors" if folder else None
    troubles = []
    if path is not None and path.exists():
        try:
            return _read(path, name, mapped)
        except (InputError, KeyError):
            troubles.append("the cached pixels were corrupt and have been decoded again")
    if mapped:
        with MappedPixels(path) as file:
            pixels, targets, card = produce(lambda shape, targets, card: file.allocate(shape, {"targets": targets}, card))
            if file.pixels is None:
                store.save_tensors(path, {"pixels": torch.from_numpy(pixels), "targets": targets}, card)
            else:
                file.finish()
        result = _read(path, name, mapped)
    else:
        pixels, targets, card = produce(lambda shape, targets, card: np.empty(shape, np.uint8))
        result = _decoded({"pixels": torch.from_numpy(pixels), "targets": targets}, card, name)
        if path is not None:
            try:
                store.save_tensors(path, {"pixels": result.pixels, "targets": targets}, card)
            except InputError:
                troubles.append("the cache folder cannot be written: decoded anew each time")
    result.notes += troubles
    return result


def _read(path: Path, name: str, mapped: bool) -> Decoded:
    return _decoded(*(store.map_tensors if mapped else store.load_tensors)(path), name)


def _decoded(tensors: dict[str, Tensor], card: dict, name: str) -> Decoded:
    return Decoded(tensors["pixels"], tensors["targets"], card["n_train"], tuple(card["classes"]), name, list(card["notes"]))
