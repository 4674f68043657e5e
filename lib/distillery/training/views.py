"""Random views of images for self-supervised learning, with the strengths of Mixed Barlow Twins' public code for CIFAR (arXiv 2312.02151).

They are torchvision's RandomResizedCrop, horizontal flip, ColorJitter and grayscale. Slow reference: `view_plain`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from distillery.checks import InputError
from distillery.data import ImageSet
from distillery.seeds import generator
from distillery.upload import to_device

TRIES = 10  # crops drawn for a view, of which the first that fits is taken


@dataclass(frozen=True)
class Views:
    """How a random view of an image with pixels in [0, 1] is made: crop, flip, jitter, gray, in this order.

    scale, ratio  of the crop: its share of the area, uniform, and width over height, log-uniform; it is resized to the image, bilinear
    flip          probability of a mirror image, 0 for digits and other signs that a mirror changes
    jitter        probability of brightness, contrast and saturation by factors in 1 -+ their strength, and hue by a shift of -+ its
                  strength of the circle, in an order drawn for each image
    gray          probability of gray in all channels
    Images that have not 3 channels are cropped and flipped alone. SimCLR's strength .5 are the same numbers.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    gray: float = 0.2

    def __post_init__(self):
        for name in ("flip", "jitter", "gray", "brightness", "contrast", "saturation", "hue"):
            most = 0.5 if name == "hue" else 1
            if not 0 <= getattr(self, name) <= most:
                raise InputError(f"{name}: {getattr(self, name)!r} is not accepted; accepted: a number from 0 to {most}")
        for name, most in (("scale", 1), ("ratio", math.inf)):
            low, high = getattr(self, name)
            if not 0 < low <= high <= most:
                raise InputError(f"{name}: {(low, high)} is not accepted; accepted: two numbers above 0 in order, at most {most}")


@dataclass(frozen=True)
class ViewDraw:
    """What `draw_views` drew for n views, on the CPU."""

    boxes: Tensor  # (n, 4) int64: top, left, height, width of the crop
    flipped: Tensor  # (n,) bool
    jittered: Tensor  # (n,) bool
    order: Tensor  # (n, 4) int64: which of brightness, contrast, saturation, hue comes first, second, ..
    factors: Tensor  # (n, 4): those of brightness, contrast, saturation, and the shift of hue
    gray: Tensor  # (n,) bool


def draw_views(views: Views, shape: tuple[int, int, int], n: int, generator: Generator) -> ViewDraw:
    """Everything random in n views of images (C, H, W), from one draw of uniform numbers.

    Where none of TRIES crops fits the image, the largest central one of an accepted ratio is taken, as torchvision does.
    """
    _, height, width = shape
    sizes = (TRIES, TRIES, 2, 1, 1, 4, 4, 1)
    uniforms = torch.rand(n, sum(sizes), generator=generator, dtype=torch.float64)
    share, turn, place, flip, jitter, order, strength, gray = uniforms.split(sizes, 1)
    (small, large), (narrow, wide) = views.scale, views.ratio
    area = height * width * (small + share * (large - small))  # (n, TRIES)
    ratio = (math.log(narrow) + turn * math.log(wide / narrow)).exp()
    rows, columns = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
    fits = (rows >= 1) & (rows <= height) & (columns >= 1) & (columns <= width)
    first = fits.int().argmax(1, keepdim=True)
    size = torch.cat([rows.gather(1, first), columns.gather(1, first)], 1)  # (n, 2)
    central = (
        min(height, max(round(width / narrow), 1)) if width / height < narrow else height,
        min(width, max(round(height * wide), 1)) if width / height > wide else width,
    )
    none = ~fits.any(1, keepdim=True)
    size = torch.where(none, size.new_tensor(central), size)
    room = size.new_tensor((height, width)) - size
    corner = torch.where(none, (room / 2).floor(), (place * (room + 1)).floor())
    spread = size.new_tensor((views.brightness, views.contrast, views.saturation, views.hue))
    boxes, factors = torch.cat([corner, size], 1).long(), size.new_tensor((1, 1, 1, 0)) + (2 * strength - 1) * spread
    flipped, jittered, gray = flip[:, 0] < views.flip, jitter[:, 0] < views.jitter, gray[:, 0] < views.gray
    return ViewDraw(boxes, flipped, jittered, order.argsort(1), factors, gray)


def view(images: Tensor, drawn: ViewDraw) -> Tensor:
    """One view of each image (n, C, H, W) with pixels in [0, 1]: the same shape. Slow reference: `view_plain`."""
    jitters = []  # which images, and the factor of each; the draws are on the CPU: a GPU is not waited for
    for which in [*range(len(_JITTER))] * len(_JITTER):
        at = torch.nonzero(drawn.jittered & (drawn.order[:, len(jitters) // len(_JITTER)] == which))[:, 0]
        jitters.append((at, drawn.factors[at, which].to(images.dtype)))
    where = drawn.boxes.to(images.dtype), drawn.flipped, torch.nonzero(drawn.gray)[:, 0], jitters
    boxes, flipped, gray, jitters = to_device(where, images.device)
    out = _resized_crop(images, boxes, flipped)
    if images.shape[1] != 3:
        return out
    for (at, factors), operation in zip(jitters, _JITTER * len(_JITTER), strict=True):
        out[at] = operation(out[at], factors[:, None, None, None])
    out[gray] = _gray(out[gray]).expand(-1, 3, -1, -1)
    return out


def two_views(images: Tensor, views: Views, generator: Generator) -> Tensor:
    """Two random views of every image (K, B, C, H, W), all first ones before all second ones: (K, 2B, C, H, W)."""
    twice = images.repeat(1, 2, 1, 1, 1)
    drawn = draw_views(views, tuple(images.shape[2:]), twice.shape[0] * twice.shape[1], generator)
    return view(twice.flatten(0, 1), drawn).view_as(twice)


def _resized_crop(images: Tensor, boxes: Tensor, flipped: Tensor) -> Tensor:
    n, _, height, width = images.shape
    places = []
    for axis, side in ((0, height), (1, width)):
        start, size = boxes[:, axis, None], boxes[:, 2 + axis, None]
        at = (torch.arange(side, device=images.device, dtype=images.dtype) + 0.5) * size / side - 0.5
        at = start + at.clamp(min=0).minimum(size - 1)  # (n, side): the crop's border is repeated
        places.append(2 * at / max(side - 1, 1) - 1)
    y, x = places[0], torch.where(flipped[:, None], places[1].flip(1), places[1])
    grid = torch.stack([x[:, None].expand(n, height, width), y[:, :, None].expand(n, height, width)], -1)
    return F.grid_sample(images, grid, "bilinear", "border", align_corners=True)


def _gray(images: Tensor) -> Tensor:
    luma = to_device(torch.tensor((0.2989, 0.587, 0.114), dtype=images.dtype), images.device)  # weights of red, green and blue
    return (images * luma[:, None, None]).sum(1, keepdim=True)  # (n, 1, H, W)


def _blended(images: Tensor, other: Tensor | float, factor: Tensor) -> Tensor:
    return (factor * images + (1 - factor) * other).clamp(0, 1)


def _turn_hue(images: Tensor, shift: Tensor) -> Tensor:
    """To hue, in sixths of the circle, and back; the largest channel and the distance to the smallest stay."""
    red, green, blue = images.split(1, 1)
    largest, smallest = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    span = largest - smallest
    over = torch.where(span > 0, span, 1)
    hue = torch.where(largest == green, 2 + (blue - red) / over, 4 + (red - green) / over)
    hue = torch.where(largest == red, (green - blue) / over, hue) + 6 * shift
    places = to_device(torch.tensor((5, 3, 1), dtype=images.dtype), images.device)
    sixths = (hue + places[:, None, None]) % 6  # (n, 3, H, W)
    return largest - span * torch.minimum(sixths, 4 - sixths).clamp(0, 1)


_JITTER = (  # brightness, contrast, saturation, hue
    lambda images, factor: _blended(images, 0.0, factor),
    lambda images, factor: _blended(images, _gray(images).mean((1, 2, 3), keepdim=True), factor),
    lambda images, factor: _blended(images, _gray(images), factor),
    _turn_hue,
)


def view_plain(image: Tensor, drawn: ViewDraw, i: int) -> Tensor:
    """View i of one image (C, H, W), by torchvision's functions: the definition."""
    from torchvision.transforms import functional as tv

    top, left, height, width = drawn.boxes[i].tolist()
    out = tv.resized_crop(image, top, left, height, width, list(image.shape[1:]), antialias=False)
    if drawn.flipped[i]:
        out = tv.hflip(out)
    if len(image) == 3 and drawn.jittered[i]:
        for which in drawn.order[i].tolist():
            adjust = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)[which]
            out = adjust(out, float(drawn.factors[i, which]))
    if len(image) == 3 and drawn.gray[i]:
        out = tv.rgb_to_grayscale(out, 3)
    return out


class TwoViews:
    """Images as two fresh random views of each: what a teacher is trained on. Labels are passed on and never looked at.

    Each `batch` is one step, whose views come from a generator keyed by its number: training goes on anywhere with the views it would
    have met. `numbers` are of the K networks that train together, where each shall meet the views that it would meet alone; None = one
    draw for all.
    """

    def __init__(self, images: ImageSet, views: Views, seed: int, step: int = 0, numbers: Sequence[int] | None = None):
        self.images, self.pixels = images, replace(images, transform=None)
        self.views, self.seed, self.step, self.numbers = views, seed, step, numbers
        self.shape, self.targets = images.shape, images.targets

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor) -> Tensor:
        """Images at `indices` (K, B), standardized after the augmentation: (K, 2B, C, H, W)."""
        pixels, key = self.pixels.batch(indices), (self.seed, "views", self.step)
        self.step += 1
        if self.numbers is None:
            views = two_views(pixels, self.views, generator(*key))
        else:
            each = zip(pixels.split(1), self.numbers, strict=True)
            views = torch.cat([two_views(one, self.views, generator(*key, number)) for one, number in each])
        return self.images.transform(views) if self.images.transform else views
