"""Real batches for distillation: which real images of a class meet the synthetic ones in a step, and with what weight.

A sampler returns indices and weights. Weights are relative to a plain mean: all ones is the ordinary batch mean, a zero drops a sample
inside the batch. `RealBatches` turns them into images, one class or all classes at once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.nn.utils.rnn import pad_sequence

from distillery.checks import InputError, check_choice, check_positive_int
from distillery.seeds import generator as keyed_generator
from distillery.seeds import split
from distillery.upload import to_device

LOOKED = 10_000  # images at most in one look at the losses


class Batch(NamedTuple):
    """indices (n,) into the real set; weights (n,), divided by their sum wherever a mean is taken."""

    indices: Tensor
    weights: Tensor


class Uniform:
    """Draws uniform batches without replacement, the default of every published method; what other samplers refine, or have alike.

    state     what it has learned on the way; travels with checkpoints
    needs     what it asks of an objective, by name; () of any
    relative  whether weights are divided by their sum; False: by their number, which keeps importance weights unbiased
    """

    needs: tuple[str, ...] = ()
    relative = True

    def __init__(self, targets: Tensor | None, n: int | None = None):
        """targets: labels (N,), or None for a set of n images without classes."""
        self.state: dict[str, Tensor] = {}
        self.n = len(targets) if targets is not None else n
        labels = None if targets is None else targets.cpu()
        self.members = {} if labels is None else {int(c): torch.nonzero(labels == c)[:, 0] for c in labels.unique()}

    def draw(self, label: int | None, n: int, generator: Generator) -> Batch:
        """At most n distinct images of class `label` (fewer if the class is smaller), or of all classes if None."""
        members = torch.arange(self.n) if label is None else self.members[int(label)]
        indices = members[torch.randperm(len(members), generator=generator)[:n]]
        return Batch(indices, torch.ones(len(indices)))

    def weigh(self, labels: Tensor, indices: Tensor, weights: Tensor, effects) -> Tensor:
        """Called with the batches of all classes and what computes their effects on the synthetic set: weights, here as they are."""
        return weights

    def refresh(self, step: int, objective, state: dict, synthetic) -> int:
        """Called before each step, to follow the synthetic set; returns the real images it touched, here none."""
        return 0


class TreatmentEffect(Uniform):
    r"""Uniform draws, without the images whose effect on the synthetic pixels lies in the tails of their class.

    Every `every` steps the effects of the batch are looked at. By the rule 'rank' they are ranked within each class, since norms under
    different networks have no scale in common. That batch loses the tails of these ranks; between looks an image stands where the mean of
    its ranks under all networks that judged it is, in the middle if none did. So each batch loses the same share of every class whatever
    the tails, to the nearest image, but never all. By the rule 'normal' moving averages follow mean and variance of the norms of each
    class, and what lies outside the quantiles of that normal distribution is dropped until it is judged again: a nominal share, since
    norms are not normal and their scale changes with the network. Batches of all classes, on which some objectives train networks, are
    not filtered.
    Source: BiLP (arXiv 2305.18381), the dynamic level: two tails, running mean and variance, lazy selection. Equal tails, statistics by
    class, their momentum, the memory of verdicts and the rule 'rank' are our choices.
    """

    needs = ("statistic", "distance")

    def __init__(self, targets: Tensor, drop: float, every: int = 1, tails: str = "both", rule: str = "rank", momentum: float = 0.9):
        """Raises InputError on a share that keeps or drops everything, an unknown tail or rule, a period that is no positive integer.

        targets   labels (N,), of classes 0, 1, ...
        drop      share of the images to drop, in (0, 1): with tails 'both' half of it from either, or from 'low' or 'high' alone
        every     steps between two looks at the effects
        momentum  of the running mean and variance
        """
        super().__init__(targets)
        check_choice("tails", tails, ("both", "low", "high"))
        check_choice("rule", rule, ("rank", "normal"))
        check_positive_int("every", every)
        for name, value in {"drop": drop, "momentum": momentum}.items():
            if not 0 < value < 1:
                raise InputError(f"{name}: {value} is not accepted; accepted: a share in (0, 1)")
        self.drop, self.every, self.tails, self.momentum, self.due = drop, every, tails, momentum, True
        low, high = {"both": (drop / 2, drop / 2), "low": (drop, 0.0), "high": (0.0, drop)}[tails]
        self.bounds = (NormalDist().inv_cdf(low) if low else -math.inf, NormalDist().inv_cdf(1 - high) if high else math.inf)
        self._dropped = {"rank": self._by_rank, "normal": self._by_normal}[rule]
        n, classes, device = len(targets), int(targets.max()) + 1, targets.device
        if rule == "rank":  # of each image the mean rank, a share of its class, and the looks behind it
            self.state = {"rank": torch.full((n,), 0.5, device=device), "looks": torch.zeros(n, device=device)}
        else:
            self.state = {name: torch.full((classes,), math.nan, device=device) for name in ("mean", "square")}
            self.state["dropped"] = torch.zeros(n, dtype=torch.bool, device=device)

    def refresh(self, step: int, objective, state: dict, synthetic) -> int:
        """Know whether this step looks at the effects."""
        self.due = step % self.every == 0
        return 0

    def weigh(self, labels: Tensor, indices: Tensor, weights: Tensor, effects: Callable[[], Tensor]) -> Tensor:
        """Weights (classes, n) without the dropped images, rows summing to one; labels (classes,) of the rows, effects () -> norms."""
        seen, norms = weights > 0, effects().float() if self.due else None  # the others fill up small classes
        left = weights.masked_fill(self._dropped(to_device(labels, weights.device), indices, seen, norms), 0)
        total = left.sum(1, keepdim=True)
        return torch.where(total > 0, left / total.clamp_min(1e-30), weights)  # not 0 / 0

    def _by_rank(self, labels: Tensor, indices: Tensor, seen: Tensor, norms: Tensor | None) -> Tensor:
        by = self.state["rank"][indices] if norms is None else norms
        rank, count = by.masked_fill(~seen, math.inf).argsort(dim=1, stable=True).argsort(dim=1), seen.sum(1, keepdim=True)
        if norms is not None:
            share, looks = (rank + 0.5) / count, self.state["looks"][indices]
            share = torch.where(seen, share, share[:, :1])  # what fills up a class repeats its first image, and so its rank
            self.state["rank"][indices] += (share - self.state["rank"][indices]) / (looks + 1)
            self.state["looks"][indices] = looks + 1
        gone = torch.minimum((self.drop * count).round().long(), count - 1)
        low = {"both": gone // 2, "low": gone, "high": 0}[self.tails]
        return (rank < low) | (rank >= count - (gone - low))

    def _by_normal(self, labels: Tensor, indices: Tensor, seen: Tensor, norms: Tensor | None) -> Tensor:
        if norms is not None:
            count, norms = seen.sum(1).clamp_min(1), torch.where(seen, norms, 0)
            for name, new in (("mean", norms.sum(1) / count), ("square", norms.square().sum(1) / count)):
                old = self.state[name][labels]
                self.state[name][labels] = torch.where(old.isnan(), new, self.momentum * old + (1 - self.momentum) * new)
            middle, square = (self.state[name][labels][:, None] for name in ("mean", "square"))
            spread = (square - middle.square()).clamp_min(0).sqrt()
            low, high = (middle + bound * spread if math.isfinite(bound) else bound for bound in self.bounds)
            dropped = (norms < low) | (norms > high)
            self.state["dropped"][indices] = torch.where(seen, dropped, dropped[:, :1])
        return self.state["dropped"][indices]


class Importance(Uniform):
    r"""Draws with replacement by the present loss of each real image (the relative cross-entropy), mixed with uniform ones.

    $$q_i = (1 - \eta)\, \ell_i / \textstyle\sum_j \ell_j + \eta / n$$

    over a class, or over all images where a step draws from all. Every `every` steps losses are looked at under what the objective
    predicts, on at most `LOOKED` images, and averaged with the old ones, half each; images not yet seen count as the mean. Weights
    1 / (n q_i), at most 1 / eta, make every mean over a batch an unbiased estimate of the plain mean (at eta = 0 but for images without any
    loss, which are never drawn). Without them hard images count more: another objective.
    Source: our construction after the abstract of arXiv 2307.08086, which names the loss and the draws; the rest is our choice.
    """

    needs = ("predict",)
    relative = False

    def __init__(self, images, share: float = 0.5, every: int = 100, reweight: bool = False, *, generator: Generator):
        """What it draws by; `recipe.ByLoss` checks the numbers.

        images     the real ImageSet that batches come from
        share      1 - eta, the part of a batch that goes by the loss, in [0, 1]; 1 has weights without a bound, 0 is uniform with
                   replacement: the control of all others, since other uniform batches are drawn without
        every      steps between two looks at the losses, whose `generator` gives one draw here
        reweight   whether weights undo the preference
        """
        super().__init__(images.targets)
        self.images, self.share, self.every, self.reweight = images, share, every, reweight
        self.root = int(torch.randint(2**62, (), generator=generator))
        self.state = {"loss": torch.full((self.n,), math.nan)}
        self._chances: dict[int | None, tuple[Tensor, Tensor]] = {}

    def chances(self, label: int | None) -> tuple[Tensor, Tensor]:
        """Images of a class, or all, and the chance q of each, (n,) float64 both on the CPU."""
        if label not in self._chances:
            members = torch.arange(self.n) if label is None else self.members[int(label)]
            loss = self.state["loss"].cpu()[members].double()
            loss = torch.where(loss.isnan(), loss.nanmean().nan_to_num(1.0), loss)
            flat, total = torch.full_like(loss, 1 / len(loss)), loss.sum()
            own = loss / total if total > 0 else flat  # nothing is wrong any more: all are alike
            self._chances[label] = members, self.share * own + (1 - self.share) * flat
        return self._chances[label]

    def draw(self, label: int | None, n: int, generator: Generator) -> Batch:
        """n images of class `label`, or of all if None, some of them twice; as many as there are, where those are fewer."""
        members, chance = self.chances(label)
        drawn = torch.multinomial(chance, min(n, len(members)), replacement=True, generator=generator)
        weights = 1 / (len(members) * chance[drawn]) if self.reweight else torch.ones(len(drawn))
        return Batch(members[drawn], weights.float())

    @torch.no_grad()
    def refresh(self, step: int, objective, state: dict, synthetic) -> int:
        """Look at the losses where it is time. Returns the images looked at."""
        if not self.share or step % self.every:
            return 0
        self._chances = {}
        pick, predict = split(keyed_generator(self.root, "look", step), 2)
        looked = torch.randperm(self.n, generator=pick)[:LOOKED].sort().values
        with torch.enable_grad():
            logits = objective.predict(synthetic, state, self.images.subset(looked), predict)
        targets = self.images.targets[looked.to(self.images.targets.device)]
        new = F.cross_entropy(logits.float(), targets, reduction="none").cpu()
        old = self.state["loss"].cpu()
        self.state["loss"] = old.index_copy(0, looked, torch.where(old[looked].isnan(), new, 0.5 * old[looked] + 0.5 * new))
        return len(looked)


@dataclass(frozen=True, eq=False)
class ClassImages:
    """Real images of several classes (classes, n, C, H, W), read as they are asked for by an index: all at once may not fit the memory."""

    source: Any  # has `batch(indices)` and `shape`
    indices: Tensor  # (classes, n)

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def shape(self) -> torch.Size:
        """(classes, n, C, H, W)"""
        return torch.Size([*self.indices.shape, *self.source.shape])

    def __getitem__(self, at) -> Tensor:
        """The images at some classes, or at some images of some classes: (..., C, H, W)."""
        return self.source.batch(self.indices[at])


class RealBatches:
    """The `draw` an objective is handed: a sampler, its images (any source with `.batch(indices)` and `.targets`), the step's generator.

    parts, where  for a step that is a sum over classes: what keeps finished chunks of them, and the engine they are mapped over
    """

    def __init__(self, real, sampler: Uniform, generator: Generator, parts=None, where: str = "local"):
        self.real, self.sampler, self.generator, self.parts, self.where = real, sampler, generator, parts, where
        self.samples = 0  # images drawn so far, for the cost record
        self.effective: Tensor | None = None  # images of weight above zero, mean over classes

    def __call__(self, label: int | None, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """One class, or all if None: images (n', C, H, W), targets (n', ...), weights (n',) that sum to one (if not relative, on average)."""
        [(indices, weights)] = self._drawn([label], n)
        indices, weights = to_device((indices, weights), self.real.targets.device)
        total = weights.sum() if self.sampler.relative else len(weights)
        return self.real.batch(indices), self.real.targets[indices], weights / total

    def classes(self, labels: Tensor, n: int, effects: Callable[[ClassImages, Tensor], Tensor] | None = None) -> tuple[ClassImages, Tensor]:
        """All classes: images (classes, n', C, H, W) and weights (classes, n') whose rows sum to one, small classes filled up with 0.

        effects  (images, weights) -> (classes, n') effects on the synthetic set, for samplers that follow them
        """
        batches = self._drawn([int(label) for label in labels], n)
        drawn = torch.tensor([[float(len(batch.indices))] for batch in batches])  # of a small class fewer
        indices, weights = (pad_sequence(values, batch_first=True, padding_value=-1) for values in zip(*batches, strict=True))
        weights, filled = weights.masked_fill(indices < 0, 0), torch.where(indices < 0, indices[:, :1], indices)
        indices, weights, drawn = to_device((filled, weights, drawn), self.real.targets.device)
        total = weights.sum(1, keepdim=True) if self.sampler.relative else drawn
        real, weights = ClassImages(self.real, indices), weights / total
        weights = self.sampler.weigh(labels, indices, weights, lambda: effects(real, weights))
        self.effective = (weights > 0).sum(1).float().mean()
        return real, weights

    def _drawn(self, labels: list[int | None], n: int) -> list[Batch]:
        batches = [self.sampler.draw(label, n, self.generator) for label in labels]
        if any(len(batch.indices) == 0 for batch in batches):
            raise InputError("sampler: an empty batch; accepted: at least one real image of every class in every step")
        self.samples += sum(len(batch.indices) for batch in batches)
        return batches
