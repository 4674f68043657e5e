"""Images as bytes with labels, their standardization, and the parts of a data set."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distillery.checks import InputError, check_finite

if TYPE_CHECKING:
    from distillery.data.cache import Shards

# Channel means and standard deviations of pixels in [0, 1]. Those of CIFAR are checked against the public code of DC, DSA and DM
# (github.com/VICO-UoE/DatasetCondensation); the others are the field's usual values, not checked there.
PUBLISHED = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2861,), (0.3530,)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tiny-imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "imagenet-1k": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "kinetics-400": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # as the public code of Dancing with Still Images has them
}
_CHUNK = 1 << 24  # bytes of pixels looked at in one go


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


@dataclass(frozen=True)
class ZCA:
    """Whitening x -> (x - mean) T with T = U diag((s + eps)^-1/2) U^T."""

    mean: Tensor  # (D,), D = C*H*W
    matrix: Tensor  # (D, D), symmetric
    inverse_matrix: Tensor  # (D, D)

    def __call__(self, images: Tensor) -> Tensor:
        """images (..., C, H, W) in [0, 1] -> whitened, same shape."""
        return ((images.flatten(-3) - self.mean.to(images)) @ self.matrix.to(images)).reshape(images.shape)

    def inverse(self, images: Tensor) -> Tensor:
        """Back to [0, 1] (unclipped)."""
        return (images.flatten(-3) @ self.inverse_matrix.to(images) + self.mean.to(images)).reshape(images.shape)


def transform_of(tensors: dict[str, Tensor]) -> Standardize | ZCA:
    """The standardization whose tensors have these names. Raises InputError on others."""
    for kind in (Standardize, ZCA):
        if set(tensors) == set(kind.__dataclass_fields__):
            return kind(**tensors)
    raise InputError(f"standardization: tensors {', '.join(tensors) or 'none'}; accepted: mean and std, or those of ZCA")


@dataclass(frozen=True, eq=False)
class LazyImages:
    """Some images of a larger array, read as they are asked for: the pixels of a set that stays on disk."""

    base: "Tensor | Shards"  # (M, C, H, W) uint8, usually of files
    rows: Tensor  # (N,) int64 rows of `base`
    device: torch.device = torch.device("cpu")  # where images go when they are read
    change: Callable[[Tensor, Tensor], Tensor] | None = None  # (rows (n,), images (n, C, H, W)) -> the images as they are seen

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)"""
        return torch.Size([len(self.rows), *self.base.shape[1:]])

    def __getitem__(self, indices) -> Tensor:
        """Read images: indices of any shape (...) -> (..., C, H, W) uint8."""
        indices = indices.cpu() if isinstance(indices, Tensor) else indices
        rows = self.rows[indices]
        images = self.base[rows]
        if self.change:
            images = self.change(rows.flatten(), images.flatten(0, -4) if rows.ndim else images[None]).view(images.shape)
        return images.to(self.device)

    def changed(self, change: Callable[[Tensor, Tensor], Tensor]) -> "LazyImages":
        """The same images under one more `change`, which goes by rows of `base`."""
        before = self.change
        return replace(self, change=(lambda rows, images: change(rows, before(rows, images))) if before else change)

    def by_row(self, values: Tensor) -> Tensor:
        """Values (N, ...) of these images, by their rows of `base`."""
        table = values.new_zeros(self.base.shape[0], *values.shape[1:])
        table[self.rows] = values
        return table

    def to(self, device: torch.device | str) -> "LazyImages":
        return replace(self, device=torch.device(device))


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images: uint8 at rest, floats through `batch`."""

    pixels: Tensor | LazyImages  # (N, C, H, W) uint8, in memory or of a file
    targets: Tensor  # (N,) int64 class labels
    classes: tuple[str, ...]  # their names, in label order
    transform: Standardize | ZCA | None = None
    name: str = "images"

    @staticmethod
    def of(images, targets, classes=None, name="images") -> "ImageSet":
        """Check and wrap arrays: images uint8 (N, C, H, W), or floats in [0, 1]; targets whole numbers (N,). Raises InputError on others."""
        images, targets = torch.as_tensor(images), torch.as_tensor(targets)
        if images.ndim != 4 or targets.shape != images.shape[:1] or len(images) == 0:
            found = f"images {tuple(images.shape)} with labels {tuple(targets.shape)}"
            raise InputError(f"{name}: {found}; accepted: (N, C, H, W) with (N,), N > 0")
        if images.is_floating_point():
            check_finite(f"{name}: pixels", images)
            if images.min() < 0 or images.max() > 1:
                raise InputError(f"{name}: float pixels from {images.min():g} to {images.max():g}; accepted: [0, 1], or uint8")
            images = (images * 255).round().to(torch.uint8)
        if images.dtype != torch.uint8 or targets.is_floating_point():
            raise InputError(f"{name}: pixels {images.dtype}, labels {targets.dtype}; accepted: uint8 or float pixels, whole-number labels")
        targets = targets.long()
        classes = tuple(classes) if classes is not None else tuple(map(str, range(int(targets.max()) + 1)))
        if targets.min() < 0 or targets.max() >= len(classes):
            raise InputError(f"{name}: labels {targets.min()} to {targets.max()}; accepted: 0 to {len(classes) - 1}")
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
        images = self.pixels[indices].float().div_(255)
        if isinstance(self.transform, Standardize):  # the same operations without copies
            mean, std = (value[:, None, None].to(images) for value in vars(self.transform).values())
            return images.sub_(mean).div_(std)
        return self.transform(images) if self.transform else images

    def subset(self, indices: Tensor) -> "ImageSet":
        """The images at `indices` (M,), in that order."""
        indices = torch.as_tensor(indices, device=self.device)
        if isinstance(self.pixels, LazyImages):
            pixels = replace(self.pixels, rows=self.pixels.rows[indices.cpu()])
        else:
            pixels = self.pixels[indices]
        return replace(self, pixels=pixels, targets=self.targets[indices])

    def of_class(self, label: int) -> Tensor:
        """Indices of one class, ascending."""
        return torch.nonzero(self.targets == label)[:, 0]

    def counts(self) -> list[int]:
        """Images in each class."""
        return torch.bincount(self.targets, minlength=len(self.classes)).tolist()

    def to(self, device: torch.device | str) -> "ImageSet":
        there = self.transform and replace(self.transform, **{name: value.to(device) for name, value in vars(self.transform).items()})
        return replace(self, pixels=self.pixels.to(device), targets=self.targets.to(device), transform=there)

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
        return hashlib.sha256((self.train.digest + self.validation.digest + self.test.digest).encode()).hexdigest()

    def to(self, device) -> "Splits":
        return replace(self, train=self.train.to(device), validation=self.validation.to(device), test=self.test.to(device))


def _parts(images: ImageSet):
    """The pixels on the CPU, about 16 MB at a time."""
    chunk = max(1, _CHUNK // math.prod(images.shape))
    return (images.pixels[start : start + chunk].cpu() for start in range(0, len(images), chunk))


def fit_standardize(images: ImageSet) -> Standardize:
    """Channel means and standard deviations over all pixels; a constant channel keeps deviation 1."""
    counts = torch.zeros(images.shape[0], 256, dtype=torch.int64)  # of every pixel value: exact, in whatever chunks
    for part in _parts(images):
        for channel in range(images.shape[0]):
            counts[channel] += torch.bincount(part[:, channel].flatten(), minlength=256)
    share = counts.double() / counts[0].sum()  # (C, 256)
    values = torch.arange(256).double() / 255
    mean = share @ values  # (C,)
    std = (share * (values - mean[:, None]).square()).sum(1).sqrt()  # (C,)
    return Standardize(mean.float(), torch.where(std > 1e-4, std, 1.0).float())


def published(name: str, channels: int, frames: int = 1) -> Standardize:
    """The constants of a set of `PUBLISHED`, of clips the same for each frame. Raises InputError if they are not for images of so many channels."""
    mean, std = (torch.tensor(values).repeat(frames) for values in PUBLISHED[name])
    if len(mean) != channels:
        found = f"{name} has constants for {len(mean)} channel(s), the images have {channels}"
        raise InputError(f"normalization: {found}; accepted: own, zca, or constants for as many channels")
    return Standardize(mean, std)


def fit_zca(images: ImageSet, eps: float = 0.1) -> ZCA:
    """ZCA over all D = C*H*W pixel-channels of images in [0, 1], covariance (D, D) divided by N - 1, eps added to its eigenvalues.

    As in the public code of MTT (github.com/GeorgeCazenavette/mtt-distillation), which is kornia's.
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
    return ZCA(mean.float(), ((vectors / scale) @ vectors.T).float(), ((vectors * scale) @ vectors.T).float())
