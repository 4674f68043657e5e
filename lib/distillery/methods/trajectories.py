r"""What methods share whose set makes a student end where an expert does: MTT, FTD, TESLA, DATM, MKDT, MTT-SSL.

The mathematics, with its plain twin `sweep_plain`, is in `matching/trajectory.py`. Experts (`experts.py`) serve many sets: they are trained
before a set's time is counted, stored once, and billed apart. One bank of them is held in memory at a time.

The published accuracies of MTT, TESLA, FTD and DATM are the best over the run on test images; here nothing is chosen on them.
"""

from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from distillery import experts
from distillery.checks import check_choice, check_positive_int
from distillery.data.synthetic import Synthetic
from distillery.distill import Optimizer
from distillery.evaluation import Protocol
from distillery.experts import Experts, Training
from distillery.matching.trajectory import GRADIENTS, StartEpochs, TrajectoryMatching
from distillery.methods.base import Made, Method, Settings, made
from distillery.networks.precision import float32_matmul
from distillery.runs import subsample
from distillery.training.dsa import DSA
from distillery.training.optimizers import GSAM, SGD, Adam
from distillery.training.views import Views


@dataclass(frozen=True, kw_only=True)
class TrajectorySettings(Settings):
    """Settings of trajectory matching, under the names of the public code of MTT and DATM."""

    student_steps: int  # N, steps of a student
    expert_epochs: int  # M, epochs of an expert that a student shall cover
    min_start_epoch: int = 0  # lowest epoch at which a student starts (T-)
    max_start_epoch: int  # one above the highest (T+)
    student_batch: int = 0  # synthetic images a student step, 0 = all of the set; more than there are = all
    step_size: float  # first rate of the student, which is learned and is the rate of the evaluation
    lr_images: float  # of SGD on pixels, with `momentum`
    lr_step_size: float  # of SGD on the step size, with `momentum`
    momentum: float
    iterations: int
    steps: int = 0
    gradient: str  # 'exact', 'frozen' (TESLA as published) or 'unrolled', see `TrajectoryMatching`
    experts: int  # trained as published
    expert_training_epochs: int  # as published; here they are trained as far as they are read
    optimizer: str  # of the experts: 'SGD', 'Adam' or, where `rho` and `alpha` are settings, 'GSAM'
    expert_lr: float
    expert_batch: int
    expert_seed: int = 0  # of the experts, which all sets share; MKDT and MTT-SSL train a bank for each seed
    expert_precision: str = "float32"  # of their training, or 'tf32', see `experts.Training`
    # settings of some methods, and what they are for the others
    initial_max_start_epoch: ClassVar[int] = 0
    expansion_steps: ClassVar[int] = 0
    expert_momentum: ClassVar[float] = 0.0
    expert_weight_decay: ClassVar[float] = 0.0
    views: ClassVar[Views | None] = None
    ema: ClassVar[float] = 0.0
    optimizers: ClassVar[tuple[str, ...]] = ("SGD", "Adam")  # accepted

    def __post_init__(self):
        super().__post_init__()
        for name in ("student_steps", "expert_epochs", "iterations"):
            check_positive_int(name, getattr(self, name))
        check_choice("gradient", self.gradient, GRADIENTS)
        check_choice("optimizer", self.optimizer, self.optimizers)
        check_choice("expert_precision", self.expert_precision, experts.PRECISIONS)
        _ = self.start_epochs

    def spec(self) -> dict:
        """Without the precision of the experts where it is float32: ids from before hold."""
        return {name: value for name, value in super().spec().items() if (name, value) != ("expert_precision", "float32")}

    @property
    def start_epochs(self) -> StartEpochs:
        """Where students start. Raises InputError on a range that is none."""
        return StartEpochs(**{one.name: getattr(self, one.name) for one in fields(StartEpochs)})

    @property
    def last_epoch(self) -> int:
        """The last epoch of an expert that is read."""
        return self.max_start_epoch - 1 + self.expert_epochs

    @property
    def expert_optimizer(self) -> SGD:
        """How an expert descends."""
        if self.optimizer == "Adam":
            return Adam(self.expert_lr, weight_decay=self.expert_weight_decay)
        return SGD(self.expert_lr, self.expert_momentum, self.expert_weight_decay)


@dataclass(frozen=True, kw_only=True)
class FlatSettings(TrajectorySettings):
    """Settings with flat experts, by GSAM."""

    rho: float  # radius of the ascent
    alpha: float  # weight of the ascent
    flat: ClassVar[bool] = False  # whether experts descend by GSAM whatever `optimizer` says
    optimizers = ("SGD", "Adam", "GSAM")

    @property
    def expert_optimizer(self) -> SGD:
        if self.optimizer != "GSAM" and not self.flat:
            return super().expert_optimizer
        return GSAM(self.expert_lr, self.expert_momentum, self.expert_weight_decay, rho=self.rho, alpha=self.alpha)


COLUMNS = ("student_steps", "expert_epochs", "max_start_epoch", "lr_images", "lr_step_size", "step_size")


def row(*values: float, **more) -> dict:
    """A cell of a table of published settings: the values of the first of COLUMNS, and others by name."""
    return dict(zip(COLUMNS, values)) | more


class Trajectories(Method):
    """A method that matches the trajectories of experts. Defaults are MTT's."""

    kind = "trajectory matching"
    Settings = TrajectorySettings
    objective = TrajectoryMatching
    common = {
        "iterations": 5000, "momentum": 0.5, "optimizer": "SGD", "expert_lr": 0.01, "expert_batch": 256, "expert_training_epochs": 50,
        "experts": 100, "gradient": "exact", "normalization": "published",
    }  # fmt: skip
    no_batches = "experts have seen the real images"
    by_epochs = True  # a student covers epochs of an expert
    start = "random"
    own_starts = ("correct",)  # of DATM
    learns = TrajectoryMatching.learns
    iterates = ("last", "best")
    loss: ClassVar[str] = "cross-entropy"  # of the experts, see `experts.Training`
    quick = {"experts": 1, "expert_epochs": 1, "max_start_epoch": 1, "lr_images": 0.0, "lr_step_size": 0.0}
    judged = Protocol(augmentation=DSA)  # the rate is the learned step size

    def changed(self, values: dict, changes: dict) -> dict:
        """A changed `max_start_epoch` starts from epoch 0 and does not grow unless told otherwise."""
        if "max_start_epoch" in changes:
            known = {one.name for one in fields(self.Settings)}
            values = values | {one.name: 0 for one in fields(StartEpochs) if one.name in known}
        return values | changes

    def spec(self, job) -> dict:
        found, how = super().spec(job) | {"augmentation": self.augmentation(job.experiment)}, job.experiment.validation
        if self.labels and how.times:  # the best iterate is of the evaluation too
            found["validation"] = [how.times, how.networks, how.epochs, job.experiment.protocol.spec()]
        return found

    def refuse(self, job) -> None:
        super().refuse(job)
        self.training(job.settings, job.experiment)

    def augmentation(self, experiment) -> str:
        """The DSA families that experts and students meet."""
        return experiment.augmentation

    def training(self, settings: TrajectorySettings, experiment) -> Training:
        """How experts are trained. Raises InputError on settings that are none."""
        s, augmentation = settings, self.augmentation(experiment)
        how = {"loss": self.loss, "views": s.views, "precision": s.expert_precision}
        return Training(s.experts, s.expert_optimizer, s.expert_batch, augmentation, s.expert_seed, **how)

    def bank(self, job) -> tuple[Training, int]:
        """How the experts of a job are trained, and the last epoch that is kept."""
        return self.training(job.settings, job.experiment), job.settings.last_epoch

    def experts(self, job) -> Experts:
        """The experts of a job, trained on the real images that it keeps; made once, stored."""
        return load_bank(job.experiment, job.source, *self.bank(job))

    def path(self, job, n: int, epochs: int) -> Experts:
        """The first n experts of a job's kind over so many epochs, 0 = as published: what is measured on them goes into no set."""
        training = replace(self.training(job.settings, job.experiment), experts=n)
        return load_bank(job.experiment, job.source, training, epochs or job.settings.expert_training_epochs)

    def prepare(self, job, where: str = "local") -> None:
        super().prepare(job, where)
        if where == "local":
            self.experts(job)
        else:
            make_bank(job.experiment, job.source, *self.bank(job), where)

    def seconds_shared(self, job) -> float:
        return experts.cost(*named(job.experiment, job.source, *self.bank(job)))["seconds"]

    def options(self, job) -> dict:
        """Options of `TrajectoryMatching` beside those of all methods."""
        return {}

    def matching(self, job, bank: Experts | None = None) -> TrajectoryMatching:
        """The objective of a job, on its own experts or on those of `path`."""
        s = job.settings
        options = {"batch": s.student_batch, "gradient": s.gradient, "name": self.name}
        options |= {"augmentation": self.augmentation(job.experiment)} | self.options(job)
        return TrajectoryMatching(job.network, bank or self.experts(job), s.student_steps, s.expert_epochs, s.start_epochs, **options)

    def optimizers(self, job) -> dict[str, Optimizer]:
        """The optimizer of each learned tensor."""
        s = job.settings
        return {"images": Optimizer(s.lr_images, s.momentum), "step_size": Optimizer(s.lr_step_size, s.momentum)}

    def first(self, job, chosen: Tensor | None = None) -> Synthetic:
        """First images, those at `chosen` where they are chosen already, and step size."""
        start = job.first(indices=chosen)
        return start.replace(step_size=torch.tensor(float(job.settings.step_size), device=start.device))

    def make(self, job) -> Made:
        cost, start = make_bank(job.experiment, job.source, *self.bank(job)), self.first(job)
        objective, optimizers, steps = self.matching(job), self.optimizers(job), self.updates(job.settings, job.recipe.size)
        judge = (lambda current, step: job.validated(current)) if self.labels else None
        with float32_matmul("float32"):  # matched weights
            done = job.distill(start, objective, optimizers, steps, ema=job.settings.ema or None, judge=judge)
        log = {"experts": cost, "skipped": done.cost["skipped"], "step_size": float(done.last.tensors["step_size"])}
        log |= {"moved": moved(start, done.last), "starts": subsample(done.log["start"])}  # epochs, beside 'loss'
        if done.best is not None:
            log |= {"best_step": done.best_step, "best_score": done.best_score}
        return made(start, done, **log)

    def protocol(self, job, protocol, made):
        """The learned step size is the rate of the evaluation."""
        return protocol.fitting(made), job.steps_of(protocol)


def moved(start: Synthetic, last: Synthetic) -> float:
    """Mean change of a pixel, in units of the standardized images."""
    return float((last.tensors["images"] - start.tensors["images"]).abs().mean())


def named(experiment, source, training: Training, epochs: int) -> tuple:
    """What names a bank in `experts`."""
    return experiment.runs.folder / "artifacts" / "experts", experiment.network, source, training, epochs


def make_bank(experiment, source, training: Training, epochs: int, where: str = "local") -> dict:
    """Train and store what is missing of a bank of experts: what it costs, 'id', 'seconds', 'samples', told to the experiment too.

    where  the engine that chunks of experts are mapped over, 'local' = that of the experiment
    """
    where = experiment.compute.engine if where == "local" else where
    cost = experts.bill(*named(experiment, source, training, epochs), where=where)
    experiment.costs[cost["id"]] = cost
    return cost


def load_bank(experiment, source, training: Training, epochs: int) -> Experts:
    """Experts in memory, made where they are missing; those that were there before are let go."""
    key = make_bank(experiment, source, training, epochs)["id"]
    if key not in experiment.shared:
        experiment.shared.clear()
        experiment.shared[key] = experts.load(*named(experiment, source, training, epochs))
    return experiment.shared[key]
