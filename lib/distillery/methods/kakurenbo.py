r"""Hide the samples a network has learned, anew in every epoch of its training: KAKURENBO (arXiv 2310.10102).

Before epoch $e$ all $N$ samples are sorted by their last recorded loss. The $\lfloor F_e N \rfloor$ lowest are candidates; a candidate is
hidden where its last prediction was right and its largest probability at least $\tau$, else it moves back. The epoch visits the rest at
$\frac{1}{1 - F_e}$ of the learning rate, and a forward pass at its end records anew what was hidden. $F_e$ is the fraction times a factor
that falls at milestones of the training. Slow reference: `plan_plain`.

What was visited is recorded during the epoch, augmented and at the weights of that step; what was hidden at its end, in evaluation mode and
never augmented. Its losses tend to be lower for that alone, so what is hidden tends to stay so. Our choices: probabilities over the classes
of a sample (public code: over the samples of a batch), and that evaluation mode (there training mode, which moves BatchNorm's statistics).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distillery.checks import InputError
from distillery.evaluation import FineTuning, fit
from distillery.methods.base import Settings, register
from distillery.methods.whole import Whole
from distillery.networks import Params
from distillery.training import COLLECTORS, Plan, Stats, cross_entropy

CHUNK = 500  # images of one forward pass
FACTORS = (1, 0.8, 0.6, 0.4)  # of the fraction, the next one from each milestone on


class Hiding:
    """Plans the epochs of one network's training with cross-entropy on hard labels; one object for one training.

        hiding = Hiding(network, images, 0.3)
        train(network, params, images, plan=hiding.plan, collect=hiding.collect, after_epoch=hiding.after_epoch, ...)

    images      what is trained on: len(), `.targets` (N,) int64 and `.batch(indices)`, an ImageSet or TensorSource
    fraction    F in [0, 1), the most that is hidden
    threshold   tau in [0, 1], the least probability of a hidden sample's prediction
    milestones  three ascending epochs at most, counted from 0, from which on the next of FACTORS counts: where the learning rate falls
    hidden      how many samples each epoch so far hid
    refreshed   forward passes of one sample that refreshing took so far, a third of what a visit costs
    """

    collect = ("loss", "correct", "confidence")

    def __init__(self, network, images, fraction: float, *, threshold: float = 0.7, milestones: Sequence[int] = ()):
        assert 0 <= fraction < 1 and 0 <= threshold <= 1 and len(milestones) < len(FACTORS)
        self.network, self.images, self.fraction, self.threshold = network, images, fraction, threshold
        self.milestones, self.hidden = tuple(milestones), []
        self.refreshed, device = 0, images.targets.device
        self._last = {name: torch.full((len(images),), math.nan, device=device) for name in self.collect}
        self._waiting = torch.arange(0, device=device)  # indices hidden and not yet refreshed

    def scheduled(self, epoch: int) -> float:
        """F_e, the part that may be hidden in an epoch, counted from 0; the first one visits everything."""
        return self.fraction * FACTORS[sum(epoch >= milestone for milestone in self.milestones)] if epoch else 0.0

    def plan(self, epoch: int, stats: Stats) -> Plan:
        """What `epoch` visits, by all that is recorded before it."""
        assert epoch == len(self.hidden), "one object for one training, from epoch 0"
        assert not len(self._waiting), "`after_epoch` is that of this object"
        for name, last in self._last.items() if epoch else ():
            assert stats.collected[name].shape == (epoch, 1, len(self.images)), "`collect` of every epoch, one network and these images"
            values = stats.collected[name][-1, 0]  # (N,), NaN where not visited
            self._last[name] = torch.where(values.isnan(), last, values)
        fraction = self.scheduled(epoch)
        seen = visible(*(self._last[name] for name in self.collect), fraction, self.threshold)  # (M,)
        hidden = torch.ones(len(self.images), dtype=torch.bool, device=seen.device)
        hidden[seen] = False
        self._waiting = hidden.nonzero()[:, 0]  # (N - M,)
        self.hidden.append(len(self._waiting))
        return Plan(seen, scale=1 / (1 - fraction))

    @torch.no_grad()
    def after_epoch(self, epoch: int, weights: Params, momentum: list[Tensor]) -> None:
        """Record anew, at the weights of an epoch's end, the samples it hid."""
        if len(self._waiting) == 0:
            return
        for indices in self._waiting.split(CHUNK):
            logits = self.network.apply(weights, self.images.batch(indices), train=False).logits  # (1, B, classes)
            targets = self.images.targets[indices][None]  # (1, B)
            loss = cross_entropy(logits, targets)  # (1, B)
            for name, last in self._last.items():
                last[indices] = COLLECTORS[name](logits, targets, loss)[0].to(last.dtype)
        self.refreshed += len(self._waiting)
        self._waiting = self._waiting[:0]


def visible(losses: Tensor, correct: Tensor, confidence: Tensor, fraction: float, threshold: float) -> Tensor:
    """Ascending indices (M,) int64 of what is not hidden. Slow reference: `plan_plain`.

    losses                (N,) last recorded, nats; of equal ones the first counts as lower
    correct, confidence   (N,) 1 where the last prediction was right, else 0; its probability
    """
    candidates = losses.argsort(stable=True)[: _most(fraction, len(losses))]
    learned = (correct[candidates] == 1) & (confidence[candidates] >= threshold)
    shown = torch.ones_like(losses, dtype=torch.bool)
    shown[candidates[learned]] = False
    return shown.nonzero()[:, 0]


def plan_plain(
    losses: Sequence[float], correct: Sequence[float], confidence: Sequence[float], fraction: float, threshold: float
) -> list[int]:
    """The definition of `visible`, one sample at a time."""
    order = sorted(range(len(losses)), key=lambda i: losses[i])
    most = _most(fraction, len(losses))
    moved_back = [i for i in order[:most] if not (correct[i] == 1 and confidence[i] >= threshold)]
    return sorted(order[most:] + moved_back)


def _most(fraction: float, n: int) -> int:
    """floor(fraction * n), but 29 of .29 * 100; never all."""
    return min(int(fraction * n + 1e-9), n - 1)


@dataclass(frozen=True)
class KakurenboSettings(Settings):
    fraction: float  # the most that an epoch hides, in (0, 1)

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.fraction < 1:
            raise InputError(f"fraction: {self.fraction} is not accepted; accepted: a share above 0 and below 1")


@register
class Kakurenbo(Whole):
    """Fine-tuning on all images, a part of which is hidden anew in every epoch."""

    name, kind, paper, labels = "KAKURENBO", "hides what is learned", "2310.10102", True
    source = "ours: the paper's share for ImageNet is not known here"

    Settings = KakurenboSettings
    common = {"fraction": 0.3}

    def refuse(self, job) -> None:
        super().refuse(job)
        if not isinstance(job.experiment.protocol, FineTuning):
            raise InputError(f"protocol: {job.experiment.protocol.kind!r} with {self.name!r}; accepted: 'fine-tune'")

    def protocol(self, job, protocol, made):
        return protocol, protocol.steps_of(0, 0, len(job.experiment.real))

    def train(self, job, network, source, protocol, stream, steps_of: int) -> tuple:
        experiment = job.experiment
        hiding = Hiding(network, source, job.settings.fraction, milestones=protocol.milestones)
        options = {"steps_of": steps_of, "encoder": experiment.encoder, "hiding": hiding, "device": experiment.device}
        return *fit(network, source, protocol, stream, **options), {"hidden": hiding.hidden, "refreshed": hiding.refreshed}
