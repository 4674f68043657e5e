"""`distillery advise`: which part of one's own images, or which few made ones, serve as well as all, judged on images held out."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from distillery.checks import InputError, check_fraction
from distillery.commands import own as owns
from distillery.commands import trial as trials
from distillery.commands.distill import SHORT
from distillery.commands.own import Tell, quiet
from distillery.commands.trial import Trial
from distillery.data import Splits
from distillery.methods import DEFAULT, METHODS
from distillery.notebook import parameters
from distillery.report import figures, records, tables
from distillery.report.statistics import difference

DECIDED, JUDGED = 0.15, 0.15  # of each class: held out to choose by, and for the one row that is recommended
MARGIN = 0.02  # of accuracy: a part that is no worse than all images by more than this serves as well
SELECTIONS = {  # name -> how images are kept, see `Prune`
    "random": {"rule": "random"},
    "lowest loss": {"rule": "lowest"},
    "FlexRand": {"rule": "flexrand", "gamma": 0.5},
}


@dataclass(frozen=True)
class Candidate:
    """One way to learn from less: a name, images of each class (above 1, or 1) or a fraction, and its results by seed, None = not run."""

    name: str
    size: float
    results: list[dict | None]
    images: int
    bytes: int
    parts: dict = field(default_factory=dict)  # of its recipe

    @property
    def accuracies(self) -> list[list[float] | None]:
        return records.accuracies(self.results)


@dataclass(frozen=True)
class Advice:
    """What `advise` found.

    candidates  every way at every size, beside 'all'; accuracies are on images held out to choose by
    chosen      the one that is recommended
    why         in words
    judged      `records.row` of it on test images, used for this alone
    """

    candidates: list[Candidate]
    chosen: Candidate
    why: str
    judged: dict

    def told(self) -> str:
        """The recommendation in words."""
        name, size = self.chosen.name, shown(self.chosen.size)
        what = "keep all images" if name == "all" else f"take {name}" + (f", {size}" if size else "")
        return f"advice: {what}; {self.why}. On test images: {tables.percent(self.judged['measured'])} %"


def shown(size: float) -> str:
    """'5%', '10 a class'."""
    return f"{size} a class" if isinstance(size, int) else f"{size:.0%}"


def table(found: Advice) -> str:
    """Every candidate in Markdown: accuracy on the images held out to choose by, bytes, seconds and difference to random ones."""
    random = {one.size: one for one in found.candidates if one.name == "random"}
    lines = []
    for one in found.candidates:
        gap = difference(one.accuracies, random[one.size].accuracies) if one.size in random and one.name != "random" else None
        spent = [result["seconds"] for result in one.results if result]
        value = tables.percent(records.measured(one.accuracies))
        told = [f"{one.bytes / 2**20:.2f}", f"{np.mean(spent):.1f}" if spent else "-", tables.points(gap) if gap else "-"]
        lines.append(["all images" if one.name == "all" else f"{one.name}, {shown(one.size)}", value, *told])
    return tables.markdown(["way", "accuracy, %", "MiB", "seconds a set", "difference to random"], lines)


def draw(found: Advice, path: str | Path) -> Path:
    """Accuracy against images, bytes and seconds, on a log axis each; a ring around what is recommended."""
    figures.style()
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.2), sharey=True)
    done = [one for one in found.candidates if all(one.results)]
    names = list(dict.fromkeys(one.name for one in done))
    colors = figures.palette(names)
    of = {
        "images": lambda one: one.images,
        "bytes": lambda one: one.bytes,
        "seconds a set": lambda one: np.mean([result["seconds"] for result in one.results]),
    }
    for axis, (what, value) in zip(axes, of.items()):
        lines = {}
        for name in names:
            own = sorted((one for one in done if one.name == name), key=value)
            means = [100 * np.mean([np.mean(one) for one in candidate.accuracies]) for candidate in own]
            lines[name] = ([value(one) for one in own], means)
        axis.set(xlabel=what, xscale="log", ylabel="accuracy on images held out, %" if axis is axes[0] else "")
        figures.lines(axis, lines, colors)
        ring = 100 * np.mean([np.mean(one) for one in found.chosen.accuracies])
        axis.plot(value(found.chosen), ring, "o", ms=14, mfc="none", mec=figures.INK)
    made = figures.save(figure, path)
    plt.close(figure)
    return made


def sizes(text: str) -> list[float]:
    """'1,10,5%,30%' -> images of each class, and fractions. Raises InputError on anything else."""
    found = []
    for part in text.split(","):
        number = part.strip().removesuffix("%")
        try:
            value = float(number) / (100 if "%" in part else 1)
        except ValueError as error:
            raise InputError(f"sizes: {part!r}; accepted: images of each class and parts, such as 1,10,5%,30%") from error
        if "%" not in part and (value != int(value) or value < 1):
            raise InputError(f"sizes: {part!r}; accepted: a whole number of images of each class, or a part with %")
        if "%" in part:
            check_fraction("sizes", value)
        found.append(value if "%" in part else int(value))
    return found


def recommended(candidates: list[Candidate], margin: float = MARGIN) -> tuple[Candidate, str]:
    """The candidate to take, and why: the smallest size at which some way is no worse than all images by more than `margin`.

    A way is preferred to random images of its size only where the 95% interval of its difference to them lies above 0, by Holm's correction
    among all of that size; where no size serves as well as all, all images are the advice.
    """
    whole = next(one for one in candidates if one.name == "all")
    by_size: dict[int, list[Candidate]] = {}
    for one in candidates:
        if one.name != "all" and all(one.results):
            by_size.setdefault(one.images, []).append(one)
    for _, group in sorted(by_size.items()):
        best, why = preferred(group)
        gap = difference(best.accuracies, whole.accuracies)
        if gap and gap["ci95"] and gap["ci95"][0] > -margin:
            low, high = (100 * bound for bound in gap["ci95"])
            return best, f"{why}; to all images {100 * gap['mean']:+.1f} [{low:+.1f}, {high:+.1f}] points, within {100 * margin:g}"
    return whole, f"no smaller set is shown to be within {100 * margin:g} points of all images"


def preferred(group: list[Candidate]) -> tuple[Candidate, str]:
    """Of ways of one size the one to take, and why."""
    random = next((one for one in group if one.name == "random"), group[0])
    claims = []
    for one in (one for one in group if one is not random):
        found = records.claim(one.name, "beats random", "", one.accuracies, random.accuracies, against="random", family="size")
        claims.append((one, found))
    judged = records.corrected([found for _, found in claims])
    better = [(one, found) for (one, _), found in zip(claims, judged) if found["verdict"] == "direction reproduced"]
    if not better:
        return random, "take random images: nothing of this size is shown to beat them"
    best, found = max(better, key=lambda pair: np.mean([np.mean(one) for one in pair[0].accuracies]))
    return best, f"{best.name} beats random images of the same size by {100 * found['difference']['mean']:.1f} points"


def advise(
    data: str | Path, sizes: list[float], *, budget_minutes: float = 0.0, seeds: int = 3, method: str = DEFAULT, side: int = 0, seed: int = 0,
    flip: bool = True, device: str = "auto", tell: Tell = quiet, progress: bool = False,
) -> Advice:  # fmt: skip
    """Try selections and a distiller at several sizes, cheapest first, and recommend one; finished runs are kept.

    sizes    images of each class, or fractions of it below 1
    method   a distiller, for sizes in images of each class
    raises   InputError as `prune` and `distill`, and where the budget ends before all images and one candidate have run
    """
    where = parameters.device(device)
    own = owns.read(data, side, where, tell, progress)
    splits = trials.split(own, seed, validation=DECIDED, test=JUDGED)
    trial = Trial(replace(splits, test=splits.validation), flip=flip, budget_minutes=budget_minutes, progress=progress)
    tell(f"{len(splits.train)} images to learn from, {len(splits.validation)} to choose by, {len(splits.test)} to judge by; {trial.why}")
    each, pixels, classes = range(seed, seed + seeds), int(np.prod(splits.train.shape)), len(splits.train.classes)
    candidates = [Candidate("all", 1.0, trial.part(1.0, each), len(splits.train), pixels * len(splits.train))]
    fewest = min(splits.train.counts())
    for size in sizes:
        counted = isinstance(size, int)
        if counted and size >= fewest:
            raise InputError(f"sizes: {size} images of classes of {fewest} at least; accepted: fewer, or a part with %")
        n = size * classes if counted else trial.size(size)
        ways = {"random": {}, "k-means": {}, "lowest loss": {}} if counted else SELECTIONS
        for name, how in ways.items():
            results = trial.made(name, size, each) if counted else trial.part(size, each, **how)
            candidates.append(Candidate(name, size, results, n, pixels * n, how))
        if counted:
            known = {name: value for name, value in SHORT.items() if where.type == "cpu" and hasattr(METHODS[method].Settings, name)}
            results = trial.made(method, size, each, settings=known)
            made = Candidate(method, size, results, n, 4 * pixels * n, {"settings": known})  # learned numbers take 4 bytes each
            candidates.append(made)
    if not all(candidates[0].results):
        raise InputError("budget: it ended before all images were tried; accepted: more time, fewer seeds")
    chosen, why = recommended(candidates)
    return Advice(candidates, chosen, why, judge(splits, chosen, trial, each))


def judge(splits: Splits, chosen: Candidate, trial: Trial, seeds: range) -> dict:
    """The recommended row on the test images, its only use of them."""
    last = replace(trial, splits=splits, budget_minutes=0.0)
    if chosen.name == "all":
        return records.row("all", None, last.part(1.0, seeds))
    if isinstance(chosen.size, int):
        return records.row(chosen.name, chosen.size, last.made(chosen.name, chosen.size, seeds, **chosen.parts))
    return records.row(chosen.name, None, last.part(chosen.size, seeds, **chosen.parts))
