"""An experiment on images of one's own: held-out images, a network that they bear, and a training length for every size of set."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from distillery.commands import own as owns
from distillery.commands.own import Own, Tell, quiet
from distillery.data import ImageSet, Splits
from distillery.data.folders import cache_folder
from distillery.data.images import fit_standardize
from distillery.encoders import public
from distillery.evaluation import Protocol
from distillery.experiment import Compute, Experiment, Presets
from distillery.recipe import Prune, Recipe
from distillery.report import records
from distillery.runs import Runs
from distillery.scores.cached import ScoreSettings
from distillery.seeds import generator
from distillery.selection import count
from distillery.training import train
from distillery.training.dsa import DSA, DSA_NO_FLIP
from distillery.training.optimizers import SGD

EARLY = 3, 5  # networks and epochs of the score 'loss' (BiLP: 5, 5)
VISITS = {"cpu": 10_000, "cuda": 100_000}  # images that a network sees in training, one that is seen again counted again
EPOCHS = 15, 300  # the fewest and the most passes over a set
HELD_OUT = 0.2  # of each class, to judge by


def passes(n: int, device: str) -> int:
    """Passes over a set of n images: VISITS altogether, within EPOCHS."""
    return min(max(VISITS[device] // n, EPOCHS[0]), EPOCHS[1])


def split(own: Own, seed: int, validation: float = 0.0, test: float = HELD_OUT, tell: Tell = quiet) -> Splits:
    """Disjoint parts of every class of one's own images, to learn from, to decide by and to judge by, standardized by the first.

    test  the share of each class that judges where there is no test/; its images do where there is one
    tell  is told where images are in two parts, since the data hold them more than once
    """
    share = 0.0 if own.test else test
    rest, judged = owns.held_out(own, share, seed)
    train, decides = owns.held_out(rest, validation / (1 - share), seed + 1)
    parts, transform = (train.images, decides.images, own.test or judged.images), fit_standardize(train.images)
    notes = []
    for purpose, part in zip(("choose", "judge"), parts[1:]):
        if n := owns.seen(part, train.images):
            where = "are, pixel by pixel, among those to learn from; `distillery data check` counts duplicates"
            notes.append(f"{n} of {len(part)} images to {purpose} by {where}")
    for note in notes:
        tell(f"note: {note}")
    return Splits(*(replace(part, transform=transform) for part in parts), (*own.notes, *notes))


def seconds_a_visit(network, images: ImageSet, networks: int, augmentation: str) -> float:
    """Seconds that one of some networks takes to learn from an image once, by a measured batch."""
    some = images.subset(torch.arange(min(64, len(images))))
    params = {name: value.to(some.device) for name, value in network.init(generator(0, "probe"), networks).items()}
    how = {"optimizer": SGD(0.0), "epochs": 1, "batch": 64, "augmentation": augmentation}
    one = owns.seconds_of(lambda: train(network, params, some, generator=generator(0, "probe"), **how))
    return one / (len(some) * networks)


@dataclass
class Trial:
    """What methods and selections are compared under; sets of one size are trained by the same protocol.

    splits    images to learn from, and to judge by, as `test`
    networks  fresh networks that judge a set
    flip      whether a mirrored image keeps its class
    encoder   what the score 'complexity' looks through, '' = nothing
    folder    where finished runs are kept, None = in the cache folder
    """

    splits: Splits
    networks: int = 2
    flip: bool = True
    encoder: str = ""
    folder: Path | None = None
    budget_minutes: float = 0.0
    progress: bool = False
    changes: dict = field(default_factory=dict)  # of published settings, see `Presets`

    def __post_init__(self):
        self.network, self.why = owns.network_for(self.splits.train)
        self.runs = Runs(self.folder or cache_folder() / "own", self.budget_minutes)
        self.families = DSA if self.flip else DSA_NO_FLIP
        self._made: dict[int, Experiment] = {}

    def experiment(self, n: int) -> Experiment:
        """The experiment of sets of n images in all; the same one for equal passes."""
        epochs = passes(n, self.splits.train.device.type)
        if epochs not in self._made:
            protocol = Protocol(self.networks, epochs, augmentation=self.families)
            made = self._made[epochs] = Experiment(
                self.splits, self.network, protocol, self.runs, presets=Presets("cifar10", self.changes),
                scores=ScoreSettings(early=EARLY), augmentation=self.families, compute=Compute(progress=self.progress),
            )  # fmt: skip
            if self.encoder:  # it may be of another network than those that are trained
                made.scores.encoder = public.of(self.encoder, self.network, self.splits.train)
        return self._made[epochs]

    @cached_property
    def seconds_a_visit(self) -> float:
        return seconds_a_visit(self.network, self.splits.train, self.networks, self.families)

    def seconds(self, n: int) -> float:
        """About how long it takes to train the networks on a set of n images, and to judge them."""
        visits = passes(n, self.splits.train.device.type) * n + len(self.splits.test) / 3  # forward alone
        return visits * self.networks * self.seconds_a_visit

    def size(self, keep: float) -> int:
        """Images in all of a part: a fraction of each class, or so many images of each class, above 1."""
        return sum(count(keep, size) for size in self.splits.train.counts())

    def part(self, keep: float, seeds: range, **prune) -> list[dict | None]:
        """Results by seed of networks trained on a part of the real images, all of them at 1; None where the budget was spent."""
        recipes = [Recipe("whole", 0, seed, prune=Prune(keep, **prune) if prune else None) for seed in seeds]
        return self.experiment(self.size(keep)).run_all(recipes)

    def made(self, method: str, ipc: int, seeds: range, **parts) -> list[dict | None]:
        """Results by seed of sets that a method makes."""
        return self.experiment(ipc * len(self.splits.train.classes)).run_all([Recipe(method, ipc, seed, **parts) for seed in seeds])


def compare(trial: Trial, keep: float, score: str, rule: str, gamma: float, seeds: int) -> list[dict]:
    """Rows (`records.row`) of networks trained on all images, on a random part and on the part that is kept, judged on held-out ones."""
    each, how = (
        range(seeds),
        {"rule": rule} | ({} if rule == "random" else {"score": score}) | ({"gamma": gamma} if rule == "flexrand" else {}),
    )
    found = {"all": trial.part(1.0, each), "random": trial.part(keep, each, rule="random"), "kept": trial.part(keep, each, **how)}
    return [records.row(name, None, results, found["random"]) for name, results in found.items()]
