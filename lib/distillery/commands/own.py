"""Images of one's own: the files behind the pixels, the side they are looked at, a network that they bear, and what it will cost."""

import hashlib
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from distillery.checks import InputError
from distillery.data import folders
from distillery.data.archives import Folder, origin, shown
from distillery.data.decoding import open_image
from distillery.data.images import ImageSet, fit_standardize
from distillery.data.load import split_per_class
from distillery.networks import ConvNet
from distillery.seeds import generator

SIDES = (8, 16, 28, 32, 48, 64, 96, 128, 160, 192, 224)  # pixels
LOOKED_AT = 200  # images whose sizes choose the side
CHUNK = 1000  # images in memory at a time where they lie on disk
Tell = Callable[[str], None]


def quiet(line: str) -> None:
    """Say nothing."""


@dataclass(frozen=True, eq=False)
class Own:
    """The images of a folder or archive of class folders.

    root     the folder, or the archive
    files    names below it, one an image, by class and name
    images   their pixels at one size, on a device; standardized by themselves
    notes    what was done to them, in words
    test     the images of its test/, None where it has none
    """

    root: Path
    files: list[str]
    images: ImageSet
    notes: list[str]
    test: ImageSet | None = None

    def subset(self, rows: Tensor) -> "Own":
        """The images at some rows, under the same standardization."""
        return replace(self, files=[self.files[row] for row in rows.tolist()], images=self.images.subset(rows))


MOST = {"cpu": 32, "cuda": 128}  # pixels a side beyond which images are shrunk unless asked otherwise


def read(path: str | Path, side: int, device: torch.device, tell: Tell = quiet, progress: bool = False, skip: bool = False) -> Own:
    """Every training image of a folder or archive: all of them, where it has no test/ (else those of train/), and those of test/.

    side    pixels; every image becomes a square of it, the short side resized and the centre kept; 0 = by the images: the largest of
            SIDES that is no more than their median short side and MOST
    skip    pass over files that are no images or cannot be decoded
    raises  InputError as `data.load`, and on a side outside 4 to 1024
    """
    if side and not 4 <= side <= 1024:
        raise InputError(f"side: {side}; accepted: 4 to 1024 pixels, or 0 for one that suits the images")
    where = origin(path)
    plan = folders.plan_of(where, skip)
    if not side:
        side, why = fitting_side(where, plan.files[: plan.n_train], device.type)
        tell(f"side: {side} x {side} pixels, for {why}")
    found = folders.load_files(path, resize=side, progress=progress, skip_unreadable=skip)
    plan = plan.without(found.skipped)
    if found.targets.tolist() != plan.labels:
        raise InputError(f"{shown(path)}: files came or went while they were read; accepted: a folder that stays as it is")
    whole, rows = ImageSet.of(found.pixels, found.targets, plan.classes, found.name), torch.arange(len(plan.files))
    images, test = whole.subset(rows[: plan.n_train]), whole.subset(rows[plan.n_train :])
    transform = fit_standardize(images)
    parts = [replace(part, transform=transform).to(device) for part in (images, test)]
    root = where.path if isinstance(where, Folder) else Path(path)
    return Own(root, plan.files[: plan.n_train], parts[0], found.notes, parts[1] if len(test) else None)


def fitting_side(where, files: list[str], device: str) -> tuple[int, str]:
    """A side of SIDES that suits the images, and why. Raises InputError where none of those looked at can be decoded."""
    looked = files[:: max(1, len(files) // LOOKED_AT)]
    opened = (open_image(payload)[0] for _, payload in where.read(looked))
    shorts = sorted(min(image.size) for image in opened if image is not None)
    if not shorts:
        raise InputError(f"{shown(where.path)}: none of {len(looked)} images can be decoded; `distillery data check` says why of each")
    middle = shorts[len(shorts) // 2]
    side = max((one for one in SIDES if one <= min(middle, MOST[device])), default=SIDES[0])
    most = f"at most {MOST[device]} on a {device} unless --side asks for more"
    return side, f"their short sides have {shorts[0]} to {shorts[-1]}, {middle} in the middle; {most}"


def network_for(images: ImageSet) -> tuple[ConvNet, str]:
    """A ConvNet that the images bear, and why it is that one: the field's depth for their side, its width by their number."""
    width = 32 if len(images) < 10_000 or images.device.type == "cpu" else 64 if len(images) < 50_000 else 128
    network = ConvNet(images.shape, len(images.classes), width)
    return network, f"{network.name}: depth by the side, width by {len(images)} images on a {images.device.type}"


def held_out(own: Own, share: float, seed: int) -> tuple[Own, Own]:
    """(the rest, a share of every class drawn by the seed, at least one image; 0 = none). Raises InputError on classes of one image."""
    if not share:
        return own, own.subset(torch.arange(0))
    places = replace(own.images, pixels=torch.arange(len(own.files)).view(-1, 1, 1, 1))
    rest, part = split_per_class(places, share, generator(seed, "data", "test split"))
    return own.subset(rest.pixels.flatten().cpu()), own.subset(part.pixels.flatten().cpu())


def seen(some: ImageSet, others: ImageSet) -> int:
    """How many of some images are, pixel by pixel, among others."""
    there = set(_digests(others))
    return sum(one in there for one in _digests(some))


def _digests(images: ImageSet) -> Iterator[bytes]:
    for start in range(0, len(images), CHUNK):
        for image in images.pixels[start : start + CHUNK].cpu().contiguous():
            yield hashlib.blake2b(image.numpy().data, digest_size=16).digest()


def seconds_of(step: Callable[[], object]) -> float:
    """Seconds of one call, after one to warm up."""
    step()
    began = time.monotonic()
    step()
    return time.monotonic() - began


def cost(seconds: float, images: ImageSet) -> str:
    """What a command will cost, in words: time by a short measured probe, memory and disk by sizes."""
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    pixels = images.pixels.shape.numel()
    return f"about {span(seconds)}, {(rss + 2**28) / 2**30:.1f} GiB of memory, {pixels / 2**20:.0f} MiB of disk for decoded pixels"


def span(seconds: float) -> str:
    """'40 s', '12 min', '3.5 h'."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
