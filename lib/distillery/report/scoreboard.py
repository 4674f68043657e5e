"""The scoreboard: sets beside random images under one protocol, by LRS and ARS (`robustness`), with intervals.

Rates are chosen on validation images for sets and random images alike, the final weights are tested. Beside that stands what the same runs
give where rate and epoch are chosen on the test images, as DD-Ranking (arXiv 2505.13300) and many papers do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from distillery.checks import check_choice, check_positive, check_positive_int
from distillery.data import ImageSet, Splits, TensorSource
from distillery.data.synthetic import Synthetic, hard
from distillery.evaluation import Protocol, Teacher
from distillery.evaluation.judge import Judge
from distillery.report import tables
from distillery.report.external import fitting, random_images, stored_bytes
from distillery.report.robustness import robustness
from distillery.report.statistics import measured
from distillery.runs import Runs

RATES = 0.001, 0.005, 0.01, 0.05, 0.1  # as DD-Ranking tries them
LABELS = "own", "hard", "stored", "teacher"
Source = ImageSet | TensorSource


@dataclass(frozen=True)
class Settings:
    """By what sets are scored.

    protocol     of sets and random images, but for the rate
    real_epochs  passes over all real images, at the protocol's own rate
    rates        to choose from; beside a set with a learned step size that is tried too, of its random images as well
    seeds        evaluations of a set, of `protocol.networks` networks each; random images are drawn anew in each. Of several sets that differ
                 by their seeds alone each is evaluated once
    labels       'own', as the sets have them, soft or hard; 'hard', the likeliest class; 'stored', one soft label an image: that of the
                 set, or of a teacher where it has none; 'teacher': the teacher labels every batch. Random images have labels of the same kind,
                 soft ones by the teacher: the first of the networks trained on all real images
    temperature  of the teacher of every batch
    equal_seconds  also random images of as many seconds as making the set took, where its file says so: as expensive as making it again
    """

    protocol: Protocol
    real_epochs: int
    rates: tuple[float, ...] = RATES
    seeds: int = 3
    seed: int = 0
    labels: str = "own"
    temperature: float = 1.0
    equal_seconds: bool = False

    def __post_init__(self):
        check_choice("labels", self.labels, LABELS)
        check_positive("temperature", self.temperature)
        check_positive_int("seeds", self.seeds)
        check_positive_int("real epochs", self.real_epochs)
        for rate in self.rates or (0,):
            check_positive("rates", rate)


@dataclass(eq=False)
class Entry:
    """A set, or several that differ by their seeds alone, and the data that it is scored on. Raises InputError on a set that does not fit."""

    name: str
    sets: list[Synthetic] | list[ImageSet]
    splits: Splits
    network: object
    settings: Settings
    runs: Runs

    def __post_init__(self):
        self.sources = [fitting(one, self.splits) for one in self.sets]
        self.judge, self.classes = Judge(self.splits, self.network, self.runs), len(self.splits.train.classes)
        self.soft = self.sources[0].targets.is_floating_point()
        own = "stored" if self.soft else "hard"
        self.labels = own if self.settings.labels == "own" else self.settings.labels  # how images are labelled
        if self.labels == "stored":
            self.settings.protocol.check_source(self.sources[0], self.network)
        self.n = len(self.sources[0])
        counts = hard(self.sources[0]).targets.bincount(minlength=self.classes).tolist()
        self.counts = [max(1, round(self.n / self.classes))] * self.classes if self.soft else counts
        self.seeds = len(self.sets) if len(self.sets) > 1 else self.settings.seeds

        images, labels = stored_bytes(self.sets[0])
        soft = labels if self.soft else 4 * self.classes * self.n
        self.stored = {"images": images, "labels": soft if self.labels == "stored" else 0}

    @property
    def bytes(self) -> dict:
        """Of 'images' as they are stored, and of 'labels': soft ones, or the teacher that gives them."""
        return self.stored | ({"labels": self.teacher.bytes} if self.labels == "teacher" else {})

    @property
    def seconds(self) -> float | None:
        """That making a set took, None where its file does not say so."""
        return None if isinstance(self.sets[0], ImageSet) else self.sets[0].card.get("seconds")

    @property
    def whole(self) -> Protocol:
        """Of all real images."""
        return replace(self.settings.protocol, epochs=self.settings.real_epochs)

    @cached_property
    def teacher(self) -> Teacher:
        return self.judge.teacher(self.whole, self.settings.seed, self.settings.temperature)

    def several(self) -> int:
        """Random images of each class that take as many bytes as the set, each with its labels; no more than there are."""
        each = self.splits.train.pixels.shape[1:].numel() + (4 * self.classes if self.labels == "stored" else 0)
        return min(sum(self.stored.values()) // (each * self.classes), min(self.splits.train.counts()))

    def trained(self, of: Callable[[int], Source], protocol: Protocol, labels: str, rates: Sequence[float]) -> dict:
        """What networks reach on `of(i)`, the source of the i-th seed, at the rate that serves the first seed best.

        returns  'rate', chosen on validation images, 'accuracies' [seed][network] on test images, what is `measured` of them, 'seconds' [seed]
                 of training; with looks, 'best': accuracies where rate and epoch are chosen on test images
        """
        made: dict[int, Source] = {}  # a source is drawn and labelled once

        def at(rate: float, i: int) -> dict:
            if i not in made:
                made[i] = self.labelled(of(i), labels)
            teacher = self.teacher if labels == "teacher" else None
            return self.judge(made[i], replace(protocol, lr=rate), self.settings.seed + i, teacher)

        first, seeds = {rate: at(rate, 0) for rate in rates}, range(self.seeds)
        rate = max(rates, key=lambda one: np.mean(first[one]["validation"]))
        found = [at(rate, i) for i in seeds]
        accuracies = [one["accuracies"] for one in found]
        told = {"rate": rate, "accuracies": accuracies, "measured": measured(accuracies), "seconds": [one["seconds"] for one in found]}
        if protocol.looks:
            rate = max(rates, key=lambda one: np.mean(first[one]["best"]))
            told["best"] = [at(rate, i)["best"] for i in seeds]
        return told

    def labelled(self, source: Source, labels: str) -> Source:
        if labels != "stored":
            return hard(source)
        return source if source.targets.is_floating_point() else self.teacher.stored(source)

    def row(self, tell: Callable[[str], object] = lambda line: None) -> dict:
        """What was found, fit for JSON; accuracies and scores are fractions. `tell` is told of every evaluation."""
        protocol, seed, most = self.settings.protocol, self.settings.seed, min(self.splits.train.counts())
        plain, found = replace(protocol, augmentation=""), {}
        step = None if isinstance(self.sets[0], ImageSet) else self.sets[0].tensors.get("step_size")
        rates = sorted({*self.settings.rates, *([float(step)] if step is not None else [])})  # the same for sets and random images

        def train(name: str, counts: list[int], labels: str, how: Protocol = protocol, tried: Sequence[float] = ()) -> None:
            def of(i: int) -> Source:
                return random_images(self.splits, counts, seed + i) if counts else self.sources[i % len(self.sources)]

            one = found[name] = self.trained(of, how, labels, tried or rates)
            tell(f"{self.name}, {name}: {100 * one['measured']['value']:.1f}% at rate {one['rate']:g}")

        real = self.judge(self.splits.train, self.whole, seed)
        tell(f"{self.name}, all real images: {100 * np.mean(real['accuracies']):.1f}%")
        train("hard", [], "hard")
        train("own", [], self.labels)
        train("own, not augmented", [], self.labels, plain)
        train("random, hard", self.counts, "hard")
        train("random", self.counts, self.labels)
        train("random, not augmented", self.counts, self.labels, plain)
        sizes = {}
        if (several := self.several()) > max(self.counts):
            sizes["random, as many bytes"] = several
            train("random, as many bytes", [several] * self.classes, self.labels)
        if self.settings.equal_seconds and self.seconds is not None:
            one, other = (np.mean(found[name]["seconds"]) / protocol.networks for name in ("own", "random"))  # of a network
            several = sizes["random, as many seconds"] = min(max(1, int(self.n / self.classes * (self.seconds + one) / other)), most)
            train("random, as many seconds", [several] * self.classes, self.labels, tried=[found["random"]["rate"]])
        names = ("hard", "own", "random", "own, not augmented", "random, not augmented")
        told = {"set": self.name, "sets": len(self.sets), "images": self.n, "bytes": self.bytes, "labels": self.labels}
        told |= {"seconds": self.seconds, "trained": found, "a class": sizes}
        told |= {"real": real["accuracies"], "real images": len(self.splits.train), "real bytes": self.splits.train.pixels.shape.numel()}
        told |= {"network": self.network.spec(), "protocol": protocol.spec(), "real protocol": self.whole.spec()}
        told |= {"scores": robustness([real["accuracies"]], *(found[name]["accuracies"] for name in names))}
        if protocol.looks:
            told["best"] = robustness([real["best"]], *(found[name]["best"] for name in names))
        return told

    def cost(self, seconds_a_visit: float) -> float:
        """About how many seconds `row` takes at most, where nothing of it is kept."""
        protocol, test = self.settings.protocol, len(self.splits.test)
        judging = ((protocol.looks + 1) * test + len(self.splits.validation)) / 3  # forward alone
        fits = (
            len(self.settings.rates) + 1 + 2 * (self.seeds - 1)
        )  # with a learned rate; at the rate that validation images choose, and that test images do
        kinds = 4 if self.labels == "hard" else 6  # of evaluations of as many images
        sizes = [*[self.n] * kinds, self.several() * self.classes]
        visits = sum(fits * (n * (protocol.epochs + 1) + judging) for n in sizes)
        visits += len(self.splits.train) * (self.settings.real_epochs + 1) + judging
        making = self.seeds * (self.seconds or 0) if self.settings.equal_seconds else 0
        return protocol.networks * (visits * seconds_a_visit + making)


ACCURACIES = {  # column -> what was trained
    "hard": "hard", "its labels": "own", "random": "random", "its labels, not augmented": "own, not augmented",
    "random, not augmented": "random, not augmented", "random, as many bytes": "random, as many bytes",
    "random, as many seconds": "random, as many seconds",
}  # fmt: skip
SCORES = {"HLR": "hlr", "IOR": "ior", "IOR, not augmented": "gap_plain", "LRS": "lrs", "ARS": "ars"}


def table(rows: list[dict]) -> str:
    """Two tables in Markdown: accuracies of every set and of random images in percent, with their spread over seeds and over the networks of a
    seed; and the scores that follow from them with 95% intervals, HLR and IOR in points."""
    columns = {head: name for head, name in ACCURACIES.items() if any(name in row["trained"] for row in rows)}
    looked = all("best" in row for row in rows)
    head = ["set", "images", "KiB, images + labels", "labels", "epochs", *columns, *["its labels, best on test"] * looked]
    first, second = [], []
    for row in {str(row["real"]): row for row in rows}.values():  # once, where all sets are of the same images
        line = [
            "all real images",
            row["real images"],
            _kib(row["real bytes"], 0),
            "hard",
            row["real protocol"]["epochs"],
            _percent([row["real"]]),
        ]
        first.append([*line, *[""] * (len(head) - len(line))])
    for row in rows:
        named = row["set"] + (f" ({row['sets']} sets)" if row["sets"] > 1 else "")
        line = [named, row["images"], _kib(*row["bytes"].values()), row["labels"], row["protocol"]["epochs"]]
        for name in columns.values():
            each = f" ({row['a class'][name]} a class)" if name in row["a class"] else ""
            line.append(_percent(row["trained"][name]["accuracies"]) + each if name in row["trained"] else "-")
        first.append([*line, *(_percent(row["trained"]["own"]["best"]) for _ in range(looked))])
        best = [row["best"][name] for name in ("lrs", "ars") if looked]
        second.append([named, *(tables.score(one) for one in (*(row["scores"][name] for name in SCORES.values()), *best))])
    scores = ["set", *SCORES, *["LRS, best on test", "ARS, best on test"] * looked]
    return f"{tables.markdown(head, first)}\n\n{tables.markdown(scores, second)}"


def _percent(accuracies: list[list[float]]) -> str:
    """'28.1 ± 0.3 / 0.9': the spread over seeds, and over the networks of a seed."""
    value = measured(accuracies)
    seeds, networks = ("-" if value[name] is None else f"{100 * value[name]:.1f}" for name in ("std_sets", "std_networks"))
    return f"{100 * value['value']:.1f} ± {seeds} / {networks}"


def _kib(images: int, labels: int) -> str:
    return f"{images / 1024:.1f} + {labels / 1024:.1f}"
