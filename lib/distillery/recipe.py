"""What to make and how to judge it: a method, a size and a seed, and parts that check themselves.

    Recipe("DM", 10, seed=0)
    Recipe("DC", 1, 0, prune=Prune(0.1), batches=Effect(0.2), settings={"steps": 100})
    Recipe("FTD", 1, 0, evaluate=Evaluate(iterate="ema", network="ResNet18"))

Whether a method takes a part, the method says (`Method.check`). A part that is absent is absent from the id of a set.
"""

from dataclasses import dataclass, field, fields

import torch

from distillery.checks import InputError, check_choice, check_fraction, check_keep, check_positive_int, check_seed, is_number
from distillery.methods import METHODS
from distillery.networks import pool
from distillery.sampling import Importance, TreatmentEffect
from distillery.scores import SCORES
from distillery.selection import DRAWN, RULES, check_gamma


class Part:
    """A part of a recipe; fields that differ from their defaults identify it in an id."""

    def spec(self) -> dict:
        return {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) != one.default}


@dataclass(frozen=True)
class Prune(Part):
    """Prune the real images first: keep this part of each class, a fraction in (0, 1], or so many images of each class, above 1.

    rule, score  of `selection.py`, and what it goes by, one of SCORES
    gamma        of the rule 'flexrand', the easy share of a class
    draw         which of many draws of a rule that draws, 0 = the first
    """

    keep: float
    rule: str = "lowest"
    score: str = "loss"
    gamma: float = 0.0
    draw: int = 0

    def __post_init__(self):
        check_keep("keep", self.keep)
        object.__setattr__(self, "keep", float(self.keep))
        check_choice("rule", self.rule, RULES)
        check_choice("score", self.score, SCORES)
        if self.rule == "random" and self.score != "loss":
            raise InputError(f"score: {self.score!r} with rule 'random', which goes by none; accepted: 'loss', the default")
        if self.rule == "flexrand":
            check_gamma(self.gamma, self.keep if self.keep <= 1 else 1e-6)
        elif self.gamma:
            raise InputError(f"gamma: {self.gamma} with rule {self.rule!r}; accepted: 0, or the rule 'flexrand'")
        if self.draw < 0 or (self.draw and self.rule not in DRAWN):
            raise InputError(f"draw: {self.draw} with rule {self.rule!r}; accepted: 0, or with {', '.join(DRAWN)} a positive number")


@dataclass(frozen=True)
class Effect(Part):
    """Real batches without the images of little or much effect on the set: BiLP's second level, see `TreatmentEffect`."""

    drop: float
    every: int = 1
    tails: str = "both"
    rule: str = "rank"
    sampler_class = TreatmentEffect

    def __post_init__(self):
        TreatmentEffect(torch.zeros(1, dtype=torch.int64), self.drop, self.every, self.tails, self.rule)  # it checks them

    def sampler(self, real, stream) -> TreatmentEffect:
        return TreatmentEffect(real.targets, self.drop, self.every, self.tails, self.rule)

    def spec(self) -> dict:
        """Also of the rule 'rank', and not of 'normal', by which sets were made before there was another."""
        return {name: value for name, value in (super().spec() | {"rule": self.rule}).items() if value != "normal"}


@dataclass(frozen=True)
class ByLoss(Part):
    """Real batches drawn in proportion to the present loss, at share 0 uniformly with replacement, see `Importance`."""

    share: float
    every: int = 100
    reweight: bool = False
    sampler_class = Importance

    def __post_init__(self):
        if self.share != 0:
            check_fraction("share", self.share)
        check_positive_int("every", self.every)

    def sampler(self, real, stream) -> Importance:
        return Importance(real, self.share, self.every, self.reweight, generator=stream)


BATCHES = {"effect": Effect, "by loss": ByLoss}  # beside uniform batches


@dataclass(frozen=True)
class Evaluate(Part):
    """How a finished set is judged; nothing of it is in the id of the set.

    network      another architecture to train on it, one of the pool; '' = that of the experiment
    iterate      which iterate of the set: 'last', 'ema', the moving average of its images, or 'best' on validation images
    lr           training rate, 0 = as the protocol or the set says
    equal_steps  train as many steps as all real images would take
    labels       'own', as the set has them, or 'hard': the likeliest class of each image, learned by cross-entropy
    """

    network: str = ""
    iterate: str = "last"
    lr: float = 0.0
    equal_steps: bool = False
    labels: str = "own"

    def __post_init__(self):
        check_choice("labels", self.labels, ("own", "hard"))
        if self.network:
            check_choice("network", self.network, pool.NAMES)
        if not is_number(self.lr) or self.lr < 0:
            raise InputError(f"lr: {self.lr!r} is not accepted; accepted: a number, 0 or more")


@dataclass(frozen=True)
class Recipe:
    """What to make.

    size      images of each class; without classes images in all; of whole data the set whose training steps are matched, 0 = its own
    seed      of everything that is drawn
    start     where the set starts, one of the method's starts, '' = as published
    batches   how real batches are drawn, None = uniformly
    settings  changes of the method's settings by their names
    """

    method: str
    size: int
    seed: int
    prune: Prune | None = None
    start: str = ""
    batches: Effect | ByLoss | None = None
    settings: dict = field(default_factory=dict)
    evaluate: Evaluate = Evaluate()

    def __post_init__(self):
        check_choice("method", self.method, METHODS)
        check_seed(self.seed)
        if self.prune and self.prune.keep == 1:  # the fraction: everything
            object.__setattr__(self, "prune", None)
        METHODS[self.method].check(self)
