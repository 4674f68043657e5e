"""A step as one launch: on a GPU a function of tensors is captured as a CUDA graph and replayed.

A step of a small network is hundreds of kernels of a few microseconds. Launched one by one the GPU waits for the processor (measured on an
H200: 0.12 s of kernels in 0.92 s, in trajectory matching at 50 steps of 10 images); a graph is one launch. $DISTILLERY_GRAPHS=0 leaves graphs
out. Slow reference: the function itself, which is called everywhere else.
"""

import gc
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from distillery.checks import first_line

WORTH = 8  # calls before a capture, which takes as long as a few


class Captured(NamedTuple):
    """A step that repeats itself: `launch` reads the tensors `given` and writes those of `results`."""

    launch: Callable[[], None]
    given: list[Tensor]
    results: object


class Replay:
    """`function`, captured once a kind of arguments was met WORTH times; until then, and where that fails, which is said once, called.

    function(*tensors, **fixed) gives tensors without a graph in dicts, lists and tuples
      tensors  in dicts, lists and tuples, with None in between. The function may write into some if it returns them, and the caller goes on
               with what is returned. It reads no other tensors that change
      fixed    what the host decides, hashable. Other values of the host stay what they are at the capture

    What is returned holds until the next call: clone what shall stay. `most` kinds are known, the one not used for longest goes first.
    """

    def __init__(self, function: Callable, most: int = 16):
        self.function, self.most, self.pool, self.fails = function, most, None, False
        self.known: OrderedDict[Hashable, Captured | int] = OrderedDict()  # how often a kind was met; the last was used last

    def __call__(self, *tensors, **fixed):
        if self.fails or not possible(tensors):
            return self.function(*tensors, **fixed)
        products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        key = _kind(tensors), tuple(fixed.items()), torch.is_grad_enabled(), products
        known = self.known.pop(key, 0)
        if known == WORTH:
            known = self._captured(tensors, fixed)
        self.known[key] = known if isinstance(known, Captured) else known + 1
        if len(self.known) > self.most:
            self.known.popitem(last=False)
        if not isinstance(known, Captured):
            return self.function(*tensors, **fixed)
        _write(known.given, tensors)
        known.launch()
        return known.results

    def _captured(self, tensors: tuple, fixed: dict) -> Captured | int:
        given = tree_map_only(Tensor, lambda one: one.detach().clone().requires_grad_(one.requires_grad), tensors)
        try:
            launch, results, self.pool = capture(partial(self.function, **fixed), given, self.pool)
        except RuntimeError as error:
            reason = first_line(error.__context__ or error)  # leaving a capture that failed raises too
            warnings.warn(f"steps run without CUDA graphs, which is slower: {reason}", RuntimeWarning, stacklevel=3)
            self.fails = True
            return 0
        return Captured(launch, list(_leaves(given)), results)


class ReplayedLoss:
    """`Replay` for a loss (*tensors, **fixed) -> () that is differentiated once, in its last tensor: value and gradient are one launch."""

    def __init__(self, loss: Callable[..., Tensor]):
        self.loss, self.both = loss, Replay(self._both)

    def __call__(self, *tensors, **fixed) -> Tensor:
        return _Loss.apply(tensors[-1], self.both, tensors[:-1], fixed) if possible(tensors) else self.loss(*tensors, **fixed)

    @torch.enable_grad()
    def _both(self, *tensors, **fixed) -> tuple[Tensor, Tensor]:
        last = tensors[-1].detach().requires_grad_()
        value = self.loss(*tensors[:-1], last, **fixed)
        return value.detach(), *torch.autograd.grad(value, last)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, last: Tensor, both: Replay, tensors: tuple, fixed: dict) -> Tensor:
        value, gradient = both(*tensors, last, **fixed)
        ctx.save_for_backward(gradient.clone())
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, scale: Tensor):
        return scale * ctx.saved_tensors[0], None, None, None


def possible(tensors) -> bool:
    """Whether a call with these arguments may be captured."""
    return all(tensor.is_cuda for tensor in _leaves(tensors)) and os.environ.get("DISTILLERY_GRAPHS") != "0"


def capture(function: Callable, given: tuple, pool) -> tuple[Callable[[], None], object, object]:
    """(what launches the kernels of a call again, what the call returned, the memory behind it). Raises RuntimeError where CUDA refuses."""
    here, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(here)
    with torch.cuda.stream(side):  # libraries choose kernels and allocate on the first calls
        function(*given)
        function(*given)
    here.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    gc.collect()
    gc.disable()  # other graphs that die during a capture would break it
    try:
        with torch.cuda.graph(graph, pool=pool):
            results = function(*given)
    finally:
        gc.enable()
        torch.cuda.set_stream(here)  # a capture that failed leaves its own behind
    return graph.replay, results, graph.pool()


def _leaves(tree) -> Iterator[Tensor]:
    """The tensors of dicts, lists and tuples, in their order."""
    if isinstance(tree, Tensor):
        yield tree
    elif tree is not None:
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from _leaves(part)


def _kind(tree) -> Hashable:
    """Everything about a tree but the values of its tensors."""
    if isinstance(tree, Tensor):
        return tree.shape, tree.stride(), tree.dtype, tree.device, tree.requires_grad
    if isinstance(tree, dict):
        return tuple((name, _kind(part)) for name, part in tree.items())
    return None if tree is None else tuple(map(_kind, tree))


@torch.no_grad()
def _write(given: list[Tensor], tensors: tuple) -> None:
    """Copy tensors to where a capture reads them, but those that it returned and are there already."""
    pairs = [(place, value) for place, value in zip(given, _leaves(tensors), strict=True) if place is not value]
    for dtype in {place.dtype for place, _ in pairs}:  # one launch for all of a type
        torch._foreach_copy_(*map(list, zip(*(pair for pair in pairs if pair[0].dtype == dtype))))
