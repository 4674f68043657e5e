"""Where batches go that are drawn by the present loss."""

import torch
from torch import Tensor

from distillery.job import Job
from distillery.sampling import Importance


def chances_by_loss(job: Job, share: float) -> Tensor:
    """The chance of each real image (N,), classes alike, in the first step of a kernel method."""
    real, classes = job.source, job.experiment.classes
    sampler = Importance(real, share, generator=job.stream("look"))
    sampler.refresh(0, job.method.regression(job), {}, job.first())
    found = torch.empty(len(real), dtype=torch.float64)
    for c in range(len(classes)):
        members, chances = sampler.chances(c)
        found[members] = chances / len(classes)
    return found


def hardest(chances: Tensor, part: int = 10) -> float:
    """The share of the draws that goes to the likeliest 1 / part of the images."""
    return float(chances.sort(descending=True).values[: len(chances) // part].sum())
