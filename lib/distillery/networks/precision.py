"""Low precision and compilation, as explicit options around any network.

`MixedPrecision(network, "bfloat16", compiled=True)` is a network like the one it wraps: weights, their gradients and its outputs stay
float32, the work in between runs in the chosen precision and, on request, fused by `torch.compile`. It is meant for passes
differentiated at most once: real embeddings, real gradients, training that produces no matched weights. A compiled function must not
be differentiated twice, so synthetic images of gradient and trajectory matching use the wrapped network itself, the slow reference.
"""

import time
import warnings
from contextlib import contextmanager
from functools import cache

import torch
from torch import Generator, Tensor

from distillery.checks import InputError, check_choice, first_line
from distillery.networks.convnet import ConvNet, Output, Params, trainable

PRECISIONS = ("float32", "tf32", "bfloat16", "auto")
SHAPES = 64  # compiled shapes of one network; any further shape runs uncompiled


class MixedPrecision:
    """A network run in low precision and compiled.

    precision  'float32', 'tf32' (float32 with TensorFloat-32 products on a GPU, by `float32_matmul`), 'bfloat16', or 'auto': bfloat16 where
               there are units for it, else float32
    compiled   fuse by `torch.compile`, about a minute a shape on 2 CPU cores; a warning and the uncompiled pass where no compiler works. It
               launches kernels one by one: on a GPU `replay` captures them with the rest of a step, so torch's own graphs stay off
    raises     InputError on an unknown precision, or a compiled network that is no ConvNet; a pass in bfloat16 on a processor that emulates it
    """

    def __init__(self, network, precision: str = "float32", compiled: bool = False):
        check_choice("precision", precision, PRECISIONS)
        if compiled and not isinstance(network, ConvNet):
            raise InputError(f"compiled: True with {network.name}; accepted: a ConvNet, or False")
        if precision == "auto":
            precision = "bfloat16" if torch.cuda.is_available() or has_units() else "float32"
        self.network, self.precision, self.compiled = network, precision, compiled
        self.name, self.classes, self.channels = network.name, network.classes, network.channels
        self._functions: dict[str, object] = {}
        self._broken = False  # no compiler works here

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_functions": {}}  # compiled code stays behind in its process

    def spec(self) -> dict:
        """The wrapped network's, and how it runs where that is not plain float32."""
        plain = self.precision == "float32" and not self.compiled
        return self.network.spec() | ({} if plain else {"precision": self.precision, "compiled": self.compiled})

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
            if images.device.type == "cpu":
                check_not_emulated()
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
            warnings.warn(f"{self.name} runs uncompiled: {first_line(error)}", RuntimeWarning, stacklevel=3)
            self._broken = True
            return function(params, images, train)


def unwrapped(network):
    """The network under a `MixedPrecision`, any other as it is."""
    return network.network if isinstance(network, MixedPrecision) else network


def has_units() -> bool:
    """Whether the processor multiplies in bfloat16; one that emulates it takes 5 to 39 times as long as in float32."""
    known = getattr(torch.cpu, "get_capabilities", dict)()
    return any(known.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))  # the last on ARM


@cache  # once in a process
def check_not_emulated() -> None:
    """Raise InputError where the processor emulates bfloat16, with how much longer a product takes: a tenth of a second."""
    if has_units():
        return

    def seconds(dtype: torch.dtype) -> float:
        matrix, took = torch.ones(256, 256, dtype=dtype), []
        for _ in range(3):
            began = time.process_time()
            matrix @ matrix
            took.append(time.process_time() - began)
        return min(took)

    if (factor := seconds(torch.bfloat16) / seconds(torch.float32)) > 1:
        slow = f"this processor has no units for it, and a product takes {factor:.1f} times as long as in float32"
        raise InputError(f"precision: 'bfloat16': {slow}; accepted: 'float32', whose runs are others, or 'auto'")


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
    """How many images (..., H, W) one forward pass without gradient shall see: by shapes and device type alone.

    On a CPU the widest feature map shall stay in the cache (64 images of 32 x 32 at width 128); elsewhere it shall fit the memory. With the
    fused kernel it matters little: on an EPYC with AVX-512 any 8 to 128 images of 32 x 32 take the same time to 3%, any 4 to 64 of 64 x 64 to
    7%, any 128 or more of 8 x 8 at width 32 (8 of these take three times as long); gradients of 16 to 128 and of 8 to 64 to 4% and 6%.
    """
    numbers = 2**23 if device.type == "cpu" else 2**28
    return max(1, numbers // (network.channels * shape[-2] * shape[-1]))


def networks_at_once(k: int, batch: int, shape: tuple[int, ...], device: torch.device) -> int:
    """How many networks to stack, by shapes alone.

    On a CPU a stack of ConvNets is about twice as fast at 10 images of 8x8, even at 100 of them, and slower than one network after
    another from 10 images of 32x32 on (measured at widths 32 and 64). On a GPU it saves launches: on an H200, five networks of width 128
    take .57 of the time of one after another at 10 images of 32x32, .79 at 100, and 1.23 at 256.
    """
    return k if batch * shape[-2] * shape[-1] <= (6400 if device.type == "cpu" else 2**17) else 1
