"""What a step draws on the CPU, brought to the device in one copy that is not waited for."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

ALIGNED = 256  # bytes between the beginnings of tensors are a multiple of it, as where each is allocated by itself


def to_device(values, device: torch.device | str):
    """Tensors in dicts, lists and tuples, on the device; what is on one already stays where it is, and all does if it is the CPU.

    They travel in one buffer, pinned for a GPU, and come back as views of its copy. The buffer may be let go at once: torch gives pinned
    memory out again when the copies from it are done.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return values
    leaves, tree = tree_flatten(values)
    here = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.device.type == "cpu"]
    if not here:
        return values
    drawn = [leaves[i] for i in here]
    packed = pack(drawn, pinned=device.type == "cuda")
    for i, moved in zip(here, unpack(packed.to(device, non_blocking=True), drawn), strict=True):
        leaves[i] = moved
    return tree_unflatten(leaves, tree)


def pack(tensors: Sequence[Tensor], pinned: bool = False) -> Tensor:
    """All bytes of some tensors, (n,) uint8."""
    buffer = torch.empty(_places(tensors)[-1], dtype=torch.uint8, pin_memory=pinned)
    for place, tensor in zip(unpack(buffer, tensors), tensors, strict=True):
        place.copy_(tensor)
    return buffer


def unpack(buffer: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that `pack` laid side by side, as views; `like` have their shapes and types."""
    places = zip(_places(like), like)
    return [buffer[at : at + tensor.nbytes].view(tensor.dtype).view(tensor.shape) for at, tensor in places]


def _places(tensors: Sequence[Tensor]) -> list[int]:
    """The first byte of each tensor, and of what follows the last."""
    return list(accumulate((-(-tensor.nbytes // ALIGNED) * ALIGNED for tensor in tensors), initial=0))
