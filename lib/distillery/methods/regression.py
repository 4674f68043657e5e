"""What methods share that fit a kernel ridge regression on the set: KIP, FRePo, RFAD, and KRR-ST. The mathematics is in `matching/ridge.py`.

Our choices: nothing is chosen on test images, validation images are no training images; one scale is fitted to outputs where they stand
for logits; images of sizes that are not published get as many blocks as the field gives them (`networks.depth_for`). ZCA adds .1 to
eigenvalues of pixels in [0, 1]; the public codes of FRePo and RFAD add .1 of the mean eigenvalue of standardized ones, which whitens more.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from distillery.checks import InputError
from distillery.data.synthetic import Synthetic
from distillery.distill import Optimizer
from distillery.matching.ridge import KernelRegression
from distillery.matching.step import prefixed, under
from distillery.methods.base import Made, Method, Settings, made
from distillery.networks import ModuleNetwork, Params, depth_for, trainable
from distillery.networks.precision import MixedPrecision
from distillery.seeds import split
from distillery.training.optimizers import SGD
from distillery.upload import to_device


@dataclass(frozen=True, kw_only=True)
class LoopSettings(Settings):
    """Settings of a loop that descends the error of a ridge regression."""

    iterations: int
    lr: float  # of images, and of labels or targets
    optimizer: str  # of everything learned, see `distill.Optimizer`; so `schedule`
    schedule: str
    batch: int  # real images a step
    rho: float  # of the ridge, see `KernelRegression`
    steps: int = 0


@dataclass(frozen=True, kw_only=True)
class RegressionSettings(LoopSettings):
    """With labels."""

    labels: bool  # whether they are learned


LOOP = ("iterations", "steps", "lr", "lr_scale", "optimizer", "schedule", "batch")


class Regression(Method):
    """A method whose set is judged by a ridge regression on it, the `objective` of a subclass."""

    kind = "kernel regression"
    no_batches = ""
    start = "random"
    learns = ("images",)
    iterates = ("last", "best")
    Settings = RegressionSettings
    drawn: ClassVar[bool] = True  # whether the kernel is of networks that are drawn

    def spec(self, job) -> dict:
        times = job.experiment.validation.times
        return super().spec(job) | ({"validations": times} if times else {})

    def regression(self, job) -> KernelRegression:
        """The objective of a job, whose arguments are the settings that are not of the loop. Raises InputError on those it refuses."""
        arguments = {name: value for name, value in vars(job.settings).items() if name not in LOOP}
        return self.objective(job.network, job.settings.batch, job.experiment.fast, **arguments)

    def optimizers(self, job, objective: KernelRegression) -> dict[str, Optimizer]:
        """The optimizer of each learned tensor. Raises InputError on an unknown kind or schedule."""
        s = job.settings
        rates = dict.fromkeys(objective.learned, s.lr) | ({"log_scale": s.lr_scale} if "log_scale" in objective.learned else {})
        return {name: Optimizer(rate, kind=s.optimizer, schedule=s.schedule) for name, rate in rates.items()}

    def loss_of_labels(self, job) -> str:
        return "half squared error" if "targets" in self.regression(job).learned else ""

    def refuse(self, job) -> None:
        super().refuse(job)
        self.optimizers(job, self.regression(job))
        needed = self.loss_of_labels(job)
        if needed and job.experiment.protocol.loss == "cross-entropy":
            raise InputError(f"loss: 'cross-entropy' with {self.name!r}, which learns real-valued labels; accepted: {needed!r}")

    def make(self, job) -> Made:
        objective = self.regression(job)
        start, data = objective.prepare(job.first()), job.experiment.data

        def judge(current: Synthetic, step: int) -> float:
            return objective.accuracy(current, data.validation, job.stream("validation"))

        optimizers, steps = self.optimizers(job, objective), self.updates(job.settings, job.recipe.size)
        done = job.distill(start, objective, optimizers, steps, judge=judge)
        # draws are as many as the experiment that makes the set has networks; another one that finds the set made reads these
        began, draws, log = time.monotonic(), job.experiment.protocol.networks if self.drawn else 1, {}
        for name, one in {"at_start": start, "regression": done.last}.items():  # test accuracies
            log[name] = [objective.accuracy(one, data.test, stream) for stream in split(job.stream("regression"), draws)]
        log["untimed"] = time.monotonic() - began  # no part of making the set
        if "validation" in done.log:
            scores = enumerate(done.log["validation"].tolist(), 1)
            log["curve"] = [[step, score] for step, score in scores if score == score]
        return made(start, done, **log)


class TrainedPool(KernelRegression):
    """A regression on features of a network from a pool, which trains on the set along the way.

    A subclass's `aged(synthetic, one, generator)` is the state of one network, leading axis 1, after a step that saw it in the state `one`.
    """

    own: ModuleNetwork  # what the pool's networks are
    pool: int  # how many there are
    optimizer: SGD
    moments: tuple[str, ...]  # of its state, a tensor of each for each weight

    def _picked(self, generator: Generator) -> int:
        """Which network of the pool a step sees, from a copy of its generator."""
        return int(torch.randint(self.pool, (), generator=generator.clone_state()))

    def networks_of_step(self, synthetic: Synthetic, state: dict[str, Tensor], generator: Generator) -> Params:
        i = self._picked(generator)
        return {name: value[i : i + 1] for name, value in under(state, "net.").items()}

    def after(self, synthetic: Synthetic, state: dict[str, Tensor], seen: Generator, generator: Generator) -> dict[str, Tensor]:
        """The network that was seen takes a step on the synthetic images, or is drawn anew where it is old."""
        i, state = self._picked(seen), {name: value.clone() for name, value in state.items()}
        one = {name: value[i : i + 1] for name, value in state.items()}
        for name, value in self.aged(synthetic, one, generator).items():
            state[name][i] = value[0]
        return state

    def features(self, params: Params, images: Tensor, real: bool) -> Tensor:
        network = MixedPrecision(self.own, self.precision) if real and self.precision != "float32" else self.own
        return network.embed(params, images, train=False)[0].double()

    def new(self, device: torch.device, generator: Generator, k: int = 1) -> dict[str, Tensor]:
        """State of k networks of age 0: 'net.NAME' (k, ...), 'MOMENT.NAME' (k, ...) and 'age' (k,)."""
        nets = to_device(self.own.init(generator, k), device)
        zeros = {f"{moment}.{name}": torch.zeros_like(value) for moment in self.moments for name, value in trainable(nets).items()}
        return prefixed(nets, "net.") | zeros | {"age": torch.zeros(k, dtype=torch.int64)}

    def stepped(self, one: dict[str, Tensor], images: Tensor, targets: Tensor, loss: Callable, step: int = 0) -> dict[str, Tensor]:
        """The state of one network after a training step on images (n, C, H, W); `step` is what its optimizer counts."""
        params = under(one, "net.")
        learned = {name: value.detach().clone().requires_grad_() for name, value in trainable(params).items()}
        output = self.own.apply(params | learned, images, train=True)
        grads = torch.autograd.grad(loss(output.logits, targets[None]).mean(), list(learned.values()))
        weights = [value.detach() for value in learned.values()]
        names = [f"{moment}.{name}" for moment in self.moments for name in learned]
        moments = self.optimizer.update(weights, list(grads), [one[name].clone() for name in names], step, 1.0)
        nets = dict(zip(learned, weights, strict=True)) | {name: value.detach() for name, value in output.buffers.items()}
        return one | prefixed(nets, "net.") | dict(zip(names, moments, strict=True)) | {"age": one["age"] + 1}


def widening(name: str, shape: tuple[int, int, int], outputs: int, width: int, block: Callable, padded: int = 0) -> ModuleNetwork:
    """Blocks that end with pooling, `width` channels wide and twice as wide each, then a linear layer; `networks.depth_for` says how many.

    block   (its number, channels in, channels out) -> its layers before pooling
    padded  pixels that the first block adds to each side length
    """
    depth = depth_for(shape)

    def build() -> nn.Module:
        layers, channels = [], shape[0]
        for i in range(depth):
            layers += [*block(i, channels, width * 2**i), nn.AvgPool2d(2)]
            channels = width * 2**i
        pixels = math.prod((side + padded) // 2**depth for side in shape[1:])
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * pixels, outputs))

    network = ModuleNetwork(build, f"{name} network width {width}")
    network.channels = width
    return network
