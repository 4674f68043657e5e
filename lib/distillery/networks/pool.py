"""The cross-architecture pool: MLP, LeNet, AlexNet, VGG11, ResNet10, ResNet18, ResNet18_AP and a small ViT beside the ConvNet.

Layers and sizes are those of the field's shared pool (`networks.py` of the public code of DC, DSA and DM,
github.com/VICO-UoE/DatasetCondensation), written for 32 x 32 color and 28 x 28 gray images. The ViT has no counterpart there: width and
heads are those of ViT-Ti (arXiv 2012.12877); ResNet10 is that of MKDT's public code. Initialization is PyTorch's default everywhere; the ViT's positions are drawn as the
weights of a linear layer, its class token starts at zero.

Rules for other image sizes, which change nothing at the published ones:

- Images of 28 x 28 gray are padded to 32 x 32 in the first convolution of AlexNet, VGG11 and LeNet (as in `ConvNet`).
- A pool or stride of 2 is dropped where it would leave a map under 2 pixels on the shorter side, because an instance normalization
  over one pixel gives a constant. The last pool of LeNet, AlexNet and VGG11, which nothing normalizes, may leave 1 pixel.
- LeNet's unpadded 5 x 5 convolutions are padded by 2 where the shorter side has fewer than 28 pixels.
- Larger images give larger maps: the classifier reads the flattened map; ResNet18 reads its average over the map.
- ViT: patches of 2^round(log2(side / 8)) pixels, at least 2 (4 at 28 and 32, 8 at 64), the image padded with zeros to whole patches;
  depth 2 * `networks.depth_for` (4 at 8 and 16, 6 at 28 and 32, 8 at 64).
"""

import math
from collections import OrderedDict
from contextlib import suppress
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillery.checks import InputError, check_choice, check_positive, check_positive_int
from distillery.networks.convnet import NORMALIZATIONS, ConvNet, Shape, depth_for
from distillery.networks.module import ModuleNetwork

SMALLEST = 4  # pixels on the shorter side


def resnet(
    shape: Shape, classes: int, width: float = 1.0, normalization: str = "instance", average: bool = False, blocks: int = 2
) -> nn.Module:
    """3x3 stem, basic blocks of 64-128-256-512, strides 1-2-2-2, average over the map, one linear layer.

    average  2x2 average pools for the strides, and the linear layer reads the whole map, flattened: ResNet18_AP
    blocks   of each width: 1 = ResNet10, 2 = ResNet18
    """
    channels, sides = _scaled(64, width), shape[1:]
    stem = nn.Conv2d(shape[0], channels, 3, padding=1, bias=False)
    layers = OrderedDict(conv=stem, norm=_norm(normalization, channels), act=nn.ReLU())
    for i, planes in enumerate(_scaled(planes, width) for planes in (64, 128, 256, 512)):
        # a strided convolution rounds the map up, a pool rounds it down
        halved = [side // 2 if average else (side + 1) // 2 for side in sides]
        stride = 2 if i > 0 and min(halved) >= 2 else 1
        layers[f"block{i}a"] = _BasicBlock(channels, planes, stride, normalization, average)
        if blocks == 2:
            layers[f"block{i}b"] = _BasicBlock(planes, planes, 1, normalization, average)
        channels, sides = planes, halved if stride == 2 else sides
    if not average:
        layers["average"] = nn.AdaptiveAvgPool2d(1)
    head = nn.Linear(channels * (math.prod(sides) if average else 1), classes)
    return nn.Sequential(layers | {"flatten": nn.Flatten(), "head": head})


def _scaled(channels: int, width: float) -> int:
    return max(round(channels * width), 1)


def _norm(normalization: str, channels: int) -> nn.Module:
    """'instance' is the field's: a GroupNorm of one channel a group, affine, without running statistics."""
    return nn.GroupNorm(channels, channels) if normalization == "instance" else nn.BatchNorm2d(channels)


def _in_a_row(
    shape: Shape, classes: int, width: float, normalization: str, groups=(), kernels=(), hidden=(), unpadded: float = math.inf
) -> nn.Sequential:
    """Groups of convolutions with ReLU, a max pool behind each, then linear layers with ReLU on the flattened map, and the classifier.

    groups, kernels  channels of the convolutions of each group, and the side of its kernels
    hidden           sizes of the linear layers
    unpadded         pixels on the shorter side of an image from which on convolutions do not keep the size of the map
    """
    same = min(shape[1:]) < unpadded
    layers, (channels, *sides), i = OrderedDict(), shape, 0
    for group, kernel in zip(groups, kernels, strict=True):
        for outputs in (_scaled(n, width) for n in group):
            padding = (kernel // 2 if same else 0) + (2 if i == 0 and tuple(shape) == (1, 28, 28) else 0)
            layers[f"conv{i}"] = nn.Conv2d(channels, outputs, kernel, padding=padding)
            if normalization != "none":
                layers[f"norm{i}"] = _norm(normalization, outputs)
            layers[f"act{i}"] = nn.ReLU()
            channels, sides, i = outputs, [side + 2 * padding - kernel + 1 for side in sides], i + 1
        least = 1 if i == sum(map(len, groups)) else 2  # pixels that a pool may leave
        if min(sides) // 2 >= least:
            layers[f"pool{i - 1}"], sides = nn.MaxPool2d(2), [side // 2 for side in sides]
    layers["flatten"] = nn.Flatten()
    sizes = [channels * math.prod(sides), *(_scaled(n, width) for n in hidden)]
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        layers |= {f"fc{i}": nn.Linear(inputs, outputs), f"fc_act{i}": nn.ReLU()}
    return nn.Sequential(layers | {"head": nn.Linear(sizes[-1], classes)})


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; `average` halves the map by a pool behind the first instead of by its stride."""

    def __init__(self, channels: int, planes: int, stride: int, normalization: str, average: bool):
        super().__init__()
        strided, pooled = (1, stride) if average else (stride, 1)
        self.conv0 = nn.Conv2d(channels, planes, 3, strided, padding=1, bias=False)
        self.norm0 = _norm(normalization, planes)
        self.pool = nn.AvgPool2d(pooled) if pooled > 1 else nn.Identity()
        self.conv1 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.norm1 = _norm(normalization, planes)
        self.shortcut = nn.Identity()
        if stride > 1 or channels != planes:
            projected = nn.Conv2d(channels, planes, 1, strided, bias=False)
            self.shortcut = nn.Sequential(projected, self.pool, _norm(normalization, planes))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.pool(F.relu(self.norm0(self.conv0(x))))
        return F.relu(self.norm1(self.conv1(inner)) + self.shortcut(x))


class _VisionTransformer(nn.Module):
    """Pre-norm transformer of width 192, 3 heads, MLP ratio 4, class token, learned positions."""

    def __init__(self, shape: Shape, classes: int, width: float = 1.0, normalization: str = "layer"):
        super().__init__()
        channels, patch = 3 * _scaled(64, width), max(2 ** round(math.log2(min(shape[1:]) / 8)), 2)
        self.pads = (0, -shape[2] % patch, 0, -shape[1] % patch)  # right and bottom, to whole patches
        self.patches = nn.Conv2d(shape[0], channels, patch, patch)
        self.token = nn.Parameter(torch.zeros(channels))
        tokens, bound = 1 + math.prod(math.ceil(side / patch) for side in shape[1:]), 1 / math.sqrt(channels)
        self.positions = nn.Parameter(torch.empty(tokens, channels).uniform_(-bound, bound))
        self.blocks = nn.Sequential(*(_Transformer(channels, heads=3) for _ in range(2 * depth_for(shape))))
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(F.pad(images, self.pads)).flatten(2).mT  # (B, T, channels)
        tokens = torch.cat([self.token.expand(len(tokens), 1, -1), tokens], dim=1) + self.positions  # (B, 1 + T, channels)
        return self.head(self.norm(self.blocks(tokens)[:, 0]))


class _Transformer(nn.Module):
    """Attention, then a two-layer perceptron, each behind a LayerNorm and beside a shortcut."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm0, self.norm1 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.project = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        b, t, channels = x.shape
        q, k, v = self.qkv(self.norm0(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # each (B, heads, T, channels / heads)
        # written out, because the fused kernels have no second derivative, which gradient matching needs
        attention = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)  # (B, heads, T, T)
        x = x + self.project((attention @ v).transpose(1, 2).reshape(b, t, channels))
        return x + self.mlp(self.norm1(x))


POOL = {  # name -> factory of (shape, classes, width, normalization), and the normalizations it takes, the field's default first
    "MLP": (partial(_in_a_row, hidden=[128, 128]), ("none",)),
    "LeNet": (partial(_in_a_row, groups=[[6], [16]], kernels=[5, 5], hidden=[120, 84], unpadded=28), ("none",)),
    "AlexNet": (partial(_in_a_row, groups=[[128], [192], [256, 192, 192]], kernels=[5, 5, 3]), ("none",)),
    # configuration A
    "VGG11": (partial(_in_a_row, groups=[[64], [128], [256, 256], [512, 512], [512, 512]], kernels=[3] * 5), ("instance", "batch")),
    "ResNet10": (partial(resnet, blocks=1), ("instance", "batch")),
    "ResNet18": (resnet, ("instance", "batch")),
    "ResNet18_AP": (partial(resnet, average=True), ("instance", "batch")),
    "ViT": (_VisionTransformer, ("layer",)),
}
NAMES = ("ConvNet", *POOL)


class PoolNetwork(ModuleNetwork):
    """A member of `POOL` behind the interface of `networks.ConvNet`. Build it with `build`."""

    def __init__(self, architecture: str, shape: Shape, classes: int, width: float, normalization: str):
        self.architecture, self.shape, self.width, self.normalization = architecture, tuple(shape), width, normalization
        make = partial(POOL[architecture][0], self.shape, classes, width, normalization)
        super().__init__(make, f"{architecture} width x{width:g}, {normalization} norm")

    def spec(self) -> dict:
        """Everything that identifies the architecture, for records."""
        names = ("classes", "width", "normalization")
        return {"network": self.architecture, "shape": list(self.shape)} | {name: getattr(self, name) for name in names}


def build(name: str, shape: Shape, classes: int, width: float = 1.0, normalization: str = "") -> ConvNet | PoolNetwork:
    """A network of the pool: `init`, `apply`, `embed`, `spec`, `name`, `classes`.

    name           one of NAMES
    shape          (C, H, W) of the images, at least 4 pixels a side
    width          factor on all hidden widths, 1 = published (ConvNet: 128 channels); results are rounded, at least 1
    normalization  '' = the field's default; see `POOL` (ConvNet: NORMALIZATIONS)
    raises         InputError on an unknown name or normalization, a width that is not positive, too small images
    """
    check_choice("network", name, NAMES)
    accepted = NORMALIZATIONS if name == "ConvNet" else POOL[name][1]
    normalization = normalization or accepted[0]
    check_choice(f"normalization of {name}", normalization, accepted)
    check_positive_int("classes", classes)
    check_positive("width", width)
    if len(shape) != 3 or min(shape) < 1 or min(shape[1:]) < SMALLEST:
        raise InputError(f"shape: {tuple(shape)} is not accepted; accepted: (channels, height, width), {SMALLEST} pixels a side or more")
    if name == "ConvNet":
        return ConvNet(shape, classes, _scaled(128, width), normalization=normalization)
    return PoolNetwork(name, shape, classes, width, normalization)


def of(spec: dict) -> ConvNet | PoolNetwork:
    """The network whose `spec` this is, in float32. Raises InputError on a spec that none of NAMES has."""
    wanted = {name: value for name, value in spec.items() if name not in ("precision", "compiled")}
    given = {name: value for name, value in wanted.items() if name not in ("network", "pooling")}
    check_choice("network", name := wanted.get("network"), NAMES)
    with suppress(TypeError, ValueError):
        made = ConvNet(**given) if name == "ConvNet" else build(name, **given)
        if made.spec() == wanted:
            return made
    raise InputError(f"network: {spec}; accepted: what `spec` says of a network")
