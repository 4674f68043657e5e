r"""DATM, difficulty-aligned trajectory matching (arXiv 2310.05773): MTT on late or early epochs by size, with learned soft labels.

$$t \sim U\{T^-, \ldots, U(i) - 1\}, \qquad U(i) = \min\big(T^+,\ T + \lfloor (T^+ - T)\, i / \Delta \rfloor\big), \qquad
l(\theta; x, z) = -\langle \mathrm{softmax}(z), \log \mathrm{softmax} f_\theta(x) \rangle$$

Start epochs $t$ of update $i$ lie below a bound that grows over $\Delta$ updates (`matching.trajectory.StartEpochs`; it stays at $T^+$
where $T$ is not given): small sets match early epochs, large ones late ones. Label logits $z$ are learned beside the pixels; they start at
the mean logits of the experts whose last epoch classifies an image right (`first_logits`), and first images are some that one expert
classifies right. An update is skipped where its matching loss is above a threshold.
"""

from dataclasses import dataclass, replace
from math import inf

import torch
from torch import Tensor

from distillery.checks import RunFailed
from distillery.data.synthetic import Synthetic
from distillery.distill import Optimizer
from distillery.experts import Experts
from distillery.methods.base import TINY, register
from distillery.methods.trajectories import FlatSettings, Trajectories, row
from distillery.networks import Params
from distillery.starts import start


@dataclass(frozen=True, kw_only=True)
class DATMSettings(FlatSettings):
    initial_max_start_epoch: int = 0  # the bound of start epochs at first (T), 0 = it does not grow
    expansion_steps: int = 0  # updates until it reaches `max_start_epoch`
    labels: bool  # whether label logits are learned, at `lr_labels` with `momentum_labels`
    lr_labels: float
    momentum_labels: float
    threshold: float  # updates with a larger loss are skipped, 0 = none

    @property
    def last_epoch(self) -> int:
        """First labels come from the experts' last epoch."""
        return max(super().last_epoch, self.expert_training_epochs if self.labels else 0)


@register
class DATM(Trajectories):
    """Trajectories as hard as the set is large, matched with learned labels. Means without a deviation are not below."""

    name, paper = "DATM", "2310.05773"
    source = "code: configurations of NUS-HPC-AI-Lab/DATM"
    start = "correct"
    learns = (*Trajectories.learns, "label_logits")
    Settings = DATMSettings
    common = Trajectories.common | {
        "iterations": 10000, "momentum_labels": 0.9, "optimizer": "GSAM", "rho": 0.01, "alpha": 0.3, "expert_training_epochs": 100,
        "labels": True, "threshold": 1.0, "normalization": "zca",
    }  # fmt: skip
    published = {
        "cifar10": {
            1: row(80, 2, 4, 100, 1e-7, 0.01, threshold=1.1, student_batch=10, lr_labels=5),
            10: row(80, 2, 20, 100, 1e-5, 0.01, initial_max_start_epoch=10, expansion_steps=1000, student_batch=100, lr_labels=2),
            50: row(80, 2, 40, 1000, 1e-5, 0.01, initial_max_start_epoch=20, expansion_steps=2000, student_batch=500, lr_labels=2),
            500: row(40, 2, 60, 50, 1e-5, 0.01, min_start_epoch=40, student_batch=1000, lr_labels=10),
            1000: row(100, 2, 60, 50, 1e-5, 0.01, min_start_epoch=40, student_batch=1000, lr_labels=10),
        },
        "cifar100": {
            1: row(40, 3, 20, 1000, 1e-5, 0.01, initial_max_start_epoch=10, expansion_steps=1000, student_batch=1000, lr_labels=10),
            10: row(80, 2, 50, 1000, 1e-5, 0.01, initial_max_start_epoch=30, expansion_steps=2000, student_batch=1000, lr_labels=10),
            50: row(80, 2, 70, 1000, 1e-5, 0.01, min_start_epoch=20, student_batch=1000, lr_labels=10, start="random"),
            100: row(80, 2, 70, 50, 1e-5, 0.01, min_start_epoch=30, student_batch=1000, lr_labels=10),
        },
        "tiny-imagenet": {
            1: row(40, 2, 20, 10000, 1e-4, 0.01, initial_max_start_epoch=15, expansion_steps=2000, student_batch=1000, lr_labels=10, **TINY),
            10: row(40, 2, 50, 100, 1e-4, 0.01, min_start_epoch=10, student_batch=500, lr_labels=10, **TINY),
            50: row(20, 2, 70, 100, 1e-4, 0.01, min_start_epoch=40, student_batch=1000, lr_labels=10, **TINY),
        },
    }  # fmt: skip
    judged = replace(Trajectories.judged, batch=128)
    numbers = {  # paper
        "cifar10": {1: (46.9, 0.5), 10: (66.8, 0.2), 50: (76.1, 0.3)},
        "cifar100": {1: (27.9, 0.2), 10: (47.2, 0.4), 50: (55.0, 0.2)},
        "tiny-imagenet": {1: (17.1, 0.3), 10: (31.1, 0.3), 50: (39.7, 0.3)},
    }

    def options(self, job) -> dict:
        return {"labels": job.settings.labels, "threshold": job.settings.threshold or inf}

    def optimizers(self, job) -> dict[str, Optimizer]:
        s = job.settings
        return super().optimizers(job) | ({"label_logits": Optimizer(s.lr_labels, s.momentum_labels)} if s.labels else {})

    def first(self, job, chosen: Tensor | None = None) -> Synthetic:
        chosen = job.chosen(job.start) if chosen is None else chosen
        made = super().first(job, chosen)
        if not job.settings.labels:
            return made
        one = 0 if job.start == "random" else None  # as published: one expert's labels for random real images
        return made.replace(label_logits=first_logits(job.network, self.experts(job), job.experiment.real, chosen, one))


def classified(network, params: Params, source, indices: Tensor, batch: int = 500) -> Tensor:
    """Logits of K networks in evaluation mode for the images at `indices` (M,): (K, M, classes)."""
    with torch.no_grad():
        parts = [network.apply(params, source.batch(i), train=False).logits for i in indices.split(batch)]
    return torch.cat(parts, 1)


@start("correct", general=False, selection=False, labels=True)
def correct(job, n: int) -> Tensor:
    """Indices (classes * n,) of random images that one random expert's last epoch classifies right, as in DATM's public code.

    Raises RunFailed if a class has fewer than n of them.
    """
    experts, source, stream = job.method.experts(job), job.source, job.stream("correct images")
    one = int(torch.randint(len(experts), (), generator=stream))
    everything, targets, chosen = torch.arange(len(source), device=source.device), source.targets.cpu(), []
    right = classified(job.network, experts.at(one, experts.epochs), source, everything)[0].argmax(-1).cpu() == targets
    for label, name in enumerate(source.classes):
        members = torch.nonzero(right & (targets == label))[:, 0]
        if len(members) < n:
            found = f"an expert classifies {len(members)} images right, fewer than {n} a class"
            raise RunFailed(f"class {name}: {found}; accepted: fewer images a class, or experts trained longer")
        chosen.append(members[torch.randperm(len(members), generator=stream)[:n]])
    return torch.cat(chosen)


def first_logits(network, experts: Experts, source, indices: Tensor, one: int | None = None) -> Tensor:
    """Label logits to start from: (M, classes).

    one  this expert's last-epoch logits alone (DATM from random images); None = the mean over the experts whose last epoch classifies
         the image right, over all where none does
    """
    indices = indices.to(source.device)
    some = range(len(experts)) if one is None else [one]  # one by one: images, not experts, fill the device here
    logits = torch.cat([classified(network, experts.at(i, experts.epochs), source, indices) for i in some])  # (E, M, classes)
    if one is not None:
        return logits[0]
    right = (logits.argmax(-1) == source.targets[indices]).to(logits)  # (E, M)
    right = torch.where(right.sum(0) > 0, right, 1.0)
    return (logits * right[..., None]).sum(0) / right.sum(0)[:, None]
