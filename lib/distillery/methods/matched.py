"""What methods share whose steps compare a set with real batches, class by class: DC, DSA, DM, IDM, IDC."""

from dataclasses import dataclass
from typing import ClassVar

from distillery.checks import check_choice, check_positive_int
from distillery.data import synthetic
from distillery.distill import Optimizer
from distillery.matching.step import effective_rate
from distillery.methods.base import Made, Method, Settings, made
from distillery.networks.precision import MixedPrecision


@dataclass(frozen=True)
class MatchedSettings(Settings):
    """Settings of a loop over real batches."""

    iterations: int
    lr: float  # of SGD on the pixels, with `momentum`
    momentum: float
    batch: int  # real images a class and step
    augmented: bool  # whether both sides meet the DSA families of the experiment
    steps: int = 0

    def __post_init__(self):
        super().__post_init__()
        check_positive_int("batch", self.batch)


class Matched(Method):
    """A method with real batches. A subclass says what `matching` is made of."""

    kind = "matching"
    no_batches = ""
    start = "random"
    learns = ("images",)
    Settings = MatchedSettings
    once: ClassVar[bool] = False  # whether no gradient is differentiated again, so that the network may be compiled

    def spec(self, job) -> dict:
        return super().spec(job) | {"augmentation": job.experiment.augmentation}

    def options(self, job) -> dict:
        """Arguments of the objective beside those of all."""
        return {}

    def matching(self, job):
        """The objective of a job. Raises InputError on settings that it refuses."""
        network = MixedPrecision(job.network, compiled=job.experiment.compute.compiled) if self.once else job.network
        augmentation = job.experiment.augmentation if job.settings.augmented else ""
        both = {"augmentation": augmentation, "real_network": job.experiment.fast}
        return self.objective(network, batch=job.settings.batch, **both | self.options(job))

    def optimizers(self, job) -> dict[str, Optimizer]:
        """The optimizer of each learned tensor."""
        return {"images": Optimizer(job.settings.lr, job.settings.momentum)}

    def refuse(self, job) -> None:
        super().refuse(job)
        self.matching(job)

    def make(self, job) -> Made:
        start = job.first()
        done = job.distill(start, self.matching(job), self.optimizers(job), self.updates(job.settings, job.recipe.size))
        return made(start, done)


@dataclass(frozen=True, kw_only=True)
class FormedSettings(MatchedSettings):
    """Settings of a set whose stored images may hold several each; lr and momentum are of one published step a class on all pixels."""

    formation: str  # 'partition2', four images in each stored one, or 'identity'
    interpolation: str  # how real images shrink into the first ones, 'bilinear' or 'nearest'

    def __post_init__(self):
        super().__post_init__()
        check_choice("formation", self.formation, synthetic.FORMATIONS)
        check_choice("interpolation", self.interpolation, synthetic.INTERPOLATIONS)


class Formed(Matched):
    """A method whose stored images may hold several each, published with one step a class on all pixels: IDM, IDC."""

    Settings = FormedSettings

    def stored(self, job) -> tuple[int, str, str]:
        return job.recipe.size, job.settings.formation, job.settings.interpolation

    def optimizers(self, job) -> dict[str, Optimizer]:
        """One step for all classes instead, at the rate that moves pixels as far; see `effective_rate`."""
        return {"images": Optimizer(effective_rate(job.settings.lr, job.settings.momentum, len(job.experiment.classes)))}
