"""What the standard parameters of a notebook describe: data, folders, protocol, experiments."""

import os
import time
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

from torch import Tensor

from distillery.checks import InputError
from distillery.data import Splits, check_enough, load
from distillery.evaluation import Protocol
from distillery.experiment import Compute, Experiment, Presets, ScoreSettings, Validation
from distillery.methods import METHODS
from distillery.networks import ConvNet
from distillery.notebook import parameters
from distillery.report import pooling, records
from distillery.runs import Runs
from distillery.training.dsa import DSA, DSA_NO_FLIP


class Standard:
    """Parts of a session that follow from `p`, the checked parameters, and from the notebook's name."""

    p: SimpleNamespace
    notebook: str
    began: float
    experiments: list[Experiment]
    reads: tuple[str, ...] = ()
    left_out: int = 0  # a section that would have made the first experiment, 0 = none

    def _given(self, *names: str) -> dict:
        return {name: getattr(self.p, name) for name in names if hasattr(self.p, name)}

    # Data and places

    def load(self, dataset: str = "", root: str = "", **changes) -> Splits:
        """The data of the standard parameters, or another set, with changes such as per_class=0, on the device."""
        names = (
            "max_side",
            "resize",
            "per_class",
            "test_per_class",
            "held_out",
            "normalization",
            "progress",
            "frames",
            "rule",
            "passes",
            "split",
        )
        where = (dataset, root) if dataset else (self.p.dataset, self.p.data_root)
        found = load(*where, seed=self.p.seed, **self._given(*names) | changes)
        return found.to(parameters.device(self.p.device))

    @cached_property
    def data(self) -> Splits:
        """Training, validation and test images, on the device; refused where a class has fewer than the largest ipc."""
        found = self.load()
        if hasattr(self.p, "ipc"):
            check_enough(found.train, max(self.p.ipc))
        return found

    @property
    def train(self):
        """The training images."""
        return self.data.train

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.data.train.classes

    @property
    def label(self) -> str:
        """What the data are called in tables."""
        return getattr(self.p, "label", "") or self.train.name

    @property
    def published_set(self) -> str:
        """The published data set whose numbers stand beside ours."""
        return getattr(self.p, "published_for", "") or self.p.dataset

    @cached_property
    def folder(self) -> Path:
        """Where runs lie, which all data sets share."""
        return parameters.results_root(self.p.results_dir) / self.p.scale / self.notebook

    @cached_property
    def here(self) -> Path:
        """Where figures, exported files and the record lie: a folder of the name of the data, with a digest behind it where the plain one holds
        the record of other images or another seed."""
        plain, seeds, digest = self.folder / self.train.name, pooling.seeds_of(vars(self.p)), self.data.digest
        with suppress(InputError):  # there is no record
            record = records.load(plain / "record.json")
            if (digest, seeds) != (record["data"].get("digest", digest), pooling.seeds_of(record["parameters"])):
                other = pooling.beside(plain, seeds, digest)
                print(f"{plain.name} holds the record of other images or another seed, which stays; this one's is in {other.name}")
                return other
        return plain

    @cached_property
    def runs(self) -> Runs:
        """Stored results; `distillery run` says in the environment whether to wait for other processes, and where it follows."""
        wait, events = (os.environ.get(name, "") for name in (parameters.WAIT, parameters.EVENTS))
        also = [self.folder.with_name(name) for name in self.reads]
        runs = Runs(self.folder, self.p.budget_minutes, wait=bool(wait), events=events, also=also)
        runs.deadline -= time.monotonic() - self.began  # what loading the images took is of the budget
        return runs

    def describe(self) -> None:
        """Print what the data are."""
        data, train, names = self.data, self.train, self.classes
        print(f"{self.label}: {len(train)} training, {len(data.validation)} validation, {len(data.test)} test images")
        print(f"{len(names)} classes, images of {train.shape[2]} x {train.shape[1]} pixels, {train.shape[0]} channel(s)")
        for note in data.notes:
            print("note:", note)

    def pixels(self, images: Tensor) -> Tensor:
        """Standardized images back to [0, 1]."""
        return self.train.transform.inverse(images.to(self.train.device)).clamp(0, 1)

    # Experiments

    @property
    def augmentation(self) -> str:
        """DSA families; without mirroring where a mirrored image is another class."""
        return DSA if self.p.flip else DSA_NO_FLIP

    @property
    def protocol(self) -> Protocol:
        """The evaluation that the standard parameters describe; see `judging`."""
        batch = getattr(self.p, "evaluation_batch", Protocol.batch)
        families = self.augmentation if getattr(self.p, "evaluation_augmentation", False) else ""
        return Protocol(self.p.networks, self.p.evaluation_epochs, augmentation=families, batch=batch)

    def experiment(self, *, presets: dict | None = None, **parts) -> Experiment:
        """An experiment of the standard parameters; the first one made is `bench`, under which rows run by default.

        presets  changes of published settings by name, those of one method as a dict under its name; 0 = as published
        parts    what differs: data, network, protocol, scores, validation, compute, augmentation, encoder, tasks
        """
        p, changes = self.p, _changes({"expert_seed": self.p.seed} | (presets or {}))
        parts["data"] = parts.get("data") or self.data
        parts["network"] = parts.get("network") or ConvNet(self.train.shape, len(self.classes), p.width)
        parts["protocol"] = parts.get("protocol") or self.protocol
        defaults = {
            "augmentation": self.augmentation,
            "scores": self.scores,
            "compute": Compute(**self._given("precision", "compiled", "engine", "class_engine", "progress")),
            "validation": Validation(
                getattr(p, "validations", 0), getattr(p, "validation_networks", 1), getattr(p, "validation_epochs", 0)
            ),
            "presets": Presets(getattr(p, "settings_for", "cifar10"), changes),
        }
        made = Experiment(runs=self.runs, **(defaults | parts))
        self.experiments.append(made)
        return made

    @property
    def scores(self) -> ScoreSettings:
        """How scores are computed."""
        p, given = self.p, {}
        if hasattr(p, "score_trials"):
            given["early"] = (p.score_trials, p.score_epochs)
        if hasattr(p, "converged_trials"):
            given["converged"] = (p.converged_trials, p.converged_epochs)
        return ScoreSettings(**given)

    @property
    def bench(self) -> Experiment:
        """The first experiment; made of the standard parameters where there is none yet.

        Raises InputError where a section was left out that would have made it with other settings.
        """
        if not self.experiments and self.left_out:
            raise InputError(f"section {self.left_out} says how rows are run, and is left out; accepted: --section {self.left_out} as well")
        return self.experiments[0] if self.experiments else self.experiment()

    def judging(self, method: str, size: int) -> Experiment:
        """The experiment that judges a method's sets: `bench`, or it under the method's own protocol where `published_protocols` says so."""
        asked = getattr(self.p, "published_protocols", False)
        own = own_protocol(self.bench, method, size) if asked else self.bench.protocol
        return self.bench if own == self.bench.protocol else self.bench.under(own)

    def seeds(self, n: int) -> range:
        """The seeds of n sets: from `seed` on, which also draws the data, or `first_seed` above it."""
        first = self.p.seed + getattr(self.p, "first_seed", 0)
        return range(first, first + n)


def own_protocol(experiment: Experiment, method: str, size: int) -> Protocol:
    """A method's published protocol, that of the experiment where none is known."""
    how = experiment.presets.dataset, size, experiment.protocol, "flip" in experiment.augmentation
    return METHODS[method].published_protocol(*how) or experiment.protocol


def _changes(presets: dict) -> dict:
    """Changes without those that are 0: as published."""
    return {name: _changes(value) if isinstance(value, dict) else value for name, value in presets.items() if value or value is False}
