"""Image files to a data set: class folders, plain or in an archive, decoded once and cached."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from distillery import store
from distillery.checks import InputError
from distillery.data.archives import (
    EXTENSIONS,
    LABEL_TABLES,
    TEST_FOLDERS,
    Folder,
    Listing,
    converted,
    first_names,
    is_image,
    origin,
    shown,
)
from distillery.data.cache import Decoded, cache_folder, cached, known_digest
from distillery.data.decoding import decode

VERSION = 3  # of the decoding: a change makes older cache files stale


@dataclass
class Plan:
    """The files of a data set in order: by part, class, name. `n_train` of them are for training."""

    files: list[str]
    labels: list[int]
    n_train: int
    classes: list[str]
    notes: list[str]

    def without(self, names: Iterable[str]) -> "Plan":
        """The plan without some files. Raises InputError where a part is left without a class."""
        gone = set(names)
        rows = [row for row, name in enumerate(self.files) if name not in gone]
        n_train, labels = sum(row < self.n_train for row in rows), [self.labels[row] for row in rows]
        for before, after in ((self.labels[: self.n_train], labels[:n_train]), (self.labels[self.n_train :], labels[n_train:])):
            if lost := sorted(set(before) - set(after)):
                raise InputError(f"class {self.classes[lost[0]]!r}: no image of it can be read; accepted: at least one in every class")
        return Plan([self.files[row] for row in rows], labels, n_train, self.classes, self.notes)


def load_files(path, *, resize=0, max_side=0, cache_dir="", mapped=False, progress=False, skip_unreadable=False) -> Decoded:
    """Decode the class folders of a folder or archive, or read them from the cache: options and refusals as in `data.load`.

    skip_unreadable  pass over files that are no images or cannot be decoded, which are counted and named in the notes; else they are refused
    """
    where = origin(path)
    plan = plan_of(where, skip_unreadable) if isinstance(where, Folder) else None  # an archive is listed only if not cached
    options = {"resize": resize, "max_side": max_side} | ({"skip_unreadable": True} if skip_unreadable else {})
    folder = cache_folder(cache_dir)
    key = store.identity("decoded images", VERSION, options, known_digest(where, folder))

    def produce(allocate):
        found = plan or plan_of(where, skip_unreadable)
        built, files, notes = decode(where, found, resize, max_side, progress, allocate, skip_unreadable)
        card = {"classes": files.classes, "n_train": files.n_train, "notes": files.notes + notes, "files": files.files}
        return built, torch.tensor(files.labels), card | {"skipped": sorted(set(found.files) - set(files.files))}

    return cached(folder, key, shown(where.name), produce, mapped)


def plan_of(where, skip_unreadable: bool = False) -> Plan:
    """The files of an origin, with their classes and parts; what is no image by its name is refused, or passed over and noted."""
    listing = where.listing
    for table in (name for name in listing.files if f"/{name}".endswith(tuple(f"/{known}" for known in LABEL_TABLES))):
        top = table.removesuffix(LABEL_TABLES[0]) if table.endswith(LABEL_TABLES[0]) else _base(listing)
        for folder in (f"{top}val/images/", f"{top}val/"):
            if any(map(is_image, _below(listing.files, folder))):
                return arrange_flat(where, table, folder, skip_unreadable)
    return arrange(listing, shown(where.path), skip_unreadable)


def arrange(listing: Listing, label: str, skip_unreadable: bool = False) -> Plan:
    """Find classes and splits in a listing, whose single top folder is entered.

    Accepted are class folders at the top, or inside train/ and test/; where no test/ holds classes, val/ (valid/, validation/) serves as
    test and that is noted.
    raises  InputError on fewer than two classes, an empty class, other files in a class folder, or a class that is not in both parts
    """
    base = _base(listing)
    named: dict[str, str] = {}
    for top in sorted(name.removeprefix(base) for name in _below(listing.folders, base)):
        if top.casefold() in ("train", *TEST_FOLDERS) and named.setdefault(top.casefold(), top) != top:
            raise InputError(f"{label} holds both {named[top.casefold()]!r} and {top!r}; accepted: one of them")
    outside = sum(map(is_image, _below(listing.files, base)))
    notes = [f"{outside} image(s) outside the class folders passed over"] if outside else []
    held_out = [named[name] for name in TEST_FOLDERS if name in named]
    passed = notes if skip_unreadable else None
    if "train" not in named or not held_out:
        members = _class_folders(listing, base, label, passed)
        return ordered([members], sorted(members), notes)
    train = _class_folders(listing, f"{base}{named['train']}/", label, passed)
    classes = sorted(train)
    below = {part: {name.rpartition("/")[2] for name in _below(listing.folders, f"{base}{part}/")} for part in held_out}
    part = next((part for part in held_out if not below[part].isdisjoint(classes)), next(filter(below.get, held_out), held_out[-1]))
    test = _class_folders(listing, f"{base}{part}/", label, passed)
    if part.casefold() != "test":
        notes.append(f"{part}/ serves as test: there is no test/ with these classes")
    elif len(held_out) > 1:
        notes.append(f"{held_out[1]}/ passed over: validation images are drawn from {named['train']}/")
    if odd := sorted(train.keys() ^ test.keys()):
        more = f" and {len(odd) - 10} more" if len(odd) > 10 else ""
        raise InputError(f"{label}: classes {odd[:10]}{more} are not in both train and {part}; accepted: the same class folders in both")
    return ordered([train, test], classes, notes)


def arrange_flat(where, table: str, folder: str, skip_unreadable: bool = False) -> Plan:
    """Validation images that lie together in `folder`, with their classes in a `table`; train/ is sorted by class. They serve as test.

    Tiny-ImageNet: val/images/*, and val/val_annotations.txt of NAME, tab, CLASS. ImageNet-1K: val/*, and the same, or LOC_val_solution.csv of
    NAME without .JPEG, comma, CLASS. More in a line (boxes) is not looked at, nor are the images of test/, which have no labels.
    raises  InputError on a line without image or class, an image without a line, and a class without images
    """
    label, notes = shown(where.path), ["the published validation images serve as test"]
    top = folder.removesuffix("images/").removesuffix("val/")
    train = _class_folders(where.listing, f"{top}train/", label, notes if skip_unreadable else None)
    classes, test = sorted(train), {name: [] for name in train}
    waiting = {name.rpartition("/")[2]: name for name in _below(where.listing.files, folder) if is_image(name)}
    accepted = f"one line for each image of {shown(folder)}: its name and a class of train/"
    _, content = next(iter(where.read([table])))
    text = content.read_bytes() if isinstance(content, Path) else content
    for line in filter(str.strip, text.decode("utf-8-sig", "replace").splitlines()):
        name, *rest = line.split("\t") if "\t" in line else line.replace(",", " ").split() or [line]
        if name == "ImageId":  # the head of Kaggle's table
            continue
        file = waiting.pop(name, None) or waiting.pop(f"{name}.JPEG", None)
        if file is None or not rest or rest[0] not in test:
            why = "an image that is not there, or was named before" if file is None else "a class that is not in train/"
            raise InputError(f"{label}: {shown(table)} names {[name, *rest[:1]]}, {why}; accepted: {accepted}")
        test[rest[0]].append(file)
    if waiting:
        what = f"{len(waiting)} image(s) of {shown(folder)} have no line in {shown(table)}: {first_names(sorted(waiting))}"
        raise InputError(f"{label}: {what}; accepted: {accepted}")
    if empty := [name for name in classes if not test[name]]:
        raise InputError(f"{label}: classes {empty[:5]} of train/ have no image in val/; accepted: images in both")
    return ordered([train, {name: sorted(files) for name, files in test.items()}], classes, notes)


def _below(names: Iterable[str], base: str) -> list[str]:
    """The names directly inside the folder `base` ('' or ending in '/')."""
    return [name for name in names if name.startswith(base) and "/" not in name[len(base) :]]


def _base(listing: Listing) -> str:
    """The single top folder of an archive, which is entered unless it is itself a class folder; the images' folder of ImageNet-1K."""
    base = ""
    for _ in range(3):
        if known := [f"{base}{inner}" for inner in ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC") if f"{base}{inner}" in listing.folders]:
            return f"{known[0]}/"
        tops, files = _below(listing.folders, base), _below(listing.files, base)
        inner = f"{tops[0]}/" if len(tops) == 1 else ""
        if not inner or any(map(is_image, files + _below(listing.files, inner))) or not _below(listing.folders, inner):
            break
        base = inner
    return base


def _class_folders(listing: Listing, base: str, label: str, passed: list[str] | None = None) -> dict[str, list[str]]:
    """Sorted image files by class folder below `base`, at any depth, as torchvision's ImageFolder finds them.

    passed  notes to which other files there are added; None = they are refused. Those beside Tiny-ImageNet's images/ are not looked at
    """
    found: dict[str, list[str]] = {name[len(base) :]: [] for name in _below(listing.folders, base)}
    here, other = f"{label}/{shown(base)}".rstrip("/"), []
    if len(found) < 2:
        beside = sum(map(is_image, _below(listing.files, base)))
        what = f"{here} holds {len(found)} class folder(s)" + (f" and {beside} images in none" if beside else "")
        table = f", or a table of their labels ({' or '.join(LABEL_TABLES)})" if beside and f"/{base}".endswith("/val/") else ""
        raise InputError(f"{what}; accepted: at least 2{table}{converted(listing.files)}")
    for name in sorted(name for name in listing.files if name.startswith(base)):
        folder, *rest = name[len(base) :].split("/")
        if rest and is_image(name):
            found[folder].append(name)
        elif rest and not (len(rest) == 1 and f"{base}{folder}/images" in listing.folders):
            other.append(name)
    for name, inside in found.items():
        parts = {part for part in ("train", *TEST_FOLDERS) if f"{base}{name}/{part}" in listing.folders}
        if parts > {"train"}:
            raise InputError(f"{here}/{shown(name)} holds {' and '.join(sorted(parts))}; accepted: these outside, class folders inside")
        if not inside and (passed is not None or not other):
            raise InputError(f"class {name!r} in {here} is empty; accepted: at least one image in every class folder")
    if other and passed is None:
        folder, _, file = other[0].rpartition("/")
        what = f"{label}/{shown(folder)}: {len(other)} non-image file(s), first {file!r}"
        raise InputError(f"{what}; accepted: {' '.join(EXTENSIONS)}, or --skip-unreadable where a command has it")
    if other:
        passed.append(f"{len(other)} file(s) that are no images passed over: {first_names(other)}")
    return found


def ordered(parts: list[dict[str, list[str]]], classes: list[str], notes: list[str]) -> Plan:
    """The plan of files by class, a part each; class names that are no UTF-8 are escaped."""
    files = [name for part in parts for label in classes for name in part[label]]
    labels = [label for part in parts for label, name in enumerate(classes) for _ in part[name]]
    readable = [name.encode(errors="backslashreplace").decode() for name in classes]  # a folder name need not be UTF-8
    return Plan(files, labels, sum(map(len, parts[0].values())), readable, notes)
