"""What methods share that fit a kernel ridge regression on the set: KIP, FRePo, RFAD. The mathematics is in `matching/ridge.py`.

Left out of all three: KIP's convolutional kernels; RFAD's learned linear map of all pixels and its stop by validation loss; the
evaluations of KIP and RFAD by networks of width 1024 with scaled and centred labels, and by convolutional kernels of infinite width.
Our choices: nothing is chosen on test images, validation images are no training images; one scale is fitted to the outputs of all
three where they stand for logits; images of sizes that are not published get as many blocks as the field gives them
(`networks.depth_for`).
"""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from distillery.checks import InputError
from distillery.data.synthetic import Synthetic
from distillery.distill import Optimizer
from distillery.matching.ridge import KernelRegression
from distillery.methods.base import Made, Method, Settings
from distillery.methods.matched import made
from distillery.seeds import split

if TYPE_CHECKING:
    from distillery.job import Job


@dataclass(frozen=True, kw_only=True)
class RegressionSettings(Settings):
    """Settings of a loop that descends the error of a ridge regression.

    iterations           published ones; `steps` = updates of the set, 0 = those
    lr                   of images and labels
    optimizer, schedule  of everything learned, see `distill.Optimizer`
    batch                real images a step
    rho, labels          the ridge over the mean diagonal of the kernel; whether labels are learned
    """

    iterations: int
    lr: float
    optimizer: str
    schedule: str
    batch: int
    rho: float
    labels: bool
    steps: int = 0


class Regression(Method):
    """A method whose set is judged by a ridge regression on it. A subclass says which one, by `regression`."""

    kind = "kernel regression"
    no_batches = ""
    start = "random"
    learns = ("images",)
    iterates = ("last", "best")
    Settings = RegressionSettings
    drawn: ClassVar[bool] = True  # whether the kernel is of networks that are drawn

    def spec(self, job: "Job") -> dict:
        times = job.experiment.validation.times
        return super().spec(job) | ({"validations": times} if times else {})

    def updates(self, settings: RegressionSettings, size: int) -> int:
        return settings.steps or settings.iterations

    def regression(self, job: "Job") -> KernelRegression:
        """The objective of a job. Raises InputError on settings that it refuses."""
        raise NotImplementedError(self.name)

    def rates(self, settings: RegressionSettings) -> dict[str, float]:
        """Rates of learned tensors whose rate is not `lr`."""
        return {}

    def optimizers(self, job: "Job", objective: KernelRegression) -> dict[str, Optimizer]:
        """The optimizer of each learned tensor. Raises InputError on an unknown kind or schedule."""
        settings = job.settings
        rates = dict.fromkeys(objective.learned, settings.lr) | self.rates(settings)
        return {name: Optimizer(rates[name], kind=settings.optimizer, schedule=settings.schedule) for name in objective.learned}

    def refuse(self, job: "Job") -> None:
        objective = self.regression(job)
        self.optimizers(job, objective)
        if "targets" in objective.learned and job.experiment.protocol.loss == "cross-entropy":
            raise InputError(f"loss: 'cross-entropy' with {self.name!r}, which learns real-valued labels; accepted: 'half squared error'")
        if job.recipe.evaluate.iterate == "best" and not job.experiment.validation.times:
            raise InputError("iterate: 'best' with 0 validations; accepted: 'last', or an experiment that validates")

    def make(self, job: "Job") -> Made:
        objective = self.regression(job)
        start = objective.prepare(job.first())

        def judge(current: Synthetic, step: int) -> float:
            return objective.accuracy(current, job.experiment.data.validation, job.stream("validation"))

        optimizers, steps = self.optimizers(job, objective), self.updates(job.settings, job.recipe.size)
        done = job.distill(start, objective, optimizers, steps, judge=judge)
        log = self.regressed(job, objective, {"at_start": start, "regression": done.last})
        if "validation" in done.log:
            scores = enumerate(done.log["validation"].tolist(), 1)
            log["curve"] = [[step, score] for step, score in scores if score == score]
        return made(start, done, **log)

    def regressed(self, job: "Job", objective: KernelRegression, sets: dict[str, Synthetic]) -> dict:
        """Test accuracies of regressions on sets, as many as the protocol has networks where the kernel is of networks."""
        began = time.monotonic()
        draws = job.experiment.protocol.networks if self.drawn else 1
        found = {}
        for name, one in sets.items():
            streams = split(job.stream("regression"), draws)
            found[name] = [objective.accuracy(one, job.experiment.data.test, stream) for stream in streams]
        return found | {"seconds_regression": time.monotonic() - began}
