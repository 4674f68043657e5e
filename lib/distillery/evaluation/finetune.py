"""Fine-tune a pre-trained encoder with a fresh classifier on a part of a task.

Source: DLC (arXiv 2402.05356), its public code; there images are cropped at random scales, here augmented by DSA families.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Generator

from distillery.checks import InputError, check_choice
from distillery.evaluation.protocol import Protocol, accuracy
from distillery.networks import Params
from distillery.networks.encoder import Encoder
from distillery.training import Stats
from distillery.training.optimizers import SGD, Nesterov

if TYPE_CHECKING:
    from distillery.experiment import Experiment
    from distillery.recipe import Recipe


@dataclass(frozen=True)
class FineTuning(Protocol):
    """Train all weights of an encoder further by SGD with Nesterov momentum; the rate falls to a tenth at 1/2 and 3/4.

    epochs   passes over the set
    equal    what a part of a task is given: as many 'epochs' as the whole, so fewer steps (as published), or as many 'steps'
    """

    networks: int = 1
    epochs: int = 50
    lr: float = 1e-3
    weight_decay: float = 1e-5
    batch: int = 128
    equal: str = "epochs"

    kind: ClassVar[str] = "fine-tune"
    losses: ClassVar[tuple[str, ...]] = ("cross-entropy",)
    extra: ClassVar[int] = 0
    descent: ClassVar[type[SGD]] = Nesterov

    def __post_init__(self):
        super().__post_init__()
        check_choice("equal", self.equal, ("epochs", "steps"))
        self.optimizer(1)  # which has momentum

    def check(self, experiment: "Experiment") -> None:
        super().check(experiment)
        _check_encoder(experiment.encoder)

    def check_recipe(self, recipe: "Recipe") -> None:
        if asked := recipe.evaluate.network:
            raise InputError(f"network: {asked!r} with protocol {self.kind!r}, whose encoder is of one network; accepted: ''")

    def context(self, experiment: "Experiment") -> dict:
        return {"encoder": experiment.encoder.digest}

    def start(self, network, encoder: Encoder | None, stream: Generator, k: int) -> Params:
        _check_encoder(encoder)
        return encoder.start(stream, k)

    @property
    def milestones(self) -> tuple[int, ...]:
        """Epochs, from 0, at which the rate falls, where they are whole."""
        return self.epochs // 2, 3 * self.epochs // 4

    def drops(self, per_epoch: int) -> tuple[int, ...]:
        steps = self.epochs * per_epoch
        return tuple(sorted({steps // 2, 3 * steps // 4} - {0}))

    def steps_of(self, size: int, classes: int, n: int) -> int:
        return n if self.equal == "steps" else 0

    def judge(self, experiment: "Experiment", network, params: Params, stats: Stats, seed: int) -> dict:
        """Accuracies on test and on 'validation' images, and the 'steps' and 'samples' of the fine-tuning."""
        validation = accuracy(network, params, experiment.data.validation).tolist()
        done = {"validation": validation, "steps": stats.steps, "samples": stats.samples * self.networks}
        return super().judge(experiment, network, params, stats, seed) | done


def _check_encoder(encoder: Encoder | None) -> None:
    if encoder is None:
        raise InputError("encoder: None; accepted: an encoder, where the protocol fine-tunes one")
