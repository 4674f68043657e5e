"""Operators that a piece of work sends to the device, a stand-in for kernel launches: counted on `meta`, where nothing is computed."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distillery import replay

META = torch.device("meta")
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias", "_unsafe_view", "lift_fresh", "set_"}


class Launched(NamedTuple):
    """operators on the device, and copies to it."""

    operators: int
    copies: int


class Launches(TorchDispatchMode):
    """Counts computing operators on the device, without views and empty tensors, and copies to it."""

    operators = copies = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result, given = function(*args, **(kwargs or {})), tree_leaves((args, kwargs))
        here, there = ([one.device == META for one in some if isinstance(one, Tensor)] for some in (given, tree_leaves(result)))
        if any(there) and here and not any(here):
            self.copies += 1
        elif any(here + there) and not function.is_view and function._schema.name.removeprefix("aten::") not in FREE:
            self.operators += 1
        return result


def launched(work, *arguments) -> Launched:
    """What a third call launches, when all that may be a graph is one."""
    for _ in range(2):
        work(*arguments)
    with Launches() as seen:
        work(*arguments)
    return Launched(seen.operators, seen.copies)


def launched_a_step(work) -> Launched:
    """What the last of three steps launches; `work` takes so many."""
    few, more = (launched(work, steps) for steps in (2, 3))
    return Launched(more.operators - few.operators, more.copies - few.copies)


def as_graphs(monkeypatch):
    """From here on a `Replay` is one operator, from the third call of a kind on."""
    monkeypatch.setattr(replay, "possible", lambda tensors: True)
    monkeypatch.setattr(replay, "WORTH", 1)
    graph = lambda: torch.empty((), device=META).zero_()  # noqa: E731
    monkeypatch.setattr(replay, "capture", lambda function, given, pool: (graph, function(*given), pool))
