"""Real images: named data sets and folders of class folders, held as uint8 and standardized on access.

An `ImageSet` keeps its images as uint8 (N, C, H, W) at rest; `.batch(indices)` is the only way to floats, so that the
standardization is applied in one place. `load` gives the three disjoint splits every experiment uses: test images are
used for nothing but the final accuracy, validation images are held out of the training images.

Sources: normalization constants and ZCA as in the fact sheet of the matching methods (kornia's ZCA, eps 0.1).
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Generator, Tensor

from distillery.checks import InputError, check_choice, check_finite, check_fraction, check_positive_int
from distillery.seeds import generator

NAMES = ("digits", "folder")
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
NORMALIZATIONS = ("own", "zca")


@dataclass(frozen=True)
class Standardize:
    """Per-channel (x - mean) / std of pixels in [0, 1]."""

    mean: Tensor  # (C,)
    std: Tensor  # (C,)

    def __call__(self, images: Tensor) -> Tensor:
        """images (..., C, H, W) in [0, 1] -> standardized, same shape."""
        return (images - self.mean[:, None, None].to(images)) / self.std[:, None, None].to(images)

    def inverse(self, images: Tensor) -> Tensor:
        """Back to [0, 1] (unclipped)."""
        return images * self.std[:, None, None].to(images) + self.mean[:, None, None].to(images)

    def tensors(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "std": self.std}


@dataclass(frozen=True)
class ZCA:
    """Whitening x -> (x - mean) T with T = U diag((s + eps)^-1/2) U^T, invertible."""

    mean: Tensor  # (D,), D = C*H*W
    matrix: Tensor  # (D, D), symmetric
    inverse_matrix: Tensor  # (D, D)

    def __call__(self, images: Tensor) -> Tensor:
        """images (..., C, H, W) in [0, 1] -> whitened, same shape."""
        flat = images.flatten(-3) - self.mean.to(images)  # (..., D)
        return (flat @ self.matrix.to(images)).reshape(images.shape)

    def inverse(self, images: Tensor) -> Tensor:
        """Back to [0, 1] (unclipped)."""
        flat = images.flatten(-3) @ self.inverse_matrix.to(images) + self.mean.to(images)  # (..., D)
        return flat.reshape(images.shape)

    def tensors(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "matrix": self.matrix, "inverse_matrix": self.inverse_matrix}


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images: uint8 at rest, floats through `batch`.

    pixels   (N, C, H, W) uint8
    targets  (N,) int64 class labels
    classes  the class names, in label order
    """

    pixels: Tensor
    targets: Tensor
    classes: tuple[str, ...]
    transform: Standardize | ZCA | None = None
    name: str = "images"

    @staticmethod
    def of(images, targets, classes=None, name="images") -> "ImageSet":
        """Check and wrap arrays: images uint8 (N, C, H, W), or floats in [0, 1]; targets whole numbers (N,).

        Raises InputError on wrong shapes, NaN or out-of-range pixels, and labels without a class.
        """
        images, targets = torch.as_tensor(images), torch.as_tensor(targets)
        if images.ndim != 4 or targets.shape != images.shape[:1] or len(images) == 0:
            raise InputError(
                f"{name}: images {tuple(images.shape)} with labels {tuple(targets.shape)}; accepted: (N, C, H, W) with (N,), N > 0"
            )
        if images.is_floating_point():
            check_finite(f"{name}: pixels", images)
            if images.min() < 0 or images.max() > 1:
                raise InputError(
                    f"{name}: float pixels from {images.min():g} to {images.max():g}; accepted: [0, 1], or uint8"
                )
            images = (images * 255).round().to(torch.uint8)
        if images.dtype != torch.uint8 or targets.is_floating_point():
            raise InputError(
                f"{name}: pixels {images.dtype}, labels {targets.dtype}; accepted: uint8 or float pixels, whole-number labels"
            )
        targets = targets.long()
        classes = tuple(classes) if classes is not None else tuple(map(str, range(int(targets.max()) + 1)))
        if targets.min() < 0 or targets.max() >= len(classes):
            raise InputError(
                f"{name}: labels {targets.min()} to {targets.max()}; accepted: 0 to {len(classes) - 1}"
            )
        return ImageSet(images, targets, classes, None, name)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        return tuple(self.pixels.shape[1:])

    @property
    def device(self) -> torch.device:
        return self.pixels.device

    def batch(self, indices: Tensor) -> Tensor:
        """Standardized float32 images at `indices` of any shape (...): (..., C, H, W)."""
        images = self.pixels[indices].float() / 255  # (..., C, H, W)
        return self.transform(images) if self.transform else images

    def subset(self, indices: Tensor) -> "ImageSet":
        """The images at `indices` (M,), in that order."""
        indices = torch.as_tensor(indices, device=self.device)
        return replace(self, pixels=self.pixels[indices], targets=self.targets[indices])

    def of_class(self, label: int) -> Tensor:
        """Indices of one class, ascending."""
        return torch.nonzero(self.targets == label)[:, 0]

    def counts(self) -> list[int]:
        """Images in each class."""
        return torch.bincount(self.targets, minlength=len(self.classes)).tolist()

    def to(self, device: torch.device | str) -> "ImageSet":
        return replace(self, pixels=self.pixels.to(device), targets=self.targets.to(device))

    @cached_property
    def digest(self) -> str:
        """sha256 of pixels, labels and class names; the transform is not part of it."""
        sha = hashlib.sha256(repr((tuple(self.pixels.shape), self.classes)).encode())
        sha.update(self.pixels.cpu().contiguous().numpy().data)
        sha.update(self.targets.cpu().contiguous().numpy().data)
        return sha.hexdigest()


@dataclass(frozen=True, eq=False)
class Splits:
    """Disjoint training, validation and test images under one transform fitted on the training images."""

    train: ImageSet
    validation: ImageSet
    test: ImageSet
    notes: tuple[str, ...] = ()  # what was done to the images, in words: resized, subset, converted

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(
            (self.train.digest + self.validation.digest + self.test.digest).encode()
        ).hexdigest()

    def to(self, device) -> "Splits":
        return replace(
            self,
            train=self.train.to(device),
            validation=self.validation.to(device),
            test=self.test.to(device),
        )


def fit_standardize(images: ImageSet, chunk: int = 4096) -> Standardize:
    """Channel means and standard deviations over all pixels; a constant channel keeps deviation 1."""
    total = torch.zeros(2, images.shape[0], dtype=torch.float64)
    for part in images.pixels.split(chunk):
        values = part.cpu().double() / 255
        total += torch.stack([values.sum((0, 2, 3)), values.square().sum((0, 2, 3))])  # (2, C)
    mean, square = total / (images.pixels.numel() / images.shape[0])
    std = (square - mean.square()).clamp(min=0).sqrt()
    return Standardize(mean.float(), torch.where(std > 1e-4, std, 1.0).float())


def fit_zca(images: ImageSet, eps: float = 0.1) -> ZCA:
    """ZCA over all pixel-channels of the training images in [0, 1], covariance divided by N - 1.

    eps is added to the eigenvalues; memory grows as D^2 with D = C*H*W.
    """
    flat = images.pixels.cpu().flatten(1).double() / 255  # (N, D)
    mean = flat.mean(0)
    centred = flat - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / (len(flat) - 1))  # (D,), (D, D)
    scale = (values.clamp(min=0) + eps).sqrt()
    matrix, inverse = (vectors / scale) @ vectors.T, (vectors * scale) @ vectors.T  # (D, D)
    return ZCA(mean.float(), matrix.float(), inverse.float())


def load(
    dataset: str,
    data_root: str | Path = "",
    *,
    seed: int = 0,
    max_side: int = 0,
    resize: int = 0,
    per_class: int = 0,
    test_per_class: int = 0,
    validation: float = 0.1,
    test_fraction: float = 0.2,
    normalization: str = "own",
) -> Splits:
    """Load a data set as disjoint splits, standardized by its training images.

    dataset         'digits' (bundled with scikit-learn) or 'folder': class folders under data_root, either inside
                    train/ and test/ or directly, then split by the seed with `test_fraction` of each class as test
    max_side        shrink larger images so that no side exceeds it, 0 = never
    resize          make every image a square of this side, 0 = images must have equal sizes
    per_class       at most so many training images a class (before the validation split), drawn by the seed, 0 = all
    test_per_class  likewise for test images
    validation      fraction of the training images of each class held out
    normalization   'own' (channel mean and std) or 'zca' (eps 0.1)
    raises          InputError on anything that cannot be loaded as asked
    """
    check_choice("dataset", dataset, NAMES)
    check_choice("normalization", normalization, NORMALIZATIONS)
    check_fraction("validation", validation)
    check_fraction("test_fraction", test_fraction)
    if dataset == "digits":
        train, test, notes = _digits(), None, []
    else:
        train, test, notes = _folder(Path(data_root).expanduser(), max_side, resize)
    if test is None:
        draw = generator(seed, "data", "test split")
        train, test = split_per_class(train, test_fraction, draw)
        notes.append(f"{test_fraction:.0%} of each class drawn as test images")
    if per_class:
        check_positive_int("per_class", per_class)
        train = subset_per_class(train, per_class, generator(seed, "data", "train subset"))
        notes.append(f"at most {per_class} training images a class")
    if test_per_class:
        check_positive_int("test_per_class", test_per_class)
        test = subset_per_class(test, test_per_class, generator(seed, "data", "test subset"))
        notes.append(f"at most {test_per_class} test images a class")
    train, held_out = split_per_class(train, validation, generator(seed, "data", "validation split"))
    transform = fit_zca(train) if normalization == "zca" else fit_standardize(train)
    train, held_out, test = (replace(part, transform=transform) for part in (train, held_out, test))
    return Splits(train, held_out, test, tuple(notes))


def split_per_class(images: ImageSet, fraction: float, draw: Generator) -> tuple[ImageSet, ImageSet]:
    """Split every class at random: (rest, `fraction` of it, at least one image). Raises InputError if a class has fewer than two."""
    rest, part = [], []
    for label, name in enumerate(images.classes):
        members = images.of_class(label)
        if len(members) < 2:
            raise InputError(
                f"class {name!r} of {images.name} has {len(members)} image(s); accepted: at least 2, to split them"
            )
        order = members[torch.randperm(len(members), generator=draw)]
        n = min(max(1, round(fraction * len(members))), len(members) - 1)
        part.append(order[:n].sort().values)
        rest.append(order[n:].sort().values)
    return images.subset(torch.cat(rest)), images.subset(torch.cat(part))


def subset_per_class(images: ImageSet, n: int, draw: Generator) -> ImageSet:
    """At most `n` random images of every class."""
    chosen = []
    for label in range(len(images.classes)):
        members = images.of_class(label)
        chosen.append(members[torch.randperm(len(members), generator=draw)[:n]].sort().values)
    return images.subset(torch.cat(chosen))


def _digits() -> ImageSet:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = torch.from_numpy(np.round(bunch.images * 255 / 16).astype(np.uint8))[:, None]  # (1797, 1, 8, 8)
    return ImageSet.of(pixels, torch.from_numpy(bunch.target), map(str, bunch.target_names), "digits")


def _folder(root: Path, max_side: int, resize: int) -> tuple[ImageSet, ImageSet | None, list[str]]:
    if not root.is_dir():
        raise InputError(f"data_root: {str(root)!r} is not a folder; accepted: a folder of class folders")
    parts = [root / "train", root / "test"]
    if all(part.is_dir() for part in parts):
        listed = [_list_images(part) for part in parts]
        classes = sorted(listed[0])
        if sorted(listed[1]) != classes:
            odd = sorted(set(listed[1]) ^ set(classes))
            raise InputError(
                f"{root}: classes {odd} are not in both train and test; accepted: the same class folders in both"
            )
        files = [path for part in listed for name in classes for path in part[name]]
        labels = [label for part in listed for label, name in enumerate(classes) for _ in part[name]]
        n_train = sum(map(len, listed[0].values()))
    else:
        members = _list_images(root)
        classes = sorted(members)
        files = [path for name in classes for path in members[name]]
        labels = [label for label, name in enumerate(classes) for _ in members[name]]
        n_train = len(files)
    pixels, notes = _decode(files, max_side, resize)
    images = ImageSet.of(torch.from_numpy(pixels), torch.tensor(labels), classes, root.name)
    everything = torch.arange(len(files))
    if n_train == len(files):
        return images, None, notes
    return images.subset(everything[:n_train]), images.subset(everything[n_train:]), notes


def _list_images(root: Path) -> dict[str, list[Path]]:
    """Image files by class folder; hidden files are passed over, any other file is refused with a count."""
    classes = {path.name: path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}
    if len(classes) < 2:
        raise InputError(f"{root} holds {len(classes)} class folder(s); accepted: at least 2")
    found = {}
    for name, folder in classes.items():
        files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
        foreign = [path.name for path in files if path.is_dir() or path.suffix.lower() not in EXTENSIONS]
        if foreign:
            raise InputError(
                f"{folder}: {len(foreign)} non-image file(s), first {foreign[0]!r}; accepted: {' '.join(EXTENSIONS)}"
            )
        if not files:
            raise InputError(
                f"class {name!r} in {root} is empty; accepted: at least one image in every class folder"
            )
        found[name] = files
    return found


def _decode(files: list[Path], max_side: int, resize: int) -> tuple[np.ndarray, list[str]]:
    """Decode to uint8 (N, C, H, W): gray where all images are gray, else RGB. Refuses unreadable files and unequal sizes."""
    images, unreadable = [], []
    for path in files:
        try:
            with Image.open(path) as image:
                image.load()
                images.append(image if image.mode in ("L", "RGB") else image.convert("RGB"))
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError):
            unreadable.append(path)
    if unreadable:
        raise InputError(
            f"{len(unreadable)} of {len(files)} images cannot be read, first {unreadable[0]}; accepted: whole image files"
        )
    notes = []
    if resize:
        check_positive_int("resize", resize)
        size = (resize, resize)
        notes.append(f"resized to {resize}x{resize}")
    else:
        sizes = Counter(image.size for image in images)
        if len(sizes) > 1:
            (usual, _), odd = (
                sizes.most_common(1)[0],
                next(i for i, x in enumerate(images) if x.size != sizes.most_common(1)[0][0]),
            )
            raise InputError(
                f"images of {len(sizes)} sizes, e.g. {files[odd].name} is {images[odd].size[0]}x{images[odd].size[1]} "
                f"and most are {usual[0]}x{usual[1]}; accepted: equal sizes, or resize=SIDE"
            )
        size = images[0].size
    if max_side and max(size) > max_side:
        shrunk = tuple(max(1, round(side * max_side / max(size))) for side in size)
        notes.append(f"shrunk from {size[0]}x{size[1]} to {shrunk[0]}x{shrunk[1]} (max_side {max_side})")
        size = shrunk
    mode = "L" if all(image.mode == "L" for image in images) else "RGB"
    out = np.empty((len(images), len(mode), size[1], size[0]), np.uint8)
    for i, image in enumerate(images):
        image = image.convert(mode)
        if image.size != size:
            image = image.resize(size, Image.Resampling.BILINEAR)  # averages over the shrunk area
        out[i] = np.asarray(image).reshape(size[1], size[0], -1).transpose(2, 0, 1)
    return out, notes
