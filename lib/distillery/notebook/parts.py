"""Rows of a notebook that trains on parts of a task: several ways to keep a part, each on every part, and means over the parts."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from IPython.display import Markdown

from distillery.experiment import Experiment
from distillery.notebook.session import Session
from distillery.recipe import Prune
from distillery.report import figures, records

Way = Callable[[float], Prune]  # how a part is kept


def draws(session: Session, name: str, tries: Sequence[str], again: str, published: dict | None = None) -> None:
    """Keep all draws of a way as one row, and as row `again` the first of them beside the mean of the others, which shows the noise."""
    found = [session.results[one] for one in tries]
    session.add(name, records.pooled(found), published=published, view=True)
    if len(found) > 1:
        session.add(f"{name}, others", records.pooled(found[1:]), view=True, listed=False)
        session.add(again, found[0], against=f"{name}, others")


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
            draws(self.session, self.at(name, part), names, self.at(f"{name}, again", part), self.published(name, part))

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

    def mean(self, name: str) -> list[list[float] | None]:
        """accuracies[seed][0], the mean over all parts; None where one has not run."""
        by_part = [self.session.accuracies(self.at(name, part)) for part in self.keep]
        return [[float(np.mean([np.mean(part) for part in one]))] if all(one) else None for one in zip(*by_part)]

    def gap(self, ours: str, theirs: str) -> dict | None:
        """The difference of two ways, mean over the parts."""
        return records.difference(self.mean(ours), self.mean(theirs))

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
        return self.session.grid(head, lines | {name: [self.at(name, part) for part in self.keep] for name in names})

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
