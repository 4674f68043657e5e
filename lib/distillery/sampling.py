"""Real batches for distillation: which real images of a class meet the synthetic ones in a step, and with what weight.

A sampler returns indices and weights. Weights are relative to a plain mean: all ones is the ordinary batch mean, a zero
drops a sample inside the batch. `RealBatches` turns them into images, one class or all classes at once.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from distillery.checks import InputError


class Batch(NamedTuple):
    """indices (n,) into the real set; weights (n,), divided by their sum wherever a mean is taken."""

    indices: Tensor
    weights: Tensor


class Sampler(Protocol):
    """Draws real batches; `refresh` is called before each step so that a sampler can follow the synthetic set."""

    state: dict[str, Tensor]  # what it has learned on the way; travels with checkpoints

    def draw(self, label: int | None, n: int, generator: Generator) -> Batch: ...
    def refresh(self, step: int, objective, state: dict, synthetic) -> None: ...


class Uniform:
    """Uniform without replacement, from one class or from all: the default of every published method."""

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

    def refresh(self, step: int, objective, state: dict, synthetic) -> None:
        """Nothing to follow."""


class RealBatches:
    """The `draw` an objective is handed: a sampler joined to its images and the step's generator."""

    def __init__(self, real, sampler: Sampler, generator: Generator):
        """real: an ImageSet, or any source with `.batch(indices)` and `.targets`."""
        self.real, self.sampler, self.generator = real, sampler, generator
        self.samples = 0  # images drawn so far, for the cost record

    def __call__(self, label: int | None, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """One class, or all classes if None: images (n', C, H, W), targets (n', ...), weights (n',) that sum to one."""
        indices, weights = self.sampler.draw(label, n, self.generator)
        _check_not_empty([indices])
        self.samples += len(indices)
        device = self.real.targets.device
        indices, weights = (value.to(device, non_blocking=True) for value in (indices, weights))
        return self.real.batch(indices), self.real.targets[indices], weights / weights.sum()

    def classes(self, labels: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """All classes at once: images (classes, n', C, H, W) and weights (classes, n') whose rows sum to one.

        Classes with fewer than n' images are filled up with images of weight zero.
        """
        batches = [self.sampler.draw(int(label), n, self.generator) for label in labels]
        _check_not_empty([batch.indices for batch in batches])
        widest = max(len(batch.indices) for batch in batches)
        indices = torch.stack([_fill(batch.indices, widest, batch.indices[0]) for batch in batches])
        weights = torch.stack([_fill(batch.weights, widest, 0) for batch in batches])
        self.samples += sum(len(batch.indices) for batch in batches)
        device = self.real.targets.device
        indices, weights = (value.to(device, non_blocking=True) for value in (indices, weights))
        return self.real.batch(indices), weights / weights.sum(1, keepdim=True)


def _check_not_empty(indices: list[Tensor]) -> None:
    if any(len(one) == 0 for one in indices):
        raise InputError(
            "sampler: an empty batch; accepted: at least one real image of every class in every step"
        )


def _fill(values: Tensor, n: int, value) -> Tensor:
    return torch.cat([values, values.new_full((n - len(values),), value)])
