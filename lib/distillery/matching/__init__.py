"""Distillation objectives: what is matched between real and synthetic data."""

from collections.abc import Callable

import torch
from torch import Tensor

from distillery.synthetic import Synthetic


def classes_at_once(network, n: int, shape: tuple[int, ...], limit: int) -> int:
    """So many classes of n images that the widest feature map stays below `limit` numbers: a function of shapes alone."""
    return max(1, limit // (n * network.channels * shape[-2] * shape[-1]))


def gradient_by_classes(
    synthetic: Synthetic, size: int, loss: Callable[[Tensor, Tensor, slice], Tensor]
) -> tuple[Tensor, Tensor]:
    """(loss, its gradient on the stored images) of a loss that is a sum over classes, a chunk of classes at a time.

    size  classes at once; memory follows it, the result does not
    loss  (grouped images, labels, slice of the classes) -> ()
    """
    images = synthetic.tensors["images"].detach().requires_grad_()
    labels, members = synthetic.classes_present()
    labels = labels.to(synthetic.device, non_blocking=True)
    grouped = synthetic.replace(images=images).decode()[0][members]  # (classes, m, C, H, W)
    leaf = grouped.detach().requires_grad_()
    total, parts = 0.0, []
    for at in range(0, len(labels), size):
        here = slice(at, at + size)
        value = loss(leaf, labels, here)
        parts.append(torch.autograd.grad(value, [leaf])[0][here])
        total = total + value.detach()
    (gradient,) = torch.autograd.grad(grouped, [images], torch.cat(parts))
    return total, gradient
