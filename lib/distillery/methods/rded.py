r"""RDED, realistic and diverse patches (arXiv 2312.03526): parts of real images of whose class a teacher is sure, several in one.

Of `candidates` random images $x$ of a class $y$ some patches $p$ are cut, each of a random part of the image's area and shrunk to a
$1/f$ of its sides. A patch is realistic where a teacher $\theta$, trained on real images, is sure of its class. Each image gives its most
realistic patch, for diversity, and a class with $n$ stored images keeps the $n f^2$ best of these:

$$s(p) = -\ell\big(f_\theta(p),\, y\big), \qquad p(x) = \arg\max_{p \subset x} s(p), \qquad S_y = \mathrm{top}_{\,n f^2} \{ p(x) \}$$

with cross-entropy $\ell$ of the patch as it is shrunk, in the middle of an image of zeros, the mean colour. The best $n$ patches are the first
of the $n$ stored images, the next $n$ their second. Slow reference, patch by patch: `realistic_plain`. All of this is as in the public code,
which cuts squares by torchvision's `RandomResizedCrop`, here of the images' own proportions.

With `enlarged`, ours, the teacher scores a patch as networks will see it: a ConvNet without global pooling is at home in whole images alone.
Soft labels: of each patch, enlarged, the teacher's softmax at temperature 1, stored once. Hard ones: the class. Without a teacher patches are
cut in the same way and kept at random, and an early network, after one epoch, is a cheap one.

Our choices: the public code labels every batch anew, after random crops of whole stored images and CutMix, at temperature 20 (here
`labels teacher` of the scoreboard); it trains by AdamW, reports the best of the last epochs on test images, and stores JPEG files.
Unknown: how the public teachers were trained; here as the settings say, on the images that are kept.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from distillery import experts
from distillery.checks import InputError, check_choice, check_fraction, check_positive, check_positive_int
from distillery.data.synthetic import FORMATIONS, Synthetic, tiled
from distillery.evaluation import Teacher
from distillery.experts import Training
from distillery.methods.base import ANY, SUBSET, SUBSETS, TINY, Made, Method, Settings, register
from distillery.methods.trajectories import load_bank, make_bank, named
from distillery.training import cross_entropy
from distillery.training.optimizers import SGD

BATCH = 500  # patches that the teacher sees at once


def boxes(n: int, crops: int, height: int, width: int, least: float, generator: Generator) -> Tensor:
    """Places to cut n images of height x width, each `crops` times: (n, crops, 4) int64 of top, left, height, width.

    least  of the area; the part is uniform from it to 1, the place uniform among those inside
    """
    part, down, right = torch.rand(3, n, crops, generator=generator)
    sides = (least + (1 - least) * part).sqrt()
    tall, wide = ((sides * side).round().long().clamp(1, side) for side in (height, width))
    top, left = ((u * (side - cut + 1)).long().clamp_max(side - cut) for u, side, cut in ((down, height, tall), (right, width, wide)))
    return torch.stack([top, left, tall, wide], -1)


def cut(images: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """The patches of images (n, C, H, W) at boxes (n, crops, 4), smoothly shrunk or enlarged: (n, crops, C, height, width)."""
    n, crops = boxes.shape[:2]
    patches, flat = images.new_empty(n * crops, images.shape[1], height, width), boxes.flatten(0, 1)
    for tall, wide in flat[:, 2:].unique(dim=0).tolist():  # all of a size at once
        here = ((flat[:, 2] == tall) & (flat[:, 3] == wide)).nonzero()[:, 0]
        rows, columns = (flat[here, i, None] + torch.arange(size) for i, size in ((0, tall), (1, wide)))  # (g, size)
        found = images[here.div(crops, rounding_mode="floor")[:, None, None], :, rows[:, :, None], columns[:, None]]  # (g, tall, wide, C)
        patches[here] = _resized(found.movedim(-1, 1), height, width)
    return patches.unflatten(0, (n, crops))


def _resized(images: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(images, size=(height, width), mode="bilinear", align_corners=False, antialias=True)


def realistic(teacher: Teacher, patches: Tensor, label: int, n: int, height: int, width: int, enlarged: bool = False) -> Tensor:
    """The n most realistic of the best patches of each image of a class, best first: (n, C, h, w). Slow reference: `realistic_plain`.

    patches   (m, crops, C, h, w) of m images, at least n
    enlarged  whether the teacher sees them enlarged to height x width, else in the middle of as many zeros
    """
    (m, crops, _, h, w), losses = patches.shape, []
    down, right = height - h, width - w
    for some in patches.flatten(0, 1).split(BATCH):
        if enlarged:
            seen = F.interpolate(some, size=(height, width), mode="bilinear", align_corners=False)
        else:
            seen = F.pad(some, (right // 2, right - right // 2, down // 2, down - down // 2))
        logits = teacher.logits(seen)[None]  # (1, B, classes)
        losses.append(cross_entropy(logits, torch.full(logits.shape[:2], label, device=logits.device))[0])
    best = torch.cat(losses).view(m, crops).min(1)
    order = best.values.argsort(stable=True)[:n]
    return patches[order, best.indices[order]]


def realistic_plain(teacher: Teacher, images: Tensor, boxes: Tensor, label: int, n: int, h: int, w: int, enlarged: bool = False) -> Tensor:
    """`cut` and `realistic` as the paper reads, image by image and patch by patch: (n, C, h, w)."""
    kept = []
    for image, own in zip(images, boxes.tolist(), strict=True):
        scored = []
        for top, left, tall, wide in own:
            patch = _resized(image[None, :, top : top + tall, left : left + wide], h, w)
            seen = torch.zeros_like(image)[None]
            first, second = (seen.shape[2] - h) // 2, (seen.shape[3] - w) // 2
            seen[:, :, first : first + h, second : second + w] = patch
            if enlarged:
                seen = F.interpolate(patch, size=image.shape[1:], mode="bilinear", align_corners=False)
            scored.append((float(F.cross_entropy(teacher.logits(seen), torch.tensor([label]))), patch[0]))
        kept.append(min(scored, key=lambda one: one[0]))
    kept.sort(key=lambda one: one[0])
    return torch.stack([patch for _, patch in kept[:n]])


@dataclass(frozen=True, kw_only=True)
class RDEDSettings(Settings):
    """Settings of RDED, the first five under the values of the public code."""

    factor: int  # f: patches along a side of a stored image, 1 or 2
    candidates: int  # real images of each class that patches are cut from, all where there are fewer
    crops: int  # patches of each
    min_scale: float  # least part of an image's area that a patch shows
    enlarged: bool  # whether the teacher scores a patch as networks will see it, else in the middle of zeros, as published
    teacher_epochs: int  # of the network that scores and labels, 0 = there is none: patches at random
    teacher_lr: float  # of SGD with momentum .9 and weight decay 5e-4, constant; ours, as the batch
    teacher_batch: int
    soft: bool  # whether labels are the teacher's

    def __post_init__(self):
        super().__post_init__()
        check_choice("factor", self.factor, (1, 2))
        check_fraction("min_scale", self.min_scale)
        check_positive("teacher_lr", self.teacher_lr)
        for name in ("candidates", "crops", "teacher_batch", *(["teacher_epochs"] if self.teacher_epochs else [])):
            check_positive_int(name, getattr(self, name))
        if self.soft and not self.teacher_epochs:
            raise InputError("soft: True without a teacher (teacher_epochs 0); accepted: soft False, or a teacher")


SHARED = {
    "factor": 2, "candidates": 300, "crops": 5, "min_scale": 0.08, "enlarged": False,
    "teacher_epochs": 50, "teacher_lr": 0.05, "teacher_batch": 64, "soft": True,
}  # fmt: skip
WHOLE_PATCHES = {ANY: {"factor": 1}}


@register
class RDED(Method):
    """Patches of real images that a teacher is sure of, several in each stored image, under the teacher's labels, stored once.
    Accuracies, from another paper's table, are of 64 x 64 and a ConvNet of depth 4, by labels for every batch and the best of the last epochs
    on test images.
    """

    name, paper = "RDED", "2312.03526"
    source = "code: scripts of LINs-lab/RDED; those of the teacher, and its labels stored once, are ours"
    own_labels = True
    Settings, common = RDEDSettings, SHARED
    published = {
        **dict.fromkeys(("cifar10", "cifar100"), WHOLE_PATCHES), "tiny-imagenet": {ANY: TINY | {"factor": 1}},
        **dict.fromkeys(SUBSETS[:2], {ANY: SUBSET}),
    }  # fmt: skip
    numbers = {"imagenet-1k": {1: (6.4, 0.1), 10: (20.4, 0.1), 50: (38.4, 0.2)}}

    def cell(self, dataset: str, size: int, n: int) -> dict:
        """What the scripts of RDED change for a data set; for others nothing."""
        return RDED.published.get(dataset, {}).get(ANY, {})

    def refuse(self, job) -> None:
        super().refuse(job)
        if job.settings.candidates < job.held:
            raise InputError(f"candidates: {job.settings.candidates} images of a class, one patch of each; accepted: {job.held} or more")

    def stored(self, job) -> tuple[int, str, str]:
        return job.recipe.size, "partition2" if job.settings.factor == 2 else "identity", "bilinear"

    def bank(self, job) -> tuple[Training, int]:
        """How the teacher of a job is trained, by the recipe's seed, and for how many epochs."""
        s = job.settings
        how = SGD(s.teacher_lr, 0.9, 5e-4), s.teacher_batch, job.experiment.augmentation, job.recipe.seed
        return Training(1, *how), s.teacher_epochs

    def prepare(self, job, where: str = "local") -> None:
        super().prepare(job, where)
        if job.settings.teacher_epochs:
            make_bank(job.experiment, job.source, *self.bank(job), where)

    def seconds_shared(self, job) -> float:
        if not job.settings.teacher_epochs:
            return 0.0
        return experts.cost(*named(job.experiment, job.source, *self.bank(job)))["seconds"]

    def spec(self, job) -> dict:
        return super().spec(job) | ({"augmentation": job.experiment.augmentation} if job.settings.teacher_epochs else {})

    def teacher(self, job) -> Teacher | None:
        """The network that scores and labels, None = there is none."""
        epochs = job.settings.teacher_epochs
        return Teacher(job.network, load_bank(job.experiment, job.source, *self.bank(job)).at(0, epochs)) if epochs else None

    def make(self, job) -> Made:
        s, real, teacher, stream = job.settings, job.experiment.real, self.teacher(job), job.stream("patches")
        (_, height, width), n, (size, formation, _) = real.shape, job.held, self.stored(job)
        images, labels, seen = [], job.kept_labels.unique(), 0
        for label in labels.tolist():
            members = job.kept[job.kept_labels == label]
            members = members[torch.randperm(len(members), generator=stream)[: s.candidates]]
            places = boxes(len(members), s.crops, height, width, s.min_scale, stream)
            if teacher is None:
                members, places = members[:n], places[:n, :1]
            patches = cut(real.batch(members.to(real.device)), places, height // s.factor, width // s.factor)
            kept = patches[:, 0] if teacher is None else realistic(teacher, patches, label, n, height, width, s.enlarged)
            kept = kept.unflatten(0, (-1, size)).transpose(0, 1).flatten(0, 1)  # ranks i, i + size, .. are neighbours
            images.append(kept if s.factor == 1 else tiled(kept, height, width))
            seen += len(members)
        targets = labels.repeat_interleave(size).to(real.device)
        made = Synthetic({"images": torch.cat(images), "targets": targets}, job.experiment.classes, formation)
        if s.soft:
            taught = teacher.stored(made.source()).targets  # (M f^2, classes)
            made = made.replace(targets=taught if s.factor == 1 else taught.unflatten(0, (-1, FORMATIONS[formation])))
        paid = {"experts": make_bank(job.experiment, job.source, *self.bank(job))} if teacher else {}
        return Made(made, log={"samples": seen} | paid)


@register
class HardRDED(RDED):
    """The patches of RDED under their classes."""

    name, published, numbers, own_labels = "RDED, hard labels", {}, {}, False
    common = SHARED | {"soft": False}


@register
class Patches(HardRDED):
    """Random patches of random images under their classes, several in each stored image: RDED without a teacher."""

    name, paper, source, published, numbers = "patches", "", "ours", {}, {}
    common = SHARED | {"teacher_epochs": 0, "soft": False}


@register
class EarlyPatches(HardRDED):
    """Patches that a network is sure of which was trained for one epoch, under their classes: a cheap teacher."""

    name, paper, source, published, numbers = "patches, early network", "", "ours", {}, {}
    common = SHARED | {"teacher_epochs": 1, "soft": False}
