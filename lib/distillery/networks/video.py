r"""Networks of clips: a 3D ConvNet, and the ConvNet frame by frame.

A clip of T frames is one image of T * C channels, frame after frame: (N, T * C, H, W). Whatever takes images so takes clips: sets, selections,
matching, and an augmentation moves all frames alike. Networks alone see frames again.

Source of the 3D ConvNet: Dancing with Still Images (arXiv 2312.00362) and its public code: convolutions 3 x 7 x 7 to 64, 128 and 128 channels without
normalization, ReLU, max pools, an average over what is left, dropout, a classifier at each step of time, and the largest of its logits. At 400 classes
of 64 x 64 x 8 frames it has 3,692,816 parameters. The public code halves maps without looking at their size; here a stride or pool of 2 is dropped
along a side that has a single pixel left, which changes nothing at 64 pixels or more and lets smaller clips through.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor, nn

from distillery.checks import InputError, check_positive_int, is_number
from distillery.networks.convnet import ConvNet, Output, Params, Shape
from distillery.networks.module import ModuleNetwork

KERNEL = (3, 7, 7)  # time, height, width


def frames_of(clips: Tensor, frames: int) -> Tensor:
    """(..., T * C, H, W) -> (..., T, C, H, W). Raises InputError where the channels are no multiple of the frames, or these no whole number above 0."""
    check_positive_int("frames", frames)
    if clips.shape[-3] % frames:
        raise InputError(f"frames: {frames} in clips of {clips.shape[-3]} channels; accepted: a divisor of them")
    return clips.unflatten(-3, (frames, -1))


class Dropout(nn.Module):
    """Dropout whose masks come from a seed drawn with the weights and a count of batches: the same ones on every device, and no step waits for them.

    Seed and count are one buffer, which is carried like the statistics of a BatchNorm and never trained.
    """

    def __init__(self, share: float):
        super().__init__()
        self.share = share
        self.register_buffer("num_batches_tracked", torch.randint(2**40, ()))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        places = torch.arange(x.numel(), device=x.device).view(x.shape)
        kept = _mixed(places + _mixed(self.num_batches_tracked)) >= round(self.share * 2**32)
        self.num_batches_tracked += 1
        return x * kept / (1 - self.share)


def _mixed(values: Tensor) -> Tensor:
    """The last 32 bits of int64 numbers, mixed: as good as random, and no two become one. The products fit 63 bits.

    Source: the constants of a search for integer hashes (github.com/skeeto/hash-prospector).
    """
    values = values & 0xFFFFFFFF
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        values = ((values ^ (values >> shift)) * factor) & 0xFFFFFFFF
    return values ^ (values >> 15)


class _Conv3D(nn.Module):
    def __init__(self, shape: Shape, classes: int, frames: int, width: int, dropout: float):
        super().__init__()
        self.frames, layers = frames, []
        channels, sides = shape[0] // frames, [frames, *shape[1:]]

        def halved(pooling: bool, along: tuple[int, ...]) -> tuple[int, ...]:
            """Factors of 2 along the sides that have more than one pixel; a stride rounds up, a pool down."""
            factors = tuple(2 if i in along and sides[i] > 1 else 1 for i in range(3))
            sides[:] = [side // factor if pooling else -(-side // factor) for side, factor in zip(sides, factors)]
            return factors

        for i, outputs in enumerate((max(1, width // 2), width, width)):
            layers += [nn.Conv3d(channels, outputs, KERNEL, halved(False, (1, 2)), (1, 3, 3)), nn.ReLU()]
            factors = halved(True, (1, 2) if i == 0 else (0, 1, 2))
            layers.append(nn.MaxPool3d(factors, factors))
            channels = outputs
        self.features, self.map = nn.Sequential(*layers), (channels, *sides)
        last = [2 if sides[0] > 1 else 1] + [2 if min(shape[1:]) > 64 and side > 1 else 1 for side in sides[1:]]
        self.average, self.dropout = nn.AvgPool3d(tuple(last), 1), Dropout(dropout)
        self.head = nn.Linear(channels, classes)

    def forward(self, clips: Tensor) -> Tensor:
        seen = self.features(frames_of(clips, self.frames).transpose(1, 2))  # (B, C, T, H, W)
        steps = self.dropout(self.average(seen)).mean((-2, -1)).mT  # (B, time, channels); at 64 and 112 pixels one pixel is left
        return self.head(steps).amax(1)


class ConvNet3D(ModuleNetwork):
    """The 3D ConvNet behind the interface of `networks.ConvNet`. Its embedding is the flattened map before the average, as DM matches it.

    shape    (T * C, H, W) of the clips
    frames   T
    width    channels of the second and third convolution (published: 128), the first has half
    dropout  share of features set to 0 in training (published: .5)
    """

    def __init__(self, shape: Shape, classes: int, frames: int, width: int = 128, dropout: float = 0.5):
        _check(shape, frames)
        check_positive_int("width", width)
        if not is_number(dropout) or not 0 <= dropout < 1:
            raise InputError(f"dropout: {dropout!r} is not accepted; accepted: a number from 0 to below 1")
        self.shape, self.frames, self.width, self.dropout = tuple(shape), frames, width, dropout
        super().__init__(partial(_Conv3D, self.shape, classes, frames, width, dropout), f"ConvNet3D width {width}")
        self.stackable, self.channels = False, width

    def spec(self) -> dict:
        """Everything that identifies the architecture, for records."""
        names = ("classes", "frames", "width", "dropout")
        return {"network": "ConvNet3D", "shape": list(self.shape)} | {name: getattr(self, name) for name in names}

    def _forward(self, one: Params, images: Tensor) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []
        hook = self.skeleton.features.register_forward_hook(lambda _, inputs, output: seen.append(output))
        try:
            logits = torch.func.functional_call(self.skeleton, one, images)
        finally:
            hook.remove()
        return logits, seen[0].flatten(1)


@dataclass(frozen=True)
class PerFrame:
    """A network of images on every frame of a clip: the mean of their features under its classifier, so that the order of frames is lost.

    inner   of one frame, such as a `ConvNet`; K at once as it has them
    frames  T of the clips
    """

    inner: ConvNet
    frames: int

    @property
    def name(self) -> str:
        return f"{self.inner.name}, mean of {self.frames} frames"

    @property
    def classes(self) -> int:
        return self.inner.classes

    @property
    def channels(self) -> int:
        return self.inner.channels

    def spec(self) -> dict:
        return {"network": "per frame", "frames": self.frames, "of": self.inner.spec()}

    def init(self, generator: Generator, k: int = 1) -> Params:
        return self.inner.init(generator, k)

    def embed(self, params: Params, images: Tensor, train: bool = True) -> Tensor:
        """(K, B, F): the mean over frames of the embedding of each."""
        return self.apply(params, images, train).embedding

    def apply(self, params: Params, images: Tensor, train: bool = True) -> Output:
        """images (K, B, T * C, H, W), or (B, T * C, H, W) seen by all K networks."""
        seen = self.inner.apply(params, frames_of(images, self.frames).flatten(-5, -4), train)
        embedding = seen.embedding.unflatten(1, (-1, self.frames)).mean(2)
        weight, bias = (params[f"head.{part}"].to(embedding.dtype) for part in ("weight", "bias"))
        return Output(torch.baddbmm(bias[:, None], embedding, weight.mT), embedding, seen.buffers)


def _check(shape: Shape, frames: int) -> None:
    check_positive_int("frames", frames)
    if len(shape) != 3 or min(shape) < 1 or shape[0] % frames:
        raise InputError(f"shape: {tuple(shape)} of {frames} frames; accepted: (frames * channels, height, width)")
