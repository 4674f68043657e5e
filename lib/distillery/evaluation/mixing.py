"""Train fresh networks on mixtures of the set's images, with a rate that falls twice: the evaluation of IDC.

Source: IDC (arXiv 2205.14959) and its public code (github.com/snu-mllab/Efficient-Dataset-Condensation): SGD with momentum .9, weight
decay 5e-4, batch 64, E epochs; after 2/3 and 5/6 of them the rate falls to a fifth, and momentum goes on.
"""

from dataclasses import dataclass
from typing import ClassVar

from distillery.checks import InputError
from distillery.evaluation.protocol import Protocol
from distillery.training.optimizers import SGD, Scheduled


@dataclass(frozen=True)
class Mixing(Protocol):
    """Networks trained from scratch on `epochs` passes over a set, in a part of the steps on images mixed by CutMix.

    cutmix  probability of CutMix in a step
    """

    batch: int = 64
    cutmix: float = 0.5

    kind: ClassVar[str] = "scratch, mixing"
    losses: ClassVar[tuple[str, ...]] = ("cross-entropy",)
    extra: ClassVar[int] = 0
    descent: ClassVar[type[SGD]] = Scheduled

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.cutmix <= 1:
            raise InputError(f"cutmix: {self.cutmix} is not accepted; accepted: a probability")

    def drops(self, per_epoch: int) -> tuple[int, ...]:
        return tuple(epoch * per_epoch for epoch in (2 * self.epochs // 3, 5 * self.epochs // 6) if epoch)
