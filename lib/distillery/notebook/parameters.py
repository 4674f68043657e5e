"""Notebook parameters: annotated in the parameters cell, checked before anything is computed.

The same check serves the command line, which reads the cell without running it, and the notebook itself.
"""

import ast
import os
import re
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, get_args, get_origin

import yaml
from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from distillery import places
from distillery.checks import InputError, check_choice, first_line, local_path, require, unknown
from distillery.notebook import types

WAIT, EVENTS = "DISTILLERY_WAIT", "DISTILLERY_EVENTS"  # in the environment of a kernel: see `Runs`
LARGEST = 100_000  # bytes of a file of parameters
SECTION = re.compile(r"^## (\d+)\.", re.MULTILINE)
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False, "null": None, "~": None, "": None}


def _source(notebook: str | Path) -> str:
    """The parameters cell."""
    require("notebooks", "nbformat", "papermill", "ipykernel")
    import nbformat

    try:
        tagged = [cell.source for cell in nbformat.read(notebook, as_version=4).cells if "parameters" in cell.metadata.get("tags", [])]
    except Exception as error:  # nbformat raises whatever a broken file leads to
        raise InputError(f"cannot read {notebook}: {first_line(error)}; accepted: a notebook") from error
    if not tagged:
        raise InputError(f"{notebook} has no cell tagged 'parameters'; accepted: a notebook with one")
    return tagged[0]


def table(notebook: str | Path) -> list[list[str]]:
    """(name, default, meaning, what is accepted) of each parameter of a notebook, after a head. Raises InputError as `declared`."""
    kinds, defaults = declared(notebook)
    said = dict(re.findall(r"^(\w+): .*  # (.*)$", _source(notebook), re.MULTILINE))
    rows = [[name, str(defaults[name]), said.get(name, ""), described(kind)] for name, kind in kinds.items()]
    return [["name", "default", "meaning", "accepted"], *rows]


def declared(notebook: str | Path) -> tuple[dict, dict]:
    """(type by name, default by name) of a notebook's parameters cell, read without running it.

    raises  InputError where what notebooks need is not installed, on a file that is no notebook or has no such cell, and on a declared type
            that is not accepted
    """
    source = _source(notebook)
    try:
        nodes = [node for node in ast.parse(source).body if isinstance(node, ast.AnnAssign)]
        spelled = {node.target.id: ast.unparse(node.annotation) for node in nodes}
        defaults = {node.target.id: ast.literal_eval(node.value) for node in nodes}
    except (SyntaxError, ValueError, AttributeError) as error:
        raise InputError(f"{notebook}: its parameters: {first_line(error)}; accepted: lines of NAME: TYPE = VALUE") from error
    known = {"str": str, "bool": bool} | {name: kind for name, kind in vars(types).items() if get_origin(kind) is Annotated}
    known |= {f"list[{name}]": list[kind] for name, kind in known.items()}
    for name, one in spelled.items():
        check_choice(f"annotation of {name}", one, known)
    return {name: known[one] for name, one in spelled.items()}, defaults


class Plain(str):
    """A value of a file as it is written there, without quotes: what it means, the type of its parameter says."""


class _EachOnce(yaml.BaseLoader):
    """YAML in which no name is given twice, nothing stands for what is written elsewhere, and values are texts."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, f"*{self.peek_event().anchor} stands for another value")
        return super().compose_node(parent, index)

    def construct_scalar(self, node):
        value = super().construct_scalar(node)
        return value if node.style else Plain(value)

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value]
        if twice := [name for i, name in enumerate(names) if name in names[:i]]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} is given twice")
        return super().construct_mapping(node, deep)


def read_values(path: str | Path) -> dict:
    """The values by name of a YAML file, for `typed`. Raises InputError on any other file, a name given twice, and more than LARGEST bytes."""
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"more than {LARGEST} bytes")
        found = yaml.load(content.decode(), _EachOnce)
        if not isinstance(found, dict):
            raise ValueError(f"a {type(typed(found)).__name__}")
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        cause = getattr(error, "problem", None) or first_line(error)
        raise InputError(f"{path}: {cause}; accepted: a YAML file of NAME: VALUE lines") from error
    return found


def typed(value, kind=None):
    """What a value of `read_values` means as a parameter of a type (of several, their types by name), read as on the command line; quotes make a text."""
    if isinstance(value, dict):
        return {str(name): typed(one, kind.get(name) if isinstance(kind, dict) else None) for name, one in value.items()}
    if isinstance(value, list):
        return [typed(one, get_args(kind)[0] if get_origin(kind) is list else kind) for one in value]
    return from_text(str(value), kind) if isinstance(value, Plain) else value


def from_text(text: str, kind=None):
    """A value of the command line: a text stays as it is where the type is one; else a number in decimals (5e-1, and 010 is 10), true or
    false, [..] or 1,10 as a list, or a text."""
    listed = get_origin(kind) is list
    one = get_args(kind)[0] if listed else kind
    is_text = (get_args(one) or [one])[0] is str
    if is_text and not listed:
        return text
    if text.startswith("["):
        try:
            return typed(yaml.load(text, _EachOnce), kind)
        except (yaml.YAMLError, RecursionError):
            return text
    if is_text or "," in text:
        return [from_text(part.strip(), one) for part in text.split(",")]
    if len(text) < 400 and re.fullmatch(r"[+-]?[0-9]+", text):
        return int(text)
    if re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text):
        return float(text)
    return _WORDS.get(text.lower(), text)


def check(kinds: dict, values: dict) -> dict:
    """The values with the right types: a scalar where a list is meant becomes a list, a whole number may be a float.

    raises  InputError on an unknown name, a wrong type, or a value that its type does not accept
    """
    for name in values:
        if name not in kinds:
            raise unknown("parameter", name, kinds)
    return {name: _checked(name, kinds[name], value) for name, value in values.items()}


def _checked(name: str, kind, value):
    if get_origin(kind) is list:
        value = list(value) if isinstance(value, list | tuple) else [value]
        if not value:
            raise InputError(f"{name}: [] is empty; accepted: a list with at least one value")
    try:
        return TypeAdapter(kind, config=ConfigDict(strict=True)).validate_python(value)
    except ValidationError as failed:
        error = failed.errors()[0]
        cause = error.get("ctx", {}).get("error")
        if isinstance(cause, InputError):  # a check of the library's own, which says all of it
            raise InputError(str(cause)) from None
        given = error["input"]
        if cause is not None:
            raise unknown(f"{name}:", given, cause.args) from None
        wrong = f"is a {type(given).__name__}" if error["type"].endswith("_type") else "is not accepted"
        raise InputError(f"{name}: {_shown(given)} {wrong}; accepted: {described(kind)}") from None


def _shown(value) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}.."


def described(kind) -> str:
    """What a type accepts, in words."""
    if get_origin(kind) is list:
        return f"{described(get_args(kind)[0])}, or a list of such"
    for part in get_args(kind)[1:]:
        if isinstance(part, FieldInfo) and part.description:
            return part.description
        if isinstance(part, BeforeValidator) and isinstance(part.func, types.Names):
            return f"one of {', '.join(part.func)}"
    return {str: "a text", bool: "True or False"}.get(kind, "another value")


def planned(notebook: str | Path, given: dict) -> tuple[dict, dict]:
    """(given values, all values) with which a notebook starts, checked; paths are those of the caller's folder."""
    kinds, defaults = declared(notebook)
    given = check(kinds, given)
    return given, check(kinds, defaults | given)


def part(notebook: str | Path, sections: list[int]):
    """A notebook's first section, which stands on nothing, some others and the record, to which what is left out is not run.

    Where one is left out that says how rows are run (`S.experiment` with what differs from standard parameters), the session knows.

    Returns a notebook of nbformat; raises InputError on a section that it does not have.
    """
    import nbformat

    made, at, found, kept = nbformat.read(notebook, as_version=4), 0, set(), []
    maker = _maker(made)
    for cell in made.cells:
        if cell.cell_type == "markdown" and (head := SECTION.search(cell.source)):
            at = int(head[1])
            found.add(at)
        if "S.record(" in cell.source and cell.cell_type == "code":
            cell.source = f'S.runs.missing.append({{"sections": "all but {sections}"}})\n{cell.source}'
            kept.append(cell)
        elif at <= 1 or at in sections:
            if cell.cell_type == "code" and "S = Session(" in cell.source and 1 < maker < max(sections) and maker not in sections:
                cell.source += f"\nS.left_out = {maker}"
            kept.append(cell)
    for section in sections:
        check_choice("section", section, sorted(found))
    made.cells = kept
    return made


def _maker(notebook) -> int:
    """The section that makes a notebook's first experiment, where that differs from the one of its standard parameters, else 0."""
    at = 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (head := SECTION.search(cell.source)):
            at = int(head[1])
        elif cell.cell_type == "code" and (call := re.search(r"^(?! ).*S\.experiment\((.?)", cell.source, re.MULTILINE)):
            return 0 if call[1] == ")" else at
    return 0


def public(kinds: dict, values: dict) -> dict:
    """Parameters for a record: of a path of one machine only its last part, and nothing of where results lie."""
    shown = {name: value for name, value in values.items() if name != "results_dir"}
    for name, value in shown.items():
        one = get_args(kinds[name])[0] if get_origin(kinds[name]) is list else kinds[name]
        if one in (types.LocalPath, types.NameOrPath):
            last = [re.sub(r"(^|:)/(.*/)?", r"\1", path) for path in (value if isinstance(value, list) else [value])]
            shown[name] = last if isinstance(value, list) else last[0]
    return shown


def settings(namespace: dict) -> SimpleNamespace:
    """For the cell after the parameters: check the annotated names of a notebook's `globals()` and hand them over.

    Plain papermill sets what it is given whether the notebook knows it or not: plain data under a name that is not annotated
    is refused. Only the first time, for later cells have names of their own.
    """
    kinds = namespace["__annotations__"]
    values = {name: namespace[name] for name in kinds}
    if not namespace.get("__checked__"):
        own = {name for name in namespace if name.startswith("_") or name in ("In", "Out")}
        values |= {n: v for n, v in namespace.items() if n not in own and isinstance(v, str | int | float | bool | list)}
    checked = check(kinds, values)
    namespace["__checked__"] = True
    return SimpleNamespace(**checked)


def device(name: str):
    """'cpu', 'cuda' or 'auto' (cuda where there is one), as a torch device. Raises InputError if unknown or not present."""
    import torch

    check_choice("device", name, ("auto", "cpu", "cuda"))
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device: 'cuda' is not present on this machine; accepted: cpu, auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def results_root(results_dir: str) -> Path:
    """The folder of all results: as given, else $DISTILLERY_RESULTS, else results/ of the repository, or of the working folder
    where there is none."""
    chosen = results_dir or os.environ.get("DISTILLERY_RESULTS")
    return local_path("results_dir", chosen or places.ROOT / "results").resolve()


def writable(path: Path) -> None:
    """Make the folder of a file and try to write in it. Raises InputError where that fails, or a folder has the file's name."""
    from distillery import store  # which takes seconds

    with store.writing(path), tempfile.TemporaryFile(dir=path.parent):
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
