"""Notebook parameters: annotated in the parameters cell, checked before anything is computed.

The same check serves the command line, which reads the cell without running it, and the notebook itself, so that plain
papermill refuses the same values with the same words. Only a misspelt name passes plain papermill, with its own warning.
"""

import ast
import os
from pathlib import Path
from types import SimpleNamespace

import nbformat
import torch

from distillery import engine
from distillery.checks import InputError, check_choice, check_keep, check_positive_int
from distillery.networks import pool
from distillery.networks.precision import PRECISIONS

COUNTS = (
    "n_seeds",
    "n_seeds_large",
    "n_seeds_rest",
    "n_seeds_cross",
    "networks",
    "width",
    "batch",
    "evaluation_batch",
    "epochs_whole",
    "score_trials",
    "score_epochs",
    "rounds",
    "at_once",
    "batches",
    "masks",
    "agreement_masks",
    "gammas",
    "draws",
    "encoder_epochs",
    "encoder_batch",
    "n_seeds_one",
    "toy_points",
    "trials",
    "spectrum_points",
    "validations",
    "tuning_epochs",
    "tuning_batch",
    "score_tunings",
    "teacher_epochs",
    "teacher_batch",
    "projector",
    "neighbours",
    "partitions",
    "variance_images",
    "copies",
    "variance_epochs",
    "variance_seeds",
    "pretraining_epochs",
    "pretraining_batch",
)
SCALES = ("smoke", "small", "paper")
TYPES = {
    "str": str,
    "int": int,
    "float": float,
    "bool": bool,
    "list[int]": [int],
    "list[float]": [float],
    "list[str]": [str],
}


def declared(notebook: str | Path) -> tuple[dict[str, str], dict]:
    """(annotation by name, default by name) of a notebook's parameters cell, read without running it."""
    try:
        cells = nbformat.read(notebook, as_version=4).cells
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"cannot read {notebook}: {error}; accepted: a notebook") from error
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    if not tagged:
        raise InputError(f"{notebook} has no cell tagged 'parameters'; accepted: a notebook with one")
    nodes = [node for node in ast.parse(tagged[0].source).body if isinstance(node, ast.AnnAssign)]
    types = {node.target.id: ast.unparse(node.annotation) for node in nodes}
    return types, {node.target.id: ast.literal_eval(node.value) for node in nodes}


def check(types: dict[str, str], values: dict) -> dict:
    """The values with the right types: a scalar where a list is meant becomes a list, a whole number may be a float.

    raises  InputError on an unknown name, a wrong type, or a value that makes no sense for a common parameter
    """
    for name in values:
        if name not in types:
            raise InputError(f"parameter {name!r} is unknown; accepted: {', '.join(types)}")
    checked = {name: _typed(name, types[name], value) for name, value in values.items()}
    for name, value in checked.items():
        if name == "ipc":
            [check_positive_int("ipc", one) for one in value]
        elif name == "keep":
            [check_keep("keep", one) for one in value]
        elif name == "scale":
            check_choice("scale", value, SCALES)
        elif name == "engine":
            engine.check(value)
        elif name == "precision":
            check_choice("precision", value, PRECISIONS)
        elif name == "device":
            device(value)
        elif name == "architectures":
            [check_choice("architectures", one, pool.NAMES) for one in value]
        elif name in COUNTS:
            [check_positive_int(name, one) for one in (value if isinstance(value, list) else [value])]
        else:
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, int | float) and one < 0:
                    raise InputError(f"{name}: {one} is not accepted; accepted: 0 or more")
    return checked


def planned(notebook: str | Path, given: dict) -> tuple[dict, dict]:
    """(given values, all values) with which a notebook starts, checked; paths are those of the caller's folder."""
    types, defaults = declared(notebook)
    given = dict(given)
    # the kernel runs in the notebook's folder; what may be a name as well is a path where it is there
    for path, sure in (
        ("data_root", True),
        ("other_roots", True),
        ("teacher", False),
        ("results_dir", True),
        ("encoder_root", True),
        ("instructions", True),
        ("encoder", False),
        ("language_model", False),
    ):
        if isinstance(given.get(path), list):
            given[path] = [str(Path(one).expanduser().resolve()) if one else one for one in given[path]]
        elif isinstance(given.get(path), str) and given[path]:
            found = Path(given[path]).expanduser().resolve()
            if sure or found.exists():
                given[path] = str(found)
    given = check(types, given)
    return given, check(types, defaults | given)


def settings(namespace: dict) -> SimpleNamespace:
    """For the cell after the parameters: check the annotated names of a notebook's `globals()` and hand them over."""
    types = {name: t if isinstance(t, str) else _spell(t) for name, t in namespace["__annotations__"].items()}
    return SimpleNamespace(**check(types, {name: namespace[name] for name in types}))


def device(name: str) -> torch.device:
    """'cpu', 'cuda' or 'auto' (cuda where there is one). Raises InputError if unknown or not present."""
    check_choice("device", name, ("auto", "cpu", "cuda"))
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device: 'cuda' is not present on this machine; accepted: cpu, auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def results_root(results_dir: str) -> Path:
    """The folder of all results: as given, else $DISTILLERY_RESULTS, else results/ of the repository."""
    chosen = results_dir or os.environ.get("DISTILLERY_RESULTS", "")
    return Path(chosen).expanduser().resolve() if chosen else Path(__file__).resolve().parents[3] / "results"


def _spell(annotation) -> str:
    return (
        annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)
    )


def _typed(name: str, spelled: str, value):
    check_choice(f"annotation of {name}", spelled, TYPES)
    kind = TYPES[spelled]
    if isinstance(kind, list):
        values = list(value) if isinstance(value, list | tuple) else [value]
        if not values:
            raise InputError(f"{name}: [] is empty; accepted: {spelled} with at least one value")
        return [_scalar(name, spelled, kind[0], one) for one in values]
    return _scalar(name, spelled, kind, value)


def _scalar(name: str, spelled: str, kind: type, value):
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{name}: {value!r} is a {type(value).__name__}; accepted: {spelled}")
    return value
