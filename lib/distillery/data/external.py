"""Sets made elsewhere, in the layouts of the public codes, read without running anything in their files.

These are a dict with images and labels under one of several names (also an .npz), a pair (images, labels), the result file of DC, DSA and
DM ({'data': [[images, labels], ...], 'accs_all_exps': ..}: a set an experiment), or two files (images, labels) as MTT writes them.
"""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from distillery import store
from distillery.checks import InputError, check_choice, check_finite, first_line
from distillery.data import synthetic
from distillery.data.archives import shown
from distillery.data.images import Splits, transform_of
from distillery.data.synthetic import Synthetic

IMAGES = ("images", "image_syn", "image", "x", "inputs")
LABELS = ("targets", "labels", "label_syn", "label", "y")
PIXELS = ("auto", "standardized", "unit", "bytes")
_OVER = 0.05  # by which learned pixels in [0, 1] may lie outside; standardized ones have mean 0, so they lie farther
_LARGEST = 20  # standardized pixels beyond are none: those of photographs reach about 3, whitened ones 10


def read(path, labels="", pixels="auto", splits: Splits | None = None, logits=False, formation="identity", which: int = 0) -> Synthetic:
    """Read a set: one of our exports, or a foreign file with images (M, C, H, W) and labels (M,) or (M, classes).

    labels  a second file that holds the labels alone, '' = labels_NAME.pt beside a file images_NAME.pt of images alone
    pixels  what foreign pixels are (card['pixels'] says how they were read): 'standardized' (used as they are), 'unit' ([0, 1], learned
            ones a little outside), 'bytes' (0 to 255), or 'auto': bytes if whole-number typed, unit if all are, else standardized. Units
            and bytes are standardized by `splits`, or refused
    logits  foreign labels are logits, whose softmax are the soft labels (DATM)
    formation  of foreign images, that of `Synthetic` ('partition2': four in one, IDC's factor 2)
    which   of several sets in one file, from 0; see `sets_in`
    raises  InputError if the file is missing, corrupt, not loadable with weights_only, or holds no such tensors
    """
    check_choice("pixels", pixels, PIXELS)
    check_choice("formation", formation, synthetic.FORMATIONS)
    path = Path(path)
    if ours(path) and not labels:
        return synthetic.load(path)
    content = store.load_foreign(path)
    images, targets = _pair(content, which)
    if not labels and isinstance(content, Tensor) and path.name.startswith("images_"):
        beside = path.with_name(path.name.replace("images_", "labels_", 1))
        labels = beside if beside.is_file() else ""
    if labels:
        content = store.load_foreign(labels)
        targets = _named(content, LABELS) if isinstance(content, dict) else content
    apart = labels or path  # the file of the labels
    for what, value, file, names in (("images", images, path, IMAGES), ("labels", targets, apart, LABELS)):
        if value is None or isinstance(value, Tensor) and value.ndim == 4 and what == "labels":
            accepted = f"a dict with {'/'.join(names)}, or a pair of images and labels"
            raise InputError(f"{file}: no {what} in {_held(content)}; accepted: {accepted}")
        store.check_plain(f"{file}: {what}", value)
    if images.ndim != 4 or images.dtype == torch.bool or images.numel() == 0:
        raise InputError(f"{path}: images {tuple(images.shape)} of {images.dtype}; accepted: numbers (M, C, H, W), M > 0")
    images, how = _standardized(images.detach(), pixels, splits, path)
    targets = _targets(targets.detach(), len(images), apart)
    if logits and not targets.is_floating_point():
        raise InputError(f"{apart}: logits, but labels are whole numbers; accepted: ({len(images)}, classes) real numbers")
    names = content.get("classes") if isinstance(content, dict) else None
    classes = tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
    return Synthetic({"images": images, "targets": targets.softmax(1) if logits else targets}, classes, formation, {"pixels": how})


def sets_in(path: str | Path) -> int:
    """How many sets a file holds: those of all experiments in a result file of DC, DSA or DM, else one."""
    path = Path(path)
    return 1 if ours(path) else len(_experiments(store.load_foreign(path))) or 1


def ours(path: Path) -> bool:
    """Whether a file is a set that this package has written."""
    return path.suffix == ".safetensors" and store.has_card(path)


def soft_labels(folder: Path, files: list[str], classes: int) -> Tensor | None:
    """The labels (N, classes) of the images of a folder by its metadata.csv, as `export` writes it; None where it has no column soft_label.

    Raises InputError on labels that are not JSON, of other classes, or not there for every file.
    """
    table = folder / "metadata.csv"
    if not table.is_file():
        return None
    with table.open(newline="", encoding="utf-8", errors="surrogateescape") as lines:
        found = {line.get("file_name"): line.get("soft_label") for line in csv.DictReader(lines)}
    if not any(found.values()):
        return None
    try:
        return _targets(torch.tensor([json.loads(found[name]) for name in files]).reshape(-1, classes), len(files), table)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        accepted = f"a JSON list of {classes} numbers for every image"
        raise InputError(f"{table}: soft_label: {first_line(error)}; accepted: {accepted}") from error


def sides(path: Path) -> tuple[int, int]:
    """(height, width) of the images of a set, in pixels. Raises InputError where `read` would find none."""
    images = synthetic.load(path).tensors["images"] if ours(path) else _pair(store.load_foreign(path))[0]
    if not isinstance(images, Tensor) or images.ndim != 4:
        raise InputError(f"{path}: no images (M, C, H, W); accepted: {'/'.join(IMAGES)} in a dict, or a pair of images and labels")
    return tuple(images.shape[2:])


def compare(made: Synthetic, splits: Splits) -> tuple[Splits, list[str]]:
    """The data that an exported set is judged on, under the standardization that the set was made with, and notes on what differs from its card.

    Raises InputError on other classes, and on images of other channels or sizes than the set was standardized with.
    """
    classes, theirs = splits.train.classes, made.card.get("transform")
    if made.classes not in (None, classes):
        found = next((i for i, pair in enumerate(zip(made.classes, classes)) if pair[0] != pair[1]), min(len(made.classes), len(classes)))
        what = f"{len(made.classes)} classes, of {len(classes)} of the data, that differ from number {found} on"
        raise InputError(f"set: {what}; accepted: the same classes in the same order, such as {', '.join(map(shown, classes[:5]))}")
    notes, shape = [], splits.train.shape
    if theirs:
        transform = transform_of(theirs)
        if len(transform.mean) not in (shape[0], math.prod(shape)):
            raise InputError(f"set: standardized by {len(transform.mean)} means; accepted: those of the data, images {shape}")
        splits = replace(splits, **{part: replace(getattr(splits, part), transform=transform) for part in ("train", "validation", "test")})
    if made.card.get("data_digest") not in (None, splits.digest):
        notes.append("the set was made of other images, or of another split: what it was made of may be among the test images")
    return splits, notes


def _experiments(content) -> list:
    """DC, DSA and DM: one [images, labels] an experiment."""
    return content["data"] if isinstance(content, dict) and isinstance(content.get("data"), list) else []


def _pair(content, which: int = 0) -> tuple:
    """(images, labels) of a foreign file, None for what is not there."""
    if isinstance(content, Tensor):
        return content, None
    if several := _experiments(content):
        content = several[which]
    if isinstance(content, dict):
        return _named(content, IMAGES), _named(content, LABELS)
    return tuple(content[:2]) if isinstance(content, list | tuple) and len(content) >= 2 else (None, None)


def _held(content) -> str:
    """What a foreign file holds, in short."""
    if isinstance(content, dict):
        return f"a dict with {', '.join(map(str, list(content)[:8])) or 'nothing'}"
    if isinstance(content, list | tuple):
        kinds = {f"images {tuple(one.shape)}" if isinstance(one, Tensor) and one.ndim == 4 else type(one).__name__ for one in content}
        return f"a {type(content).__name__} of {len(content)}: {', '.join(sorted(kinds)[:4])}"
    return f"a {type(content).__name__}"


def _named(content: dict, names: tuple[str, ...]):
    return next((content[name] for name in names if name in content), None)


def _targets(labels: Tensor, n: int, path: Path) -> Tensor:
    """Labels (n,) int64, of one-hot ones too, or soft ones (n, classes) float32."""
    found, labels = f"{tuple(labels.shape)} of {labels.dtype}", labels.squeeze(1) if labels.shape[1:] == (1,) else labels
    soft, whole = labels.ndim == 2 and labels.is_floating_point(), labels.double() % 1 == 0
    if labels.ndim == 2 and not soft and bool(((labels != 0).sum(1) == 1).all()):
        labels = (labels != 0).int().argmax(1)
    if len(labels.shape) not in (1, 2) or len(labels) != n or not (soft or (labels.ndim == 1 and whole.all())):
        accepted = f"({n},) whole numbers, or ({n}, classes) one-hot or soft"
        raise InputError(f"{path}: labels {found}; accepted: {accepted}")
    check_finite(f"{path}: labels", labels)
    return labels.float() if soft else labels.long()


def _standardized(images: Tensor, pixels: str, splits: Splits | None, path: Path) -> tuple[Tensor, str]:
    whole, images = not images.is_floating_point(), images.float()
    check_finite(f"{path}: images", images)
    low, high = (float(one) for one in images.aminmax())
    if pixels == "auto":
        pixels = "bytes" if whole else "unit" if low >= -_OVER and high <= 1 + _OVER else "standardized"
        if pixels == "standardized" and max(-low, high) > _LARGEST:
            raise InputError(f"{path}: real pixels from {low:g} to {high:g}; accepted: pixels 'bytes', or 'standardized' if they are")
    how = f"{pixels} ({low:g} to {high:g})"
    if pixels == "standardized":
        return images, how
    top = 255 if pixels == "bytes" else 1
    if low < -_OVER * (top == 1) or high > top + _OVER * (top == 1):
        raise InputError(f"{path}: pixels in {pixels} from {low:g} to {high:g}; accepted: 0 to {top}")
    if splits is None:
        raise InputError(f"{path}: pixels in {pixels} and no data set to standardize them by; accepted: a data set, or standardized")
    return splits.train.transform(images / top), how
