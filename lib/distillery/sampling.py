"""Real batches for distillation: which real images of a class meet the synthetic ones in a step, and with what weight.

A sampler returns indices and weights. Weights are relative to a plain mean: all ones is the ordinary batch mean, a zero
drops a sample inside the batch. `RealBatches` turns them into images, one class or all classes at once.
"""

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from distillery.checks import InputError, check_choice, check_positive_int


class Batch(NamedTuple):
    """indices (n,) into the real set; weights (n,), divided by their sum wherever a mean is taken."""

    indices: Tensor
    weights: Tensor


class Sampler(Protocol):
    """Draws real batches.

    state    what it has learned on the way; travels with checkpoints
    needs    what it asks of an objective, by name; () of any
    refresh  called before each step, so that a sampler can follow the synthetic set
    weigh    called with the batches of all classes and what computes their effects on the synthetic set
    """

    state: dict[str, Tensor]
    needs: tuple[str, ...]

    def draw(self, label: int | None, n: int, generator: Generator) -> Batch: ...
    def weigh(self, labels: Tensor, indices: Tensor, weights: Tensor, effects) -> Tensor: ...
    def refresh(self, step: int, objective, state: dict, synthetic) -> None: ...


class Uniform:
    """Uniform without replacement, from one class or from all: the default of every published method."""

    needs: tuple[str, ...] = ()

    def __init__(self, targets: Tensor | None, n: int | None = None):
        """targets: labels (N,), or None for a set of n images without classes."""
        self.state: dict[str, Tensor] = {}
        self.n = len(targets) if targets is not None else n
        self.members = (
            {}
            if targets is None
            else {int(c): torch.nonzero(targets.cpu() == c)[:, 0] for c in targets.unique()}
        )

    def draw(self, label: int | None, n: int, generator: Generator) -> Batch:
        """At most n distinct images of class `label` (fewer if the class is smaller), or of all classes if None."""
        members = torch.arange(self.n) if label is None else self.members[int(label)]
        indices = members[torch.randperm(len(members), generator=generator)[:n]]
        return Batch(indices, torch.ones(len(indices)))

    def weigh(self, labels: Tensor, indices: Tensor, weights: Tensor, effects) -> Tensor:
        """Weights as they are."""
        return weights

    def refresh(self, step: int, objective, state: dict, synthetic) -> None:
        """Nothing to follow."""


TAILS = ("both", "low", "high")


class TreatmentEffect(Uniform):
    r"""Uniform draws, without the images whose effect on the synthetic pixels lies in the tails.

    Every `every` steps the effects of the batch are computed. Their mean and mean square in each class are followed
    by moving averages, which gives a mean and a variance; images outside the quantiles of that normal distribution are dropped, from this batch and from
    later ones, until they are drawn and judged again. A batch never loses all its images of a class.
    Source: BiLP (arXiv 2305.18381), the dynamic level: two tails, running mean and variance, lazy selection. Equal tails,
    statistics by class, their momentum and the memory of verdicts are our choices, unpublished there. The share that is
    dropped is nominal: norms are not normal, their scale changes with the network, and images never judged are kept.
    Batches of all classes, on which some objectives train networks, are not filtered.
    """

    needs = ("statistic", "distance")

    def __init__(
        self, targets: Tensor, drop: float, every: int = 1, tails: str = "both", momentum: float = 0.9
    ):
        """What to drop.

        targets   labels (N,), of classes 0, 1, ...
        drop      share of the images to drop, in (0, 1)
        every     steps between two looks at the effects
        tails     'both' = half of it from either tail, or 'low' or 'high' alone
        momentum  of the running mean and variance
        raises    InputError on a share that keeps or drops everything, an unknown tail, a period that is no positive integer
        """
        super().__init__(targets)
        check_choice("tails", tails, TAILS)
        check_positive_int("every", every)
        for name, value in (("drop", drop), ("momentum", momentum)):
            if not 0 < value < 1:
                raise InputError(f"{name}: {value} is not accepted; accepted: a share in (0, 1)")
        self.every, self.momentum, self.due = every, momentum, True
        low, high = {"both": (drop / 2, drop / 2), "low": (drop, 0.0), "high": (0.0, drop)}[tails]
        self.bounds = (
            NormalDist().inv_cdf(low) if low else -math.inf,
            NormalDist().inv_cdf(1 - high) if high else math.inf,
        )
        classes, device = int(targets.max()) + 1, targets.device
        self.state = {
            "mean": torch.full((classes,), math.nan, device=device),
            "square": torch.full((classes,), math.nan, device=device),
            "dropped": torch.zeros(len(targets), dtype=torch.bool, device=device),
        }

    def refresh(self, step: int, objective, state: dict, synthetic) -> None:
        """Know whether this step looks at the effects."""
        self.due = step % self.every == 0

    def weigh(
        self, labels: Tensor, indices: Tensor, weights: Tensor, effects: Callable[[], Tensor]
    ) -> Tensor:
        """Weights (classes, n) without the dropped images, rows summing to one.

        labels   (classes,) of the rows
        indices  (classes, n) into the real set
        effects  () -> norms (classes, n)
        """
        if self.due:
            self._judge(labels.to(weights.device, non_blocking=True), indices, weights, effects())
        left = weights.masked_fill(self.state["dropped"][indices], 0)
        total = left.sum(1, keepdim=True)
        return torch.where(total > 0, left / total.clamp_min(_TINY), weights)

    def _judge(self, labels: Tensor, indices: Tensor, weights: Tensor, norms: Tensor) -> None:
        seen = weights > 0  # the others fill up small classes
        count = seen.sum(1).clamp_min(1)
        norms = torch.where(seen, norms.float(), 0)
        mean = norms.sum(1) / count
        for name, new in (("mean", mean), ("square", norms.square().sum(1) / count)):
            old = self.state[name][labels]
            new = torch.where(old.isnan(), new, self.momentum * old + (1 - self.momentum) * new)
            self.state[name][labels] = new
        middle, square = (self.state[name][labels][:, None] for name in ("mean", "square"))
        spread = (square - middle.square()).clamp_min(0).sqrt()
        low, high = (middle + bound * spread if math.isfinite(bound) else bound for bound in self.bounds)
        dropped = (norms < low) | (norms > high)
        # what fills up a class repeats its first image, and so its verdict
        self.state["dropped"][indices] = torch.where(seen, dropped, dropped[:, :1])


_TINY = 1e-30  # in place of a sum of zero


class RealBatches:
    """The `draw` an objective is handed: a sampler joined to its images and the step's generator."""

    def __init__(self, real, sampler: Sampler, generator: Generator):
        """real: an ImageSet, or any source with `.batch(indices)` and `.targets`."""
        self.real, self.sampler, self.generator = real, sampler, generator
        self.samples = 0  # images drawn so far, for the cost record
        self.effective: Tensor | None = None  # images of weight above zero, mean over classes

    def __call__(self, label: int | None, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """One class, or all classes if None: images (n', C, H, W), targets (n', ...), weights (n',) that sum to one."""
        indices, weights = self.sampler.draw(label, n, self.generator)
        _check_not_empty([indices])
        self.samples += len(indices)
        device = self.real.targets.device
        indices, weights = (value.to(device, non_blocking=True) for value in (indices, weights))
        return self.real.batch(indices), self.real.targets[indices], weights / weights.sum()

    def classes(
        self, labels: Tensor, n: int, effects: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """All classes at once: images (classes, n', C, H, W) and weights (classes, n') whose rows sum to one.

        Classes with fewer than n' images are filled up with images of weight zero.

        effects  (images, weights) -> (classes, n') effects on the synthetic set, for samplers that follow them
        """
        batches = [self.sampler.draw(int(label), n, self.generator) for label in labels]
        _check_not_empty([batch.indices for batch in batches])
        widest = max(len(batch.indices) for batch in batches)
        indices = torch.stack([_fill(batch.indices, widest, batch.indices[0]) for batch in batches])
        weights = torch.stack([_fill(batch.weights, widest, 0) for batch in batches])
        self.samples += sum(len(batch.indices) for batch in batches)
        device = self.real.targets.device
        indices, weights = (value.to(device, non_blocking=True) for value in (indices, weights))
        real, weights = self.real.batch(indices), weights / weights.sum(1, keepdim=True)
        weights = self.sampler.weigh(labels, indices, weights, lambda: effects(real, weights))
        self.effective = (weights > 0).sum(1).float().mean()
        return real, weights


def _check_not_empty(indices: list[Tensor]) -> None:
    if any(len(one) == 0 for one in indices):
        raise InputError(
            "sampler: an empty batch; accepted: at least one real image of every class in every step"
        )


def _fill(values: Tensor, n: int, value) -> Tensor:
    return torch.cat([values, values.new_full((n - len(values),), value)])
