"""`distillery advise`: which part of one's own images, or which few made ones, serve as well as all, judged on images held out."""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from distillery.checks import InputError, check_choice, check_fraction, check_positive_int, check_seed
from distillery.commands import own as owns
from distillery.commands import trial as trials
from distillery.commands.distill import seconds as distilling
from distillery.commands.distill import shortened
from distillery.commands.own import Tell, quiet
from distillery.commands.trial import EARLY, Trial
from distillery.methods import DEFAULT, METHODS, TRAJECTORIES
from distillery.notebook import parameters
from distillery.recipe import Recipe
from distillery.report import figures, records, tables
from distillery.report.statistics import difference, interval, measured

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
        what = "keep all images" if self.chosen.name == "all" else f"take {named(self.chosen)}"
        return f"advice: {what}; {self.why}. On test images: {tables.percent(self.judged['measured'])} %"


def shown(size: float) -> str:
    """'5%', '10 a class'."""
    return f"{size} a class" if isinstance(size, int) else f"{size:.0%}"


def named(one: Candidate) -> str:
    """'FlexRand, 30%', 'all images'."""
    return "all images" if one.name == "all" else f"{one.name}, {shown(one.size)}"


def table(found: Advice) -> str:
    """Every candidate in Markdown: accuracy on the images held out to choose by, bytes, seconds and difference to random ones."""
    random = {one.images: one for one in found.candidates if one.name == "random"}
    lines = []
    for one in found.candidates:
        gap = difference(one.accuracies, random[one.images].accuracies) if one.images in random and one.name != "random" else None
        spent = [result["seconds"] for result in one.results if result]
        value = tables.percent(records.measured(one.accuracies))
        told = [f"{one.bytes / 2**20:.2f}", f"{np.mean(spent):.1f}" if spent else "-", tables.points(gap) if gap else "-"]
        lines.append([named(one), value, *told])
    return tables.markdown(["way", "accuracy, %", "MiB", "seconds a set", "difference to random"], lines)


def draw(found: Advice, path: str | Path) -> Path:
    """Accuracy with its 95% interval against images, bytes and seconds, on a log axis each; a ring around what is recommended."""
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
            for x, one in zip(lines[name][0], own):
                low, high, _ = interval(measured(one.accuracies))
                axis.plot([x, x], [100 * low, 100 * high], color=colors[name], lw=1)
        axis.margins(x=0.12)
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


@dataclass(frozen=True)
class Planned:
    """A candidate that has not run: what it is, and about how long its sets take, one a seed."""

    candidate: Candidate
    seconds: float


def plan(trial: Trial, sizes: list[float], methods: list[str], seed: int) -> list[Planned]:
    """All images, and every way at every size, the cheapest first.

    methods  distillers, for sizes in images of each class; the first of them at all of those, others at the smallest that is published
    raises   InputError on a size that no class can lose
    """
    train, device = trial.splits.train, trial.splits.train.device.type
    pixels, classes, fewest = int(np.prod(train.shape)), len(train.classes), min(train.counts())
    scoring = EARLY[0] * EARLY[1] * len(train) * trial.seconds_a_visit
    found, scored, others = [], False, list(methods[1:])
    for size in sorted(sizes, key=lambda size: size * classes if isinstance(size, int) else trial.size(size)):
        counted = isinstance(size, int)
        if counted and size >= fewest:
            raise InputError(f"sizes: {size} images of classes of {fewest} at least; accepted: fewer, or a part with %")
        n = size * classes if counted else trial.size(size)
        for name, how in ({"random": {}, "k-means": {}, "lowest loss": {}} if counted else selections(trial)).items():
            cost = trial.seconds(n) + (scoring if name != "random" and not scored else 0.0)
            scored = scored or name != "random"
            found.append(Planned(Candidate(name, size, [], n, pixels * n, how), cost))
        for method in [methods[0], *others] if counted else []:
            settings = shortened(method, device)
            recipe = Recipe(method, size, seed, settings=settings)
            try:
                trial.experiment(n).check(recipe)
            except InputError:  # nothing is published for this size
                if method == methods[0]:
                    raise
                continue
            others = [one for one in others if one != method]
            made = Candidate(method, size, [], n, 4 * pixels * n, {"settings": settings})  # learned numbers take 4 bytes each
            found.append(Planned(made, trial.seconds(n) + distilling(trial, recipe)))
    whole = Planned(Candidate("all", 1.0, [], len(train), pixels * len(train)), trial.seconds(len(train)))
    return [whole, *sorted(found, key=lambda one: one.seconds)]


def selections(trial: Trial) -> dict[str, dict]:
    """How a part of the images is kept, by name; through an encoder too where there is one."""
    return SELECTIONS | ({"FlexRand by complexity": SELECTIONS["FlexRand"] | {"score": "complexity"}} if trial.encoder else {})


def run(trial: Trial, one: Candidate, seeds: range) -> Candidate:
    """A candidate with its results by seed."""
    if one.name == "all":
        results = trial.part(1.0, seeds)
    elif isinstance(one.size, int):
        results = trial.made(one.name, one.size, seeds, **one.parts)
    else:
        results = trial.part(one.size, seeds, **one.parts)
    return replace(one, results=results)


def tried(trial: Trial, planned: list[Planned], seeds: range, limit: float, tell: Tell) -> list[Candidate]:
    """Every candidate with its results, in order; what each came to, and how much time is left, is told."""
    found, made, spent, until = [], 0.0, 0.0, time.monotonic() + limit
    for i, one in enumerate(planned, 1):
        before, began = trial.runs.computed, time.monotonic()
        missing = len(trial.runs.missing)
        found.append(run(trial, one.candidate, seeds))
        if trial.runs.computed > before:  # else it was stored
            made, spent = made + one.seconds, spent + time.monotonic() - began
        ahead = sum(later.seconds for later in planned[i:])
        left = min(ahead * (spent / made if made else len(seeds)), until - time.monotonic())
        left = f", about {owns.span(max(0.0, left))} left" if ahead else ""
        stopped = dict.fromkeys(told["stopped"] for told in trial.runs.missing[missing:] if "stopped" in told)
        why = f" ({'; '.join(stopped)})" if stopped else ""
        tell(f"[{i:2d}/{len(planned)}] {named(one.candidate)}: {tables.percent(records.measured(found[-1].accuracies))}{why}{left}")
    return found


def advise(
    data: str | Path, sizes: list[float], *, budget_minutes: float = 30.0, seeds: int = 5, method: str = DEFAULT, encoder: str = "",
    side: int = 0, seed: int = 0, flip: bool = True, device: str = "auto", skip_unreadable: bool = False, tell: Tell = quiet, progress: bool = False,
) -> Advice:  # fmt: skip
    """Try selections and distillers at several sizes, cheapest first, and recommend one; finished runs are kept.

    sizes           images of each class, or fractions of it below 1
    budget_minutes  start no new run after so many, 0 = no limit; the cheapest method that matches trajectories is tried only where a third
                    of them is enough for it
    method          a distiller, for sizes in images of each class
    encoder         as of `prune`: FlexRand goes by complexity too (DLC)
    raises          InputError as `prune` and `distill`, and on a budget that is too short for all images and one candidate
    """
    check_positive_int("seeds", seeds)
    check_seed(seed)
    tried_anyway = ("random", "k-means", "lowest loss")
    known = [name for name, one in METHODS.items() if one.makes_set and one.labels is not False and name not in tried_anyway]
    check_choice("method", method, known)
    where = parameters.device(device)
    own = owns.read(data, side, where, tell, progress, skip_unreadable)
    for note in own.notes:
        tell(f"note: {note}")
    splits = trials.split(own, seed, validation=DECIDED, test=JUDGED, tell=tell)
    how = {"networks": 1, "flip": flip, "encoder": encoder, "budget_minutes": budget_minutes, "progress": progress}
    trial = Trial(replace(splits, test=splits.validation), **how)
    tell(f"{len(splits.train)} images to learn from, {len(splits.validation)} to choose by, {len(splits.test)} to judge by; {trial.why}")
    planned = plan(trial, sizes, list(dict.fromkeys([method, TRAJECTORIES])), seed)
    limit = 60 * budget_minutes or float("inf")
    for one in [one for one in planned if method != one.candidate.name == TRAJECTORIES and 3 * seeds * one.seconds > limit]:
        planned.remove(one)
        tell(f"{named(one.candidate)} is left out: its {seeds} sets take about {owns.span(seeds * one.seconds)}")
    least, total = (seeds * sum(one.seconds for one in some) for some in (planned[:2], planned))
    if least > limit:
        told = f"{owns.span(60 * budget_minutes)}, and all images and {named(planned[1].candidate)} take about {owns.span(least)}"
        raise InputError(f"budget: {told}; accepted: more time, fewer seeds, a smaller side")
    tell(
        f"this takes {owns.cost(min(total, limit), splits.train)}"
        + (f" (all that is planned: {owns.span(total)})" if total > limit else "")
    )
    each = range(seed, seed + seeds)
    candidates = tried(trial, planned, each, limit, tell)
    if not all(candidates[0].results):
        raise InputError("budget: it ended before all images were tried; accepted: more time, fewer seeds")
    order = {name: i for i, name in enumerate(dict.fromkeys(one.name for one in candidates))}
    candidates.sort(key=lambda one: (one.name != "all", one.images, order[one.name]))
    chosen, why = recommended(candidates)
    judged = run(replace(trial, splits=splits, budget_minutes=0.0), chosen, each)
    return Advice(candidates, chosen, why, records.row(chosen.name, None, judged.results))
