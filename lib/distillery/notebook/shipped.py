"""The notebooks that come with the package: what each asks, what was found, and copies to work on."""

import json
import os
import re
import shutil
from pathlib import Path

from distillery import places
from distillery.checks import InputError


def told() -> list[tuple[str, str, str]]:
    """(name, title, what was found) of each, as its first cell says it."""
    lines = []
    for path in sorted(places.NOTEBOOKS.glob("*.ipynb")):
        text = "".join(json.loads(path.read_text())["cells"][0]["source"])
        found = re.search(r"^\*\*Found\*\* (.*)", text, re.MULTILINE)
        lines.append((path.stem, text.partition("\n")[0].removeprefix("# "), re.sub(", each at[^:]*", "", found[1]) if found else ""))
    return lines


def copy(folder: str | Path) -> Path:
    """Copy the notebooks, and the files of their parameters, into a new or empty folder.

    Raises InputError where the folder holds something, or cannot be written.
    """
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"{folder} is there already; accepted: a new or an empty folder")
    temporary = folder / f".{os.getpid()}.tmp"
    try:
        shutil.copytree(places.NOTEBOOKS, temporary, ignore=shutil.ignore_patterns(".*"))
        for path in temporary.iterdir():
            os.rename(path, folder / path.name)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}; accepted: a writable folder with free space") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder
