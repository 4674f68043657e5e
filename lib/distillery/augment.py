r"""Differentiable Siamese augmentation (DSA, arXiv 2102.08259), batched and drawn from a generator.

A draw picks **one** of the families that a strategy joins by '_' ('color_crop') per group of images and three uniform
numbers per image (or per group where it is siamese: real and synthetic images then meet exactly the same transformation).
Families joined by '+' ('color+crop+cutout') are **all** applied, in that order (IDC). Drawing and applying are apart, so
a draw can be stored and applied again. Images are (G, B, C, H, W): G groups (networks, or classes) of B images.

| family | transformation, $u_i \sim U[0, 1)$ |
|---|---|
| color | brightness $x + u_0 - .5$; saturation $(x - m_c)\,2u_1 + m_c$; contrast $(x - m)(u_2 + .5) + m$ |
| crop | shift by whole pixels up to .125 of the side on both axes, zeros move in |
| cutout | zero a rectangle of half the sides around a random centre, clipped at the border |
| flip | horizontal, probability .5 |
| scale | both axes by independent $U(1/1.2, 1.2)$, bilinear, zeros outside |
| rotate | $U(-15°, 15°)$, bilinear, zeros outside |

$m_c$ is the mean over channels at each pixel, $m$ the mean of the image. `align_corners` is True, as when the published
results were made. Slow reference, one image at a time: `augment_plain`.

CutMix (arXiv 1905.04899) pastes a box of another image and mixes the labels by area. Slow reference: `cutmix_plain`.

Views for self-supervision (`Views`) are torchvision's RandomResizedCrop, horizontal flip, ColorJitter and grayscale with
the strengths of Mixed Barlow Twins' public code for CIFAR (arXiv 2312.02151). Slow reference: `view_plain`.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from distillery.checks import InputError, check_choice

FAMILIES = ("color", "crop", "cutout", "flip", "scale", "rotate")
DSA = "color_crop_cutout_flip_scale_rotate"
DSA_NO_FLIP = "color_crop_cutout_scale_rotate"  # digits and other signs that a mirror changes


@dataclass(frozen=True)
class Draw:
    """families: (G,) int64 into FAMILIES; uniforms: (G, B, 3), or (G, 1, 3) where the group shares one draw.

    Where F families follow one another: (G, F) and (G, B or 1, 3 F), three numbers for each in turn.
    """

    families: Tensor
    uniforms: Tensor

    def __getitem__(self, groups) -> "Draw":
        return Draw(self.families[groups], self.uniforms[groups])


def parse(strategy: str) -> list[int]:
    """'color_crop' or 'color+crop' -> indices into FAMILIES; '' or 'none' -> []. Raises InputError on an unknown family."""
    if strategy in ("", "none"):
        return []
    names = strategy.split("+" if "+" in strategy else "_")
    for name in names:
        check_choice("augmentation family", name, FAMILIES)
    return [FAMILIES.index(name) for name in names]


def draw(strategy: str, groups: int, n: int, generator: Generator, siamese: bool = False) -> Draw | None:
    """Draw one family per group, or all in turn, and strengths per image, or per group if `siamese`. None if nothing is to be done."""
    families = torch.tensor(parse(strategy))
    if not len(families):
        return None
    if "+" in strategy:
        picked = families.expand(groups, -1)  # (G, F)
    else:
        picked = families[torch.randint(len(families), (groups,), generator=generator)]  # (G,)
    numbers = 3 * picked[0].numel()
    uniforms = torch.rand(groups, 1 if siamese else n, numbers, generator=generator)
    return Draw(picked, uniforms)


def augment(images: Tensor, draw: Draw | None) -> Tensor:
    """Apply a draw to images (G, B, C, H, W); differentiable in the images. Slow reference: `augment_plain`."""
    if draw is None:
        return images
    if draw.families.ndim == 2:
        for families, uniforms in zip(draw.families.T, draw.uniforms.split(3, -1), strict=True):
            images = augment(images, Draw(families, uniforms))
        return images
    families = draw.families.tolist()
    uniforms = draw.uniforms.to(images.device, non_blocking=True)  # drawn on the CPU, see seeds.py
    present = sorted(set(families))
    if len(present) == 1:
        return _OPERATIONS[present[0]](images, uniforms)
    parts, order = [], []
    for family in present:
        groups = [g for g, f in enumerate(families) if f == family]
        order += groups
        here = torch.tensor(groups).to(images.device, non_blocking=True)
        parts.append(_OPERATIONS[family](images[here], uniforms[here]))
    return torch.cat(parts)[torch.tensor(order).argsort().to(images.device, non_blocking=True)]


def _strength(uniforms: Tensor, i: int) -> Tensor:
    return uniforms[..., i, None, None, None]  # (G, B|1, 1, 1, 1)


def _color(images: Tensor, uniforms: Tensor) -> Tensor:
    images = images + _strength(uniforms, 0) - 0.5
    pixel_mean = images.mean(2, keepdim=True)  # (G, B, 1, H, W)
    images = (images - pixel_mean) * (2 * _strength(uniforms, 1)) + pixel_mean
    mean = images.mean((2, 3, 4), keepdim=True)  # (G, B, 1, 1, 1)
    return (images - mean) * (_strength(uniforms, 2) + 0.5) + mean


def _shift(uniform: Tensor, side: int) -> Tensor:
    reach = int(0.125 * side + 0.5)
    return (uniform * (2 * reach + 1)).floor().long() - reach


def _crop(images: Tensor, uniforms: Tensor) -> Tensor:
    groups, n, channels, height, width = images.shape
    for axis, side in ((3, height), (4, width)):
        source = (
            torch.arange(side, device=images.device) + _shift(uniforms[..., axis - 3], side)[..., None]
        )  # (G, B|1, side)
        inside = (source >= 0) & (source < side)
        view = (groups, -1, 1, side, 1) if axis == 3 else (groups, -1, 1, 1, side)
        index = source.clamp(0, side - 1).reshape(view).expand(groups, n, channels, height, width)
        images = images.gather(axis, index) * inside.reshape(view)
    return images


def _cutout_span(uniform: Tensor, side: int) -> tuple[Tensor, Tensor]:
    size = int(0.5 * side + 0.5)
    start = (uniform * (side + 1 - size % 2)).floor().long() - size // 2
    return start, start + size


def _cutout(images: Tensor, uniforms: Tensor) -> Tensor:
    groups, _, _, height, width = images.shape
    inside = []
    for axis, side in ((0, height), (1, width)):
        start, end = _cutout_span(uniforms[..., axis], side)  # (G, B|1)
        at = torch.arange(side, device=images.device)
        inside.append((at >= start[..., None]) & (at < end[..., None]))  # (G, B|1, side)
    hole = inside[0][..., :, None] & inside[1][..., None, :]  # (G, B|1, H, W)
    return images * ~hole[:, :, None]


def _flip(images: Tensor, uniforms: Tensor) -> Tensor:
    return torch.where(_strength(uniforms, 0) < 0.5, images.flip(-1), images)


def _affine(images: Tensor, theta: Tensor) -> Tensor:
    """theta (G, B|1, 2, 3): output position -> input position, in [-1, 1] coordinates."""
    groups, n, channels, height, width = images.shape
    theta = theta.expand(groups, n, 2, 3).reshape(groups * n, 2, 3).to(images.dtype)
    grid = F.affine_grid(theta, (groups * n, channels, height, width), align_corners=True)
    flat = images.reshape(groups * n, channels, height, width)
    return F.grid_sample(flat, grid, "bilinear", "zeros", align_corners=True).reshape(images.shape)


def _scale(images: Tensor, uniforms: Tensor) -> Tensor:
    factor = uniforms[..., :2] * (1.2 - 1 / 1.2) + 1 / 1.2  # (G, B|1, 2)
    return _affine(images, F.pad(torch.diag_embed(factor), (0, 1)))


def _rotate(images: Tensor, uniforms: Tensor) -> Tensor:
    angle = (uniforms[..., 0] - 0.5) * 2 * math.radians(15)
    rows = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1)  # (G, B|1, 4)
    return _affine(images, F.pad(rows.unflatten(-1, (2, 2)), (0, 1)))


_OPERATIONS = (_color, _crop, _cutout, _flip, _scale, _rotate)


def draw_boxes(
    probability: float, n: int, height: int, width: int, generator: Generator
) -> tuple[Tensor, Tensor]:
    """CutMix for n batches: boxes (n, 4) int64 as top, bottom, left, right, and the pixel share (n,) of what is not pasted.

    With `probability` sides int(H sqrt(1 - l)) and int(W sqrt(1 - l)), l ~ Beta(1, 1), around a uniform pixel and clipped
    at the border; otherwise an empty box.
    """
    mixed, kept, *centre = torch.rand(n, 4, generator=generator).unbind(1)
    spans = []
    for uniform, side in zip(centre, (height, width), strict=True):
        half = (side * (1 - kept).sqrt()).long() // 2 * (mixed < probability)
        at = (uniform * side).long()
        spans += [(at - half).clamp(0, side), (at + half).clamp(0, side)]
    boxes = torch.stack(spans, 1)
    area = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])
    return boxes, 1 - area / (height * width)


def cutmix(images: Tensor, labels: Tensor, boxes: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Paste into each image the box of the next one of its batch, the last one's from the first. Slow reference: `cutmix_plain`.

    images  (G, B, C, H, W), in random order
    labels  (G, B, classes) soft; with weights as factors, what is pasted brings its own
    boxes   (G, 4) and the share (G,) of the image itself, from `draw_boxes`
    """
    inside = []
    for first, side in ((0, images.shape[-2]), (2, images.shape[-1])):
        at = torch.arange(side, device=images.device)
        inside.append((at >= boxes[:, first, None]) & (at < boxes[:, first + 1, None]))  # (G, side)
    box = inside[0][:, :, None] & inside[1][:, None, :]  # (G, H, W)
    share = kept[:, None, None]
    mixed = torch.where(box[:, None, None], images.roll(-1, 1), images)
    return mixed, share * labels + (1 - share) * labels.roll(-1, 1)


def cutmix_plain(images: Tensor, labels: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
    """One batch (B, C, H, W) with labels (B, classes) and one box (4,), image by image: the definition."""
    top, bottom, left, right = box.tolist()
    share = 1 - (bottom - top) * (right - left) / (images.shape[-2] * images.shape[-1])
    mixed, soft = images.clone(), labels.clone()
    for i in range(len(images)):
        other = (i + 1) % len(images)
        mixed[i, :, top:bottom, left:right] = images[other, :, top:bottom, left:right]
        soft[i] = share * labels[i] + (1 - share) * labels[other]
    return mixed, soft


def augment_plain(image: Tensor, family: str, uniforms: Tensor) -> Tensor:
    """One image (C, H, W) under one family with its three uniform numbers: the definition, pixel by pixel."""
    check_choice("augmentation family", family, FAMILIES)
    channels, height, width = image.shape
    u = [float(value) for value in uniforms]
    if family == "color":
        bright = image + u[0] - 0.5
        gray = bright.mean(0)
        saturated = torch.stack([(bright[c] - gray) * 2 * u[1] + gray for c in range(channels)])
        return (saturated - saturated.mean()) * (u[2] + 0.5) + saturated.mean()
    if family == "flip":
        return image.flip(2) if u[0] < 0.5 else image
    if family == "crop":
        down, right = (
            math.floor(u[i] * (2 * int(0.125 * s + 0.5) + 1)) for i, s in ((0, height), (1, width))
        )
        reach = (int(0.125 * height + 0.5), int(0.125 * width + 0.5))
        padded = F.pad(image, (reach[1], reach[1], reach[0], reach[0]))
        return padded[:, down : down + height, right : right + width]
    if family == "cutout":
        out = image.clone()
        sizes = (int(0.5 * height + 0.5), int(0.5 * width + 0.5))
        centres = [math.floor(u[i] * (side + 1 - sizes[i] % 2)) for i, side in ((0, height), (1, width))]
        top, left = (centres[i] - sizes[i] // 2 for i in range(2))
        out[:, max(top, 0) : max(top + sizes[0], 0), max(left, 0) : max(left + sizes[1], 0)] = 0
        return out
    if family == "scale":
        sx, sy = (1 / 1.2 + u[i] * (1.2 - 1 / 1.2) for i in range(2))
        to_source = [[sx, 0.0], [0.0, sy]]
    else:
        angle = math.radians((u[0] - 0.5) * 2 * 15)
        to_source = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    out = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            x, y = 2 * column / (width - 1) - 1, 2 * row / (height - 1) - 1
            source_x = (to_source[0][0] * x + to_source[0][1] * y + 1) / 2 * (width - 1)
            source_y = (to_source[1][0] * x + to_source[1][1] * y + 1) / 2 * (height - 1)
            for r in (math.floor(source_y), math.floor(source_y) + 1):
                for c in (math.floor(source_x), math.floor(source_x) + 1):
                    if 0 <= r < height and 0 <= c < width:
                        weight = (1 - abs(source_y - r)) * (1 - abs(source_x - c))
                        out[:, row, column] += weight * image[:, r, c]
    return out


TRIES = 10  # crops drawn for a view, of which the first that fits is taken
LUMA = (0.2989, 0.587, 0.114)  # weights of red, green and blue in a gray value


@dataclass(frozen=True)
class Views:
    """How a random view of an image with pixels in [0, 1] is made: crop, flip, jitter, gray, in this order.

    scale, ratio  of the crop: its share of the area, uniform, and width over height, log-uniform; it is resized to the whole
                  image, bilinear
    flip          probability of a mirror image, 0 for digits and other signs that a mirror changes
    jitter        probability of brightness, contrast and saturation by factors in 1 -+ their strength, and hue by a
                  shift of -+ its strength of the circle, in an order drawn for each image
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
        for name in ("flip", "jitter", "gray", "brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(
                    f"{name}: {getattr(self, name)!r} is not accepted; accepted: a number from 0 to 1"
                )
        if not 0 <= self.hue <= 0.5:
            raise InputError(f"hue: {self.hue!r} is not accepted; accepted: a number from 0 to .5")
        for name, most in (("scale", 1.0), ("ratio", math.inf)):
            low, high = getattr(self, name)
            if not 0 < low <= high <= most:
                raise InputError(
                    f"{name}: {(low, high)} is not accepted; accepted: two numbers above 0 in order"
                    + (", at most 1" if most == 1 else "")
                )


@dataclass(frozen=True)
class ViewDraw:
    """What `draw_views` drew for n views, on the CPU.

    boxes     (n, 4) int64: top, left, height, width of the crop
    flipped   (n,) bool
    jittered  (n,) bool
    order     (n, 4) int64: which of brightness, contrast, saturation, hue comes first, second, ..
    factors   (n, 4): those of brightness, contrast, saturation, and the shift of hue
    gray      (n,) bool
    """

    boxes: Tensor
    flipped: Tensor
    jittered: Tensor
    order: Tensor
    factors: Tensor
    gray: Tensor


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
    size = torch.stack([rows.gather(1, first)[:, 0], columns.gather(1, first)[:, 0]], 1)  # (n, 2)
    central = (
        min(height, max(round(width / narrow), 1)) if width / height < narrow else height,
        min(width, max(round(height * wide), 1)) if width / height > wide else width,
    )
    none = ~fits.any(1, keepdim=True)
    size = torch.where(none, size.new_tensor(central), size)
    room = size.new_tensor((height, width)) - size
    corner = torch.where(none, (room / 2).floor(), (place * (room + 1)).floor())
    spread = size.new_tensor((views.brightness, views.contrast, views.saturation, views.hue))
    return ViewDraw(
        torch.cat([corner, size], 1).long(),
        flip[:, 0] < views.flip,
        jitter[:, 0] < views.jitter,
        order.argsort(1),
        size.new_tensor((1, 1, 1, 0)) + (2 * strength - 1) * spread,
        gray[:, 0] < views.gray,
    )


def view(images: Tensor, drawn: ViewDraw) -> Tensor:
    """One view of each image (n, C, H, W) with pixels in [0, 1]: the same shape. Slow reference: `view_plain`."""
    out = _resized_crop(images, drawn)
    if images.shape[1] != 3:
        return out
    for place in range(len(_JITTER)):
        for which, operation in enumerate(_JITTER):
            # the draws are on the CPU: a GPU is not waited for
            at = torch.nonzero(drawn.jittered & (drawn.order[:, place] == which))[:, 0]
            factors = drawn.factors[at, which].to(images.device, images.dtype, non_blocking=True)
            at = at.to(images.device, non_blocking=True)
            out[at] = operation(out[at], factors[:, None, None, None])
    at = torch.nonzero(drawn.gray)[:, 0].to(images.device, non_blocking=True)
    out[at] = _gray(out[at]).expand(-1, 3, -1, -1)
    return out


def two_views(images: Tensor, views: Views, generator: Generator) -> Tensor:
    """Two random views of every image (K, B, C, H, W), all first ones before all second ones: (K, 2B, C, H, W)."""
    twice = images.repeat(1, 2, 1, 1, 1)
    drawn = draw_views(views, tuple(images.shape[2:]), twice.shape[0] * twice.shape[1], generator)
    return view(twice.flatten(0, 1), drawn).view_as(twice)


def _resized_crop(images: Tensor, drawn: ViewDraw) -> Tensor:
    n, _, height, width = images.shape
    boxes = drawn.boxes.to(images.device, images.dtype, non_blocking=True)
    flipped = drawn.flipped.to(images.device, non_blocking=True)[:, None]
    places = []
    for axis, side in ((0, height), (1, width)):
        start, size = boxes[:, axis, None], boxes[:, 2 + axis, None]
        at = (torch.arange(side, device=images.device, dtype=images.dtype) + 0.5) * size / side - 0.5
        at = start + at.clamp(min=0).minimum(size - 1)  # (n, side): the crop's border is repeated
        places.append(2 * at / max(side - 1, 1) - 1)
    y, x = places[0], torch.where(flipped, places[1].flip(1), places[1])
    grid = torch.stack([x[:, None].expand(n, height, width), y[:, :, None].expand(n, height, width)], -1)
    return F.grid_sample(images, grid, "bilinear", "border", align_corners=True)


def _gray(images: Tensor) -> Tensor:
    return (images * images.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)  # (n, 1, H, W)


def _brighten(images: Tensor, factor: Tensor) -> Tensor:
    return (factor * images).clamp(0, 1)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    mean = _gray(images).mean((1, 2, 3), keepdim=True)  # (n, 1, 1, 1)
    return (factor * images + (1 - factor) * mean).clamp(0, 1)


def _saturate(images: Tensor, factor: Tensor) -> Tensor:
    return (factor * images + (1 - factor) * _gray(images)).clamp(0, 1)


def _turn_hue(images: Tensor, shift: Tensor) -> Tensor:
    """To hue, in sixths of the circle, and back; the largest channel and the distance to the smallest stay."""
    red, green, blue = images.split(1, 1)
    largest, smallest = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    span = largest - smallest
    over = torch.where(span > 0, span, 1)
    hue = torch.where(largest == green, 2 + (blue - red) / over, 4 + (red - green) / over)
    hue = torch.where(largest == red, (green - blue) / over, hue) + 6 * shift
    sixths = (hue + images.new_tensor((5, 3, 1))[:, None, None]) % 6  # (n, 3, H, W)
    return largest - span * torch.minimum(sixths, 4 - sixths).clamp(0, 1)


_JITTER = (_brighten, _contrast, _saturate, _turn_hue)


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
