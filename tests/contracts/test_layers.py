"""The house keeps its floors: who may import whom, and that no room but `methods/` knows a method by name."""

import ast
from pathlib import Path

import pytest

import distillery
from distillery.methods import METHODS
from made_up import distilling

ROOT = Path(distillery.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.py"))
FORBIDDEN = {  # room -> rooms that it may not import
    "checks.py": "*", "seeds.py": "*", "lock.py": "*",
    "data": ("evaluation", "report", "notebook", "methods", "matching", "scores", "encoders", "experiment", "recipe", "training"),
    "networks": ("evaluation", "report", "notebook", "methods", "matching", "scores", "encoders", "experiment", "job", "recipe"),
    "training": ("evaluation", "report", "notebook", "methods", "matching", "scores", "encoders", "experiment", "job", "recipe"),
    "evaluation": ("report", "notebook", "methods", "matching", "scores", "experiment", "job", "recipe"),
    "matching": ("report", "notebook", "methods", "scores", "encoders", "experiment", "recipe", "evaluation"),
    "scores": ("report", "notebook", "matching", "methods", "experiment", "job", "recipe"),
    "experts.py": ("report", "notebook", "methods", "matching", "scores", "encoders", "experiment", "job", "recipe"),
    "methods": ("report", "notebook", "experiment", "job", "recipe"),
    "recipe.py": ("report", "notebook", "experiment", "job"),
    "experiment.py": ("report", "notebook"),
    "report": ("notebook", "cli"),
}  # fmt: skip


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def modules(path: Path) -> set[str]:
    """Modules of this package that a file imports when it is imported; what stands under TYPE_CHECKING is not."""
    tree, found = ast.parse(path.read_text()), set()
    skipped = {
        id(n)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for n in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name for name in names if name.startswith("distillery.")}
    return found


def imported(path: Path) -> set[str]:
    """The rooms of these modules."""
    return {name.split(".")[1] for name in modules(path)}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_room_knows_only_what_is_below_it(name):
    rooms = {room(path).removesuffix(".py") for path in FILES}
    forbidden = rooms if FORBIDDEN[name] == "*" else set(FORBIDDEN[name])
    for path in FILES:
        if room(path) == name:
            above = (imported(path) & forbidden) - {name.removesuffix(".py"), "checks"}
            assert not above, f"{path.relative_to(ROOT)} imports {sorted(above)}"


def spoken(path: Path) -> list[tuple[int, str]]:
    """(line, text) of names and strings in the code of a file, without docstrings and comments."""
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = {id(n.body[0].value) for n in ast.walk(tree) if isinstance(n, documented) and n.body and isinstance(n.body[0], ast.Expr)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            found.append((node.lineno, node.value))
        elif isinstance(node, ast.Name):
            found.append((node.lineno, node.id))
        elif isinstance(node, ast.Attribute):
            found.append((node.lineno, node.attr))
        elif isinstance(node, ast.alias):
            found += [(node.lineno, part) for part in node.name.split(".")]
    return found


def test_no_room_but_methods_names_a_method_or_a_family():
    """Selections carry the names of starts and scores, which other rooms own; what distils, trains or hides is named in its file alone.

    'DSA' is also the augmentation that every method may meet, and 'whole' an English word.
    """
    forbidden = (distilling() | {type(METHODS[name]).__name__ for name in distilling()}) - {"DSA"}
    own = {path.stem for path in (ROOT / "methods").glob("*.py")} - {"__init__", "base", "literature"}
    told = []
    for path in FILES:
        if room(path) != "methods":
            told += [f"{path.relative_to(ROOT)}:{line}: {text!r}" for line, text in spoken(path) if text in forbidden]
            files = [name for name in modules(path) if name.startswith("distillery.methods.")]
            told += [f"{path.relative_to(ROOT)} imports {name}" for name in files if name.split(".")[2] in own]
    assert not told, "\n".join(told)


def test_no_file_is_too_long_to_read_at_once():
    long = {str(path.relative_to(ROOT)): n for path in FILES if (n := path.read_text().count("\n")) > 400}
    assert not long, long
