"""Where things lie: the repository this package is used from, or else the caller's folder; the notebooks and the zoo of sets."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_ABOVE = _PACKAGE.parents[1]
IN_REPOSITORY = (_ABOVE / "pyproject.toml").is_file() and (_ABOVE / "notebooks").is_dir()
ROOT = _ABOVE if IN_REPOSITORY else Path()
NOTEBOOKS = ROOT / "notebooks" if IN_REPOSITORY else _PACKAGE / "_notebooks"  # a link to the former, a folder in a wheel
SETS = ROOT / "results" / "sets" if IN_REPOSITORY else _PACKAGE / "_sets"  # likewise
