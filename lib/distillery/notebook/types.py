"""Types of notebook parameters: what a value may be stands beside the parameter.

    from distillery.notebook.types import Count, Keep
    n_seeds: Count = 2  # seeds of the teaser
    keep: list[Keep] = [0.1, 50]  # parts of the curve

Each is an `Annotated` type that pydantic checks strictly: a whole number may stand for a float, a text never for a number. Its
description is what a refusal says is accepted. Names of registries are looked up when a value is checked, so that this module
imports nothing heavy. `str` and `bool` are accepted as they are.
"""

import pkgutil
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from distillery.checks import InputError, first_line


def _absolute(value: str, *, named: bool = False) -> str:
    """A path (of 'timm:NAME:PATH' the last part) made absolute, for kernels start elsewhere; where it may be `named`, only if there is one."""
    try:
        path = Path(value).expanduser().resolve()
        if named and value.count(":") == 2 and not path.exists():
            kind, _, file = value.rpartition(":")
            return f"{kind}:{_absolute(file, named=True)}"
        return str(path) if value and (path.exists() or not named) else value
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero in it, nobody's home
        raise InputError(f"path {value[:200]!r}: {first_line(error)}; accepted: a path of this machine") from error


def _passing(where: str, *named: str) -> AfterValidator:
    """A validator: what a check of the library, 'module:NAME', does not refuse; `named` is what it calls the value."""

    def check(value):
        pkgutil.resolve_name(where)(*named, value)
        return value

    return AfterValidator(check)


class Names:
    """The names of a registry, 'module:NAME'; called with a value, it is checked to be one of them."""

    def __init__(self, where: str):
        self.where = where

    def __iter__(self):
        return iter(pkgutil.resolve_name(self.where))

    def __call__(self, value):
        if value not in (names := list(self)):
            raise ValueError(*names)  # what is accepted
        return value


def _names(where: str):
    """A type: one of the names of a registry, 'module:NAME'."""
    return Annotated[str, BeforeValidator(Names(where))]


Count = Annotated[int, Field(ge=1, description="a whole number, 1 or more")]
Whole = Annotated[int, Field(ge=0, description="a whole number, 0 or more")]
Number = Annotated[float, Field(ge=0, allow_inf_nan=False, description="a number, 0 or more")]
Share = Annotated[float, Field(gt=0, le=1, description="a number above 0 and at most 1")]
Keep = Annotated[
    float,
    Field(description="a fraction above 0 and at most 1, or a whole number of images of every class"),
    _passing("distillery.checks:check_keep", "keep"),
]
LocalPath = Annotated[str, Field(description="a path"), AfterValidator(_absolute)]
NameOrPath = Annotated[str, Field(description="a name or a path"), AfterValidator(partial(_absolute, named=True))]
Scale = _names("distillery.names:SCALES")
Device = Annotated[str, Field(description="'auto', 'cpu' or 'cuda'"), _passing("distillery.notebook.parameters:device")]
Precision = _names("distillery.networks.precision:PRECISIONS")
Engine = Annotated[str, Field(description="'local' or 'ray'"), _passing("distillery.engine:check")]
Dataset = _names("distillery.names:DATASETS")
Normalization = _names("distillery.data:NORMALIZATIONS")
Rule = _names("distillery.selection:RULES")
MethodName = _names("distillery.methods:METHODS")
StartName = _names("distillery.starts:STARTS")
Space = _names("distillery.scores.cached:SPACES")
Baseline = _names("distillery.selection:BASELINES")  # published ways to keep a part
Schedule = _names("distillery.scores.complexity:SCHEDULES")
NetworkName = _names("distillery.networks.pool:NAMES")
