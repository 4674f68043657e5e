"""Losses by network, sample and target: outputs (K, B, D) to (K, B), or (K,) where samples of a batch are coupled; checks of targets."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from distillery.checks import InputError, check_finite


def centred(targets: Tensor, classes: int) -> Tensor:
    """Classes (N,) as centred one-hot labels (N, classes) float64: 1 - 1 / classes on the class, -1 / classes elsewhere."""
    return one_hot(targets, classes).double() - 1 / classes


def check_targets(found: Tensor, images, width: int = 0) -> Tensor:
    """The targets themselves; raises InputError unless they are finite, one row for each image, and of `width` (0 = any)."""
    if found.ndim != 2 or len(found) != len(images) or (width and found.shape[1] != width):
        raise InputError(f"targets: {tuple(found.shape)} for {len(images)} images; accepted: ({len(images)}, {width or 'D'})")
    if not found.is_floating_point():
        raise InputError(f"targets: {found.dtype}; accepted: real numbers")
    check_finite("targets", found)
    return found


Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy in nats with hard labels (K, B) int64 or soft ones (K, B, classes): (K, B)."""
    if target.is_floating_point():
        return -(target * output.log_softmax(-1)).sum(-1)
    return F.cross_entropy(output.flatten(0, 1), target.flatten(), reduction="none").view(target.shape)


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Squared distance to real-valued targets (K, B, D), mean over D: (K, B)."""
    return (output - target).square().mean(-1)


# of experts, and of the students matched to them; sets of kernel methods are learned by another, `half_squared_error`
LOSSES: dict[str, Loss] = {"cross-entropy": cross_entropy, "squared error": squared_error}


def half_squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Half the squared distance, summed over D, to real-valued labels (K, B, D), or to centred one-hot ones (K, B): (K, B)."""
    if not target.is_floating_point():
        target = one_hot(target, output.shape[-1]) - 1 / output.shape[-1]
    return 0.5 * (output - target).square().sum(-1)


def one_hot(target: Tensor, classes: int) -> Tensor:
    """Labels (...) int64 as soft ones (..., classes); it does not look at the values, and so never waits."""
    return (target[..., None] == torch.arange(classes, device=target.device)).float()
