"""Low precision and compilation, as explicit options around any network.

`MixedPrecision(network, "bfloat16", compiled=True)` is a network like the one it wraps: weights, their gradients and its outputs
stay float32, the work in between runs in the chosen precision and, on request, fused by `torch.compile`. It is meant for
passes differentiated at most once: real embeddings, real gradients, training that produces no matched weights. A
compiled function must not be differentiated twice, so synthetic images of gradient matching and trajectory matching use
the wrapped network itself.

Slow reference: the wrapped network.
"""

import warnings
from contextlib import contextmanager

import torch
from torch import Generator, Tensor

from distillery.checks import InputError, check_choice
from distillery.networks.convnet import ConvNet, Output, Params, trainable

PRECISIONS = ("float32", "tf32", "bfloat16")
SHAPES = 64  # compiled shapes of one network; any further shape runs uncompiled
# numbers in the widest feature map of one forward pass without gradient. On a CPU the map shall stay in the cache
# (64 images of 32 x 32 at width 128); elsewhere it shall fit the memory
MAP_NUMBERS = {"cpu": 2**23}
MAP_NUMBERS_ELSEWHERE = 2**28


class MixedPrecision:
    """A network run in low precision and compiled.

    precision  'float32', 'tf32' (float32 with TensorFloat-32 products on a GPU, by `float32_matmul`), or 'bfloat16'
    compiled   fuse by `torch.compile`, one compilation a shape, of about a minute on 2 CPU cores; where no compiler works,
               a warning, and the uncompiled pass
    raises     InputError on an unknown precision, or a compiled network that is no ConvNet
    """

    def __init__(self, network, precision: str = "float32", compiled: bool = False):
        check_choice("precision", precision, PRECISIONS)
        if compiled and not isinstance(network, ConvNet):
            raise InputError(f"compiled: True with {network.name}; accepted: a ConvNet, or False")
        self.network, self.precision, self.compiled = network, precision, compiled
        self.name, self.classes, self.channels = network.name, network.classes, network.channels
        self._functions: dict[str, object] = {}
        self._broken = False  # no compiler works here

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_functions": {}}  # compiled code stays behind in its process

    def spec(self) -> dict:
        """The wrapped network's, and how it runs where that is not plain float32."""
        how = {"precision": self.precision, "compiled": self.compiled}
        return self.network.spec() | (how if how != {"precision": "float32", "compiled": False} else {})

    def init(self, generator: Generator, k: int = 1) -> Params:
        return self.network.init(generator, k)

    def apply(self, params: Params, images: Tensor, train: bool = True) -> Output:
        logits, embedding, buffers = self._run("apply", params, images, train)
        return Output(logits.float(), embedding.float(), buffers)

    def embed(self, params: Params, images: Tensor, train: bool = True) -> Tensor:
        return self._run("embed", params, images, train).float()

    def _run(self, name: str, params: Params, images: Tensor, train: bool):
        function = getattr(self.network, name)
        if self.precision == "bfloat16":
            params, images = _low(params), images.bfloat16()
        if not self.compiled or self._broken:
            return function(params, images, train)
        if name not in self._functions:
            self._functions[name] = torch.compile(function, dynamic=False)
        try:
            with torch._dynamo.config.patch(recompile_limit=SHAPES), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the compiler's talk to its own developers
                return self._functions[name](params, images, train)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            warnings.warn(f"{self.name} runs uncompiled: {reason}", RuntimeWarning, stacklevel=3)
            self._broken = True
            return function(params, images, train)


def _low(params: Params) -> Params:
    """Weights in bfloat16, but BatchNorm's next to its statistics: it takes low-precision images and float32 weights."""
    norms = {name.removesuffix("running_mean") for name in params if name.endswith("running_mean")}
    learned = [name for name in trainable(params) if name.rsplit(".", 1)[0] + "." not in norms]
    return params | {name: params[name].bfloat16() for name in learned}


@contextmanager
def float32_matmul(precision: str):
    """Name what float32 means on a GPU: TensorFloat-32 products for 'tf32' and nothing else, full float32 otherwise.

    torch's own default multiplies convolutions in TensorFloat-32 (10 bits) and matrices in float32 (23 bits).
    """
    check_choice("precision", precision, PRECISIONS)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def images_at_once(network, shape: tuple[int, ...], device: torch.device) -> int:
    """How many images (..., H, W) one forward pass without gradient shall see: by shapes and device type alone."""
    numbers = MAP_NUMBERS.get(device.type, MAP_NUMBERS_ELSEWHERE)
    return max(1, numbers // (network.channels * shape[-2] * shape[-1]))


def networks_at_once(k: int, batch: int, shape: tuple[int, ...], device: torch.device) -> int:
    """How many networks to stack, by shapes alone.

    On a CPU a stack of ConvNets is about twice as fast at 10 images of 8x8, even at 100 of them, and slower than one
    network after another from 10 images of 32x32 on (measured at widths 32 and 64). On a GPU stacking saves launches.
    """
    pixels = batch * shape[-2] * shape[-1]
    return k if device.type != "cpu" or pixels <= 6400 else 1
