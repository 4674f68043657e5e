"""Sets made elsewhere: read a published `.pt` or `.safetensors` file of images and labels, and evaluate any set beside random.

Files of PyTorch are loaded with `weights_only=True` alone, so nothing in them is executed. The layouts of the public codes are known: a
dict with images and labels under one of several names, a pair (images, labels), DC's result file ({'data': [[images, labels], ...]}, the
first set), or two files (images, labels) as MTT writes them.
"""

from pathlib import Path

from torch import Tensor

from distillery import store
from distillery.checks import InputError, check_choice, check_finite
from distillery.data import synthetic
from distillery.data.images import Splits
from distillery.data.synthetic import Synthetic

IMAGES = ("images", "image_syn", "image", "x", "inputs")
LABELS = ("targets", "labels", "label_syn", "label", "y")
PIXELS = ("auto", "standardized", "unit", "bytes")


def read(path: str | Path, labels: str | Path = "", pixels: str = "auto", splits: Splits | None = None) -> Synthetic:
    """Read a set: one of our exports, or a foreign file with images (M, C, H, W) and labels (M,) or (M, classes).

    labels  a second file that holds the labels alone
    pixels  what foreign pixels are: 'standardized' (used as they are), 'unit' ([0, 1]), 'bytes' (0 to 255), or 'auto': bytes if
            whole-number typed, unit if all lie in [0, 1], else standardized. Units and bytes are standardized by `splits`, or refused
    raises  InputError if the file is missing, corrupt, not loadable with weights_only, or holds no such tensors
    """
    check_choice("pixels", pixels, PIXELS)
    path = Path(path)
    if path.suffix == ".safetensors" and not labels:
        try:
            return synthetic.load(path)
        except InputError as error:
            if "no distillery card" not in str(error):
                raise
    images, targets = _pair(store.load_foreign(path), path)
    if labels:
        content = store.load_foreign(Path(labels))
        targets = content if isinstance(content, Tensor) else _named(content, LABELS)
    if not isinstance(images, Tensor) or not isinstance(targets, Tensor):
        accepted = f"a dict with {'/'.join(IMAGES)} and {'/'.join(LABELS)}, or a pair"
        raise InputError(f"{path}: no tensors of images and labels; accepted: {accepted}")
    targets = targets.detach() if targets.ndim == 2 else targets.detach().long()
    return Synthetic({"images": _standardized(images.detach(), pixels, splits, path), "targets": targets})


def _pair(content, path: Path) -> tuple:
    """(images, labels) of a foreign file, None for what is not there."""
    if isinstance(content, Tensor):
        return content, None
    if isinstance(content, dict) and isinstance(content.get("data"), list) and content["data"]:
        content = content["data"][0]  # DC, DSA and DM: one [images, labels] per experiment
    if isinstance(content, dict):
        return _named(content, IMAGES), _named(content, LABELS)
    if isinstance(content, list | tuple) and len(content) >= 2:
        return content[0], content[1]
    raise InputError(f"{path} holds a {type(content).__name__}; accepted: a dict or a pair of images and labels")


def _named(content: dict, names: tuple[str, ...]):
    return next((content[name] for name in names if name in content), None)


def _standardized(images: Tensor, pixels: str, splits: Splits | None, path: Path) -> Tensor:
    if pixels == "auto":
        inside = images.min() >= 0 and images.max() <= 1
        pixels = "bytes" if not images.is_floating_point() else "unit" if inside else "standardized"
    images = images.float()
    check_finite(f"{path}: images", images)
    if pixels == "standardized":
        return images
    if splits is None:
        raise InputError(f"{path}: pixels in {pixels} and no data set to standardize them by; accepted: a data set, or standardized")
    return splits.train.transform(images / 255 if pixels == "bytes" else images)
