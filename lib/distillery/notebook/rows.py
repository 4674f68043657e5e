"""Single rows of a notebook's tables without the notebook: what `distillery row` runs, one process each, into the same stored runs."""

from collections.abc import Iterator
from pathlib import Path

from distillery.checks import check_positive_int
from distillery.notebook import parameters
from distillery.notebook.session import Session
from distillery.recipe import Evaluate, Prune, Recipe


def session(notebook: Path, given: dict) -> Session:
    """A notebook's session from its parameters, the given ones checked."""
    (kinds, _), (_, values) = parameters.declared(notebook), parameters.planned(notebook, given)
    made = Session(notebook.stem, values | {"__annotations__": kinds})
    made.runs.wait = True  # other processes fill the same folder
    return made


def run(
    notebook: Path, given: dict, method: str, size: int, seeds: list[int], *, keep: str = "", network: str = "", changes: dict | None = None
) -> Iterator[tuple[Recipe, dict | str]]:
    """Each recipe of a row with its result, seed by seed, or a text, why there is none; what is stored is not run again.

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
    for recipe in recipes:
        result = experiment.run(recipe)
        yield recipe, here.runs.missing[-1].get("stopped", "not run within the budget") if result is None else result
