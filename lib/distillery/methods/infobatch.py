r"""Leave out a part of what is learned, anew in every epoch, and weigh the rest of it up: InfoBatch (arXiv 2303.04947).

Before epoch $e$ the samples whose last recorded loss is below the mean of all are learned. Of these a part $r$ is left out at random; the
gradients of the rest are scaled so that the expected gradient of an epoch is that of all samples,

$$w_i = \begin{cases} \frac{1}{1 - r} & \ell_i < \bar\ell, \text{ kept} \\ 1 & \ell_i \ge \bar\ell \end{cases}$$

A sample that is left out keeps its loss. The first epoch visits all, as do those behind the part $\delta$ of all epochs. Slow reference:
`plan_plain`. All of this, and the defaults, as in the public code, which scores by the loss of the training step, augmented.

Our choices: the rate is that of the protocol, and the loss cross-entropy without label smoothing (there .1). Weights are 1 behind $\delta$ also
where that is no whole epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from distillery.checks import InputError, check_fraction
from distillery.evaluation import fit
from distillery.methods.base import Settings, register
from distillery.methods.kakurenbo import Kakurenbo
from distillery.networks import Params
from distillery.training import Plan, Stats


class LeavingOut:
    """Plans the epochs of one network's training; one object for one training.

    n, epochs  samples, and epochs of the whole training
    part       r in [0, 1), of the learned samples
    delta      in [0, 1]: the part of the epochs in which samples are left out
    left_out   how many samples each epoch so far left out
    """

    collect = ("loss",)

    def __init__(self, n: int, epochs: int, part: float, delta: float, generator: Generator):
        assert 0 <= part < 1 and 0 <= delta <= 1
        self.last, self.until, self.part, self.generator = torch.full((n,), torch.inf), delta * epochs, part, generator
        self.left_out: list[int] = []

    def plan(self, epoch: int, stats: Stats) -> Plan:
        """What `epoch` visits, by all losses recorded before it."""
        assert epoch == len(self.left_out), "one object for one training, from epoch 0"
        if epoch:
            values = stats.collected["loss"][-1, 0].cpu()  # (N,), NaN where not visited
            self.last = torch.where(values.isnan(), self.last, values)
        if epoch == 0 or epoch + 1 > self.until:
            visited, weights = torch.arange(len(self.last)), torch.ones(len(self.last))
        else:
            visited, weights = drawn(self.last, self.part, self.generator)
        self.left_out.append(len(self.last) - len(visited))
        device = stats.collected["loss"].device if epoch else "cpu"
        return Plan(visited.to(device), weights.to(device))

    def after_epoch(self, epoch: int, weights: Params, momentum: list[Tensor]) -> None:
        """Nothing: what was left out keeps its loss."""


def drawn(losses: Tensor, part: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Ascending indices (M,) int64 of what is visited, and weights (M,). Slow reference: `plan_plain`.

    losses  (N,) last recorded, nats
    part    r, of those below their mean
    """
    learned = (losses < losses.mean()).nonzero()[:, 0]
    order = learned[torch.randperm(len(learned), generator=generator)]
    out = order[_kept(part, len(learned)) :]
    weights = torch.ones_like(losses)
    weights[learned], weights[out] = 1 / (1 - part), 0.0
    visited = (weights > 0).nonzero()[:, 0]
    return visited, weights[visited]


def plan_plain(losses: Sequence[float], part: float, generator: Generator) -> dict[int, float]:
    """The definition of `drawn`, one sample at a time: the weight of each that is visited."""
    mean = sum(losses) / len(losses)
    learned = [i for i, loss in enumerate(losses) if loss < mean]
    kept = [learned[j] for j in torch.randperm(len(learned), generator=generator)[: _kept(part, len(learned))].tolist()]
    return {i: 1 / (1 - part) if loss < mean else 1.0 for i, loss in enumerate(losses) if loss >= mean or i in kept}


def _kept(part: float, n: int) -> int:
    """floor((1 - part) * n), but 7 of .7 * 10."""
    return int((1 - part) * n + 1e-9)


@dataclass(frozen=True)
class InfoBatchSettings(Settings):
    part: float  # r, of the learned samples that an epoch leaves out, in (0, 1)
    delta: float  # part of the epochs in which it does

    def __post_init__(self):
        super().__post_init__()
        check_fraction("delta", self.delta)
        if not 0 < self.part <= 0.9:
            raise InputError(f"part: {self.part} is not accepted; accepted: above 0 and at most .9, as the public code has it")


@register
class InfoBatch(Kakurenbo):
    """Fine-tuning on all images, of which a part that is learned is left out anew in every epoch, and the rest of it weighs more."""

    name, kind, paper = "InfoBatch", "leaves out what is learned", "2303.04947"
    source = "code: NUS-HPC-AI-Lab/InfoBatch"
    Settings = InfoBatchSettings
    common = {"part": 0.5, "delta": 0.875}

    def train(self, job, network, source, protocol, stream, steps_of: int) -> tuple:
        plan = LeavingOut(len(source), protocol.epochs, job.settings.part, job.settings.delta, job.stream("left out"))
        options = {"steps_of": steps_of, "encoder": job.experiment.encoder, "hiding": plan, "device": job.experiment.device}
        return *fit(network, source, protocol, stream, **options), {"hidden": plan.left_out}
