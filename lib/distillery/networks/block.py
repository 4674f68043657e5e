r"""What follows a convolution in the ConvNet, as one pass over each feature map: instance norm, ReLU, 2 x 2 average pooling.

Of a map $x$ of $N$ pixels, with $\hat x = (x - \mu) r$, $r = (\sigma^2 + \epsilon)^{-1/2}$ and weight and bias $g, b$ of its channel,

$$y = \mathrm{pool}(\mathrm{relu}(g \hat x + b)).$$

With $u = [g \hat x + b > 0] \cdot \mathrm{pool}^\top(dy)$ and means over the map, the backward pass is

$$dx = g r\,(u - \overline{u} - \hat x\, \overline{u \hat x}), \qquad dg = \sum u \hat x, \qquad db = \sum u,$$

and the backward of that, for cotangents $v, \alpha, \beta$ of the three, with $s = \overline{u \hat x}$, $t = \overline{v \hat x}$ and
$A = \sum (u - \overline u)(v - \overline v) - N s t$, is

$$ddy = \mathrm{pool}\big([g \hat x + b > 0]\,(g r (v - \overline v - t \hat x) + \alpha \hat x + \beta)\big), \qquad dg' = r A,$$

$$G = (\alpha - g r\, t)\, u - g r\, s\, v, \qquad dx' = r\,(G - \overline G - \hat x\, \overline{G \hat x}) - \tfrac{1}{N} g r^2 A\, \hat x.$$

torch makes three passes of it and keeps every map between them. On a CPU with a C++ compiler `block.cpp` makes one; it is built once, into
the cache folder. Everywhere else, and where a pass is compiled or vectorized by torch, the plain twin `plain` runs: the results agree to the
rounding of float32. The derivation is ours; tests hold it against torch's own derivatives and, in float64, against differences.
"""

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

SOURCE = Path(__file__).with_suffix(".cpp")
EPS = 1e-5
TYPES = {torch.float32: "float", torch.float64: "double"}
# not -ffast-math, which makes the whole process flush small numbers to zero when such a library is loaded
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC", "-std=c++17")


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """maps x (B, C, H, W), weight and bias (C,) -> (B, C, H // 2, W // 2), as torch has it."""
    return F.avg_pool2d(F.relu(F.group_norm(x, x.shape[1], weight, bias, EPS)), 2)


def twice_plain(v: Tensor, vweight: Tensor, vbias: Tensor, dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor):
    """(ddy, dx', dg') of the equations above: of the backward of the backward pass, which can be differentiated once more."""

    def mean(values: Tensor) -> Tensor:
        return values.mean((2, 3), keepdim=True)

    h, w = x.shape[2:]
    g, b, alpha, beta = (one[:, None, None] for one in (weight, bias, vweight, vbias))
    centred = x - mean(x)
    r = (mean(centred.square()) + EPS).rsqrt()
    hat = centred * r
    on = g * hat + b > 0
    u = on * F.pad(dy.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4, (0, w % 2, 0, h % 2))
    s, t = mean(u * hat), mean(v * hat)
    inner = (u * v).sum((2, 3), keepdim=True) - h * w * (mean(u) * mean(v) + s * t)
    ddy = F.avg_pool2d(on * (g * r * (v - mean(v) - t * hat) + alpha * hat + beta), 2)
    both = (alpha - g * r * t) * u - g * r * s * v
    dx = r * (both - mean(both) - hat * mean(both * hat)) - g * r.square() * inner * hat / (h * w)
    return ddy, dx, (r * inner).sum((0, 2, 3))


def block(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`plain`, by the fastest way there is here."""
    kind = x.device.type == "cpu" and x.dtype == weight.dtype and TYPES.get(x.dtype)
    if not kind or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or library() is None:
        return plain(x, weight, bias)
    return _Block.apply(x, weight, bias)


@cache
def library() -> ctypes.CDLL | None:
    """The compiled passes; None where no compiler works, which is said once, or where $DISTILLERY_PLAIN is set."""
    found = [shutil.which(name) for name in (os.environ.get("CXX") or "c++", "g++", "clang++")]
    compiler = next(filter(None, found), None)
    if os.environ.get("DISTILLERY_PLAIN"):
        return None
    if compiler is None:
        print("no C++ compiler: torch's own passes run in place of a fused kernel, which are slower", file=sys.stderr)
        return None
    folder = Path(os.environ.get("DISTILLERY_CACHE") or "~/.cache/distillery").expanduser()
    try:
        key = hashlib.sha256(SOURCE.read_bytes() + repr((FLAGS, compiler, _processor())).encode()).hexdigest()[:16]
        path = folder / f"block-{key}.so"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                made = Path(scratch) / path.name
                subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(made)], check=True, capture_output=True, timeout=300)
                os.replace(made, path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        print(f"{compiler} builds no fused kernel ({error}): torch's own passes run, which are slower", file=sys.stderr)
        return None


def _processor() -> str:
    """What a processor can do, for machines that share a cache folder: a build for one may not run on another."""
    with suppress(OSError):
        if found := re.search(r"^(flags|Features)\s*:.*", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return found[0]
    return f"{platform.machine()} {platform.processor()}"


def _call(name: str, tensors: list[Tensor], x: Tensor, *more) -> None:
    sizes = x.shape[0] * x.shape[1], *x.shape[1:]
    function = getattr(library(), f"{name}_{TYPES[x.dtype]}")
    pointers = (ctypes.c_void_p(one.data_ptr()) for one in tensors)
    function(*pointers, *map(ctypes.c_int64, sizes), ctypes.c_int(torch.get_num_threads()), *more)


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
        b, c, h, w = x.shape
        y, mean, rstd = x.new_empty(b, c, h // 2, w // 2), x.new_empty(b, c), x.new_empty(b, c)
        _call("forward", [x, weight, bias, y, mean, rstd], x, ctypes.c_double(EPS))
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return y

    @staticmethod
    def backward(ctx, dy: Tensor):
        return _Backward.apply(dy, *ctx.saved_tensors)


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor):
        dy, dx = dy.contiguous(), torch.empty_like(x)
        dweight, dbias = torch.empty_like(mean), torch.empty_like(mean)
        _call("backward", [dy, x, weight, bias, mean, rstd, dx, dweight, dbias], x)
        ctx.save_for_backward(dy, x, weight, bias, mean, rstd)
        return dx, dweight.sum(0), dbias.sum(0)

    @staticmethod
    def backward(ctx, v: Tensor, vweight: Tensor, vbias: Tensor):
        dy, x, weight, bias, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():  # it will be differentiated a third time
            return *twice_plain(v, vweight, vbias, dy, x, weight, bias), None, None, None
        ddy, dx, dweight = torch.empty_like(dy), torch.empty_like(x), torch.empty_like(mean)
        cotangents = [one.contiguous() for one in (v, vweight, vbias)]
        _call("twice", [*cotangents, dy, x, weight, bias, mean, rstd, ddy, dx, dweight], x)
        return ddy, dx, dweight.sum(0), None, None, None
