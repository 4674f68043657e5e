"""The API as pages of Markdown: docstrings here are Markdown with mathematics, and lists whose names stand in a column of their own."""

import inspect
import re
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

from sphinx.util.inspect import stringify_signature

import distillery

PAGES = {  # page -> modules; those of a package stand below it
    "Commands as functions": ["api"],
    "Experiments": ["experiment", "recipe", "job", "runs", "distill"],
    "Methods": ["methods"],
    "Mathematics of matching": ["matching"],
    "Scores": ["scores"],
    "Selection, first images, batches": ["selection", "starts", "sampling"],
    "Evaluation": ["evaluation"],
    "Data": ["data"],
    "Networks": ["networks", "experts", "encoders"],
    "Training": ["training"],
    "Reports": ["report"],
    "Notebooks": ["notebook.session", "notebook.types"],
}
FIELD = re.compile(r"    (?P<name>\w+): [^#]*# (?P<told>.+)")
ITEM = re.compile(r"(?P<name>[`\w'][\w ,.`'*\[\]|=-]*?)(?P<gap>  +)(?=\S)")


def write(folder: Path) -> None:
    """One page for each of PAGES."""
    for title, names in PAGES.items():
        modules = [one for name in names for one in with_parts(import_module(f"distillery.{name}"))]
        text = "\n\n".join([f"# {title}", *map(section, modules)])
        (folder / f"{names[0].replace('.', '_')}.md").write_text(text + "\n")


def names() -> str:
    """What `from distillery import ..` gives, in Markdown."""
    lines = ["| name | is |", "|---|---|"]
    for name in distillery.__all__[1:]:
        value = getattr(distillery, name)
        where = getattr(value, "__module__", None) if callable(value) else getattr(value, "__name__", None)
        told = ", ".join(value) if isinstance(value, dict) else value.__doc__.strip().partition("\n")[0]
        link = f"{{py:obj}}`{name} <{where}{f'.{name}' * callable(value)}>`" if where else f"`{name}`"
        lines.append(f"| {link} | {told} |")
    return "\n".join(lines)


def with_parts(module: ModuleType) -> list[ModuleType]:
    parts = iter_modules(module.__path__) if hasattr(module, "__path__") else ()
    return [module, *(import_module(f"{module.__name__}.{part.name}") for part in parts)]


def section(module: ModuleType) -> str:
    """A module: its docstring, and its public functions and classes."""
    collects = module.__name__ == "distillery.api"  # what others define
    found = {name: value for name, value in vars(module).items() if inspect.isfunction(value) or inspect.isclass(value)}
    own = [name for name in found if not name.startswith("_") and found[name].__module__ == module.__name__]
    shown = [described(name, found[name]) for name in (module.__all__ if collects else own)]
    return "\n\n".join([f"## {module.__name__}", f":::{{py:module}} {module.__name__}\n:::", prose(module.__doc__), *filter(None, shown)])


def described(name: str, value: type | object) -> str:
    """A function, a class with its methods, or one of its methods; '' where nothing is said about it."""
    text = prose(value.__doc__) if inspect.isclass(value) or value.__doc__ else ""
    if not inspect.isclass(value):
        return text and f"::::{{py:function}} {name}{signature(value)}\n{text}\n::::"
    if text.startswith(f"{name}("):  # written by dataclass
        text = ""
    text = "\n\n".join(filter(None, [text, fields(value)]))
    members = [described(one, method) for one, method in vars(value).items() if inspect.isfunction(method) and not one.startswith("_")]
    members = [one.replace("::::{py:function}", "::::{py:method}", 1) for one in members if one]
    return "\n\n".join([f":::::{{py:class}} {name}{signature(value)}", text, *members, ":::::"]) if text or members else ""


def fields(value: type) -> str:
    """What the comments beside the fields of a dataclass say, as a list; '' for none."""
    lines = inspect.getsource(value).splitlines() if is_dataclass(value) else []
    return "\n".join(f"- `{one['name']}`: {one['told']}" for line in lines if (one := FIELD.match(line)))


def signature(value) -> str:
    try:
        returns = not inspect.isclass(value)
        told = stringify_signature(inspect.signature(value), show_return_annotation=returns, unqualified_typehints=True)
    except ValueError:  # of a class written in C
        return ""
    return re.sub(r"<([\w.]+)[^>]*>", r"\1", told).replace("\n", " ").replace("(self, ", "(").replace("(self)", "()")


def prose(docstring: str | None) -> str:
    """A docstring as Markdown: paragraphs of names and what they mean become lists."""
    return "\n\n".join(listed(part) for part in inspect.cleandoc(docstring or "").split("\n\n"))


def listed(paragraph: str) -> str:
    lines, items, column = paragraph.splitlines(), [], 0
    if paragraph.startswith(("    ", "|", "$$")) or not any(ITEM.match(line) for line in lines):
        return paragraph
    for line in lines:
        if column and not line[:column].strip():
            items[-1] += f" {line.strip()}"
        elif found := ITEM.match(line):
            column = found.end()
            items.append(f"- `{found['name'].strip('`')}`: {line[column:]}")
        elif column and line[column - 1] == " " and line[column - 2] != " ":
            items.append(f"- `{line[: column - 1]}`: {line[column:]}")
        else:
            items.append(line if not items else f"\n{line}")
            column = 0
    return "\n".join(items)
