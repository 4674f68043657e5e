"""How a set is evaluated: from scratch, by fine-tuning an encoder, or by probing pre-trained networks."""

import math
from dataclasses import asdict, dataclass, replace

from distillery.checks import InputError, check_choice, check_fraction, check_positive_int
from distillery.training import cross_entropy, half_squared_error
from distillery.training.optimizers import SGD, Nesterov

LOSSES = {"cross-entropy": cross_entropy, "squared error": half_squared_error}


EQUAL = ("epochs", "steps")


@dataclass(frozen=True)
class Protocol:
    """How a set is evaluated.

    networks      fresh networks, each with its own initialization and data order
    epochs        E; the set is passed E + 1 times
    augmentation  DSA families during training, '' for none
    kind          'scratch': train a classifier on the set; 'fine-tune' is that of `FineTuning`, 'probe' of `Probing`
    loss          'cross-entropy', or 'squared error' to centred one-hot labels, or to real-valued ones as they are, which
                  kernel methods learn
    """

    networks: int = 5
    epochs: int = 1000
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch: int = 256
    augmentation: str = ""
    kind: str = "scratch"
    loss: str = "cross-entropy"

    def __post_init__(self):
        check_positive_int("networks", self.networks)
        check_positive_int("batch", self.batch)
        check_choice("loss", self.loss, LOSSES)
        if self.loss != "cross-entropy" and self.kind != "scratch":
            raise InputError(f"loss: {self.loss!r} with kind {self.kind!r}; accepted: 'cross-entropy'")
        if self.kind != type(self).kind:
            raise InputError(
                f"kind: {self.kind!r} of {type(self).__name__}; accepted: {type(self).kind!r}; "
                "'fine-tune' is that of FineTuning, 'probe' of Probing"
            )
        if not isinstance(self.epochs, int) or self.epochs < 0:
            raise InputError(f"epochs: {self.epochs!r} is not accepted; accepted: a whole number, 0 or more")

    def steps(self, n: int) -> tuple[int, int]:
        """(training steps, step at which the rate drops) for a set of n images."""
        per_epoch = math.ceil(n / self.batch)
        return (self.epochs + 1) * per_epoch, (self.epochs // 2 + 2) * per_epoch

    def optimizer(self, n: int) -> tuple[SGD, int]:
        """(optimizer with its drops, training steps) for a set of n images."""
        steps, drop = self.steps(n)
        return SGD(self.lr, self.momentum, self.weight_decay, drops=(drop,)), steps

    def fitting(self, made, batch: int = 0) -> "Protocol":
        """The protocol for a set with a learned step size, which is its rate; `batch` 0 = as it stands."""
        step_size = made.tensors.get("step_size")
        rate = self.lr if step_size is None else float(step_size)
        return replace(self, lr=rate, batch=batch or self.batch)

    def spec(self) -> dict:
        """What identifies it in the id of a run; the loss where it is not the first one: ids from before hold."""
        found = asdict(self)
        return found if found.pop("loss") == "cross-entropy" else found | {"loss": self.loss}


@dataclass(frozen=True)
class FineTuning(Protocol):
    """All weights of an encoder trained further: SGD with Nesterov momentum, the rate falls to a tenth at 1/2 and 3/4.

    Source: DLC (arXiv 2402.05356), its public code; there images are cropped at random scales, here augmented by DSA families.

    epochs   passes over the set
    equal    what a part of a task is given: as many 'epochs' as the whole, so fewer steps (as published), or as many 'steps'
    """

    networks: int = 1
    epochs: int = 50
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 1e-5
    batch: int = 128
    augmentation: str = ""
    kind: str = "fine-tune"
    equal: str = "epochs"

    def __post_init__(self):
        super().__post_init__()
        check_positive_int("epochs", self.epochs)
        check_choice("equal", self.equal, EQUAL)

    def steps(self, n: int) -> tuple[int, int]:
        """(training steps, step of the first drop) for a set of n images."""
        steps = self.epochs * math.ceil(n / self.batch)
        return steps, steps // 2

    @property
    def milestones(self) -> tuple[int, ...]:
        """Epochs, from 0, at which the rate falls, where they are whole."""
        return self.epochs // 2, 3 * self.epochs // 4

    def optimizer(self, n: int) -> tuple[SGD, int]:
        steps, half = self.steps(n)
        drops = tuple(sorted({half, 3 * steps // 4} - {0}))
        return Nesterov(self.lr, self.momentum, self.weight_decay, drops=drops), steps


@dataclass(frozen=True)
class Probing(Protocol):
    """Networks trained from scratch on real-valued targets by squared error, then a linear classifier on frozen features.

    Source: MKDT (arXiv 2410.02116) and its public code. There the solver of the classifier stops after a set number of
    iterations; here it converges.

    epochs      passes over the set; the rate does not fall
    lr          .1 for real images; a distilled set brings its own, see `fitting`
    labels      fractions of the labelled images whose labels the classifier sees
    penalty     of the squared weights of the classifier, see `fit_linear`
    stratified  draw the labels by class; published: not
    """

    networks: int = 3
    epochs: int = 20
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    batch: int = 256
    augmentation: str = ""
    kind: str = "probe"
    labels: tuple[float, ...] = (0.01, 0.05)
    penalty: float = 1e-3
    stratified: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_positive_int("epochs", self.epochs)
        if not isinstance(self.labels, tuple) or not self.labels:
            raise InputError(f"labels: {self.labels!r}; accepted: a tuple of one fraction or more")
        for fraction in self.labels:
            check_fraction("labels", fraction)
        if not (math.isfinite(self.penalty) and self.penalty > 0):
            raise InputError(f"penalty: {self.penalty!r} is not accepted; accepted: a number above 0")

    def steps(self, n: int) -> tuple[int, int]:
        """(training steps, the same: no drop of the rate comes before) for a set of n images."""
        steps = self.epochs * math.ceil(n / self.batch)
        return steps, steps

    def optimizer(self, n: int) -> tuple[SGD, int]:
        return SGD(self.lr, self.momentum, self.weight_decay), self.steps(n)[0]
