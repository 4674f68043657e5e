"""Networks as pure functions of stacked weights: K networks of one architecture run as one.

`init(generator, k)` gives a dict of tensors with a leading axis k (buffers included); `apply` maps images to logits and embeddings
without touching anything outside. The field's ConvNet is written directly with one grouped convolution and one grouped normalization
over K*C channels; any `nn.Module` runs through `ModuleNetwork`.

Source of the ConvNet: D blocks of Conv3x3(width) - norm - ReLU - AvgPool2x2, then a linear layer, PyTorch's default initialization
(public code of DC, DSA and DM, github.com/VICO-UoE/DatasetCondensation). Slow reference, the same as an nn.Module: `ConvNet.module`.
"""

import math
from collections import OrderedDict
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from distillery.checks import InputError, check_choice, check_positive_int
from distillery.networks.block import block

Params = dict[str, Tensor]
Shape = tuple[int, int, int]  # of an image, (C, H, W)

ACTIVATIONS = {"relu": F.relu, "swish": F.silu}
NORMALIZATIONS = ("instance", "batch", "group", "layer", "none")
GROUPS = 4  # of 'group'
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


class Output(NamedTuple):
    """logits (K, B, classes); embedding (K, B, F), the input of the classifier; buffers, the ones that changed."""

    logits: Tensor
    embedding: Tensor
    buffers: Params


def trainable(params: Params) -> Params:
    """The entries that are learned: all but the running statistics of BatchNorm."""
    return {name: value for name, value in params.items() if name.rsplit(".", 1)[-1] not in _BUFFERS}


def depth_for(shape: Shape) -> int:
    """The field's depth for an image size: 3 at 28 and 32, 4 at 64, 5 at 128, at least 2 where the image has 4 pixels a side."""
    side = min(shape[1:])
    return max(round(math.log2(side)) - 2, 2 if side >= 4 else 1)


class ConvNet:
    """The ConvNet of the distillation literature, K at a time.

    shape          (C, H, W) of the images; gray 28 x 28 images are padded to 32 x 32 in the first convolution
    depth          blocks; 0 = `depth_for(shape)`
    activation     'relu', or 'swish', which is smooth
    normalization  'instance' (GroupNorm with one channel a group), 'batch', 'group' (GROUPS of them), 'layer', 'none'
    raises         InputError if an option is unknown, the image too small for the depth, or the width no multiple of GROUPS for 'group'
    """

    def __init__(
        self, shape: Shape, classes: int, width: int = 128, depth: int = 0, activation: str = "relu", normalization: str = "instance"
    ):
        check_positive_int("width", width)
        check_choice("activation", activation, ACTIVATIONS)
        check_choice("normalization", normalization, NORMALIZATIONS)
        self.shape, self.classes, self.width, self.depth = tuple(shape), classes, width, depth or depth_for(shape)
        check_positive_int("depth", self.depth)
        if normalization == "group" and width % GROUPS:
            raise InputError(f"width: {width} with group normalization; accepted: a multiple of {GROUPS}, the groups")
        self.activation, self.normalization = activation, normalization
        self.channels = width  # of the widest feature map
        self.padding = 3 if self.shape == (1, 28, 28) else 1
        maps = [tuple((side + 2 * (self.padding - 1)) // 2**i for side in shape[1:]) for i in range(self.depth + 1)]
        self.maps = maps[:-1]  # (H, W) of each block before pooling
        self.features = width * math.prod(maps[-1])
        if self.features == 0:
            raise InputError(f"depth: {self.depth} halves images of {shape[1]}x{shape[2]} away; accepted: a smaller depth")

    @property
    def name(self) -> str:
        return f"ConvNet-{self.depth} width {self.width}, {self.normalization} norm"

    def spec(self) -> dict:
        """Everything that identifies the architecture, for records."""
        names = ("classes", "width", "depth", "activation", "normalization")
        return {"network": "ConvNet", "shape": list(self.shape), **{name: getattr(self, name) for name in names}, "pooling": "avg"}

    def init(self, generator: Generator, k: int = 1) -> Params:
        """k networks, PyTorch's default: weights and biases U(-1/sqrt(fan in), 1/sqrt(fan in)). Network i does not depend on k."""
        networks = [self._init_one(generator) for _ in range(k)]
        return {name: torch.stack([network[name] for network in networks]) for name in networks[0]}

    def _init_one(self, generator: Generator) -> Params:
        def uniform(*shape, fan_in):
            return (torch.rand(*shape, generator=generator) * 2 - 1) / math.sqrt(fan_in)

        params, channels = {}, self.shape[0]
        for i, size in enumerate(self.maps):
            params[f"conv{i}.weight"] = uniform(self.width, channels, 3, 3, fan_in=9 * channels)
            params[f"conv{i}.bias"] = uniform(self.width, fan_in=9 * channels)
            if self.normalization != "none":
                affine = (self.width, *size) if self.normalization == "layer" else (self.width,)
                params[f"norm{i}.weight"], params[f"norm{i}.bias"] = torch.ones(affine), torch.zeros(affine)
            if self.normalization == "batch":
                params[f"norm{i}.running_mean"], params[f"norm{i}.running_var"] = torch.zeros(self.width), torch.ones(self.width)
            channels = self.width
        params["head.weight"] = uniform(self.classes, self.features, fan_in=self.features)
        params["head.bias"] = uniform(self.classes, fan_in=self.features)
        return params

    def apply(self, params: Params, images: Tensor, train: bool = True) -> Output:
        """images (K, B, C, H, W), or (B, C, H, W) seen by all K networks; `train` matters to BatchNorm alone."""
        embedding, buffers = self._features(params, images, train)  # (K, B, F)
        bias, weight = params["head.bias"], params["head.weight"]  # (K, classes), (K, classes, F)
        logits = torch.baddbmm(bias[:, None].to(embedding.dtype), embedding, weight.to(embedding.dtype).mT)  # (K, B, classes)
        return Output(logits, embedding, buffers)

    def embed(self, params: Params, images: Tensor, train: bool = True) -> Tensor:
        """The flattened output of the last block, (K, B, F)."""
        return self._features(params, images, train)[0]

    def _features(self, params: Params, images: Tensor, train: bool) -> tuple[Tensor, Params]:
        k, shared = len(params["conv0.bias"]), images.ndim == 4
        x = images if shared else images.transpose(0, 1).flatten(1, 2)  # (B, C | K*C, H, W)
        buffers: Params = {}
        for i in range(self.depth):
            weight, bias = params[f"conv{i}.weight"].flatten(0, 1), params[f"conv{i}.bias"].flatten()  # (K*width, C, 3, 3)
            x = F.conv2d(x, weight, bias, padding=self.padding if i == 0 else 1, groups=1 if shared and i == 0 else k)
            if (self.normalization, self.activation) == ("instance", "relu"):
                x = block(x, params[f"norm{i}.weight"].flatten(), params[f"norm{i}.bias"].flatten())  # (B, K*width, H/2, W/2)
            else:
                x = F.avg_pool2d(ACTIVATIONS[self.activation](self._normalize(x, params, i, k, train, buffers)), 2)
        return x.reshape(images.shape[-4], k, self.features).transpose(0, 1), buffers  # (K, B, F)

    def _normalize(self, x: Tensor, params: Params, i: int, k: int, train: bool, buffers: Params) -> Tensor:
        if self.normalization == "none":
            return x
        weight, bias = params[f"norm{i}.weight"], params[f"norm{i}.bias"]
        if self.normalization == "batch":
            mean, var = (params[f"norm{i}.{name}"].flatten().clone() for name in ("running_mean", "running_var"))
            x = F.batch_norm(x, mean, var, weight.flatten(), bias.flatten(), training=train)
            if train:
                buffers[f"norm{i}.running_mean"], buffers[f"norm{i}.running_var"] = mean.reshape(k, -1), var.reshape(k, -1)
            return x
        if self.normalization == "layer":
            return F.group_norm(x, k) * weight.flatten(0, 1) + bias.flatten(0, 1)
        groups = k * (self.width if self.normalization == "instance" else GROUPS)
        return F.group_norm(x, groups, weight.flatten(), bias.flatten())

    def module(self) -> nn.Module:
        """The same architecture as a plain nn.Module: the definition that `apply` is tested against."""
        norms = {
            "instance": lambda size: nn.GroupNorm(self.width, self.width),
            "batch": lambda size: nn.BatchNorm2d(self.width),
            "group": lambda size: nn.GroupNorm(GROUPS, self.width),
            "layer": lambda size: nn.LayerNorm((self.width, *size)),
        }
        act = {"relu": nn.ReLU, "swish": nn.SiLU}[self.activation]
        layers, channels = [], self.shape[0]
        for i, size in enumerate(self.maps):
            layers.append((f"conv{i}", nn.Conv2d(channels, self.width, 3, padding=self.padding if i == 0 else 1)))
            if self.normalization != "none":
                layers.append((f"norm{i}", norms[self.normalization](size)))
            layers += [(f"act{i}", act()), (f"pool{i}", nn.AvgPool2d(2))]
            channels = self.width
        layers += [("flatten", nn.Flatten()), ("head", nn.Linear(self.features, self.classes))]
        return nn.Sequential(OrderedDict(layers))
