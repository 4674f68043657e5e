"""Other forms of labelled image sets to class folders, once, which every command then reads.

Known are parquet files of Hugging Face, tars of WebDataset, .npz (Keras, MedMNIST, downsampled ImageNet), MNIST's idx files, the Python files of
CIFAR, tables of paths and labels, and torch Datasets. Encoded images are written as they are, arrays as PNG, one after the other. No pickle is run.
"""

import re
from collections import Counter
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from distillery import store
from distillery.checks import InputError, local_path
from distillery.data import forms, named
from distillery.data.archives import Folder, is_junk, origin, shown
from distillery.data.folders import arrange
from distillery.data.kept import absent, put

ACCEPTED = (
    "Hugging Face's parquet, WebDataset's tars, an .npz, downsampled ImageNet's, MNIST's idx files, CIFAR's Python files,"
    " a .csv, .tsv or .jsonl of files and labels"
)


def convert(source, folder: str | Path, copy: bool = False, progress: bool = False) -> list[str]:
    """Write a labelled image set of another form as class folders, with train/ and test/ around them where it has these parts.

    source  a file or folder in one of the forms above; or a torch Dataset of (image, label): Pillow images, uint8 arrays or tensors, or
            floats in [0, 1], with the names of its `classes` if it has them
    folder  where to: it must not be there, and is there whole or not at all
    copy    of a table: copies of its files, in place of links
    returns lines that say what was written
    raises  InputError on a form that is not known, files that are missing, counts that differ, and classes whose names make no folders (a / is written -)
    """
    given = isinstance(source, str | Path)
    absent(folder, None, source if given else "")
    label = shown(source) if given else type(source).__name__
    parts, counts = _parts(local_path("source", source)) if given else {"": forms.dataset(source)}, Counter()
    with store.new_folder(folder) as made:
        numbered: dict[Path, str] = {}
        folders: dict[str, str] = {}  # of classes, by name
        for part, items in parts.items():
            top = made / part if len(parts) > 1 else made
            for name, file, content in tqdm(items, desc=f"writing {part}".strip(), unit="image", disable=not progress, leave=False):
                place = top / (folders.get(name) or folders.setdefault(name, _class(name, folders, label)))
                if isinstance(name, int):
                    numbered[place] = place.name
                _write(content, place, file, copy)
                counts[part] += 1
        width = max(map(len, numbered.values()), default=0)
        for place, name in numbered.items():  # so that the order of names is that of numbers
            place.rename(place.with_name(name.zfill(width)))
        if not counts:
            raise InputError(f"{label} holds no labelled image; accepted: at least one in each of two classes")
        plan = arrange(Folder(made).listing, label)
    written = " and ".join(
        f"{n} {part}" if len(parts) > 1 else str(n) for part, n in sorted(counts.items(), key=lambda item: (item[0] != "train", item))
    )
    renamed = [f"class {shown(name)} is in {shown(text)}" for name, text in folders.items() if text != str(name)]
    return [f"{written} images of {len(plan.classes)} classes: {folder}", *(f"note: {note}" for note in renamed + plan.notes)]


def _write(content, place: Path, file: str, copy: bool) -> None:
    if isinstance(content, Path):
        put(content, place, copy)
        return
    place.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        (place / file).write_bytes(content)
    else:
        Image.fromarray(content).save(place / file)


def _class(name: int | str, taken: dict, label: str) -> str:
    """The folder of a class: its name, '-' for what no folder may hold."""
    text = re.sub(r"[/\\\0]", "-", str(name))
    if not text or is_junk(text) or text in forms.PARTS or text in taken.values():
        why = "that of another class too" if text in taken.values() else "no name of a class folder"
        raise InputError(f"{label}: class {str(name)!r} is {why}; accepted: different names, neither hidden nor {', '.join(forms.PARTS)}")
    return text


def _parts(path: Path) -> forms.Parts:
    """The reader of a file or folder, by names."""
    if not path.exists():
        raise InputError(f"source: {shown(path)} is not there; accepted: {ACCEPTED}")
    if path.is_dir() or path.name.lower().endswith((".tar.gz", ".tgz", ".tar")):
        where = origin(path)
        names = sorted(where.listing.files)
        for name in named.CIFAR:
            if named.is_cifar(where, name):
                return forms.cifar(where, name)
    if path.is_file():
        where, names = Folder(path.parent), [path.name]
    for pattern, read in forms.READERS.items():
        if found := [where.path / name for name in names if re.fullmatch(pattern, name.lower().rpartition("/")[2])]:
            if path.is_file() or pattern not in (forms.NPZ, forms.TABLE):
                return read(found)
    if tables := [where.path / name for name in names if re.fullmatch(r"metadata\.(csv|jsonl)", name.rpartition("/")[2])]:
        return forms.tables(tables)
    raise InputError(f"source: {shown(path)} is no form that is known; accepted: {ACCEPTED}")
