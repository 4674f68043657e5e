"""A published network sees images of any set as it was trained to: resized, and standardized by its own constants."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillery import store
from distillery.checks import InputError, first_line
from distillery.data import ImageSet
from distillery.networks import ModuleNetwork, Output, Params


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects: images of `side` pixels, resized antialiased ('bilinear' or 'bicubic'), of [0, 1] less `mean` over `std` (3,)."""

    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"


class Preprocessed(ModuleNetwork):
    """A module of three channels behind the interface of networks, for the images of a set at any size.

    Images come standardized by the set: that is undone, they are resized as a whole, gray ones repeated to three channels, and standardized as
    `expected`. Augmentation happens before, at the set's own size. A fresh classifier is drawn as PyTorch draws linear layers: timm draws
    that of an EfficientNet by the number of classes, ten times as wide for ten of them, and the first steps of a fine-tuning then undo the encoder.

    raises  InputError on images of two, or more than three channels, and on a side that the module does not take
    """

    def __init__(self, build: Callable[[], nn.Module], name: str, expected: Preprocessing, images: ImageSet):
        def fresh() -> nn.Module:
            module = build()
            [one for one in module.modules() if isinstance(one, nn.Linear)][-1].reset_parameters()
            return module

        super().__init__(fresh, name)
        self.expected, self.transform = expected, images.transform
        if images.shape[0] not in (1, 3):
            raise InputError(f"encoder: images of {images.shape[0]} channels with {name}; accepted: 3, or 1, which is repeated")
        try:
            self.skeleton.eval()(torch.empty(1, 3, expected.side, expected.side, device="meta"))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise InputError(f"encoder: {name} at {expected.side} pixels: {first_line(error)}; accepted: a side that it takes") from error

    def spec(self) -> dict:
        """Of hundreds of tensors a digest of names and shapes."""
        full = super().spec()
        return full | {"weights": store.identity("weights", 1, full.pop("weights"), ""), "expected": asdict(self.expected)}

    def apply(self, params: Params, images: Tensor, train: bool = True) -> Output:
        return super().apply(params, self.prepared(images), train)

    def prepared(self, images: Tensor) -> Tensor:
        """Images (..., C, H, W) as the set standardizes them -> (..., 3, side, side) as the network expects them."""
        expected, whole = self.expected, images.float()
        pixels = (self.transform.inverse(whole) if self.transform else whole).flatten(0, -4)  # (N, C, H, W) in [0, 1]
        if pixels.shape[-2:] != (expected.side, expected.side):
            pixels = F.interpolate(pixels, (expected.side,) * 2, mode=expected.interpolation, antialias=True, align_corners=False)
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (expected.mean, expected.std))
        seen = ((pixels - mean) / std).to(images.dtype)  # one channel becomes three here
        # channels last: a training step of EfficientNet on a CPU takes .6 of the time
        return seen.contiguous(memory_format=torch.channels_last).unflatten(0, images.shape[:-3])
