"""The cross-architecture pool: MLP, LeNet, AlexNet, VGG11, ResNet18, ResNet18_AP and a small ViT beside the ConvNet.

`build(name, shape, classes, width)` gives a network with the interface of `networks`; `module(...)` gives the plain
`nn.Module` behind it. Layers and sizes are those of the field's shared pool (`networks.py` of the public code of DC, DSA
and DM, github.com/VICO-UoE/DatasetCondensation), which is written for 32 x 32 color and 28 x 28 gray images. The ViT has
no published counterpart there: width and heads are those of ViT-Ti (arXiv 2012.12877). Initialization is PyTorch's
default everywhere; the ViT's positions are drawn as the weights of a linear layer, its class token starts at zero.

Rules for other image sizes, which change nothing at the published ones:

- Images of 28 x 28 gray are padded to 32 x 32 in the first convolution of AlexNet, VGG11 and LeNet (as in `ConvNet`).
- A pool or stride of 2 is dropped where it would leave a map under 2 pixels on the shorter side, because an instance
  normalization over one pixel gives a constant. The last pool of LeNet, AlexNet and VGG11, which nothing normalizes, may leave 1 pixel.
- LeNet's unpadded 5 x 5 convolutions are padded by 2 where the shorter side has fewer than 28 pixels.
- Larger images give larger maps: the classifier reads the flattened map; ResNet18 reads its average over the map.
- ViT: patches of 2^round(log2(side / 8)) pixels, at least 2 (4 at 28 and 32, 8 at 64), the image padded with zeros
  to whole patches; depth 2 * `networks.depth_for` (4 at 8 and 16, 6 at 28 and 32, 8 at 64).
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillery.checks import InputError, check_choice, check_positive_int
from distillery.networks.convnet import NORMALIZATIONS, ConvNet, depth_for
from distillery.networks.module import ModuleNetwork

Shape = tuple[int, int, int]

SMALLEST = 4  # pixels on the shorter side


def mlp(shape: Shape, classes: int, width: float = 1.0, normalization: str = "none") -> nn.Module:
    """Two hidden layers of 128."""
    hidden = _scaled(128, width)
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc0=nn.Linear(math.prod(shape), hidden),
            act0=nn.ReLU(),
            fc1=nn.Linear(hidden, hidden),
            act1=nn.ReLU(),
            head=nn.Linear(hidden, classes),
        )
    )


def lenet(shape: Shape, classes: int, width: float = 1.0, normalization: str = "none") -> nn.Module:
    """Conv5x5(6) - pool - Conv5x5(16) - pool - 120 - 84 - classes, ReLU and max pools."""
    small = min(shape[1:]) < 28
    layers = _Layers(shape)
    layers.conv(_scaled(6, width), 5, padding=2 if small or _padded(shape) else 0)
    layers.pool()
    layers.conv(_scaled(16, width), 5, padding=2 if small else 0)
    layers.pool(least=1)
    sizes = (layers.features, _scaled(120, width), _scaled(84, width))
    layers.add(flatten=nn.Flatten())
    for i in range(2):
        layers.add(**{f"fc{i}": nn.Linear(sizes[i], sizes[i + 1]), f"fc_act{i}": nn.ReLU()})
    return layers.closed(nn.Linear(sizes[2], classes))


def alexnet(shape: Shape, classes: int, width: float = 1.0, normalization: str = "none") -> nn.Module:
    """Conv 5-5-3-3-3 of 128-192-256-192-192, max pools after the first, second and last, one linear layer."""
    layers = _Layers(shape)
    layers.conv(_scaled(128, width), 5, padding=4 if _padded(shape) else 2)
    layers.pool()
    layers.conv(_scaled(192, width), 5, padding=2)
    layers.pool()
    for channels in (256, 192, 192):
        layers.conv(_scaled(channels, width), 3, padding=1)
    layers.pool(least=1)
    layers.add(flatten=nn.Flatten())
    return layers.closed(nn.Linear(layers.features, classes))


def vgg11(shape: Shape, classes: int, width: float = 1.0, normalization: str = "instance") -> nn.Module:
    """Configuration A: Conv3x3 of 64 | 128 | 256 256 | 512 512 | 512 512, a max pool after each group, one linear layer."""
    layers = _Layers(shape)
    groups = ((64,), (128,), (256, 256), (512, 512), (512, 512))
    for i, group in enumerate(groups):
        for j, channels in enumerate(group):
            padding = 3 if i + j == 0 and _padded(shape) else 1
            layers.conv(_scaled(channels, width), 3, padding, normalization)
        layers.pool(least=1 if i == len(groups) - 1 else 2)
    layers.add(flatten=nn.Flatten())
    return layers.closed(nn.Linear(layers.features, classes))


def resnet18(shape: Shape, classes: int, width: float = 1.0, normalization: str = "instance") -> nn.Module:
    """3x3 stem, two basic blocks each of 64-128-256-512, strides 1-2-2-2, average over the map, one linear layer."""
    return _resnet(shape, classes, width, normalization, average=False)


def resnet18_ap(shape: Shape, classes: int, width: float = 1.0, normalization: str = "instance") -> nn.Module:
    """ResNet18 with 2x2 average pools for the strides; the linear layer reads the whole map, flattened."""
    return _resnet(shape, classes, width, normalization, average=True)


def vit(shape: Shape, classes: int, width: float = 1.0, normalization: str = "layer") -> nn.Module:
    """Pre-norm transformer of width 192, 3 heads, MLP ratio 4, class token, learned positions."""
    return _VisionTransformer(shape, classes, heads=3, channels=3 * _scaled(64, width))


class Architecture(NamedTuple):
    """A member of the pool: its factory and the normalizations it takes, the field's default first."""

    make: Callable[[Shape, int, float, str], nn.Module]
    normalizations: tuple[str, ...]


POOL: dict[str, Architecture] = {
    "MLP": Architecture(mlp, ("none",)),
    "LeNet": Architecture(lenet, ("none",)),
    "AlexNet": Architecture(alexnet, ("none",)),
    "VGG11": Architecture(vgg11, ("instance", "batch")),
    "ResNet18": Architecture(resnet18, ("instance", "batch")),
    "ResNet18_AP": Architecture(resnet18_ap, ("instance", "batch")),
    "ViT": Architecture(vit, ("layer",)),
}
NAMES = ("ConvNet", *POOL)


class PoolNetwork(ModuleNetwork):
    """A member of `POOL` behind the interface of `networks.ConvNet`. Build it with `build`."""

    def __init__(self, architecture: str, shape: Shape, classes: int, width: float, normalization: str):
        self.architecture, self.shape = architecture, tuple(shape)
        self.width, self.normalization = width, normalization
        super().__init__(
            lambda: POOL[architecture].make(self.shape, classes, width, normalization),
            f"{architecture} width x{width:g}, {normalization} norm",
        )

    def spec(self) -> dict:
        """Everything that identifies the architecture, for records."""
        return {
            "network": self.architecture,
            "shape": list(self.shape),
            "classes": self.classes,
            "width": self.width,
            "normalization": self.normalization,
        }


def build(name: str, shape: Shape, classes: int, width: float = 1.0, normalization: str = "") -> ConvNet | PoolNetwork:
    """A network of the pool: `init`, `apply`, `embed`, `spec`, `name`, `classes`.

    name           one of NAMES
    shape          (C, H, W) of the images, at least 4 pixels a side
    width          factor on all hidden widths, 1 = published (ConvNet: 128 channels); results are rounded, at least 1
    normalization  '' = the field's default; see `POOL` (ConvNet: `networks.NORMALIZATIONS`)
    raises         InputError on an unknown name or normalization, a width that is not positive, too small images
    """
    check_choice("network", name, NAMES)
    accepted = NORMALIZATIONS if name == "ConvNet" else POOL[name].normalizations
    check_choice(f"normalization of {name}", normalization or accepted[0], accepted)
    check_positive_int("classes", classes)
    if not isinstance(width, int | float) or isinstance(width, bool) or not (math.isfinite(width) and width > 0):
        raise InputError(f"width: {width!r} is not accepted; accepted: a positive factor, 1 = published")
    if len(shape) != 3 or min(shape) < 1 or min(shape[1:]) < SMALLEST:
        raise InputError(f"shape: {tuple(shape)} is not accepted; accepted: (channels, height, width), {SMALLEST} pixels a side or more")
    if name == "ConvNet":
        return ConvNet(shape, classes, _scaled(128, width), normalization=normalization or accepted[0])
    return PoolNetwork(name, shape, classes, width, normalization or accepted[0])


def module(name: str, shape: Shape, classes: int, width: float = 1.0, normalization: str = "") -> nn.Module:
    """The same architecture as a plain `nn.Module`, initialized from torch's global generator."""
    network = build(name, shape, classes, width, normalization)
    return network.module() if isinstance(network, ConvNet) else network.build()


def _scaled(channels: int, width: float) -> int:
    return max(round(channels * width), 1)


def _padded(shape: Shape) -> bool:
    """Whether the first convolution pads the image to 32 x 32."""
    return tuple(shape) == (1, 28, 28)


def _norm(normalization: str, channels: int) -> nn.Module:
    """'instance' is the field's: a GroupNorm of one channel a group, affine, without running statistics."""
    return nn.GroupNorm(channels, channels) if normalization == "instance" else nn.BatchNorm2d(channels)


class _Layers:
    """Layers in a row, with the channels and the size of the map they have reached."""

    def __init__(self, shape: Shape):
        self.channels, *self.sides = shape
        self.layers: OrderedDict[str, nn.Module] = OrderedDict()
        self.convs = 0

    @property
    def features(self) -> int:
        return self.channels * math.prod(self.sides)

    def add(self, **layers: nn.Module) -> None:
        self.layers.update(layers)

    def conv(self, channels: int, kernel: int, padding: int, normalization: str = "none") -> None:
        """Convolution, normalization, ReLU."""
        i = self.convs
        self.add(**{f"conv{i}": nn.Conv2d(self.channels, channels, kernel, padding=padding)})
        if normalization != "none":
            self.add(**{f"norm{i}": _norm(normalization, channels)})
        self.add(**{f"act{i}": nn.ReLU()})
        self.sides = [side + 2 * padding - kernel + 1 for side in self.sides]
        self.channels, self.convs = channels, i + 1

    def pool(self, least: int = 2) -> None:
        """Max pool of 2, dropped where the map would fall under `least` pixels."""
        if min(self.sides) // 2 >= least:
            self.add(**{f"pool{self.convs - 1}": nn.MaxPool2d(2)})
            self.sides = [side // 2 for side in self.sides]

    def closed(self, head: nn.Linear) -> nn.Sequential:
        self.add(head=head)
        return nn.Sequential(self.layers)


def _resnet(shape: Shape, classes: int, width: float, normalization: str, average: bool) -> nn.Module:
    channels, *sides = shape
    stem = _scaled(64, width)
    layers = OrderedDict(conv=nn.Conv2d(channels, stem, 3, padding=1, bias=False), norm=_norm(normalization, stem), act=nn.ReLU())
    channels = stem
    for i, planes in enumerate((64, 128, 256, 512)):
        planes = _scaled(planes, width)
        # a strided convolution rounds the map up, a pool rounds it down
        halved = [side // 2 if average else (side + 1) // 2 for side in sides]
        stride = 2 if i > 0 and min(halved) >= 2 else 1
        layers[f"block{i}a"] = _BasicBlock(channels, planes, stride, normalization, average)
        layers[f"block{i}b"] = _BasicBlock(planes, planes, 1, normalization, average)
        channels, sides = planes, halved if stride == 2 else sides
    if not average:
        layers["average"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["head"] = nn.Linear(channels * (math.prod(sides) if average else 1), classes)
    return nn.Sequential(layers)


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
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, planes, 1, strided, bias=False),
                nn.AvgPool2d(pooled) if pooled > 1 else nn.Identity(),
                _norm(normalization, planes),
            )

    def forward(self, x: Tensor) -> Tensor:
        inner = self.pool(F.relu(self.norm0(self.conv0(x))))
        return F.relu(self.norm1(self.conv1(inner)) + self.shortcut(x))


class _VisionTransformer(nn.Module):
    def __init__(self, shape: Shape, classes: int, heads: int, channels: int):
        super().__init__()
        side = min(shape[1:])
        self.patch = max(2 ** round(math.log2(side / 8)), 2)
        self.grid = tuple(math.ceil(side / self.patch) for side in shape[1:])
        self.pads = (0, -shape[2] % self.patch, 0, -shape[1] % self.patch)  # right and bottom, to whole patches
        self.patches = nn.Conv2d(shape[0], channels, self.patch, self.patch)
        self.token = nn.Parameter(torch.zeros(channels))
        bound = 1 / math.sqrt(channels)
        self.positions = nn.Parameter(torch.empty(1 + math.prod(self.grid), channels).uniform_(-bound, bound))
        self.blocks = nn.Sequential(*(_Transformer(channels, heads) for _ in range(2 * depth_for(shape))))
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(F.pad(images, self.pads)).flatten(2).mT  # (B, T, channels)
        first = self.token.expand(len(tokens), 1, -1)
        tokens = torch.cat([first, tokens], dim=1) + self.positions  # (B, 1 + T, channels)
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
        qkv = self.qkv(self.norm0(x)).view(b, t, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, channels / heads)
        # written out, because the fused kernels have no second derivative, which gradient matching needs
        attention = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)  # (B, heads, T, T)
        x = x + self.project((attention @ v).transpose(1, 2).reshape(b, t, channels))
        return x + self.mlp(self.norm1(x))
