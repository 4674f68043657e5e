"""Rows of a notebook that trains on parts of a task: several ways to keep a part, each on every part, and means over the parts."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from IPython.display import Markdown

from distillery.experiment import Experiment
from distillery.notebook.session import Session
from distillery.recipe import Prune
from distillery.report import figures, records

Way = Callable[[float], Prune]  # how a part is kept


class Parts:
    """Runs ways to keep a part, each on all parts; the row of a way on a part is called 'way, part' in percent.

    keep        parts of each class, fractions that differ in whole percents
    against     the way that every other one is compared with, on the same part
    experiment  None = that of the session
    """

    def __init__(self, session: Session, keep: Sequence[float], against: str = "random", experiment: Experiment | None = None):
        self.session, self.keep, self.against, self.experiment = session, keep, against, experiment

    def at(self, name: str, part: float) -> str:
        """The name of a row."""
        return f"{name}, {part:.0%}"

    def names(self, ways: Iterable[str]) -> list[str]:
        """Names of the rows of some ways, part by part."""
        ways = list(ways)
        return [self.at(name, part) for part in self.keep for name in ways]

    def run(self, name: str, way: Way, n: int, listed: bool = True) -> None:
        """Train on each part that a way keeps, n seeds; `listed` as in `Session.row`."""
        for part in self.keep:
            how = {"prune": way(part), "against": self.at(self.against, part), "experiment": self.experiment, "listed": listed}
            self.session.row(self.at(name, part), "whole", 0, n, **how)

    def search(self, name: str, first: str, more: Sequence[Way], n: int) -> list[str]:
        """Keep the best of several tries for each seed as two rows: chosen on validation images, and by an oracle on test images.

        first    a way that was run, which is taken of equals; `more` are run, and not listed
        returns  what the tries are called
        """
        tries = [first, *(f"{name}, try {i}" for i in range(2, len(more) + 2))]
        for one, way in zip(tries[1:], more):
            self.run(one, way, n, listed=False)
        for part in self.keep:
            found = [self.session.results[self.at(one, part)] for one in tries]
            for called, by in ((name, "validation"), (f"{name}, oracle on test", "accuracies")):
                best = records.best_of(found, by)
                self.session.add(self.at(called, part), best, against=self.at(self.against, part))
        return tries

    def mean(self, name: str) -> list[list[float] | None]:
        """accuracies[seed][0], the mean over all parts; None where one has not run."""
        by_part = [self.session.accuracies(self.at(name, part)) for part in self.keep]
        return [[float(np.mean(one))] if all(one) else None for one in zip(*by_part)]

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
        ours, theirs = (self.session.accuracies(self.at(one, part)) for one in (name, self.against))
        return records.difference(ours, theirs)

    def grid(self, lines: dict[str, list[str]], names: Iterable[str]) -> Markdown:
        """Accuracies of ways, a column a part; `lines` are rows by other names that stand first, one a part."""
        head = ["accuracy, %", *(f"{part:.0%} kept" for part in self.keep)]
        return self.session.grid(head, lines | {name: [self.at(name, part) for part in self.keep] for name in names})

    def claim(self, id: str, statement: str, ours: str, theirs: str, source: str = "") -> None:
        """Claim on each part that a way is more accurate than another; {part} in the statement is the part."""
        for part in self.keep:
            rows = self.at(ours, part), self.at(theirs, part)
            self.session.claim(f"{id}-{part:.0%}", statement.format(part=f"{part:.0%}"), *rows, source=source)

    def claim_mean(self, id: str, statement: str, ours: str, theirs: str, source: str = "", note: str = "") -> None:
        """Claim that a way is more accurate than another, mean over the parts."""
        values, source = (self.mean(ours), self.mean(theirs)), source or self.session.source
        self.session.claim_values(id, f"{statement}, mean over parts", *values, theirs, source=source, note=note)

    def draw_gammas(self, axis, tries: Iterable[str], part: float) -> None:
        """Draw differences to `against` over gamma for tries of FlexRand, with standard errors; a ring: best mean validation accuracy."""
        session, rows = self.session, {}
        for name in tries:
            row, gap = self.at(name, part), self._gap(name, part)
            if gap and all(session.results[row]):
                chosen = np.mean([np.mean(one["validation"]) for one in session.results[row]])
                ours, theirs = (np.array([np.mean(one) for one in session.accuracies(self.at(way, part))]) for way in (name, self.against))
                error = (ours - theirs).std(ddof=1) / len(ours) ** 0.5 if len(ours) > 1 else 0.0
                rows[session.rows[row].recipes[0].prune.gamma] = (100 * gap["mean"], 100 * error, chosen)
        if rows:
            gammas = sorted(rows)
            mean, error, chosen = zip(*(rows[gamma] for gamma in gammas))
            axis.errorbar(gammas, mean, error, fmt="o-", ms=4, elinewidth=1)
            best = int(np.argmax(chosen))
            axis.plot(gammas[best], mean[best], "o", ms=11, mfc="none", mec="C0")
        axis.axhline(0, color=figures.INK, lw=0.8)
        axis.set(xlabel=r"$\gamma$", title=f"{part:.0%} kept", xlim=(0, 1), xticks=(0, 0.5, 1))
