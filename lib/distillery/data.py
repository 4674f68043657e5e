"""Real images: named data sets and folders of class folders, held as uint8 and standardized on access.

An `ImageSet` keeps its images as uint8 (N, C, H, W) at rest; `.batch(indices)` is the only way to floats, so that the
standardization is applied in one place. `load` gives the three disjoint splits every experiment uses: test images are
used for nothing but the final accuracy, validation images are held out of the training images.

Sources: normalization constants of the public code of DC, DSA and DM (github.com/VICO-UoE/DatasetCondensation); ZCA as in
the public code of MTT (github.com/GeorgeCazenavette/mtt-distillation): kornia's, eps 0.1.
"""

import hashlib
import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Generator, Tensor

from distillery import named, sources
from distillery.checks import InputError, check_choice, check_finite, check_fraction, check_positive_int
from distillery.seeds import generator

NAMES = (*named.NAMES, "folder")
# Channel means and standard deviations the distillation papers use, pixels in [0, 1]. Those of CIFAR are checked against
# the public code; the others are the field's usual values, not checked there.
PUBLISHED = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2861,), (0.3530,)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tiny-imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
NORMALIZATIONS = ("own", "zca", "published", *(f"published:{name}" for name in PUBLISHED))


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
class Rows:
    """Some images of a larger array, read as they are asked for: the pixels of a set that stays on disk.

    base    (M, C, H, W) uint8, usually mapped from a file
    rows    (N,) int64 rows of `base`
    device  where images go when they are read
    """

    base: Tensor
    rows: Tensor
    device: torch.device = torch.device("cpu")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)"""
        return torch.Size([len(self.rows), *self.base.shape[1:]])

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    def __getitem__(self, indices) -> Tensor:
        """Read images: indices of any shape (...) -> (..., C, H, W) uint8."""
        indices = indices.cpu() if isinstance(indices, Tensor) else indices
        return self.base[self.rows[indices]].to(self.device)

    def of(self, indices: Tensor) -> "Rows":
        """The images at `indices` (K,), not yet read."""
        return replace(self, rows=self.rows[indices.cpu()])

    def to(self, device: torch.device | str) -> "Rows":
        return replace(self, device=torch.device(device))


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images: uint8 at rest, floats through `batch`.

    pixels   (N, C, H, W) uint8, in memory or as `Rows` of a file
    targets  (N,) int64 class labels
    classes  the class names, in label order
    """

    pixels: Tensor | Rows
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
        lazy = isinstance(self.pixels, Rows)
        pixels = self.pixels.of(indices) if lazy else self.pixels[indices]
        return replace(self, pixels=pixels, targets=self.targets[indices])

    def lazy(self) -> "ImageSet":
        """The same images, of which subsets hold no copy."""
        return replace(self, pixels=Rows(self.pixels, torch.arange(len(self)), self.device))

    def in_memory(self) -> "ImageSet":
        """The same images, all of them read."""
        return replace(self, pixels=self.pixels[:]) if isinstance(self.pixels, Rows) else self

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
        for part in _parts(self):
            sha.update(part.contiguous().numpy().data)
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


def _parts(images: ImageSet, chunk: int = 0):
    """The pixels on the CPU, `chunk` images at a time, 0 = about 16 MB."""
    chunk = chunk or max(1, (1 << 24) // math.prod(images.shape))
    for start in range(0, len(images), chunk):
        yield images.pixels[start : start + chunk].cpu()


def fit_standardize(images: ImageSet, chunk: int = 0) -> Standardize:
    """Channel means and standard deviations over all pixels; a constant channel keeps deviation 1."""
    counts = torch.zeros(
        images.shape[0], 256, dtype=torch.int64
    )  # of every pixel value: exact, in whatever chunks
    for part in _parts(images, chunk):
        for channel in range(images.shape[0]):
            counts[channel] += torch.bincount(part[:, channel].flatten(), minlength=256)
    share = counts.double() / counts[0].sum()  # (C, 256)
    values = torch.arange(256).double() / 255
    mean = share @ values  # (C,)
    std = (share * (values - mean[:, None]).square()).sum(1).sqrt()  # (C,)
    return Standardize(mean.float(), torch.where(std > 1e-4, std, 1.0).float())


def published(name: str, channels: int) -> Standardize:
    """The constants of `PUBLISHED`. Raises InputError if the set has none or other images than `channels` channels."""
    check_choice("normalization: published constants of", name, PUBLISHED)
    mean, std = (torch.tensor(values) for values in PUBLISHED[name])
    if len(mean) != channels:
        raise InputError(
            f"normalization: {name} has constants for {len(mean)} channel(s), the images have {channels}; "
            "accepted: own, zca, or constants for as many channels"
        )
    return Standardize(mean, std)


def fit_zca(images: ImageSet, eps: float = 0.1) -> ZCA:
    """ZCA over all pixel-channels of the training images in [0, 1], covariance divided by N - 1.

    eps is added to the eigenvalues; memory grows as D^2 with D = C*H*W.
    """
    width = math.prod(images.shape)
    mean, covariance = torch.zeros(width).double(), torch.zeros(width, width).double()
    for part in _parts(images):
        mean += (part.flatten(1).double() / 255).sum(0) / len(images)
    for part in _parts(images):
        centred = part.flatten(1).double() / 255 - mean  # (chunk, D)
        covariance.addmm_(centred.T, centred, alpha=1 / (len(images) - 1))
    values, vectors = torch.linalg.eigh(covariance)  # (D,), (D, D)
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
    cache_dir: str | Path = "",
    mapped: bool = False,
    progress: bool = False,
    max_unpacked_gb: float = 64.0,
) -> Splits:
    """Load a data set as disjoint splits, standardized by its training images.

    dataset         'digits' (bundled with scikit-learn), a published set such as 'cifar10' (see `named.py`: its files
                    are looked for in data_root, fetched if missing, and used only with the published checksum), or
                    'folder': class folders at data_root, itself a folder, .zip, .tar.gz, .tgz or .tar, either inside
                    train/ and test/ (or val/) or directly, then split by the seed with `test_fraction` as test
    max_side        shrink larger images so that no side exceeds it, 0 = never
    resize          make every image a square of this side, 0 = images must have equal sizes
    per_class       at most so many training images a class (before the validation split), drawn by the seed, 0 = all
    test_per_class  likewise for test images
    validation      fraction of the training images of each class held out
    normalization   'own' (channel mean and std), 'zca' (eps 0.1), 'published' (the constants of the named set) or
                    'published:NAME' (those of another set, for folders of its images)
    cache_dir       where decoded pixels are kept, '' = $DISTILLERY_CACHE or ~/.cache/distillery; removable any time.
                    There, folders and archives of less than 1 MB are not kept; in a folder given here, all are
    mapped          leave the pixels on disk and read them as `batch` needs them, for sets larger than memory
    progress        show a progress bar while decoding and downloading
    max_unpacked_gb refuse an archive that declares more content than this
    raises          InputError on anything that cannot be loaded as asked
    """
    check_choice("dataset", dataset, NAMES)
    check_choice("normalization", normalization, NORMALIZATIONS)
    check_fraction("validation", validation)
    check_fraction("test_fraction", test_fraction)
    kept, _, constants = normalization.partition(":")
    if kept == "published":
        check_choice("normalization: published constants of", constants or dataset, PUBLISHED)
    options = {
        "resize": resize, "max_side": max_side, "cache_dir": cache_dir, "mapped": mapped, "progress": progress,
    }  # fmt: skip
    if dataset == "folder":
        found = sources.load_files(data_root, max_unpacked_gb=max_unpacked_gb, **options)
    else:
        found = named.load(dataset, data_root, **options)
    # Until the last step a part is only a list of rows, so that the pixels are copied once and not at every step.
    images = ImageSet.of(found.pixels, found.targets, found.classes, found.name).lazy()
    everything, n_train, notes = torch.arange(len(images)), found.n_train, list(found.notes)
    train = images.subset(everything[:n_train])
    test = images.subset(everything[n_train:]) if n_train < len(images) else None
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
    parts = [part if mapped else part.in_memory() for part in (train, held_out, test)]
    if kept == "published":
        transform = published(constants or dataset, images.shape[0])
    else:
        transform = fit_zca(parts[0]) if kept == "zca" else fit_standardize(parts[0])
    train, held_out, test = (replace(part, transform=transform) for part in parts)
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


def check_enough(images: ImageSet, n: int) -> None:
    """Raise InputError if a class has fewer than `n` images."""
    for name, count in zip(images.classes, images.counts()):
        if count < n:
            raise InputError(
                f"ipc: {n}, but class {name!r} has {count} training images; accepted: at most {count}"
            )


def take_classes(splits: Splits, spec: str) -> Splits:
    """The images of some classes, relabelled 0, 1, .. in their order, under the same transform.

    spec    numbers of classes from 0, single or as ranges, joined by commas: '0-4' or '1,3,7-9'; '' = all
    raises  InputError on anything else, classes that are not there, fewer than two, or one named twice
    """
    if not spec:
        return splits
    names, chosen = splits.train.classes, []
    for part in spec.split(","):
        first, dash, last = part.strip().partition("-")
        last = last if dash else first
        if not first.isdigit() or not last.isdigit() or int(last) < int(first):
            raise InputError(f"classes: {spec!r}; accepted: numbers and ranges such as '0-4' or '1,3,7-9'")
        chosen += range(int(first), int(last) + 1)
    if len(set(chosen)) != len(chosen) or len(chosen) < 2 or max(chosen) >= len(names):
        raise InputError(
            f"classes: {spec!r} of {len(names)}; accepted: at least two different ones from 0 to {len(names) - 1}"
        )

    def taken(images: ImageSet) -> ImageSet:
        rows = torch.nonzero(torch.isin(images.targets, torch.tensor(chosen, device=images.device)))[:, 0]
        found = images.subset(rows)
        number = torch.full((len(names),), -1).index_put_((torch.tensor(chosen),), torch.arange(len(chosen)))
        targets = number.to(found.targets.device)[found.targets]
        return replace(found, targets=targets, classes=tuple(names[c] for c in chosen))

    parts = (taken(part) for part in (splits.train, splits.validation, splits.test))
    return Splits(*parts, (*splits.notes, f"classes {spec} of {len(names)}"))


def subset_per_class(images: ImageSet, n: int, draw: Generator) -> ImageSet:
    """At most `n` random images of every class."""
    chosen = []
    for label in range(len(images.classes)):
        members = images.of_class(label)
        chosen.append(members[torch.randperm(len(members), generator=draw)[:n]].sort().values)
    return images.subset(torch.cat(chosen))


def flip_labels(images: ImageSet, share: float, draw: Generator) -> tuple[ImageSet, Tensor]:
    """The same images, floor(share * n_class) of every class under the label of another class, uniformly among those.

    share    in (0, 1]
    returns  the images, and a mask (N,) bool of those that were flipped, on their device
    raises   InputError on a share outside (0, 1] or that flips nothing, and on images of a single class
    """
    check_fraction("share", share)
    if len(images.classes) < 2:
        raise InputError(
            f"share: {share} of {len(images.classes)} class; accepted: images of at least 2 classes"
        )
    targets, flipped = images.targets.cpu().clone(), torch.zeros(len(images), dtype=torch.bool)
    for label in range(len(images.classes)):
        members = images.of_class(label).cpu()
        n = int(share * len(members) + 1e-9)  # what lies a billionth below a whole number is that number
        chosen = members[torch.randperm(len(members), generator=draw)[:n]]
        others = torch.randint(1, len(images.classes), (n,), generator=draw)  # steps to another class
        targets[chosen] = (label + others) % len(images.classes)
        flipped[chosen] = True
    if not flipped.any():
        raise InputError(
            f"share: {share} flips no label of classes of at most {max(images.counts())} images; "
            "accepted: a share of at least one image"
        )
    return replace(images, targets=targets.to(images.device)), flipped.to(images.device)
