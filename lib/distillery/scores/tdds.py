r"""TDDS, temporal dual-depth scoring (arXiv 2311.13613): how unevenly a sample's predictions change during training; high = kept there.

With class probabilities $p_t(x)$ after epoch $t$ of $T$, in windows of $K$ epochs the changes between epochs and their deviation,

$$d_t = \sum_c \Big| p_{t+1}^c \log \frac{p_{t+1}^c}{p_t^c} \Big|, \qquad
R_k = \Big( \sum_{t=k}^{k+K-2} (d_t - \bar d_k)^2 \Big)^{1/2}, \qquad \mathrm{TDDS} = \sum_k \beta (1 - \beta)^{T-K-k} R_k$$

with $\bar d_k$ the mean change of window $k = 0, .., T - K$. All as in the public code, absolute values and $10^{-8}$ beside probabilities
included, with its defaults $K = 10$, $\beta = .9$ and the $T = 30$ of its example (others by data set and part: unknown here). There the
highest are kept, of all classes together. Slow reference: `tdds_plain`.

Our choices: probabilities in evaluation mode at the end of every epoch (there those of the training steps, augmented), one network from
scratch, trained as those of the score 'loss'.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distillery.checks import InputError, check_fraction, check_positive_int
from distillery.evaluation.protocol import logits
from distillery.scores.dynamics import dynamics
from distillery.scores.registry import register_score
from distillery.seeds import generator

if TYPE_CHECKING:
    from distillery.scores.cached import CachedScores

EPOCHS, WINDOW, DECAY, TINY = 30, 10, 0.9, 1e-8


def change(before: Tensor, after: Tensor) -> Tensor:
    """d of probabilities (N, C) of one epoch and the next: (N,)."""
    return (after * ((after + TINY).log() - (before + TINY).log())).abs().sum(-1)


def tdds(changes: Tensor, window: int = WINDOW, decay: float = DECAY) -> Tensor:
    """Scores (N,) of changes (T - 1, N) between T epochs. Slow reference: `tdds_plain`.

    Raises InputError on a window of fewer than 2 epochs or more than there are, and a decay that is not in (0, 1].
    """
    check_positive_int("window", window)
    check_fraction("decay", decay)
    epochs = len(changes) + 1
    if not 2 <= window <= epochs:
        raise InputError(f"window: {window} of {epochs} epochs; accepted: 2 to {epochs}")
    windows = changes.unfold(0, window - 1, 1)  # (T - K + 1, N, K - 1)
    deviations = (windows - windows.mean(-1, keepdim=True)).norm(dim=-1)  # (T - K + 1, N)
    weights = decay * (1 - decay) ** torch.arange(len(deviations) - 1, -1, -1.0, device=changes.device)
    return (weights[:, None] * deviations).sum(0)


def tdds_plain(probabilities: Sequence[Sequence[Sequence[float]]], window: int, decay: float) -> list[float]:
    """The definition: probabilities[t][i][c] of sample i after epoch t."""
    epochs, scores = len(probabilities), []
    for i in range(len(probabilities[0])):
        total = 0.0
        for k in range(epochs - window + 1):
            changes = []
            for t in range(k, k + window - 1):
                pairs = zip(probabilities[t][i], probabilities[t + 1][i], strict=True)
                changes.append(sum(abs(q * (math.log(q + TINY) - math.log(p + TINY))) for p, q in pairs))
            mean = sum(changes) / (window - 1)
            deviation = math.sqrt(sum((one - mean) ** 2 for one in changes))
            total += decay * (1 - decay) ** (epochs - window - k) * deviation
        scores.append(total)
    return scores


@register_score("TDDS", labels=True, spec=lambda scores: {"epochs": EPOCHS, "window": WINDOW, "decay": DECAY})
def scored(scores: "CachedScores", seed: int, k: int) -> Tensor:
    """`tdds` of one network from scratch."""
    images, network = scores.images, scores.network

    def make() -> tuple[dict, int]:
        changes, before = [], None

        def record(_epoch: int, weights, _momentum) -> None:
            nonlocal before
            now = logits(network, weights, images)[0].softmax(-1)  # (N, C): of two epochs at once
            if before is not None:
                changes.append(change(before, now))
            before = now

        passed = dynamics(network, images, 1, EPOCHS, generator(seed, "TDDS"), after_epoch=record)
        return {"TDDS": tdds(torch.stack(changes)).cpu()}, passed.stats.samples + EPOCHS * len(images)

    inputs = {"network": network.spec(), "transform": scores.transform, "seed": seed}
    inputs |= {"epochs": EPOCHS, "window": WINDOW, "decay": DECAY}
    return scores.stored("tdds", inputs, make, ("TDDS", seed))["TDDS"]
