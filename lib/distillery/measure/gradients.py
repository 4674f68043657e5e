"""Three ways to one gradient, measured: the exact sweep, TESLA's frozen multiplier and the unrolled loop.

What autograd keeps is counted through saved-tensor hooks, so it depends on shapes and not on the allocator.
"""

import time
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from distillery.data.synthetic import Synthetic
from distillery.matching.trajectory import GRADIENTS, TrajectoryMatching
from distillery.networks import trainable
from distillery.seeds import generator, split


@dataclass(frozen=True)
class Gradient:
    """One gradient of the matching loss: its pixels, the seconds it took and the bytes that were kept for it."""

    images: Tensor
    seconds: float
    kept: int


def gradients(objective: TrajectoryMatching, synthetic: Synthetic, expert: int, epoch: int, seed: int = 0) -> dict[str, Gradient]:
    """The gradient of one problem by every way in `GRADIENTS`; all see the same batches and augmentations.

    'kept' holds, besides the graph, the N + 1 weights along the student's path where they are stored ('exact', 'frozen').
    """
    experts = objective.experts
    start, target = (trainable(experts.at(expert, e)) for e in (epoch, epoch + objective.expert_epochs))
    buffers = {name: value for name, value in experts.at(expert, epoch).items() if name not in start}
    tensors = {name: synthetic.tensors[name] for name in objective.learns}
    draws = objective.draws(synthetic, *split(generator(seed, "compare", expert, epoch), 2))
    problem = (objective.step_loss(synthetic, buffers), start, target, tensors, draws)
    path = (objective.student_steps + 1) * sum(value.numel() * value.element_size() for value in start.values())
    found = {}
    for name, way in GRADIENTS.items():
        (_, parts), kept = kept_bytes(partial(way, *problem))
        began = time.monotonic()
        float(way(*problem)[0])  # waits for the device
        seconds = time.monotonic() - began
        found[name] = Gradient(parts["images"], seconds, kept + (0 if name == "unrolled" else path))
    return found


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm of the exact one."""
    return float((found - exact).norm() / exact.norm())


def cosine(found: Tensor, exact: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(found.flatten(), exact.flatten(), dim=0))


def kept_bytes(function: Callable):
    """(what `function` returns, the most bytes that autograd kept for a backward pass at one time).

    Tensors that share memory count once.
    """
    alive: Counter = Counter()
    sizes: dict[int, int] = {}
    now = most = 0

    class Box:
        def __init__(self, tensor: Tensor):
            self.tensor = tensor

    def release(key: int) -> None:
        nonlocal now
        alive[key] -= 1
        if not alive[key]:
            now -= sizes[key]

    def pack(tensor: Tensor) -> Box:
        nonlocal now, most
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if not alive[key]:
            sizes[key] = storage.nbytes()
            now += sizes[key]
            most = max(most, now)
        alive[key] += 1
        box = Box(tensor.detach())
        weakref.finalize(box, release, key)
        return box

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
        result = function()
    return result, most


@dataclass(frozen=True)
class Comparison:
    """Means over experts of what `gradients` found: number of student steps -> [expert] -> way -> Gradient."""

    found: dict[int, list[dict[str, Gradient]]]

    def _curve(self, value: Callable[[dict[str, Gradient]], float]) -> list[float]:
        return [sum(map(value, ones)) / len(ones) for ones in self.found.values()]

    def error(self, way: str) -> list[float]:
        """Relative error of the pixels' gradient against the unrolled one, for each number of steps."""
        return self._curve(lambda one: relative_error(one[way].images, one["unrolled"].images))

    def cosine(self, way: str) -> list[float]:
        """Cosine with the unrolled gradient."""
        return self._curve(lambda one: cosine(one[way].images, one["unrolled"].images))

    def memory(self, way: str) -> list[float]:
        """Megabytes kept: graph and stored weights."""
        return self._curve(lambda one: one[way].kept / 1e6)

    def seconds(self, way: str) -> list[float]:
        """Time, over that of the sweep."""
        return self._curve(lambda one: one[way].seconds / one["exact"].seconds)
