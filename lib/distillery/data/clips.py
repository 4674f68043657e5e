"""Clips as images of T * C channels, frame after frame: drawn ones, and controls that take motion away.

What a still frame tells must not be taken for motion, so two controls go with every set of clips: one frame of each clip, repeated, and its frames in
a random order. The first keeps what is seen, the second also how much it changes. Augmentations move all frames alike; the family 'color' is for images, as its
saturation would mix frames.
"""

from dataclasses import replace

import torch
from torch import Generator, Tensor

from distillery.checks import InputError, check_positive_int
from distillery.data.images import ImageSet, LazyImages, Splits, Standardize
from distillery.networks.video import frames_of
from distillery.seeds import generator

DIRECTIONS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}  # rows, columns a frame
SHAPES = ("square", "disk", "cross")
SHAPES_PER_CLASS, SIDE = 32, 16  # training clips and pixels unless told otherwise
CLASSES = tuple(f"{shape} {way}" for shape in SHAPES for way in DIRECTIONS)


def moving_shapes(per_class: int, frames: int = 8, side: int = 16, seed: int = 0) -> Splits:
    """Drawn clips of one gray shape that moves a pixel a frame over the edges of a noisy ground, in as many classes as shapes times directions.

    Places, sizes, brightness and noise are drawn uniformly, so a single frame tells the shape and nothing of the direction.

    per_class  training clips of each class; half as many for validation and as many for test
    returns    uint8 clips (N, frames, side, side), standardized by the training clips
    raises     InputError on fewer than two clips a class, frames or 8 pixels
    """
    for name, value, least in (("per_class", per_class, 2), ("frames", frames, 2), ("side", side, 8)):
        check_positive_int(name, value)
        if value < least:
            raise InputError(f"{name}: {value} is not accepted; accepted: {least} or more")
    parts = {}
    for name, n in {"train": per_class, "validation": per_class // 2, "test": per_class}.items():
        stream = generator(seed, "moving shapes", name)
        labels = torch.arange(len(CLASSES)).repeat_interleave(n)
        parts[name] = torch.stack([_drawn(int(label), frames, side, stream) for label in labels]), labels
    pixels = parts["train"][0].float().div(255)
    transform = Standardize(pixels.mean().repeat(frames), pixels.std().repeat(frames))
    return Splits(*(ImageSet(clips, labels, CLASSES, transform, "moving-shapes") for clips, labels in parts.values()))


def _drawn(label: int, frames: int, side: int, stream: Generator) -> Tensor:
    """One clip (frames, side, side) uint8."""
    shape, (down, across) = SHAPES[label // len(DIRECTIONS)], list(DIRECTIONS.values())[label % len(DIRECTIONS)]
    row, column = (int(torch.randint(side, (), generator=stream)) for _ in range(2))
    half = int(torch.randint(2, max(3, side // 5) + 1, (), generator=stream))
    level, noise = (float(torch.rand((), generator=stream)) for _ in range(2))
    y, x = torch.meshgrid(torch.arange(-half, half + 1), torch.arange(-half, half + 1), indexing="ij")
    inside = {
        "square": y.abs().maximum(x.abs()) <= half,
        "disk": y**2 + x**2 <= half**2,
        "cross": (y.abs() <= half // 3) | (x.abs() <= half // 3),
    }[shape]
    stamp = torch.zeros(side, side)
    stamp[y[inside] % side, x[inside] % side] = 0.5 + 0.5 * level
    moved = torch.stack([stamp.roll((row + t * down, column + t * across), (0, 1)) for t in range(frames)])
    ground = (0.05 + 0.1 * noise) * torch.randn(moved.shape, generator=stream)
    return ((moved + ground).clamp(0, 1) * 255).round().to(torch.uint8)


def still(clips: ImageSet, frames: int) -> ImageSet:
    """Each clip's middle frame, repeated. Raises InputError as `frames_of`."""

    def repeated(_, pixels: Tensor) -> Tensor:
        seen = frames_of(pixels, frames)
        return seen[:, frames // 2 : frames // 2 + 1].expand_as(seen).flatten(1, 2)

    return _changed(clips, frames, repeated)


def shuffled(clips: ImageSet, frames: int, generator: Generator) -> ImageSet:
    """The frames of each clip in an order of its own, drawn uniformly. Raises InputError as `frames_of`."""
    order = torch.rand(len(clips), frames, generator=generator).argsort(1)
    order = clips.pixels.by_row(order) if isinstance(clips.pixels, LazyImages) else order

    def reordered(rows: Tensor, pixels: Tensor) -> Tensor:
        seen = frames_of(pixels, frames)
        return seen.gather(1, order[rows].to(seen.device)[:, :, None, None, None].expand_as(seen)).flatten(1, 2)

    return _changed(clips, frames, reordered)


def _changed(clips: ImageSet, frames: int, change) -> ImageSet:
    """Clips under a `LazyImages.change`, as they are read where they stay on disk."""
    frames_of(clips.pixels[:1], frames)
    if isinstance(clips.pixels, LazyImages):
        return replace(clips, pixels=clips.pixels.changed(change))
    return replace(clips, pixels=change(torch.arange(len(clips)), clips.pixels))
