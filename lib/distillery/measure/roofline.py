"""What a piece of work costs and what bounds it: seconds, floating-point operations, bytes moved and bytes kept.

A machine moves bytes at some rate and multiplies at some rate; work that needs F operations and B bytes takes at least
max(F / rate, B / bandwidth) seconds, and whichever is larger bounds it (the roofline). Bytes are those the operations read
and write when each of them runs by itself, so a compiler that fuses operations may stay below them.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from distillery.report.tables import markdown


def timed(function: Callable, *arguments) -> tuple:
    """(what it returns, its seconds), a GPU's work included."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    began = time.perf_counter()
    found = function(*arguments)
    wait()
    return found, time.perf_counter() - began


def seconds(function: Callable[[], object], rounds: int = 3) -> list[float]:
    """Seconds of each of `rounds` calls, after one that is not counted."""
    return [timed(function)[1] for _ in range(rounds + 1)][1:]


@dataclass(frozen=True)
class Work:
    """flops: floating-point operations of products and convolutions; bytes moved by all operations; bytes kept for a gradient."""

    flops: int
    moved: int
    kept: int


class _Bytes(TorchDispatchMode):
    """Sums what every operation that computes reads and writes; views and empty allocations move nothing."""

    def __init__(self):
        super().__init__()
        self.moved = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if not function.is_view and "empty" not in function.name():
            tensors = [x for x in tree_leaves((args, kwargs, found)) if isinstance(x, Tensor)]
            self.moved += sum(x.nbytes for x in tensors)
        return found


def count(function: Callable[[], object]) -> Work:
    """Count the work of one call, uncompiled. Bytes kept are those of distinct storages saved for a gradient."""
    kept: dict[int, Tensor] = {}  # by address; held, so that no address is used twice

    def save(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with FlopCounterMode(display=False) as flops, _Bytes() as counted:
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            function()
    return Work(flops.get_total_flops(), counted.moved, sum(x.untyped_storage().nbytes() for x in kept.values()))


@dataclass(frozen=True)
class Machine:
    """What a device can do at most: bytes moved a second, operations a second in float32 and in bfloat16."""

    bandwidth: float
    float32: float
    bfloat16: float

    def least(self, work: Work, precision: str = "float32") -> tuple[float, str]:
        """(seconds the work takes at least, 'bytes' or 'arithmetic' whichever bounds it)."""
        arithmetic, moving = work.flops / getattr(self, precision), work.moved / self.bandwidth
        return max((arithmetic, "arithmetic"), (moving, "bytes"))


def measure_machine(device: torch.device, side: int = 2048, rounds: int = 5) -> Machine:
    """Best of a few rounds of copying 64 MB, and of products of square matrices of `side`."""
    source = torch.ones(1 << 24, device=device)
    target = torch.empty_like(source)
    rates = [2 * source.nbytes / min(seconds(lambda: target.copy_(source), rounds))]
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(side, side, device=device, dtype=dtype)
        rates.append(2 * side**3 / min(seconds(lambda a=a: a @ a, rounds)))
    return Machine(*rates)


def profile(machine: Machine, paths: dict[str, Callable], touched: int, rounds: int = 3) -> dict:
    """What a piece of work takes: 'seconds' of each path, what the plain one counts (`Work`), its bound, and images touched."""
    work = count(paths["plain"])
    least, bound = machine.least(work)
    taken = {path: min(seconds(run, rounds)) for path, run in paths.items()}
    return {"seconds": taken, "least": least, "bound": bound, "touched": touched, **vars(work)}


def table(profiles: dict[str, dict]) -> str:
    """Profiles by name as Markdown."""
    head = "work|images touched|GFLOP|MB moved|MB kept|plain, ms|fast, ms|faster|at least, ms|bound by".split("|")
    lines = []
    for name, one in profiles.items():
        plain, fast = (1e3 * one["seconds"][path] for path in ("plain", "fast"))
        counted = [name, one["touched"], f"{one['flops'] / 1e9:.2f}", f"{one['moved'] / 1e6:.0f}", f"{one['kept'] / 1e6:.1f}"]
        lines.append([*counted, f"{plain:.1f}", f"{fast:.1f}", f"{plain / fast:.1f}x", f"{1e3 * one['least']:.1f}", one["bound"]])
    return markdown(head, lines)
