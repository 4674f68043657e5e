"""Single rows of a notebook's tables without the notebook: what `distillery row` runs, one process each, into the same stored runs."""

import io
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from distillery.checks import InputError, check_positive_int
from distillery.data import Splits
from distillery.experiment import Experiment
from distillery.methods import METHODS
from distillery.notebook import parameters, timing
from distillery.notebook.progress import duration
from distillery.notebook.session import Session
from distillery.recipe import Evaluate, Prune, Recipe
from distillery.report import records, tables, zoo

SHORT = 2560  # real images of which experts are made, where a loop meets them alone and is only timed
TIMED = 4.0  # seconds for which updates are
TWINS = 5  # draws of random images beside a set of the zoo


def session(notebook: Path, given: dict) -> Session:
    """A notebook's session from its parameters, the given ones checked."""
    (kinds, _), (_, values) = parameters.declared(notebook), parameters.planned(notebook, given)
    made = Session(notebook.stem, values | {"__annotations__": kinds})
    made.runs.wait = True  # other processes fill the same folder
    return made


@dataclass
class Row:
    """A row of a notebook, checked, of which nothing has run yet; see `asked`."""

    notebook: Path
    given: dict
    changes: dict
    session: Session
    experiment: Experiment
    recipes: list[Recipe]

    def run(self) -> Iterator[tuple[Recipe, dict | str]]:
        """Each recipe with its result, seed by seed, or a text, why there is none; what is stored is not run again."""
        for recipe in self.recipes:
            result = self.experiment.run(recipe)
            yield recipe, self.session.runs.missing[-1].get("stopped", "not run within the budget") if result is None else result

    def told(self) -> Iterator[str]:
        """`run`, in a line a set."""
        for recipe, result in self.run():
            called = f"{recipe.method} at {recipe.size}, seed {recipe.seed}"
            if isinstance(result, str):
                yield f"{called}: {result}"
            else:
                yield f"{called}: {tables.percent(records.measured([result['accuracies']]))}, {result['seconds']:.0f} s"

    def enter(self, out: str | Path) -> Path:
        """Write the first set, once it has run, with its evaluation beside TWINS draws of random images that are judged alike.

        raises  InputError on what was not run or not kept, an evaluation that is not from scratch on the set's own steps, and as `zoo.write`
        """
        here, experiment, recipe = self.session, self.experiment, self.recipes[0]
        made, protocol, steps_of = experiment.judging(recipe)
        result, twins = experiment.run(recipe), here.results[here.control(recipe.method, recipe.size, TWINS)]
        if result is None or not all(twins) or steps_of not in (0, len(made.source())):
            accepted = f"a row that is run, beside {TWINS} draws of random images, and judged from scratch on its own steps"
            raise InputError(f"out: {recipe.method} at {recipe.size} is not; accepted: {accepted}")
        source = f"notebook {here.notebook}, seed {recipe.seed}, run {experiment.evaluation_id(recipe)}"
        found = zoo.Evaluation(
            accuracies=[result["accuracies"]], random=[one["accuracies"] for one in twins], seed=recipe.seed, protocol=protocol.spec(),
            network=experiment.judged_network(recipe).spec(), test=here.data.test.digest, scale=here.p.scale, source=source,
        )  # fmt: skip
        return zoo.write(out, made, here.data, here.card(recipe, result, experiment), found)

    def cost(self) -> str:
        """What is left to run will take, in words, by a few seconds of it; '' where all is stored, or what is trained on is no set."""
        left, first = [one for one in self.recipes if not self.experiment.stored(one)], self.recipes[0]
        method, size = METHODS[first.method], first.size
        if not left or not method.makes_set:
            return ""
        job = self.experiment.job(first)
        updates = method.updates(job.settings, size)
        timed = first if updates else Recipe("random", size, first.seed, evaluate=first.evaluate)  # and no score is made for it
        timed = replace(timed, prune=first.prune and Prune(first.prune.keep, "random"))
        with tempfile.TemporaryDirectory(prefix="distillery-") as folder, redirect_stdout(io.StringIO()):
            step, evaluation = timing.of_a_set(self._short(folder, bool(updates and method.no_batches)), self.experiment, timed, TIMED)
        shared, score = method.seconds_shared(job), self.experiment.scores.seconds_left(left, job)
        parts = [f"{updates} updates of {duration(step)}"] * bool(updates) + [f"an evaluation of {duration(evaluation)}"]
        told = f"{len(left)} of {len(self.recipes)} sets to do, each of {' and '.join(parts)}"
        told += f"; experts, once: {duration(shared)}" * bool(shared) + f"; scores: {duration(score)}" * bool(score)
        return f"{told}; about {duration(len(left) * (updates * step + evaluation) + shared + score)} on this machine"

    def _short(self, folder: str, few: bool) -> Experiment:
        """The experiment with a results folder of its own; few = on SHORT of the images."""
        other = session(self.notebook, self.given | {"results_dir": folder, "budget_minutes": 0.0})
        other.data = self.session.data
        if few and len(other.train) > SHORT:
            some = torch.randperm(len(other.train), generator=torch.Generator().manual_seed(0))[:SHORT]
            other.data = Splits(other.train.subset(some.to(other.train.device)), other.data.validation, other.data.test)
        other.experiment(presets=self.changes)
        return other.judging(self.recipes[0].method, self.recipes[0].size)


def asked(
    notebook: Path, given: dict, method: str, size: int, seeds: list[int], *, keep: str = "", network: str = "", changes: dict | None = None
) -> Row:
    """A row by its recipe, one seed after another.

    keep     what is left of the real images, as 'lowest 0.1': a rule and a share, or a number of each class
    network  another architecture to train on the sets, '' = that of the notebook
    changes  of published settings by name; those that the notebook's own parameters make are not read
    raises   InputError on no seed, on a recipe that does not fit, or a notebook without the standard parameters
    """
    check_positive_int("seeds", len(seeds))
    here = session(notebook, given)
    rule, _, share = keep.rpartition(" ")
    prune = Prune(parameters.from_text(share), rule or "lowest") if keep else None
    here.experiment(presets=changes or {})
    how = {"prune": prune, "evaluate": Evaluate(network=network)}
    experiment, recipes = here.judging(method, size), [Recipe(method, size, seed, **how) for seed in seeds]
    for recipe in recipes:
        experiment.check(recipe)
    return Row(notebook, given, changes or {}, here, experiment, recipes)
