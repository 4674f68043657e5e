"""Self-supervised losses of two views: Barlow Twins (arXiv 2103.03230) and SimCLR (2002.05709)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from distillery.checks import InputError, check_positive

CONSTANT = 1e-12  # variance of a projector's output below which it counts as constant


def barlow_twins(z_a: Tensor, z_b: Tensor, lam: float = 1 / 128) -> Tensor:
    """Distance of the correlation of two views' outputs from the identity, summed over pairs of outputs.

    Deviations are those of the batch itself (divided by B, not B - 1), so that equal views of uncorrelated outputs give 0. An output
    without deviation correlates with nothing. Slow reference: `barlow_twins_plain`.

    z_a, z_b  (..., B, D) outputs of the projector
    lam       weight of the pairs of different outputs (CIFAR 1/128, Tiny ImageNet 1/1024)
    raises    InputError on shapes that differ, fewer than 2 images, or a weight that is not positive
    """
    _check_views(z_a, z_b)
    check_positive("lam", lam)
    a, b = (z - z.mean(-2, keepdim=True) for z in (z_a, z_b))
    a, b = (z * z.square().mean(-2, keepdim=True).clamp_min(CONSTANT).rsqrt() for z in (a, b))
    correlation = a.mT @ b / z_a.shape[-2]  # (..., D, D)
    same = correlation.diagonal(dim1=-2, dim2=-1)  # (..., D)
    other = correlation - torch.diag_embed(same)
    return (1 - same).square().sum(-1) + lam * other.square().sum((-2, -1))


def barlow_twins_plain(z_a: Tensor, z_b: Tensor, lam: float = 1 / 128) -> Tensor:
    """One batch, output by output."""
    loss = torch.zeros((), dtype=z_a.dtype)
    for i, x in enumerate(z_a.T):
        for j, y in enumerate(z_b.T):
            spread = x.std(correction=0) * y.std(correction=0)
            correlation = ((x - x.mean()) * (y - y.mean())).mean() / spread if spread > 0 else spread
            loss = loss + ((1 - correlation) ** 2 if i == j else lam * correlation**2)
    return loss


def simclr(z_a: Tensor, z_b: Tensor, temperature: float = 0.5) -> Tensor:
    """Cross-entropy in nats of finding an image's other view among all 2B - 1 others, by cosine: mean over the 2B views.

    z_a, z_b     (..., B, D) outputs of the projector
    temperature  tau
    raises       InputError on shapes that differ, fewer than 2 images, or a temperature that is not positive
    Slow reference: `simclr_plain`.
    """
    _check_views(z_a, z_b)
    check_positive("temperature", temperature)
    z = F.normalize(torch.cat([z_a, z_b], -2), dim=-1)  # (..., 2B, D)
    cosine = z @ z.mT / temperature  # (..., 2B, 2B)
    itself = torch.eye(z.shape[-2], dtype=torch.bool, device=z.device)
    positive = cosine.roll(z_a.shape[-2], -1).diagonal(dim1=-2, dim2=-1)  # (..., 2B)
    return (cosine.masked_fill(itself, -math.inf).logsumexp(-1) - positive).mean(-1)


def two_views_apart(output: Tensor, target: Tensor) -> Tensor:
    """`simclr` for outputs (K, 2B, D), all first views before all second ones: (K,), a loss of `training`."""
    return simclr(*output.chunk(2, 1))


def simclr_plain(z_a: Tensor, z_b: Tensor, temperature: float = 0.5) -> Tensor:
    """One batch, view by view."""
    z, n = torch.cat([z_a, z_b]), len(z_a)
    losses = []
    for a in range(2 * n):
        cosine = [torch.dot(z[a], z[c]) / (z[a].norm() * z[c].norm()) / temperature for c in range(2 * n)]
        others = sum(cosine[c].exp() for c in range(2 * n) if c != a)
        losses.append(-(cosine[(a + n) % (2 * n)].exp() / others).log())
    return torch.stack(losses).mean()


def _check_views(z_a: Tensor, z_b: Tensor) -> None:
    if z_a.shape != z_b.shape or z_a.ndim < 2 or z_a.shape[-2] < 2:
        raise InputError(f"views: outputs {tuple(z_a.shape)} and {tuple(z_b.shape)}; accepted: equal shapes (.., B, D) of 2 images or more")
