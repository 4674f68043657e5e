"""The synthetic set: named tensors, how stored images become used images, and files that outlive this package."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from distillery import store
from distillery.checks import InputError, check_choice, check_finite
from distillery.data.images import transform_of

FORMATIONS = {"identity": 1, "partition2": 4}  # images that one stored image holds
INTERPOLATIONS = ("bilinear", "nearest")  # how real images shrink into a stored one


@dataclass(frozen=True)
class TensorSource:
    """Images and targets held as float tensors: what a network trains on, beside `ImageSet`."""

    images: Tensor  # (N, C, H, W)
    targets: Tensor  # (N,) int64, (N, classes) soft, or (N, D) real-valued

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.images.shape[1:])

    @property
    def device(self) -> torch.device:
        return self.images.device

    def batch(self, indices: Tensor) -> Tensor:
        return self.images[indices]


@dataclass(frozen=True, eq=False)
class Synthetic:
    """A synthetic (or selected) set.

    tensors    'images' (M, C, H, W) standardized floats; 'targets': (M,) int64 labels, (M, classes) soft labels, (M, f^2, classes) of each
               of the f^2 images that a stored one holds, or (M, D) real values; further learned tensors by name: 'label_logits'
               (M, classes), whose softmax then stands for the targets, and 'step_size' (), the rate the set was made for
    classes    class names, None where there are no classes
    formation  'identity', or 'partition2': each stored image is a 2 x 2 grid of four images, enlarged bilinearly
    raises     InputError on an unknown formation, no images, or another number of targets, or of labels of a stored image
    """

    tensors: dict[str, Tensor]
    classes: tuple[str, ...] | None = None
    formation: str = "identity"
    card: dict = field(default_factory=dict)
    _groups: dict = field(default_factory=dict, repr=False)  # `classes_present`, once for all sets with these targets

    def __post_init__(self):
        check_choice("formation", self.formation, FORMATIONS)
        images, targets = self.tensors.get("images"), self.tensors.get("targets")
        if images is None or targets is None or images.ndim != 4 or len(images) != len(targets) or len(images) == 0:
            found = ["missing" if value is None else str(tuple(value.shape)) for value in (images, targets)]
            raise InputError(f"synthetic set: images {found[0]} with targets {found[1]}; accepted: (M, C, H, W) with (M, ...), M > 0")
        if targets.ndim > 2 and targets.shape[1] != FORMATIONS[self.formation]:
            accepted = f"{FORMATIONS[self.formation]}, as many as images in a stored one"
            raise InputError(
                f"synthetic set: {targets.shape[1]} labels of a stored image of formation {self.formation!r}; accepted: {accepted}"
            )

    def __len__(self) -> int:
        return len(self.tensors["images"])

    @property
    def device(self) -> torch.device:
        return self.tensors["images"].device

    def replace(self, **tensors: Tensor) -> "Synthetic":
        """The same set with some tensors replaced."""
        return replace(self, tensors=self.tensors | tensors, _groups={} if "targets" in tensors else self._groups)

    def decode(self, indices: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The images and targets to train on: (M * f^2, C, H, W) and (M * f^2, ...), f the factor of the formation.

        indices  (m,) stored images to decode, None = all; copies of one stored image are neighbours
        """
        images, targets = self.tensors["images"], self.tensors["targets"]
        if "label_logits" in self.tensors:
            targets = self.tensors["label_logits"].softmax(-1)
        if indices is not None:
            images, targets = images[indices], targets[indices]
        each = targets.flatten(0, 1) if targets.ndim > 2 else targets.repeat_interleave(FORMATIONS[self.formation], 0)
        return form(images, self.formation), each

    def classes_present(self) -> tuple[Tensor, Tensor]:
        """(labels present (classes,) on the CPU, the decoded images of each (classes, m) on the device).

        Computed once and carried along by `replace`, so that no step waits for the device. Raises InputError if classes have different counts.
        """
        if not self._groups:
            targets = self.decode()[1]
            labels, counts = targets.cpu().unique(return_counts=True)
            if len(counts.unique()) != 1:
                raise InputError(f"images per class: {counts.tolist()}; accepted: the same number in every class")
            self._groups.update(labels=labels, members=targets.argsort(stable=True).unflatten(0, (len(labels), -1)))
        return self._groups["labels"], self._groups["members"]

    def stored_by_class(self) -> Tensor:
        """The stored images of each class present, (classes, m) on the device."""
        copies = FORMATIONS[self.formation]
        return self.classes_present()[1][:, ::copies] // copies

    def source(self) -> TensorSource:
        """What a network trains on, without gradients."""
        with torch.no_grad():
            return TensorSource(*(value.detach() for value in self.decode()))

    def to(self, device) -> "Synthetic":
        return replace(self, tensors={name: value.to(device) for name, value in self.tensors.items()}, _groups={})

    def stored_numbers(self) -> int:
        """Numbers stored beside hard labels: pixels, soft labels, step sizes."""
        return sum(value.numel() for value in self.tensors.values() if value.is_floating_point())


def hard(source):
    """A source, or an ImageSet, under the likeliest class of each image."""
    return replace(source, targets=source.targets.argmax(1)) if source.targets.is_floating_point() else source


def form(images: Tensor, formation: str) -> Tensor:
    """Stored images (M, C, H, W) as used: (M * f^2, C, H, W), those of one stored image are neighbours."""
    if formation == "identity":
        return images
    height, width = images.shape[2:]
    rows, columns = _halves(height, width)
    stacked = torch.stack([images[:, :, row, column] for row in rows for column in columns], 1).flatten(0, 1)  # (4M, C, H/2, W/2)
    return F.interpolate(stacked, size=(height, width), mode="bilinear", align_corners=False)


def _halves(*sides: int) -> list[tuple[slice, slice]]:
    return [(slice(side // 2), slice(side - side // 2, side)) for side in sides]


def pack(images: Tensor, formation: str, mode: str = "bilinear") -> Tensor:
    """Images (M * f^2, C, H, W) shrunk into stored ones (M, C, H, W), neighbours into one: where `form` finds them again.

    mode    'bilinear' without smoothing, the mean of 2 x 2 pixels where sides are even; or 'nearest', every other pixel (IDC)
    raises  InputError on an unknown mode, or a number of images that fills no whole ones
    """
    check_choice("formation", formation, FORMATIONS)
    check_choice("mode", mode, INTERPOLATIONS)
    if formation == "identity":
        return images
    if len(images) % FORMATIONS[formation]:
        raise InputError(f"images: {len(images)} with formation {formation!r}; accepted: a multiple of {FORMATIONS[formation]}")
    height, width = images.shape[2:]
    options = {"align_corners": False} if mode == "bilinear" else {}
    return tiled(F.interpolate(images, size=(height // 2, width // 2), mode=mode, **options), height, width)


def tiled(small: Tensor, height: int, width: int) -> Tensor:
    """Images (M * 4, C, H // 2, W // 2) as stored ones (M, C, H, W), neighbours in one: where `form` of 'partition2' finds them."""
    packed = small.new_zeros(len(small) // 4, small.shape[1], height, width)  # `form` does not read the middle line of an odd side
    rows, columns = _halves(height, width)
    for i in range(4):
        packed[:, :, rows[i // 2], columns[i % 2]] = small[i::4]
    return packed


def export(synthetic: Synthetic, path: str | Path, card: dict, transform=None) -> Path:
    """Write a set for others: NAME.safetensors, NAME.json (what it is) and NAME.safetensors.sha256.

    `transform` is the standardization the images live in; its tensors are stored as 'transform.*', so that `images * std + mean` gives
    pixels in [0, 1]. Learned labels are written as soft 'targets'. The images that the set started from, card['start'] of the set, are
    stored as bytes under 'start': they are no part of it. `safetensors.torch.load_file` reads it without this package.
    """
    path = Path(path).with_suffix(".safetensors")
    for name, value in synthetic.tensors.items():
        if value.is_floating_point():
            check_finite(f"synthetic {name}", value)
    tensors = dict(synthetic.tensors)
    if "label_logits" in tensors:  # readers take 'targets': the soft labels themselves
        tensors["targets"] = tensors.pop("label_logits").softmax(-1)
    tensors |= {f"transform.{name}": value for name, value in (vars(transform) if transform else {}).items()}
    if transform and (start := synthetic.card.get("start")) is not None:
        tensors["start"] = (transform.inverse(start).clamp(0, 1) * 255).round().to(torch.uint8)
    card = {
        "format": "distillery synthetic set, version 1",
        "classes": list(synthetic.classes) if synthetic.classes else None,
        "formation": synthetic.formation,
        "shapes": {name: list(value.shape) for name, value in tensors.items()},
        "stored_numbers": synthetic.stored_numbers(),
        **card,
    }
    store.save_tensors(path, tensors, card)
    digest = store.file_digest(path)
    store.write_bytes(path.with_name(path.name + ".sha256"), f"{digest}  {path.name}\n".encode())
    store.write_json(path.with_suffix(".json"), card | {"sha256": digest})
    return path


def unit_pixels(made: Synthetic) -> Tensor:
    """The images of a set that `load` read, as used (M, C, H, W), in [0, 1]: by the transform in its file, clipped.

    Raises InputError where the file does not say how they were standardized or whitened.
    """
    return transform_of(made.card["transform"]).inverse(made.decode()[0]).clamp(0, 1)


def load(path: str | Path) -> Synthetic:
    """Read an exported set; card['transform'] holds the tensors of its standardization, card['start'] the images that it started from,
    standardized, where the file has them. Raises InputError if it is truncated, corrupt, or no synthetic set of finite numbers."""
    tensors, card = store.load_tensors(path)
    if not str(card.get("format", "")).startswith("distillery synthetic set"):
        raise InputError(f"{path} is {card.get('format', 'something else')!r}; accepted: an exported synthetic set")
    transform = {name.removeprefix("transform."): tensors.pop(name) for name in list(tensors) if name.startswith("transform.")}
    start = tensors.pop("start", None)
    card = card | {"transform": transform, "start": None if start is None else transform_of(transform)(start / 255)}
    classes = card.get("classes") or ()
    if not isinstance(classes, list | tuple) or not all(isinstance(name, str) for name in classes):
        raise InputError(f"{path}: classes {classes!r}; accepted: a list of names")
    for name, value in tensors.items():
        store.check_plain(f"{path}: {name}", value)
        check_finite(f"{path}: {name}", value)
    try:
        return Synthetic(tensors, tuple(classes) or None, card.get("formation"), card)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
