"""Readers of other forms of labelled image sets, for `convert`: items one at a time, by part of the set. No pickle is run."""

import csv
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from itertools import pairwise
from math import isqrt
from pathlib import Path

import numpy as np
from PIL import Image

from distillery.checks import InputError, first_line
from distillery.data import named
from distillery.data.archives import EXTENSIONS, TEST_FOLDERS, first_names, is_image, origin, shown
from distillery.data.decoding import FORMATS, why_not

PARTS = ("train", *TEST_FOLDERS)
_SUFFIXES = dict(zip(FORMATS, (".jpg", ".png", ".webp", ".bmp")))
_PAIRS = [(x, y) for x in ("images", "x", "data", "image") for y in ("labels", "y", "targets", "label")]  # names in an .npz
_FILES = ("file_name", "file", "filename", "path", "filepath", "image", "image_path", "img")  # columns of tables and parquet files
_LABELS = ("label", "class", "labels", "fine_label", "class_name", "category", "target")
_ROWS = 64  # of flat images, read at a time

Item = tuple[int | str, str, "bytes | np.ndarray | Path"]  # class by number or name; name of the image; its content
Parts = dict[str, Iterable[Item]]  # by part of the set, '' where it has none


def _part_of(file: Path) -> str:
    """The part that a file is of, by its name or its folder's: 'train-00000-of-00002.parquet', 'test/0000.parquet'; '' = none."""
    for name in (file.name, file.parent.name):
        first, *more = re.split(r"[-_.]", name.lower())
        numbered = [word for word, after in pairwise([first, *more]) if after.isdigit()]  # as in imagenet1k-train-0000.tar
        if found := [word for word in (first, *numbered) if word in PARTS]:
            return found[0]
    return ""


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


def dataset(source) -> Iterator[Item]:
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


def npz(files: list[Path]) -> Parts:
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


def idx(files: list[Path]) -> Parts:
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


def cifar(where, name: str) -> Parts:
    with _reading(where.path):
        pixels, labels, n, names = named.read_cifar(where, name)
    return {
        part: _arrays(pixels[rows], labels[rows], names, shown(where.path))
        for part, rows in (("train", slice(n)), ("test", slice(n, None)))
    }


def tables(files: list[Path]) -> Parts:
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
    labels = [label for rows in parts.values() for label, *_ in rows]
    if labels and all(re.fullmatch(r"(0|[1-9]\d{0,17})(\.0+)?", label) for label in labels):  # whole numbers, whose order is theirs
        parts = {part: [(int(label.split(".")[0]), *more) for label, *more in rows] for part, rows in parts.items()}
    if "" in parts and len(parts) > 1:
        raise InputError(f"{shown(files[0])}: {len(parts[''])} rows without a split beside rows with one; accepted: all or none")
    return parts


def parquet(files: list[Path]) -> Parts:
    """Image sets of Hugging Face: the image as bytes, the label as a number whose name is in the schema, or as text."""
    try:
        import pyarrow.parquet as arrow
    except ModuleNotFoundError as error:
        raise InputError("parquet files need pyarrow; accepted: `pip install 'distillery[parquet]'`") from error

    def items(part: list[Path]) -> Iterator[Item]:
        row = 0
        for path in part:
            with _reading(path), arrow.ParquetFile(path) as file:
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


def webdataset(files: list[Path]) -> Parts:
    """Tars of WebDataset: images KEY.jpg (.png, ..), each with its class in KEY.cls, or in KEY.json under a name as columns have it."""
    return {part: _samples(found) for part, found in _grouped(files).items()}


def _samples(tars: list[Path]) -> Iterator[Item]:
    row = 0
    for path in tars:
        tar, images, classes = origin(path), {}, {}  # names of members by key
        for name in tar.listing.files:
            key, suffix = _key(name)
            if f".{suffix}" in EXTENSIONS:
                if key in images:
                    raise InputError(f"{shown(path)}: {first_names([images[key], name])} have one key; accepted: one image for each")
                images[key] = name
            elif suffix == "cls" or suffix == "json" and key not in classes:
                classes[key] = name
        if (alone := sorted(images.keys() ^ classes.keys())) or not images:
            what = f"{len(alone)} keys with an image or a class alone: {first_names(alone)}" if alone else "no images"
            accepted = f"KEY{', KEY'.join(EXTENSIONS)}, each with KEY.cls, or KEY.json that names its label or class"
            raise InputError(f"{shown(path)}: {what}; accepted: {accepted}")
        labels = {_key(name)[0]: _label(name, content, f"{shown(path)}: {shown(name)}") for name, content in tar.read(classes.values())}
        for name, content in tar.read(images.values()):
            yield labels[_key(name)[0]], f"{row:06d}{_suffix(content, f'{shown(path)}: {shown(name)}')}", content
            row += 1


def _key(name: str) -> tuple[str, str]:
    """(key, suffix) of a member as WebDataset has them: the suffix is all after the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return folder + slash + stem, suffix.lower()


def _label(name: str, content: bytes, where: str) -> int | str:
    with _reading(where):
        value = content.decode("utf-8-sig").strip()
        if _key(name)[1] == "json":
            found = dict(json.loads(value))
            value = next((found[one] for one in _LABELS if one in found), None)
        return _names([int(value) if isinstance(value, str) and re.fullmatch("[+-]?[0-9]+", value) else value], None, where)[0]


def downsampled(files: list[Path]) -> Parts:
    """Downsampled ImageNet: data (N, 3 * S * S) uint8, channel after channel, and labels (N,), from 1; some rows at a time are read."""
    return {part: _flat(found) for part, found in _grouped(files).items()}


def _flat(files: list[Path]) -> Iterator[Item]:
    row = 0
    for path in files:
        with _reading(path), np.load(path, allow_pickle=False) as content:
            if not {"data", "labels"} <= set(content.files):
                raise InputError(f"{shown(path)} holds {first_names(content.files) or 'nothing'}; accepted: data and labels")
            labels = _names(content["labels"], None, f"{shown(path)}: labels")
            with zipfile.ZipFile(path) as archive, archive.open("data.npy") as file:
                header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, by_column, kind = header[np.lib.format.read_magic(file)](file)
                side = isqrt(shape[1] // 3) if len(shape) == 2 else 0
                if shape != (len(labels), 3 * side * side) or not side or by_column or kind != np.uint8:
                    found = f"data {shape} of {kind} and {len(labels)} labels"
                    raise InputError(f"{shown(path)}: {found}; accepted: (N, 3 * S * S) uint8, row after row, and as many labels")
                for start in range(0, len(labels), _ROWS):
                    some = labels[start : start + _ROWS]
                    flat = np.frombuffer(file.read(len(some) * shape[1]), np.uint8)
                    for label, image in zip(some, flat.reshape(len(some), 3, side, side).transpose(0, 2, 3, 1)):
                        yield label, f"{row:06d}.png", np.ascontiguousarray(image)
                        row += 1
                file.read(1)  # at the end the checksum is looked at


def pickled(files: list[Path]) -> Parts:
    """What is refused by its name: the other form of downsampled ImageNet."""
    raise InputError(
        f"{shown(files[0])} is a pickle, which is never run; accepted: the .npz form of the set, train_data_batch_1.npz and val_data.npz"
    )


NPZ, TABLE = r".*\.npz", r".*\.(csv|tsv|jsonl)"  # given themselves; the others also by their folder
READERS: dict[str, Callable[[list[Path]], Parts]] = {
    r".*\.parquet": parquet, r".*images.*idx3-ubyte(\.gz)?": idx, r"(train_data_batch_\d+|val_data)\.npz": downsampled,
    r"train_data_batch_\d+|val_data": pickled, r".*\.(tar|tar\.gz|tgz)": webdataset, NPZ: npz, TABLE: tables,
}  # fmt: skip
