"""The clips of a set of videos, or of folders of frames, in four layouts: which files, which class, which part."""

import csv
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from distillery.checks import InputError, check_choice
from distillery.data.archives import TEST_FOLDERS, first_names, is_image, is_junk, readable, shown
from distillery.data.folders import Plan, ordered

EXTENSIONS = (".mp4", ".avi", ".webm", ".mkv", ".mov")
_ACCEPTED = f"for each clip a video file ({' '.join(EXTENSIONS)}) or a folder of frames"
_COLUMNS = ("label", "youtube_id", "time_start", "time_end")  # of Kinetics, beside `split`

Rows = list[tuple[str, str]]  # (class, name of the clip without folders and extension)


def plan_of_clips(root: Path, split: int = 1) -> Plan:
    """The clips below a folder, in order: by part, class, name; the first that fits of these layouts.

    Kinetics  train.csv and a test part, test.csv or, where that has no labels or is not there, val.csv (validate.csv, validation.csv), at the top or in
              annotations/, with the columns label, youtube_id, time_start, time_end; clips anywhere below, named ID_START_END with six digits each, and
              below a folder replacement/ those that are nowhere else
    UCF101    class folders beside ucfTrainTestlist/trainlist0S.txt and testlist0S.txt of split S
    HMDB51    class folders beside testTrainMulti_7030_splits/CLASS_test_splitS.txt, whose clips are for training (1), testing (2) or neither (0)
    folders   of classes with clips at any depth, plain or inside train/ and test/ (val/, valid/, validation/)

    split    which of the three published splits of UCF101 and HMDB51
    returns  names relative to `root`; its notes tell what is missing, passed over or used in place of something else
    raises   InputError on what fits none of them, tables and lists that cannot be read as said, a class without a clip in one of the parts, a clip
             listed or found twice, and clips of both kinds
    """
    check_choice("split", split, (1, 2, 3))
    label = shown(root)
    with readable(root):
        found = dict(_walk(Path(root)))
    first = {kind: name for name, kind in reversed(found.items())}
    if first.keys().isdisjoint(("video", "frames")) or "" in found:
        raise InputError(f"{label} holds no clips below it; accepted: class folders with {_ACCEPTED}")
    if first.keys() >= {"video", "frames"}:
        both = f"the video {shown(first['video'])!r} and the folder of frames {shown(first['frames'])!r}"
        raise InputError(f"{label} holds {both}; accepted: clips of one kind")
    lists = _lists(Path(root), split)
    if not lists and split != 1:
        raise InputError(f"split: {split}, but {label} holds no lists of UCF101 or HMDB51; accepted: 1")
    plan = _listed(found, *lists, label) if lists else _arranged(found, label)
    passed = sorted({name for name, kind in found.items() if kind in ("video", "frames")} - set(plan.files))
    if passed:
        plan.notes.append(f"{len(passed)} clip(s) of no part or class passed over: {first_names(passed)}")
    return plan


def _walk(folder: Path, name: str = "", above: tuple = ()) -> Iterator[tuple[str, str]]:
    """(name, 'video', 'frames', 'empty' or 'other') of all below a folder but frames. Raises InputError on a circle of links."""
    at = folder.stat()
    if (at.st_dev, at.st_ino) in above:
        raise InputError(f"{shown(folder)} is a link to a folder above; accepted: no circles")
    with os.scandir(folder) as entries:
        kept = sorted((entry for entry in entries if not is_junk(entry.name)), key=lambda entry: entry.name)
    if not any(entry.is_dir() or _is_video(entry.name) for entry in kept) and (not kept or any(is_image(entry.name) for entry in kept)):
        yield name, "frames" if kept else "empty"
        return
    for entry in kept:
        inner = f"{name}/{entry.name}".lstrip("/")
        if entry.is_dir():
            yield from _walk(folder / entry.name, inner, (*above, (at.st_dev, at.st_ino)))
        else:
            yield inner, "video" if _is_video(entry.name) else "other"


def _is_video(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _arranged(found: dict[str, str], label: str) -> Plan:
    """The plan of class folders, as `folders.arrange` makes it of images: a single top folder is entered."""
    base, notes = "", []
    while len(_inside(found, base)) == 1 and any(name.count("/", len(base)) > 1 for name in found if name.startswith(base)):
        base += f"{_inside(found, base).pop()}/"
    if other := sorted(name for name, kind in found.items() if kind == "other"):
        notes.append(f"{len(other)} file(s) that are no clips passed over: {first_names(other)}")
    parts = {name.casefold(): name for name in _inside(found, base)}
    held_out = [parts[name] for name in TEST_FOLDERS if name in parts]
    if "train" not in parts or not held_out:
        members = _class_folders(found, base, label)
        return ordered([members], sorted(members), notes)
    train = _class_folders(found, f"{base}{parts['train']}/", label)
    part = next((part for part in held_out if _inside(found, f"{base}{part}/") & train.keys()), held_out[0])
    test = _class_folders(found, f"{base}{part}/", label)
    if part.casefold() != "test":
        notes.append(f"{part}/ serves as test: there is no test/ with these classes")
    _check_alike(train, test, parts["train"], part, label)
    return ordered([train, test], sorted(train), notes)


def _inside(found: dict[str, str], base: str) -> set[str]:
    """The folders directly below another."""
    names = (name for name, kind in found.items() if name.startswith(base) and ("/" in name[len(base) :] or kind in ("frames", "empty")))
    return {name[len(base) :].partition("/")[0] for name in names}


def _class_folders(found: dict[str, str], base: str, label: str) -> dict[str, list[str]]:
    """Sorted clips by the class folder below `base` that they lie in. Raises InputError on fewer than two, one without clips and one of images."""
    classes: dict[str, list[str]] = {name: [] for name in sorted(_inside(found, base))}
    for name in sorted(name for name in found if name.startswith(base) and found[name] != "other"):
        folder, inner, _ = name[len(base) :].partition("/")
        if inner:
            classes[folder].append(name)
        elif found[name] == "frames":
            raise InputError(f"{label}: {shown(name)}/ holds images; accepted: class folders with {_ACCEPTED}")
    if len(classes) < 2:
        raise InputError(f"{label}/{shown(base)} holds {len(classes)} class folder(s) of clips; accepted: at least 2")
    for name, members in classes.items():
        if not members:
            raise InputError(f"{label}: class {name!r} has no clip; accepted: at least one in every class")
        inside = {member[len(f"{base}{name}/") :].partition("/")[0].casefold() for member in members}
        if (parts := inside & {"train", *TEST_FOLDERS}) > {"train"}:
            raise InputError(f"{label}: class {name!r} holds {' and '.join(sorted(parts))}; accepted: these outside, class folders inside")
    return classes


def _check_alike(train: Iterable[str], test: Iterable[str], first: str, second: str, label: str) -> None:
    if odd := sorted(set(train) ^ set(test)):
        what = f"{len(odd)} class(es) are not in both {first} and {second}: {first_names(odd)}"
        raise InputError(f"{label}: {what}; accepted: the same classes in both")


# ---------------------------------------------------------------- published lists of clips


def _lists(root: Path, split: int) -> tuple[dict[str, Rows], list[str]] | None:
    """What a published list says, (class, clip) by the name of the part, training first, and notes; None = there is no list."""
    if tables := [folder for folder in (root, root / "annotations") if (folder / "train.csv").is_file()]:
        return _kinetics(tables[0])
    for name, read in (("ucfTrainTestlist", _ucf101), ("testTrainMulti_7030_splits", _hmdb51)):
        if folders := sorted([*root.glob(name), *root.glob(f"*/{name}")]):
            return read(folders[0], split)
    return None


def _kinetics(folder: Path) -> tuple[dict[str, Rows], list[str]]:
    parts, notes, passed = {"train.csv": _table(folder / "train.csv")}, [], []
    for name in (f"{part}.csv" for part in ("test", "val", "validate", "validation")):
        if not (folder / name).is_file():
            continue
        if len(parts) > 1:
            passed.append(name)
        elif rows := _table(folder / name, labelled=name != "test.csv"):
            parts[name] = rows
        else:
            notes.append("test.csv has no labels")
    if len(parts) < 2:
        raise InputError(f"{shown(folder)} holds no labelled part beside train.csv; accepted: test.csv with labels, or val.csv")
    if "test.csv" not in parts:
        notes.append(f"{list(parts)[1]} serves as test")
    return parts, notes + [f"{name} passed over: validation clips are drawn from train.csv" for name in passed]


def _table(path: Path, labelled: bool = True) -> Rows:
    """The rows of a table of Kinetics; none where it has no labels and need not have any."""
    with readable(path), path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as text:
        try:
            rows = list(csv.DictReader(text))
        except csv.Error as error:
            raise ValueError(error) from error
    columns = [name for name in rows[0] if name] if rows else []
    if not labelled and not any(row.get("label") for row in rows):
        return []
    if lacking := [name for name in _COLUMNS if name not in columns]:
        raise InputError(f"{shown(path)}: no column {lacking[0]!r} among {first_names(columns) or 'none'}; accepted: {', '.join(_COLUMNS)}")
    found = []
    for number, row in enumerate(rows, 2):
        try:
            start, end = int(row["time_start"]), int(row["time_end"])
        except (TypeError, ValueError):
            start = end = -1
        if not row["label"] or not row["youtube_id"] or not 0 <= start < end:
            what = ", ".join(f"{name} {row[name]!r}" for name in _COLUMNS)
            raise InputError(f"{shown(path)}, row {number}: {what}; accepted: a label, an identity, and whole seconds in ascending order")
        found.append((row["label"], f"{row['youtube_id']}_{start:06d}_{end:06d}"))
    return found


def _ucf101(folder: Path, split: int) -> tuple[dict[str, Rows], list[str]]:
    parts: dict[str, Rows] = {}
    for name in (f"trainlist{split:02d}.txt", f"testlist{split:02d}.txt"):
        parts[name] = []
        for line in _lines(folder / name):
            label, _, clip = line.split(" ")[0].partition("/")
            if not clip:
                raise InputError(f"{shown(folder / name)}: {line!r}; accepted: lines such as 'Archery/v_Archery_g01_c01.avi 3'")
            parts[name].append((label, _stem(clip)))
    return parts, [f"split {split} of UCF101"]


def _hmdb51(folder: Path, split: int) -> tuple[dict[str, Rows], list[str]]:
    parts, ending = {"1": [], "2": [], "0": []}, f"_test_split{split}.txt"
    for path in sorted(folder.glob(f"*{ending}")):
        for line in _lines(path):
            clip, _, part = line.rpartition(" ")
            if part not in parts or not clip:
                raise InputError(f"{shown(path)}: {line!r}; accepted: the name of a clip and 1 (training), 2 (testing) or 0 (neither)")
            parts[part].append((path.name.removesuffix(ending), _stem(clip.strip())))
    if not parts["1"] or not parts["2"]:
        raise InputError(f"{shown(folder)} has no lists *{ending} with clips of 1 and of 2; accepted: one list for every class")
    return {"training": parts["1"], "testing": parts["2"]}, [f"split {split} of HMDB51"]


def _lines(path: Path) -> list[str]:
    with readable(path):
        return [line.strip() for line in path.read_text("utf-8-sig", "surrogateescape").splitlines() if line.strip()]


def _stem(name: str) -> str:
    """The last part of a name, without the extension of a video."""
    name = name.rpartition("/")[2]
    return os.path.splitext(name)[0] if _is_video(name) else name


def _listed(found: dict[str, str], parts: dict[str, Rows], notes: list[str], label: str) -> Plan:
    """The plan of listed clips, wherever they lie; those that are missing are counted and named."""
    places: dict[str, list[str]] = {}
    for name, kind in found.items():
        if kind != "other":
            places.setdefault(_stem(name), []).append(name)
    listed, missing, members = set(), [], []
    for part, rows in parts.items():
        classes: dict[str, list[str]] = {name: [] for name, _ in rows}
        for name, stem in rows:
            # outside of replacement/ where it is there and no empty folder; of several of its name the one in a folder of its class
            ranks = {place: (found[place] == "empty", "replacement" in place.split("/")) for place in places.get(stem, [])}
            best = [place for place in ranks if ranks[place] == min(ranks.values())]
            best = [place for place in best if name in place.split("/")] or best
            if len(best) > 1:
                raise InputError(f"{label}: {shown(best[0])} and {shown(best[1])} have the name of one clip; accepted: one of them")
            key = best[0] if best else f"{name}/{stem}"
            if key in listed:
                raise InputError(f"{label}: {part} lists clip {stem!r} again, under {name!r}; accepted: each clip once")
            listed.add(key)
            classes[name] += best
            missing += [] if best else [stem]
        members.append({name: sorted(clips) for name, clips in classes.items()})
    if len(missing) == len(listed):
        raise InputError(f"{label} holds none of {len(listed)} listed clips, such as {missing[0]!r}; accepted: {_ACCEPTED} of that name")
    _check_alike(*members, *parts, label)
    for part, classes in zip(parts, members):
        if lacking := sorted(name for name, clips in classes.items() if not clips):
            raise InputError(f"{label}: of {part}, class {lacking[0]!r}, no clip is there; accepted: at least one of every class and part")
    if missing:
        notes.append(f"{len(missing)} of {len(listed)} listed clips are missing: {first_names(missing)}")
    plan = ordered(members, sorted(members[0]), notes)
    if replaced := [name for name in plan.files if "replacement" in name.split("/")]:
        notes.append(f"{len(replaced)} clip(s) are those of replacement/: {first_names(replaced)}")
    return plan
