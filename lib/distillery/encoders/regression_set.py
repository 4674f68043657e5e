r"""MKDT's students (arXiv 2410.02116): experts that regress the embeddings a teacher gives to real images, and its first images.

A student $f_\theta$ is a network whose output is as wide as the targets $Z$; over a batch B of N images, and D outputs,

$$L_{KD}(\theta; B) = \frac{1}{|B| D} \sum_{i \in B} \|f_\theta(x_i) - z_i\|^2$$

`Regression` is what `experts.make` trains them on, under `Training(loss="squared error")`. A distilled set starts from the
images of highest loss early in training (`high_loss`; slow reference: `high_loss_plain`), and is matched to the students by
`trajectory.TrajectoryMatching(loss=squared_error)`.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from distillery import store
from distillery.checks import InputError
from distillery.data import ImageSet
from distillery.encoders.targets import teacher_targets
from distillery.experts import Experts
from distillery.networks.encoder import Encoder
from distillery.networks.precision import float32_matmul, images_at_once
from distillery.training import squared_error
from distillery.training.losses import check_targets


@dataclass(frozen=True, eq=False)
class RegressionSet:
    """Real images with the targets that students regress: a source of `training.train` and `experts.make`.

    images   their labels are not read
    targets  (N, D) float, on the device of the images
    made_of  `digest` of the images that the targets were made of
    raises   InputError if those are other images, and unless every image has one row of finite targets
    """

    images: ImageSet
    targets: Tensor
    made_of: str

    def __post_init__(self):
        if self.made_of != self.images.digest:
            raise InputError(
                f"targets: made of images {self.made_of[:12]}; accepted: those of these, {self.images.digest[:12]}"
            )
        check_targets(self.targets, self.images)

    @staticmethod
    def of(teacher: Encoder, images: ImageSet, path: str | Path | None = None) -> "RegressionSet":
        """With a teacher's embeddings, stored at `path` if given. Raises InputError as `selfsup.targets` does."""
        return RegressionSet(images, teacher_targets(teacher, images, path), images.digest)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.images.shape

    @property
    def device(self) -> torch.device:
        return self.images.device

    @property
    def transform(self):
        return self.images.transform

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
        return RegressionSet(images, self.targets[torch.as_tensor(indices, device=self.device)], images.digest)


def losses(network, students: Experts, source: RegressionSet, epoch: int = 1) -> Tensor:
    """Squared error of each image, mean over outputs and over the students after `epoch` epochs: (N,) float64 on the CPU.

    raises  InputError on an epoch that is not stored, and targets that are not as wide as the network's output
    """
    check_targets(source.targets, source, network.classes)
    everything = torch.arange(len(source), device=source.device)
    weights = [students.at(i, epoch) for i in range(len(students))]
    parts = []
    with torch.no_grad(), float32_matmul("float32"):
        for indices in everything.split(images_at_once(network, source.shape, source.device)):
            images, targets = source.batch(indices)[None], source.targets[indices][None]
            total = torch.zeros(len(indices), dtype=torch.float64, device=source.device)
            for params in weights:  # one by one: images, not students, fill the device here
                total += squared_error(network.apply(params, images, train=False).logits, targets)[0]
            parts.append(total)
    return (torch.cat(parts) / len(students)).cpu()


def high_loss(network, students: Experts, source: RegressionSet, m: int, epoch: int = 1) -> Tensor:
    """Indices (m,) of the images of highest `losses`, highest first, on the CPU. Slow reference: `high_loss_plain`.

    Labels are not read, classes not balanced; of equal losses the lower index comes first, so that a smaller subset is the
    beginning of a larger one.

    raises  InputError unless 1 <= m <= N, and as `losses` does
    Source: MKDT, its high-loss subset; `epoch` as in the paper's final runs.
    """
    if not isinstance(m, int) or not 1 <= m <= len(source):
        raise InputError(f"m: {m!r} of {len(source)} images; accepted: a whole number from 1 to {len(source)}")
    return losses(network, students, source, epoch).sort(descending=True, stable=True).indices[:m]


def high_loss_plain(network, students: Experts, source: RegressionSet, m: int, epoch: int = 1) -> list[int]:
    """`high_loss` student by student and image by image."""
    means = []
    for i in range(len(source)):
        image, target = source.batch(torch.tensor([i])), source.targets[i]
        errors = []
        for k in range(len(students)):
            output = network.apply(students.at(k, epoch), image, train=False).logits[0, 0]  # (D,)
            errors.append(float(((output - target) ** 2).sum() / len(target)))
        means.append(sum(errors) / len(errors))
    return sorted(range(len(source)), key=lambda i: (-means[i], i))[:m]
