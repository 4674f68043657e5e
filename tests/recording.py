"""Stand-ins for CUDA graphs on a CPU: a step is recorded once, operator by operator, and repeated on other values.

That finds what a graph would find: values of the host that stay what they were, tensors that are read from elsewhere, results that are
overwritten.
"""

from contextlib import contextmanager

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from distillery import replay
from distillery.networks import block


def recorded(function, given, pool):
    """`replay.capture` on a CPU."""
    assert not any(isinstance(one, Tensor) and one.grad_fn for one in tree_leaves(function(*given)))
    graph = make_fx(function)(*given)

    with torch.no_grad():
        results = graph(*given)

    @torch.no_grad()
    def launch() -> None:
        for place, value in zip(tree_leaves(results), tree_leaves(graph(*given)), strict=True):
            if isinstance(place, Tensor) and place is not value:
                place.copy_(value)

    return launch, results, pool


@contextmanager
def recording(monkeypatch):
    """Every `Replay` records on the CPU; yields the functions that were recorded."""
    captured = []

    def capture(function, given, pool):
        captured.append(function.func)
        return recorded(function, given, pool)

    with monkeypatch.context() as patch:
        patch.setattr(block, "library", lambda: None)  # its passes are no operators
        patch.setattr(replay, "possible", lambda tensors: True)
        patch.setattr(replay, "WORTH", 1)
        patch.setattr(replay, "capture", capture)
        yield captured
