"""Rows of a notebook that trains on parts of a task: several ways to keep a part, each on every part, and means over the parts."""

from collections.abc import Callable, Iterable, Sequence

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown

from distillery.data import take_classes
from distillery.encoders import pretrained, public
from distillery.experiment import Experiment
from distillery.measure.instructions import gains
from distillery.networks import pool
from distillery.networks.encoder import Encoder
from distillery.networks.precision import MixedPrecision
from distillery.notebook.session import Session
from distillery.recipe import Prune
from distillery.report import figures, records, tables
from distillery.selection import legal_gammas

Way = Callable[[float], Prune]  # how a part is kept


def flexrand(n: int, i: int = 0) -> Way:
    """FlexRand by the complexity with the value of gamma, of n legal ones, that is i-th nearest to 1/2, the first."""
    return lambda part: Prune(part, "flexrand", "complexity", sorted(legal_gammas(part, n), key=lambda gamma: abs(gamma - 0.5))[i])


def encoder_of(session: Session, augmentation: str) -> Encoder:
    """The encoder that a notebook's parameters describe, for the classes of its data; one that is trained here is made once.

    augmentation  of that training
    """
    p = session.p
    network = pool.build(p.architecture, session.train.shape, len(session.classes), p.width_factor)
    if p.encoder != "pretrain":
        return public.of(p.encoder, network, session.train, p.encoder_side)
    whole = {"per_class": 0, "test_per_class": 0, "normalization": p.encoder_normalization}
    source = take_classes(session.load(p.encoder_dataset, p.encoder_root, **whole), p.encoder_classes)
    teacher = pool.build(p.architecture, source.train.shape, len(source.train.classes), p.width_factor)
    how = {"epochs": p.encoder_epochs, "lr": p.encoder_lr, "batch": p.encoder_batch, "augmentation": augmentation}
    return pretrained.trained(MixedPrecision(teacher, p.precision, p.compiled), source, network, session.runs, p.seed, **how)


def draws(session: Session, called: Callable[[str], str], tries: Sequence[str], published: dict | None = None) -> None:
    """Keep all draws of a way as one row, and as its row 'again' the first of them beside the mean of the others, which shows the noise.

    called  a variant of the way, '' or ', again', -> the name of its row
    """
    found = [session.results[one] for one in tries]
    session.add(called(""), records.pooled(found), published=published, view=True)
    if len(found) > 1:
        session.add(called(", others"), records.pooled(found[1:]), view=True, listed=False)
        session.add(called(", again"), found[0], against=called(", others"))


def choices_figure(by_part: dict[float, dict]):
    """How far the losses of rows of `instructions.Pool`, by the part kept, lie below that of random choices: a panel a part."""
    figure, axes = plt.subplots(1, len(by_part), figsize=(2 + 3.2 * len(by_part), 2.8), sharey=True, squeeze=False)
    for axis, (part, rows) in zip(axes.flat, by_part.items()):
        figures.intervals(axis, _above_random(rows), "random", factor=1)
        axis.set(title=f"{part:.0%} kept", xlabel=axis.get_xlabel().replace("points above random", "loss below random's, nats a token"))
    return figure


def choices_table(by_part: dict[float, dict]) -> Markdown:
    """Losses on tests and answers word for word of rows of `instructions.Pool`, by the part kept, and how far losses lie below random's."""
    lines = []
    for part, rows in by_part.items():
        gaps = _above_random(rows)
        for name, results in rows.items():
            loss, answers = (records.measured([one and one[what] for one in results]) for what in ("loss", "answers"))
            gap = tables.points(gaps[name], 1, 3) if gaps.get(name) else "-"
            lines.append([f"{part:.0%}", name, tables.percent(loss, factor=1, digits=3), gap, tables.percent(answers).split(" (")[0]])
    head = ["kept", "choice", "loss, nats a token (seeds x draws)", "below random's, 95% interval", "word for word, %"]
    return Markdown(tables.markdown(head, lines))


def _above_random(rows: dict) -> dict[str, dict | None]:
    named = [name for name in rows if name not in ("before", "random")]
    return {name: records.difference(gains(rows, name), gains(rows, "random")) for name in named}


class Parts:
    """Runs ways to keep a part, each on all parts; the row of a way on a part is called 'way, part' in percent.

    keep        parts of each class, fractions that differ in whole percents
    against     the way that every other one is compared with, on the same part
    experiment  None = that of the session
    published   (way, part) -> the published accuracy of a way on a part
    """

    def __init__(
        self, session: Session, keep: Sequence[float], against: str = "random", experiment: Experiment | None = None,
        published: Callable[[str, float], dict | None] = lambda way, part: None,
    ):  # fmt: skip
        self.session, self.keep, self.against, self.experiment, self.published = session, keep, against, experiment, published

    def at(self, name: str, part: float) -> str:
        """The name of a row."""
        return f"{name}, {part:.0%}"

    def names(self, ways: Iterable[str]) -> list[str]:
        """Names of the rows of some ways, part by part."""
        ways = list(ways)
        return [self.at(name, part) for part in self.keep for name in ways]

    def run(self, name: str, way: Way, n: int, listed: bool = True, experiment: Experiment | None = None) -> None:
        """Train on each part that a way keeps, n seeds; `listed` as in `Session.row`, `experiment` another one than its own."""
        for part in self.keep:
            how = {"prune": way(part), "against": self.at(self.against, part), "experiment": experiment or self.experiment}
            self.session.row(self.at(name, part), "whole", 0, n, published=self.published(name, part), listed=listed, **how)

    def tries(self, name: str, ways: Sequence[Way], n: int) -> list[str]:
        """Run several tries, which are not listed; what they are called."""
        tries = [f"{name}, try {i}" for i in range(1, len(ways) + 1)]
        for one, way in zip(tries, ways):
            self.run(one, way, n, listed=False)
        return tries

    def draws(self, name: str, tries: Sequence[str]) -> None:
        """Keep all draws of a way as one row, and as another one, 'again', the first draw beside the mean of the others."""
        for part in self.keep:
            names = [self.at(one, part) for one in tries]
            draws(self.session, lambda more, part=part: self.at(name + more, part), names, self.published(name, part))

    def best(self, name: str, tries: Sequence[str]) -> None:
        """Keep the best of several tries for each seed as two rows: chosen on validation images, and by an oracle on test images."""
        for part in self.keep:
            found = [self.session.results[self.at(one, part)] for one in tries]
            for called, by in ((name, "validation"), (f"{name}, oracle on test", "accuracies")):
                known = self.published(called, part)
                self.session.add(self.at(called, part), records.best_of(found, by), self.at(self.against, part), known)

    def told_by_validation(self, tries: Sequence[str]) -> dict[float, float]:
        """Correlation of validation and test accuracy over the draws of each part, within seeds: whether a choice by validation means anything."""
        found = {}
        for part in self.keep:
            by_try = [self.session.results[self.at(one, part)] for one in tries]
            done = [one for one in zip(*by_try) if all(one)]  # seeds
            values = np.array([[[np.mean(one[of]) for one in seed] for seed in done] for of in ("validation", "accuracies")])
            if values.size and len(tries) > 1:
                ours, theirs = (values - values.mean(2, keepdims=True)).reshape(2, -1)
                spread = np.sqrt((ours**2).sum() * (theirs**2).sum())
                found[part] = float(ours @ theirs / spread) if spread else 0.0
        return found

    def notes(self, tries: Sequence[str]) -> Markdown:
        """Whether published numbers stand beside rows, and whether validation tells which of several random draws is better."""
        known = any(self.published(self.against, part) for part in self.keep)
        told = (
            "Published numbers stand in brackets."
            if known
            else "No published number is for this task and encoder: no row has one beside it."
        )
        noise = ", ".join(f"{r:+.2f} at {part:.0%}" for part, r in self.told_by_validation(tries).items())
        told += f" Over the random draws of a seed, validation and test accuracy correlate by {noise or 'what has not run'}:"
        return Markdown(f"{told} where that is near 0, the best by validation is a draw like any other.")

    def mean(self, name: str) -> list[list[float] | None]:
        """accuracies[seed][0], the mean over all parts; None where one has not run."""
        by_part = [self.session.accuracies(self.at(name, part)) for part in self.keep]
        return [[float(np.mean([np.mean(part) for part in one]))] if all(one) else None for one in zip(*by_part)]

    def gap(self, ours: str, theirs: str) -> dict | None:
        """The difference of two ways, mean over the parts."""
        return records.difference(self.mean(ours), self.mean(theirs))

    def decomposition(self, steps: dict[str, tuple[str, str]]):
        """A figure of differences, mean over the parts: in words, and the two ways; red where they are chosen on test images."""
        found = {words: self.gap(*pair) for words, pair in steps.items()}
        figure, axis = plt.subplots(figsize=(7, 3.8))
        figures.intervals(axis, found, "the other, mean over the parts kept", figures.INK)
        for i, (words, gap) in enumerate(found.items()):
            axis.get_yticklabels()[i].set_color("#c44e52" if "test" in words else figures.INK)
            if gap:
                axis.text(1.02, i, f"{100 * gap['mean']:+.1f}", va="center", transform=axis.get_yaxis_transform())
        axis.set(title="one step at a time (red: chosen on test images)")
        return figure

    def curves(self, names: Iterable[str]) -> dict[str, dict[float, list]]:
        """Accuracies by way and part, for `figures.keep_curves`."""
        return {name: {part: self.session.accuracies(self.at(name, part)) for part in self.keep} for name in names}

    def gaps(self, names: Iterable[str]) -> dict[str, dict[str, dict | None]]:
        """Differences to `against` by way and part, for `figures.differences`."""
        return {name: {f"{part:.0%}": self._gap(name, part) for part in self.keep} for name in names}

    def _gap(self, name: str, part: float) -> dict | None:
        against = self.session.rows[self.at(name, part)].against or self.at(self.against, part)
        return records.difference(*(self.session.accuracies(one) for one in (self.at(name, part), against)))

    def grid(self, lines: dict[str, list[str]], names: Iterable[str]) -> Markdown:
        """Accuracies of ways, a column a part; `lines` are rows by other names that stand first, one a part."""
        head = ["accuracy, %", *(f"{part:.0%} kept" for part in self.keep)]
        return self.session.grid(head, published=True, lines=lines | {name: [self.at(name, part) for part in self.keep] for name in names})

    def claim(self, id: str, statement: str, ours: str, theirs: str, **how) -> None:
        """Claim on each part that a way is more accurate than another; {part} in the statement is the part, `how` as in `Session.claim`."""
        for part in self.keep:
            rows = self.at(ours, part), self.at(theirs, part)
            self.session.claim(f"{id}-{part:.0%}", statement.format(part=f"{part:.0%}"), *rows, **how)

    def claim_mean(self, id: str, statement: str, ours: str, theirs: str, source: str = "", **how) -> None:
        """Claim that a way is more accurate than another, mean over the parts; `how` as `records.claim` has it."""
        values, source = (self.mean(ours), self.mean(theirs)), source or self.session.source
        known = [[self.session.rows[self.at(one, part)].published for part in self.keep] for one in (ours, theirs)]
        if not source.startswith("ours") and all(map(all, known)):
            means = [{"mean": float(np.mean([one["mean"] for one in side])), "std": None} for side in known]
            how |= dict(zip(("published", "published_baseline"), means))
        self.session.claim_values(id, f"{statement}, mean over parts", *values, theirs, source=source, **how)

    def gammas(self, tries: Iterable[str]):
        """A figure of differences to `against` over gamma, a panel a part."""
        wide, high = min(5, len(self.keep)), -(-len(self.keep) // 5)
        figure, axes = plt.subplots(high, wide, figsize=(1.5 + 2.4 * wide, 3.2 * high), sharey=True, squeeze=False)
        for axis, part in zip(axes.flat, self.keep):
            self.draw_gammas(axis, tries, part)
            axis.set(xlabel="", xlim=(-0.05, 1.05), xticks=(0, 0.5, 1), xticklabels=("0", "½", "1"))
        for axis in axes.flat[len(self.keep) :]:
            axis.set_visible(False)
        figure.supylabel(f"points above {self.against}", fontsize=10)
        figure.supxlabel(r"$\gamma$ (first dot: all of the easiest; last: all of the hardest)", fontsize=10)
        figure.suptitle("ring: best on validation images; bar: ± standard error over seeds", x=0.02, ha="left", fontsize=10)
        return figure

    def draw_gammas(self, axis, tries: Iterable[str], part: float) -> None:
        """Draw differences to `against` over gamma for tries of FlexRand, with standard errors; a ring: best mean validation accuracy."""
        session, rows = self.session, {}
        for name in tries:
            row, gap = self.at(name, part), self._gap(name, part)
            if gap and all(session.results[row]):
                chosen = np.mean([np.mean(one["validation"]) for one in session.results[row]])
                pairs = zip(*(session.accuracies(self.at(way, part)) for way in (name, self.against)))
                gaps = np.array([np.mean(ours) - np.mean(theirs) for ours, theirs in pairs])
                error = gaps.std(ddof=1) / len(gaps) ** 0.5 if len(gaps) > 1 else 0.0
                rows[session.rows[row].recipes[0].prune.gamma] = (100 * gap["mean"], 100 * error, chosen)
        if rows:
            gammas = sorted(rows)
            mean, error, chosen = zip(*(rows[gamma] for gamma in gammas))
            axis.errorbar(gammas, mean, error, fmt="o-", ms=4, elinewidth=1)
            best = int(np.argmax(chosen))
            axis.plot(gammas[best], mean[best], "o", ms=11, mfc="none", mec="C0")
        axis.axhline(0, color=figures.INK, lw=0.8)
        axis.set(xlabel=r"$\gamma$", title=f"{part:.0%} kept", xlim=(0, 1), xticks=(0, 0.5, 1))
