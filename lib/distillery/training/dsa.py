r"""Differentiable Siamese augmentation (DSA, arXiv 2102.08259), batched and drawn from a generator.

A draw picks **one** of the families that a strategy joins by '_' ('color_crop') per group of images and three uniform numbers per image
(or per group where it is siamese: real and synthetic images then meet exactly the same transformation). What is joined by '+'
('color+crop+cutout', 'flip+crop_scale') is **all** applied, in that order (IDC). Drawing and applying are apart, so a draw can be
stored and applied again. Images are (G, B, C, H, W): G groups (networks, or classes) of B images.

| family | transformation, $u_i \sim U[0, 1)$ |
|---|---|
| color | brightness $x + u_0 - .5$; saturation $(x - m_c)\,2u_1 + m_c$; contrast $(x - m)(u_2 + .5) + m$ |
| crop | shift by whole pixels up to .125 of the side on both axes, zeros move in |
| cutout | zero a rectangle of half the sides around a random centre, clipped at the border |
| flip | horizontal, probability .5 |
| scale | both axes by independent $U(1/1.2, 1.2)$, bilinear, zeros outside |
| rotate | $U(-15°, 15°)$, bilinear, zeros outside |

$m_c$ is the mean over channels at each pixel, $m$ the mean of the image. `align_corners` is True, as when the published results were
made. CutMix (arXiv 1905.04899) pastes a box of another image and mixes the labels by area. Slow references, one image at a time:
`augment_plain`, `cutmix_plain`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from distillery.checks import check_choice
from distillery.upload import to_device

FAMILIES = ("color", "crop", "cutout", "flip", "scale", "rotate")
DSA = "color_crop_cutout_flip_scale_rotate"
DSA_NO_FLIP = "color_crop_cutout_scale_rotate"


@dataclass(frozen=True)
class Draw:
    """families: (G,) int64 into FAMILIES; uniforms: (G, B, 3), or (G, 1, 3) where the group shares one draw.

    Where F families follow one another: (G, F) and (G, B or 1, 3 F), three numbers for each in turn.
    """

    families: Tensor
    uniforms: Tensor

    def __getitem__(self, groups) -> "Draw":
        return Draw(self.families[groups], self.uniforms[groups])


def parse(strategy: str) -> list[list[int]]:
    """'color+crop_scale' -> indices into FAMILIES, those of one step after another; '' or 'none' -> []. Raises InputError on an unknown family."""
    parts = [] if strategy in ("", "none") else [part.split("_") for part in strategy.split("+")]
    for name in (name for part in parts for name in part):
        check_choice("augmentation family", name, FAMILIES)
    return [[FAMILIES.index(name) for name in part] for part in parts]


def without_flip(strategy: str) -> str:
    """A strategy without mirroring, for digits and other signs that a mirror changes."""
    parts = (part.split("_") for part in strategy.split("+"))
    return "+".join(filter(None, ("_".join(name for name in part if name != "flip") for part in parts)))


def draw(strategy: str, groups: int, n: int, generator: Generator, siamese: bool = False) -> Draw | None:
    """Draw one family per group, or one for each step, and strengths per image, or per group if `siamese`. None if nothing is to be done."""
    parts = [torch.tensor(part) for part in parse(strategy)]
    if not parts:
        return None
    among = [len(part) if len(part) > 1 or len(parts) == 1 else 0 for part in parts]  # of a single one nothing is drawn
    at = [torch.randint(n, (groups,), generator=generator) if n else torch.zeros(groups, dtype=torch.int64) for n in among]
    families = torch.stack([part[i] for part, i in zip(parts, at, strict=True)], 1)  # (G, F)
    families = families if len(parts) > 1 else families[:, 0]  # (G,)
    return Draw(families, torch.rand(groups, 1 if siamese else n, 3 * families[0].numel(), generator=generator))


def augment(images: Tensor, draw: Draw | None) -> Tensor:
    """Apply a draw to images (G, B, C, H, W); differentiable in the images. Slow reference: `augment_plain`."""
    if draw is None:
        return images
    if draw.families.ndim == 2:
        for families, uniforms in zip(draw.families.T, draw.uniforms.split(3, -1), strict=True):
            images = augment(images, Draw(families, uniforms))
        return images
    present = sorted(set(draw.families.tolist()))
    if len(present) == 1:
        return _OPERATIONS[present[0]](images, to_device(draw.uniforms, images.device))
    groups = [torch.nonzero(draw.families == family)[:, 0] for family in present]  # on the CPU: a GPU is not waited for
    uniforms, order, *here = to_device([draw.uniforms, torch.cat(groups).argsort(), *groups], images.device)
    parts = [_OPERATIONS[family](images[at], uniforms[at]) for family, at in zip(present, here, strict=True)]
    return torch.cat(parts)[order]


def _strength(uniforms: Tensor, i: int) -> Tensor:
    return uniforms[..., i, None, None, None]  # (G, B|1, 1, 1, 1)


def _color(images: Tensor, uniforms: Tensor) -> Tensor:
    images = images + _strength(uniforms, 0) - 0.5
    pixel_mean = images.mean(2, keepdim=True)  # (G, B, 1, H, W)
    images = (images - pixel_mean) * (2 * _strength(uniforms, 1)) + pixel_mean
    mean = images.mean((2, 3, 4), keepdim=True)  # (G, B, 1, 1, 1)
    return (images - mean) * (_strength(uniforms, 2) + 0.5) + mean


def _crop(images: Tensor, uniforms: Tensor) -> Tensor:
    for axis, side in ((3, images.shape[3]), (4, images.shape[4])):
        reach = int(0.125 * side + 0.5)
        shift = (uniforms[..., axis - 3, None] * (2 * reach + 1)).floor().long() - reach  # (G, B|1, 1)
        source = torch.arange(side, device=images.device) + shift  # (G, B|1, side)
        inside = (source >= 0) & (source < side)
        view = (len(images), -1, 1, side, 1) if axis == 3 else (len(images), -1, 1, 1, side)
        index = source.clamp(0, side - 1).reshape(view).expand(images.shape)
        images = images.gather(axis, index) * inside.reshape(view)
    return images


def _inside(boxes: Sequence[Tensor], height: int, width: int) -> Tensor:
    """Where the pixels of boxes are, (..., H, W), from their tops, bottoms (excluded), lefts and rights (...)."""
    top, bottom, left, right = (edge[..., None] for edge in boxes)
    rows, columns = torch.arange(height, device=top.device), torch.arange(width, device=top.device)
    return ((rows >= top) & (rows < bottom))[..., :, None] & ((columns >= left) & (columns < right))[..., None, :]


def _cutout(images: Tensor, uniforms: Tensor) -> Tensor:
    edges = []
    for axis, side in enumerate(images.shape[3:]):
        size = int(0.5 * side + 0.5)
        start = (uniforms[..., axis] * (side + 1 - size % 2)).floor().long() - size // 2  # (G, B|1)
        edges += [start, start + size]
    return images * ~_inside(edges, *images.shape[3:])[:, :, None]


def _flip(images: Tensor, uniforms: Tensor) -> Tensor:
    return torch.where(_strength(uniforms, 0) < 0.5, images.flip(-1), images)


def _affine(images: Tensor, theta: Tensor) -> Tensor:
    """theta (G, B|1, 2, 3): output position -> input position, in [-1, 1] coordinates."""
    flat = images.flatten(0, 1)  # (G*B, C, H, W)
    theta = theta.expand(*images.shape[:2], 2, 3).reshape(-1, 2, 3).to(images.dtype)
    grid = F.affine_grid(theta, list(flat.shape), align_corners=True)
    return F.grid_sample(flat, grid, "bilinear", "zeros", align_corners=True).reshape(images.shape)


def _scale(images: Tensor, uniforms: Tensor) -> Tensor:
    factor = uniforms[..., :2] * (1.2 - 1 / 1.2) + 1 / 1.2  # (G, B|1, 2)
    return _affine(images, F.pad(torch.diag_embed(factor), (0, 1)))


def _rotate(images: Tensor, uniforms: Tensor) -> Tensor:
    angle = (uniforms[..., 0] - 0.5) * 2 * math.radians(15)
    rows = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1)  # (G, B|1, 4)
    return _affine(images, F.pad(rows.unflatten(-1, (2, 2)), (0, 1)))


_OPERATIONS = (_color, _crop, _cutout, _flip, _scale, _rotate)


def draw_boxes(probability: float, n: int, height: int, width: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """CutMix for n batches: boxes (n, 4) int64 as top, bottom, left, right, and the pixel share (n,) of what is not pasted.

    With `probability` sides int(H sqrt(1 - l)) and int(W sqrt(1 - l)), l ~ Beta(1, 1), around a uniform pixel and clipped at the border;
    otherwise an empty box.
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
    box, share = _inside(boxes.unbind(1), *images.shape[-2:]), kept[:, None, None]  # (G, H, W)
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
        down, right = (math.floor(u[i] * (2 * int(0.125 * s + 0.5) + 1)) for i, s in ((0, height), (1, width)))
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
