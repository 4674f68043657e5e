"""Other forms of labelled image sets to class folders, once, which every command then reads.

Known are parquet files of Hugging Face, .npz (Keras, MedMNIST), MNIST's idx files, the Python files of CIFAR, tables of paths and labels,
and torch Datasets. Encoded images are written as they are, arrays as PNG. No pickle is run.
"""

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from distillery import store
from distillery.checks import InputError, first_line, local_path
from distillery.data import named
from distillery.data.archives import TEST_FOLDERS, Folder, Tar, first_names, is_image, is_junk, origin, shown
from distillery.data.decoding import FORMATS, why_not
from distillery.data.folders import arrange
from distillery.data.kept import absent, put

PARTS = ("train", *TEST_FOLDERS)
ACCEPTED = "Hugging Face's parquet, an .npz, MNIST's idx files, CIFAR's Python files, a .csv, .tsv or .jsonl of files and labels"
_SUFFIXES = dict(zip(FORMATS, (".jpg", ".png", ".webp", ".bmp")))
_PAIRS = [(x, y) for x in ("images", "x", "data", "image") for y in ("labels", "y", "targets", "label")]  # names in an .npz
_FILES = ("file_name", "file", "filename", "path", "filepath", "image", "image_path", "img")  # columns of tables and parquet files
_LABELS = ("label", "class", "labels", "fine_label", "class_name", "category", "target")

Item = tuple[int | str, str, "bytes | np.ndarray | Path"]  # class by number or name; name of the image; its content
Parts = dict[str, Iterable[Item]]  # by part of the set, '' where it has none


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
    parts, counts = _parts(local_path("source", source)) if given else {"": _dataset(source)}, Counter()
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
    written = " and ".join(f"{n} {part}" if len(parts) > 1 else str(n) for part, n in sorted(counts.items(), reverse=True))
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
    if not text or is_junk(text) or text in PARTS or text in taken.values():
        why = "that of another class too" if text in taken.values() else "no name of a class folder"
        raise InputError(f"{label}: class {str(name)!r} is {why}; accepted: different names, neither hidden nor {', '.join(PARTS)}")
    return text


def _parts(path: Path) -> Parts:
    """The reader of a file or folder, by names."""
    if not path.exists():
        raise InputError(f"source: {shown(path)} is not there; accepted: {ACCEPTED}")
    if path.is_dir() or path.name.lower().endswith((".tar.gz", ".tgz", ".tar")):
        where = origin(path)
        names = sorted(where.listing.files)
        for name in named.CIFAR:
            if named.is_cifar(where, name):
                return _cifar(where, name)
    else:
        where, names = Folder(path.parent), [path.name]
    if not isinstance(where, Tar):
        for pattern, read in _READERS.items():
            if found := [where.path / name for name in names if re.fullmatch(pattern, name.lower().rpartition("/")[2])]:
                if path.is_file() or pattern not in (_NPZ, _TABLE):
                    return read(found)
        tables = [where.path / name for name in names if re.fullmatch(r"metadata\.(csv|jsonl)", name.rpartition("/")[2])]
        if tables:
            return _tables(tables)
    raise InputError(f"source: {shown(path)} is no form that is known; accepted: {ACCEPTED}")


def _part_of(file: Path) -> str:
    """The part that a file is of, by its name or its folder's: 'train-00000-of-00002.parquet', 'test/0000.parquet'; '' = none."""
    words = [re.split(r"[-_.]", name.lower())[0] for name in (file.name, file.parent.name)]
    return next((word for word in words if word in PARTS), "")


def _grouped(files: list[Path]) -> dict[str, list[Path]]:
    parts: dict[str, list[Path]] = {}
    for file in files:
        parts.setdefault(_part_of(file), []).append(file)
    if "" in parts and len(parts) > 1:
        raise InputError(f"{shown(parts[''][0])} is of no part by its name, beside files that are; accepted: {', '.join(PARTS)}")
    return parts


@contextmanager
def _reading(path: str | Path):
    """Whatever others' readers raise becomes one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"cannot read {shown(path)}: {shown(first_line(error))}; accepted: whole and labelled, without pickles") from error


def _dataset(source) -> Iterator[Item]:
    names = getattr(source, "classes", None)
    if not hasattr(source, "__getitem__") or not hasattr(source, "__len__"):
        raise InputError(f"source: a {type(source).__name__}; accepted: a path, or a torch Dataset with a length")
    for row in range(len(source)):
        where = f"{type(source).__name__}, item {row}"
        with _reading(where):
            image, label = source[row]
            if isinstance(image, Image.Image):
                image = image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGB")
            yield _names([label], names, where)[0], f"{row:06d}.png", _pixels(np.asarray(image)[None], where)[0]


def _arrays(images, labels, names, where: str) -> Iterator[Item]:
    """Items of arrays: images as `_pixels`, labels as `_names`."""
    pixels, classes = _pixels(images, where), _names(labels, names, where)
    if len(pixels) != len(classes):
        raise InputError(f"{where}: {len(pixels)} images and {len(classes)} labels; accepted: as many")
    for row, (image, label) in enumerate(zip(pixels, classes)):
        yield label, f"{row:06d}.png", image


def _pixels(images, where: str) -> np.ndarray:
    """Images (N, H, W), (N, H, W, C) or (N, C, H, W), whole numbers to 255 or floats in [0, 1] -> uint8 (N, H, W) or (N, H, W, C)."""
    images = np.asarray(images)
    last, first = (images.ndim == 4 and images.shape[axis] in (1, 3, 4) for axis in (3, 1))
    if images.dtype.kind not in "iuf" or not (images.ndim == 3 or last != first) or images.size == 0:
        found = f"images {images.shape} of {images.dtype}"
        raise InputError(f"{where}: {found}; accepted: numbers (N, H, W), (N, H, W, C) or (N, C, H, W) with 1, 3 or 4 channels")
    top = 1 if images.dtype.kind == "f" else 255
    if images.dtype != np.uint8:
        low, high = images.min(), images.max()
        if not (low >= 0 and high <= top):
            raise InputError(f"{where}: {images.dtype} pixels from {low:g} to {high:g}; accepted: 0 to {top}")
        images = (images * 255).round().astype(np.uint8) if top == 1 else images.astype(np.uint8)
    if first:
        images = np.moveaxis(images, 1, 3)
    return np.ascontiguousarray(images[..., 0] if images.ndim == 4 and images.shape[3] == 1 else images)


def _names(labels, names, where: str) -> list[int | str]:
    """Labels (N,) or (N, 1), numbers, texts, or one-hot (N, classes) -> a name of each, or its number where there are no names."""
    labels = np.asarray(labels)
    if labels.ndim == 2:
        one_hot = labels.shape[1] > 1 and labels.dtype.kind in "iufb" and ((labels != 0).sum(1) == 1).all()
        labels = labels.argmax(1) if one_hot else labels[:, 0] if labels.shape[1] == 1 else labels
    if labels.ndim == 1 and labels.dtype.kind == "U":
        return labels.tolist()
    if labels.ndim != 1 or labels.dtype.kind not in "iuf" or not (labels % 1 == 0).all():
        raise InputError(f"{where}: labels {labels.shape} of {labels.dtype}; accepted: (N,) whole numbers or texts, or one-hot")
    most = np.inf if names is None else len(names) - 1
    if len(labels) and not (labels.min() >= 0 and labels.max() <= most):
        raise InputError(f"{where}: labels from {labels.min():g} to {labels.max():g}; accepted: 0 to {most:g}")
    return [int(label) if names is None else str(names[int(label)]) for label in labels]


def _npz(files: list[Path]) -> Parts:
    """Keras' mnist.npz, MedMNIST's, `distillery export`'s: images and labels under one of several names, by part."""
    (path,) = files
    with _reading(path):
        content = np.load(path, allow_pickle=False)
        keys = {name.lower(): name for name in content.files}
    forms = {part: (f"{{}}_{part}", f"{part}_{{}}") for part in PARTS} | {"": ("{}",)}
    found: dict[str, tuple[str, str]] = {}
    for part, ways in forms.items():
        for way, pair in ((way, pair) for way in ways for pair in _PAIRS):
            x, y = (way.format(one) for one in pair)
            if x in keys and y in keys and (part or not found):
                found.setdefault(part, (keys[x], keys[y]))
    if not found:
        held = first_names(content.files) or "nothing"
        raise InputError(f"{shown(path)} holds {held}; accepted: images and labels, x_train and y_train, train_images and train_labels, ..")

    def items(x: str, y: str) -> Iterator[Item]:
        with _reading(path):
            names = content["classes"].tolist() if "classes" in keys else None
            yield from _arrays(content[x], content[y], names, f"{shown(path)}: {x}, {y}")

    return {part: items(*pair) for part, pair in found.items()}


def _idx(files: list[Path]) -> Parts:
    """MNIST's files, packed or not: labels lie beside the images under the name that goes with theirs."""
    parts: Parts = {}
    top = min(len(file.parts) for file in files)  # Kaggle's copy has each once more, in a folder of its name
    for file in (file for file in files if len(file.parts) == top):
        stem = file.name.removesuffix(".gz")
        part = "test" if stem.startswith("t10k") or "test" in stem else "train" if "train" in stem else ""
        if part in parts:
            if file.name.endswith(".gz") and file.with_name(stem) in files:
                continue  # the same, unpacked beside it
            raise InputError(f"{shown(file)} is another file of {part or 'no'} part; accepted: one pair of images and labels for each part")
        mate = stem.replace("images", "labels").replace("idx3", "idx1")
        mates = [one for one in (file.with_name(mate), file.with_name(mate + ".gz")) if one.is_file() and mate != stem]
        if not mates:
            raise InputError(f"{shown(file)}: no labels {mate} beside it; accepted: a pair of images and labels")
        with _reading(file):
            parts[part] = _arrays(named.idx(file), named.idx(mates[0]), None, shown(file))
    return parts


def _cifar(where, name: str) -> Parts:
    with _reading(where.path):
        pixels, labels, n, names = named.read_cifar(where, name)
    return {
        part: _arrays(pixels[rows], labels[rows], names, shown(where.path))
        for part, rows in (("train", slice(n)), ("test", slice(n, None)))
    }


def _tables(files: list[Path]) -> Parts:
    """Tables of files, as seen from their folder, and labels; a column `split` names parts, else a table is of the part of its folder."""
    parts: dict[str, list[Item]] = {}
    for path in files:
        with _reading(path), path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as text:
            if path.suffix == ".jsonl":
                rows = [dict(json.loads(line)) for line in text if line.strip()]
            else:
                first = text.readline()
                text.seek(0)
                rows = list(csv.DictReader(text, delimiter=max("\t;,", key=first.count)))
        columns = {str(name).strip().lower(): name for name in (rows[0] if rows else {})}
        file, label = (next((columns[name] for name in among if name in columns), None) for among in (_FILES, _LABELS))
        if file is None or label is None:
            what = f"columns {first_names(list(columns)) or 'none'}"
            raise InputError(f"{shown(path)}: {what}; accepted: one of {', '.join(_FILES)}, and one of {', '.join(_LABELS)}")
        rows = [{name: "" if value is None else str(value).strip() for name, value in row.items()} for row in rows]  # a short row has None
        if "kept" in columns:  # a list of `distillery prune`
            rows = [row for row in rows if row.get(columns["kept"]) == "1"]
        own = _part_of(path) if len(files) > 1 else ""
        places = [path.parent / row.get(file, "") for row in rows]
        for right, what in ((os.path.isfile, "not there"), (lambda one: is_image(one.name), "no images by their names")):
            if bad := [one for one in places if not right(one)]:
                raise InputError(f"{shown(path)}: {len(bad)} of {len(rows)} files are {what}: {first_names(bad)}; accepted: image files")
        for row, place in zip(rows, places):
            part = row.get(columns["split"], "").lower() if "split" in columns else own
            if part not in ("", *PARTS):
                raise InputError(f"{shown(path)}: split {part!r}; accepted: {', '.join(PARTS)}")
            parts.setdefault(part, []).append((row.get(label, ""), place.name, place))
    if "" in parts and len(parts) > 1:
        raise InputError(f"{shown(files[0])}: {len(parts[''])} rows without a split beside rows with one; accepted: all or none")
    return parts


def _parquet(files: list[Path]) -> Parts:
    """Image sets of Hugging Face: the image as bytes, the label as a number whose name is in the schema, or as text."""
    try:
        import pyarrow.parquet as parquet
    except ModuleNotFoundError as error:
        raise InputError("parquet files need pyarrow; accepted: `pip install 'distillery[parquet]'`") from error

    def items(part: list[Path]) -> Iterator[Item]:
        row = 0
        for path in part:
            with _reading(path), parquet.ParquetFile(path) as file:
                features = {}
                with suppress(KeyError, TypeError, ValueError):
                    features = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"]
                known = file.schema_arrow.names
                image, label = (next((one for one in among if one in known), None) for among in (("image", "img", "images"), _LABELS))
                if image is None or label is None:
                    raise InputError(
                        f"{shown(path)}: columns {first_names(known)}; accepted: image or img, and label, labels or fine_label"
                    )
                names = (features.get(label) or {}).get("names")
                for batch in file.iter_batches(128, columns=[image, label]):
                    for one in batch.to_pylist():
                        content, where = one[image], f"{shown(path)}, row {row}"
                        content = content.get("bytes") if isinstance(content, dict) else content
                        if not isinstance(content, bytes) or one[label] is None:
                            raise InputError(f"{where}: no bytes of an image, or no label; accepted: both in every row")
                        yield _names([one[label]], names, where)[0], f"{row:06d}{_suffix(content, where)}", content
                        row += 1

    return {part: items(found) for part, found in _grouped(files).items()}


def _suffix(content: bytes, where: str) -> str:
    """The suffix of an encoded image. Raises InputError on one that no command reads."""
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            return _SUFFIXES[image.format]
    except Exception as error:
        raise InputError(f"{where}: an image that is {why_not(content, error)}; accepted: images in {', '.join(FORMATS)}") from error


_NPZ, _TABLE = r".*\.npz", r".*\.(csv|tsv|jsonl)"  # given themselves; the others also by their folder
_READERS: dict[str, Callable[[list[Path]], Parts]] = {
    r".*\.parquet": _parquet, r".*images.*idx3-ubyte(\.gz)?": _idx, _NPZ: _npz, _TABLE: _tables,
}  # fmt: skip
