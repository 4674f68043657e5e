"""Three ways to one gradient, measured: the exact sweep, TESLA's frozen multiplier and the unrolled loop.

What autograd keeps is counted through saved-tensor hooks, so it depends on shapes and not on the allocator.
"""

import time
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from distillery.data.synthetic import Synthetic
from distillery.matching.trajectory import TrajectoryMatching, sweep, sweep_plain
from distillery.networks import trainable
from distillery.seeds import generator, split

WAYS = {"exact": partial(sweep, keep=0), "frozen": partial(sweep, keep=0, frozen=True), "unrolled": sweep_plain}  # the graph of one step


@dataclass(frozen=True)
class Gradient:
    """One gradient of the matching loss: its pixels, the seconds that each run of it took and the bytes that were kept for it."""

    images: Tensor
    seconds: list[float]
    kept: int


def gradients(
    objective: TrajectoryMatching, synthetic: Synthetic, expert: int, epoch: int, seed: int = 0, repeats: int = 1
) -> dict[str, Gradient]:
    """The gradient of one problem by every way in `WAYS`; all see the same batches and augmentations.

    repeats  timed runs, after a first one; the ways take turns, so that what slows the machine slows all of them

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
    for name, way in WAYS.items():
        (_, parts), kept = kept_bytes(partial(way, *problem))
        found[name] = Gradient(parts["images"], [], kept + (0 if name == "unrolled" else path))
    for _ in range(repeats):
        for name, way in WAYS.items():
            began = time.monotonic()
            float(way(*problem)[0])  # waits for the device
            found[name].seconds.append(time.monotonic() - began)
    return found


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm of the exact one."""
    return float((found - exact).norm() / exact.norm())


def kept_bytes(function: Callable):
    """(what `function` returns, the most bytes that autograd kept for a backward pass at one time).

    Tensors that share memory count once.
    """
    alive: Counter = Counter()
    sizes: dict[int, int] = {}
    now = most = 0

    def release(key: int) -> None:
        nonlocal now
        alive[key] -= 1
        if not alive[key]:
            now -= sizes[key]

    def pack(tensor: Tensor) -> Tensor:
        nonlocal now, most
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if not alive[key]:
            sizes[key] = storage.nbytes()
            now += sizes[key]
            most = max(most, now)
        alive[key] += 1
        saved = tensor.detach()
        weakref.finalize(saved, release, key)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        result = function()
    return result, most


def compared(found: dict[int, list[dict[str, Gradient]]]) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """What `gradients` found for [number of student steps][expert]: what -> way -> (means, deviations), for each number of steps.

    Error and cosine are to the unrolled gradient of the pixels, time is over that of the sweep in the same turn. Deviations are over
    experts, those of the time over the turns on all of them.
    """
    measures = {
        "relative error": lambda one, way: [relative_error(one[way].images, one["unrolled"].images)],
        "cosine": lambda one, way: [float(cosine_similarity(*(one[w].images.flatten() for w in (way, "unrolled")), dim=0))],
        "memory, MB": lambda one, way: [one[way].kept / 1e6],  # graph and stored weights
        "time over the sweep's": lambda one, way: [t / base for t, base in zip(one[way].seconds, one["exact"].seconds)],
    }

    def curve(measure: Callable, way: str) -> tuple[list[float], list[float]]:
        values = [[value for one in ones for value in measure(one, way)] for ones in found.values()]
        return [float(np.mean(some)) for some in values], [float(np.std(some)) for some in values]

    return {name: {way: curve(measure, way) for way in WAYS} for name, measure in measures.items()}
