"""Rows of a notebook whose encoders are probed on several tasks, each with several parts of its labels."""

import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
from IPython.display import Markdown

from distillery.data.synthetic import Synthetic
from distillery.job import Job
from distillery.measure.gates import repeated
from distillery.networks.encoder import Encoder
from distillery.notebook.session import AGAIN, Row, Session
from distillery.recipe import Recipe
from distillery.report import figures, records, tables
from distillery.training import Stats


class Probed:
    """Runs rows once and keeps them in a session once for each task and part of the labels; rows are paid for once.

    tasks       task -> the published set whose numbers stand beside it, '' = none
    unlabelled  the published set whose unlabelled images ours are, '' = none
    known       (unlabelled set, its part, part of the labels, task's set, method) -> a published number or None
    untestable  why no claim about rows can be tested, '' = it can; then nothing is run, but for smoke scale, which judges nothing
    """

    def __init__(self, session: Session, tasks: dict[str, str], unlabelled: str, known: Callable, untestable: str):
        self.session, self.tasks = session, tasks
        self.unlabelled, self.known, self.untestable = unlabelled, known, untestable
        self.raw: dict[str, list[dict | None]] = {}
        self.recipes: dict[str, list[Recipe]] = {}
        self.plain: dict[str, str] = {}  # rows at another rate -> as they are
        warnings.filterwarnings("ignore", message="labels: ")  # few labels a class are what is asked about

    def key(self, name: str, task: str, part: float) -> str:
        """What the session calls a row on a task."""
        return f"{name}: {task}, {part:.0%} of the labels"

    def row(self, name: str, method: str, size: int, n: int, *, published="", against="", experiment=None, **recipe) -> list[dict | None]:
        """Run a row, a set for each seed; the results with accuracies[task][part][network].

        published  the method whose published numbers stand beside it, '' = none: they are of one network, and of a part of the images
        recipe     parts of a `Recipe`
        """
        recipes = [Recipe(method, size, seed, **recipe) for seed in self.session.seeds(n)]
        return self.keep(name, recipes, published, against, experiment)

    def rated(self, other: str, recipes: list[Recipe | None]) -> list[Recipe | None]:
        """Recipes, seed by seed at the rates that the sets of another row brought; None for a seed without one, so that others keep their pairs."""
        rates = {recipe.seed: round(one["step_size"], 6) for recipe, one in zip(self.recipes[other], self.raw[other]) if one}
        known = [one if one and one.seed in rates else None for one in recipes]
        return [one and replace(one, evaluate=replace(one.evaluate, lr=rates[one.seed])) for one in known]

    def at_rate_of(self, other: str, name: str, suffix: str) -> list[dict | None]:
        """Run a row once more at the rates of another one, as NAME with a suffix; the published numbers behind its claims are those of NAME."""
        self.plain[name + suffix] = name
        return self.keep(name + suffix, self.rated(other, self.recipes[name]))

    def again(self, name: str) -> list[dict | None]:
        """Run a row once more with as many other seeds: the difference of the two is noise."""
        recipes = [one and replace(one, seed=one.seed + AGAIN) for one in self.recipes[name]]
        return self.keep(f"{name}, again", recipes, against=name)

    def keep(self, name: str, recipes: list[Recipe | None], published="", against="", experiment=None) -> list[dict | None]:
        """Run recipes, one a seed, as a row; None for a seed that has none."""
        experiment, asked = experiment or self.session.bench, [one for one in recipes if one]
        stopped = self.untestable and self.session.p.scale != "smoke"
        done = iter([None] * len(asked) if stopped else experiment.run_all(asked))
        return self._add(name, [one and next(done) for one in recipes], recipes, published, against, experiment)

    def encoder(self, name: str, encoder: Encoder, n: int) -> list[dict | None]:
        """Probe one frozen encoder, with the labels of n seeds, as a row."""
        bench, runs, found = self.session.bench, self.session.runs, []
        for seed in self.session.seeds(n):
            inputs = {"encoder": encoder.digest, "network": encoder.network.spec(), "seed": seed, "protocol": bench.protocol.spec()}

            def judged(key: str, seed: int = seed) -> dict:
                began, params = time.monotonic(), repeated(encoder.to(bench.device), bench.protocol.networks)
                result = bench.protocol.judge(bench, encoder.network, params, Stats(), seed)
                seconds = time.monotonic() - began
                nothing = {"steps": 0, "samples": 0, "stored_numbers": None, "artifact": None, "seconds_evaluation": seconds}
                return result | nothing | {"seconds": seconds}

            found.append(runs.try_get("encoder", 1, inputs | bench.protocol.context(bench), bench.data.digest, judged))
        return self._add(name, found, [])

    def _add(self, name: str, found: list[dict | None], recipes: list, published="", against="", experiment=None) -> list[dict | None]:
        experiment = experiment or self.session.bench
        for i, (task, part) in enumerate(product(self.tasks, experiment.protocol.labels)):
            key, base, number = self.key(name, task, part), self.key(against or self.session.against, task, part), None
            if published:
                share = f"{recipes[0].size / len(experiment.real):.0%}"
                number = self.known(self.unlabelled, share, f"{part:.0%}", self.tasks[task], published)
            self.session.rows[key] = Row(key, None, number, base, recipes, experiment, view=i > 0)
            of_part = [one and one | {"accuracies": one["accuracies"][task][f"{part:g}"]} for one in found]
            self.session.results[key] = of_part
        self.raw[name], self.recipes[name] = found, recipes
        return found

    def summaries(self, names: list[str], task: str, part: float, against: str = "") -> list[dict]:
        """Rows on a task by their short names."""
        keys = {name: self.key(name, task, part) for name in names}
        base = self.key(against or self.session.against, task, part)
        return [self.session.summary(key, base) | {"method": name} for name, key in keys.items() if key in self.session.rows]

    def table(self, names: list[str], tasks=(), parts=(), against: str = "") -> Markdown:
        """A table for each task and part of the labels."""
        found = [
            f"**{tables.plain(task)}, {part:.0%} of the labels**\n\n{tables.rows_table(self.summaries(names, task, part, against), against or self.session.against, self.session.p.scale)}"
            for task, part in product(tasks or self.tasks, parts or self.session.bench.protocol.labels)
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

    def better(self, id: str, ours: str, theirs: str, task: str, part: float, *, source="", untestable="", margin=0.0, **how) -> None:
        """Claim that a row is more accurate than another on a task with a part of its labels, or no worse by a margin.

        untestable  why it cannot be tested, beside what holds for all rows; how: `note`, `family`, `further`, `same` of `records.claim`
        """
        mine, base = self.key(ours, task, part), self.key(theirs, task, part)
        if mine in self.session.rows and base in self.session.rows and self.raw[ours] and self.raw[theirs]:
            beats = f"is no worse by {100 * margin:g} point than" if margin else "beats"
            how |= {"source": source or self.session.source, "margin": margin, "untestable": self.untestable or untestable}
            if not source:
                known = [self.session.rows[self.key(self.plain.get(name, name), task, part)].published for name in (ours, theirs)]
                how |= {"published": known[0], "published_baseline": known[1]}
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

    def sets(self, name: str) -> tuple[list[Job], list[Synthetic]]:
        """Jobs and sets of a row; those that have not run, or whose files are not here, are left out."""
        bench = self.session.bench
        pairs = [
            (bench.job(recipe), bench.synthetic(one)) for recipe, one in zip(self.recipes.get(name, []), self.raw.get(name, [])) if one
        ]
        return tuple(map(list, zip(*(pair for pair in pairs if pair[1] is not None)))) or ([], [])

    def matching(self, name: str, epoch: int, updates: int, parts: int = 8) -> tuple[list[float], list[float]]:
        """(update, matching loss there) of a row's first updates, those that started from one epoch: means over sets, then over so many parts of the way."""
        found: dict[int, list[float]] = {}
        for one in filter(None, self.raw.get(name, [])):
            places = np.linspace(1, one["steps"], len(one["loss"])).astype(int).tolist()
            for at, start, loss in zip(places, one["starts"], one["loss"]):
                if start == epoch and at <= updates:
                    found.setdefault(at, []).append(loss)
        means = [(at, np.mean(losses)) for at, losses in sorted(found.items())]  # over the sets that have it
        groups = [np.array(part) for part in np.array_split(means, min(parts, len(means)) or 1) if len(part)]
        return [float(part[:, 0].mean()) for part in groups], [float(part[:, 1].mean()) for part in groups]
