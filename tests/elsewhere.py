"""A pretended device: its tensors say that they are on `meta` and have values nevertheless, which the CPU computes.

They meet tensors of the CPU only where those of a GPU may. So what fails on a GPU fails without one: operators on tensors of two devices, indices on
the device into a tensor of the CPU, generators of the CPU that fill a tensor of the device, NumPy.
"""

from contextlib import contextmanager

import torch
from torch import Generator, Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from distillery.matching import trajectory

DEVICE = torch.device("meta")
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
JOINED = {aten.cat.default, aten.stack.default}  # where a single number of the CPU may not stand either


class There(Tensor):
    """A tensor on the device, by the one on the CPU that has its values."""

    @staticmethod
    def __new__(cls, inner):
        how = {"dtype": inner.dtype, "strides": inner.stride(), "storage_offset": inner.storage_offset(), "device": DEVICE}
        return Tensor._make_wrapper_subclass(cls, inner.shape, **how)

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return f"There({self.inner})"

    def tolist(self):
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


def _check(function, args, given, there) -> None:
    """Raise RuntimeError where a GPU would."""
    tensors = [one for one in given if isinstance(one, Tensor)]
    if function in INDEXED:
        if not isinstance(args[0], There) and any(isinstance(one, There) for one in args[1]):
            raise RuntimeError(f"{function}: indices on the device into a tensor of the CPU")
        tensors = [args[0], *args[2:3]]
    sides = {isinstance(one, There) for one in tensors if one.ndim or isinstance(one, There) or function in JOINED}
    if len(sides) > 1 and function not in COPIES:
        raise RuntimeError(f"{function}: tensors of two devices")
    if there and any(isinstance(one, Generator) for one in given):
        raise RuntimeError(f"{function}: a generator of the CPU on the device")


def _run(function, args, kwargs):
    given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor | Generator)]
    asked = kwargs.get("device")
    there = any(isinstance(one, There) for one in given) if asked is None else torch.device(asked) == DEVICE
    _check(function, args, given, there)
    inner, how = tree_map_only(There, lambda one: one.inner, (args, kwargs))
    result = function(*inner, **(how if asked is None else how | {"device": "cpu"}))
    if there and torch.Tag.inplace_view in function.tags:  # the shape of the tensor itself changes
        with no_dispatch():
            function(*args, **kwargs)
    if isinstance(result, Tensor) and function._schema.is_mutable:
        return kwargs.get("out", args[0])
    return tree_map_only(Tensor, There, result) if there else result


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class _Values(TorchFunctionMode):
    """Tensors made of numbers come by the CPU: on `meta` torch would leave the numbers out."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        device = kwargs.pop("device", None) if function in (torch.tensor, torch.as_tensor) else None
        made = function(*args, **kwargs)
        return made if device is None else made.to(device)


@contextmanager
def pretended():
    """The device, while it can be used."""
    held_bytes = trajectory.held_bytes
    trajectory.held_bytes = lambda make: (1, make())  # tensors there have no address
    try:
        with _Values(), _Operators():
            yield DEVICE
    finally:
        trajectory.held_bytes = held_bytes
