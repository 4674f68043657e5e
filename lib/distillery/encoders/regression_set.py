"""Real images with the real-valued targets that students regress: the embeddings of a teacher, made once and stored."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path

import torch
from torch import Tensor

from distillery import store
from distillery.checks import InputError
from distillery.data import ImageSet
from distillery.encoders.quality import check_collapse, embedded
from distillery.encoders.teacher import _preprocessing
from distillery.networks.encoder import Encoder
from distillery.training.losses import check_targets


@dataclass(frozen=True, eq=False)
class RegressionSet:
    """Real images with the targets that students regress: a source of `training.train` and `experts.make`.

    Raises InputError if the targets are of other images, and unless every image has one row of finite targets.
    """

    images: ImageSet  # their labels are not read
    targets: Tensor  # (N, D) float, brought to the device of the images
    made_of: str  # `digest` of the images that the targets were made of
    projection: Callable[[Tensor], Tensor] | None = None  # of embeddings to targets, None = they are the targets

    def __post_init__(self):
        if self.made_of != self.images.digest:
            raise InputError(f"targets: made of images {self.made_of[:12]}; accepted: those of these, {self.images.digest[:12]}")
        check_targets(self.targets, self.images)
        object.__setattr__(self, "targets", self.targets.to(self.device))

    @staticmethod
    def of(teacher: Encoder, images: ImageSet, path: str | Path | None = None) -> "RegressionSet":
        """With a teacher's embeddings, stored at `path` if given. Raises InputError as `teacher_targets` does."""
        return RegressionSet(images, teacher_targets(teacher, images, path), images.digest)

    def __len__(self) -> int:
        return len(self.images)

    shape = property(attrgetter("images.shape"))
    device = property(attrgetter("images.device"))
    transform = property(attrgetter("images.transform"))

    @cached_property
    def digest(self) -> str:
        """sha256 of images and targets."""
        found = self.images.digest + store.tensor_digest({"targets": self.targets})
        return hashlib.sha256(found.encode()).hexdigest()

    def batch(self, indices: Tensor) -> Tensor:
        return self.images.batch(indices)

    def subset(self, indices: Tensor) -> "RegressionSet":
        """The images at `indices` (M,) with their targets, in that order."""
        images = self.images.subset(indices)
        return RegressionSet(images, self.targets[torch.as_tensor(indices, device=self.device)], images.digest, self.projection)

    def as_targets(self, embeddings: Tensor) -> Tensor:
        """The targets that other images of these embeddings (M, F) would have: (M, D)."""
        return self.projection(embeddings) if self.projection else embeddings

    def components(self, count: int) -> "RegressionSet":
        """With the first `count` principal components of the centred targets, scaled to a mean square of 1; ours, MKDT keeps targets as they are.

        What all images have in common is learned by the bias of the output and teaches an encoder nothing, and an output as wide as the
        embedding holds most of the weights that are matched. Raises InputError where images or embeddings have not so many.
        """
        if not 1 <= count <= min(self.targets.shape):
            raise InputError(f"components: {count} of targets {tuple(self.targets.shape)}; accepted: 1 to {min(self.targets.shape)}")
        from sklearn.decomposition import PCA  # a second to import

        fitted = PCA(count, svd_solver="full")
        found = torch.from_numpy(fitted.fit_transform(self.targets.cpu().double().numpy()))
        scale = found.square().mean().sqrt()

        def projection(embeddings: Tensor) -> Tensor:
            other = torch.from_numpy(fitted.transform(self.as_targets(embeddings).cpu().double().numpy()))
            return (other / scale).to(embeddings)

        return RegressionSet(self.images, (found / scale).to(self.targets), self.made_of, projection)


def teacher_targets(teacher: Encoder, images: ImageSet, path: str | Path | None = None) -> Tensor:
    """The teacher's embeddings of un-augmented images in evaluation mode, as they are: (N, D) float32 on the images' device.

    path    where they are stored with the digests of images and teacher; read from there if the file exists
    raises  InputError if the file holds targets of other images, preprocessing or teacher, and if a target is NaN or infinite or the
            teacher collapsed
    """
    card = {"kind": "targets", "data set": images.digest, "preprocessing": _preprocessing(images), "teacher": teacher.digest}
    if path is not None and Path(path).exists():
        tensors, found = store.load_tensors(path)
        for key, value in card.items():
            theirs = found.get(key) if isinstance(found, dict) else None
            if theirs != value:
                raise InputError(f"{path}: targets of another {key}, {str(theirs)[:12]}; accepted: those of {str(value)[:12]}, or no file")
        return check_targets(tensors["targets"], images).to(images.device)
    found = embedded(teacher, images)
    check_collapse(found, teacher.name)
    if path is not None:
        store.save_tensors(path, {"targets": found}, card)
    return found
