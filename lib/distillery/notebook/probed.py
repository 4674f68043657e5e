"""Rows of a notebook whose encoders are probed on several tasks, each with several parts of its labels."""

import warnings
from collections.abc import Callable
from itertools import product

import numpy as np
from IPython.display import Markdown

from distillery.notebook.session import Row, Session
from distillery.recipe import Recipe
from distillery.report import figures, records, tables


class Probed:
    """Runs rows once and keeps them in a session once for each task and part of the labels; rows are paid for once.

    tasks       task -> the published set whose numbers stand beside it, '' = none
    parts       fractions of the labels, as the experiment's protocol has them
    unlabelled  the published set whose unlabelled images ours are, '' = none
    known       (unlabelled set, its part, part of the labels, task's set, method) -> a published number or None
    untestable  why nothing is run, '' = it is
    """

    def __init__(self, session: Session, tasks: dict[str, str], parts: list[float], unlabelled: str, known: Callable, untestable: str):
        self.session, self.tasks, self.parts = session, tasks, parts
        self.unlabelled, self.known, self.untestable = unlabelled, known, untestable
        self.raw: dict[str, list[dict | None]] = {}
        warnings.filterwarnings("ignore", message="labels: ")  # few labels a class are what is asked about

    def key(self, name: str, task: str, part: float) -> str:
        """What the session calls a row on a task."""
        return f"{name}: {task}, {part:.0%} of the labels"

    def row(self, name: str, method: str, size: int, n: int, *, against: str = "", experiment=None, **recipe) -> list[dict | None]:
        """Run a row, a set for each seed; the results with accuracies[task][part][network]. `recipe` are parts of a `Recipe`."""
        recipes = [Recipe(method, size, seed, **recipe) for seed in self.session.seeds(n)]
        return self.keep(name, recipes, against, experiment)

    def keep(self, name: str, recipes: list[Recipe], against: str = "", experiment=None) -> list[dict | None]:
        """Run recipes, one a seed, as a row."""
        experiment = experiment or self.session.bench
        found = [None] * len(recipes) if self.untestable else experiment.run_all(recipes)
        for i, (task, part) in enumerate(product(self.tasks, experiment.protocol.labels)):
            key, base = self.key(name, task, part), self.key(against or self.session.against, task, part)
            method, _, size = name.rpartition(", ")  # 'method, part of the images', where the method has parts
            number = self.known(self.unlabelled, size, f"{part:.0%}", self.tasks[task], method or name)
            self.session.rows[key] = Row(key, None, number, base, recipes, experiment, view=i > 0)
            of_part = [one and one | {"accuracies": one["accuracies"][task][f"{part:g}"]} for one in found]
            self.session.results[key] = of_part
        self.raw[name] = found
        return found

    def summaries(self, names: list[str], task: str, part: float, against: str = "") -> list[dict]:
        """Rows on a task by their short names."""
        keys = {name: self.key(name, task, part) for name in names}
        base = self.key(against or self.session.against, task, part)
        return [self.session.summary(key, base) | {"method": name} for name, key in keys.items() if key in self.session.rows]

    def table(self, names: list[str], tasks=(), parts=(), against: str = "") -> Markdown:
        """A table for each task and part of the labels."""
        found = [
            f"**{task}, {part:.0%} of the labels**\n\n{tables.rows_table(self.summaries(names, task, part, against), against or self.session.against, self.session.p.scale)}"
            for task, part in product(tasks or self.tasks, parts or self.parts)
        ]
        return Markdown("\n\n".join(found))

    def bars(self, axis, names: dict[str, str], task: str, part: float) -> None:
        """Draw accuracies on a task as bars; `names` are rows by what the figure calls them."""
        rows = self.summaries(list(names.values()), task, part)
        called = {row: name.replace(", ", " ") for name, row in names.items()}
        figures.accuracy_bars(axis, [row | {"method": called[row["method"]]} for row in rows if row["accuracies"]])

    def gaps(self, axis, names: dict[str, str], part: float) -> None:
        """Draw differences to the session's row on all tasks, with 95% intervals; `names` are rows by what the figure calls them."""
        against, colors = self.session.against, figures.palette(self.tasks)
        for (i, task), (j, name) in product(enumerate(self.tasks), enumerate(names.values())):
            ours, theirs = (self.session.accuracies(self.key(one, task, part)) for one in (name, against))
            if gap := records.difference(ours, theirs):
                at, low_high = j + 0.3 * i - 0.15, gap["ci95"] or [gap["mean"]] * 2
                axis.plot(100 * gap["mean"], at, "os"[i % 2], ms=5, color=colors[task], label=None if j else task)
                axis.plot([100 * bound for bound in low_high], [at, at], color=colors[task], lw=1.5)
        axis.axvline(0, color=figures.INK, lw=0.8)
        axis.set_yticks(range(len(names)), names)
        axis.set(xlabel=f"points above {against}, 95% interval", ylim=(len(names) - 0.5, -0.5))

    def better(
        self, id: str, ours: str, theirs: str, task: str, part: float, source: str = "", note: str = "", margin: float = 0.0
    ) -> None:
        """Claim that a row is more accurate than another on a task with a part of its labels, or no worse by a margin."""
        mine, base = self.key(ours, task, part), self.key(theirs, task, part)
        if mine in self.session.rows and base in self.session.rows:
            beats = f"is no worse by {100 * margin:g} point than" if margin else "beats"
            how = {"source": source or self.session.source, "note": note, "margin": margin, "untestable": self.untestable}
            if not source:
                how |= {"published": self.session.rows[mine].published, "published_baseline": self.session.rows[base].published}
            statement = f"{ours} {beats} {theirs}: {task}, {part:.0%} of the labels"
            numbers = self.session.accuracies(mine), self.session.accuracies(base)
            self.session.claim_values(f"{id}-{task}-{part:g}", statement, *numbers, theirs, **how)

    def values(self, id: str, statement: str, ours: list[float], theirs: list[float], against: str, note: str = "", **told) -> None:
        """Claim that numbers, one a seed, are above others; `told` as in `Session.claim`."""
        mine, base = ([[float(one)] for one in values] for values in (ours, theirs))
        told |= {"source": self.session.source, "note": note, "untestable": self.untestable}
        self.session.claim_values(id, statement, mine, base, against, **told)

    def log(self, name: str, of: str) -> list:
        """What the results of a row say of something, such as its 'loss'; sets that have not run are left out."""
        return [one[of] for one in self.raw.get(name, []) if one]

    def fifths(self, name: str) -> np.ndarray | None:
        """The matching loss of a row averaged over fifths of its updates (start epochs are drawn, and differ in loss), first = 1."""
        curves = self.log(name, "loss")
        if not curves:
            return None
        means = np.array([part.mean() for part in np.array_split(np.mean(curves, 0), 5)])
        return means / means[0]
