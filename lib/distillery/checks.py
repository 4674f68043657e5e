"""Input checks: every refusal names the offending value and what is accepted, before compute is spent."""

import math
from collections.abc import Iterable
from contextlib import suppress
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path


class InputError(ValueError):
    """Input the user can mend. The message is one line; the command line prints it alone and exits with 2."""


class RunFailed(InputError):
    """A run that cannot go on by what it computed; other runs are not concerned, and what it had is kept."""


def is_number(value) -> bool:
    """Whether it is a finite int or float, True and False left out."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def first_line(error: Exception) -> str:
    """The first line of what an error says, its kind if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def local_path(name: str, value: str | Path) -> Path:
    """A path with its ~ expanded. Raises InputError if it is no path, or the ~ of nobody here."""
    with suppress(RuntimeError):
        if value and isinstance(value, str | Path):
            return Path(value).expanduser()
    raise InputError(f"{name}: {value!r} is no path, or the ~ of nobody here; accepted: a path on this machine")


def require(extra: str, *packages: str) -> None:
    """Raise InputError unless the packages of an optional part are installed."""
    for name in packages:
        if find_spec(name) is None:
            raise InputError(f'{name} is not installed; accepted: first `pip install "distillery[{extra}]"`')


def unknown(what: str, value, accepted: Iterable) -> InputError:
    """The refusal of a value that is none of the accepted names, with the nearest one."""
    names = {str(one).lower(): str(one) for one in accepted}
    near = get_close_matches(str(value).lower(), names, 1)
    meant = f"did you mean {names[near[0]]}? " if near else ""
    shown = text if len(text := repr(value)) <= 200 else f"{text[:200]}.."
    return InputError(f"{what} {shown} is unknown; {meant}accepted: {', '.join(names.values())}")


def check_choice(name: str, value, accepted: Iterable) -> None:
    """Raise InputError unless `value` is one of `accepted`."""
    if value not in (accepted := list(accepted)):
        raise unknown(f"{name}:", value, accepted)


def check_fraction(name: str, value) -> None:
    """Raise InputError unless `value` is a number in (0, 1]."""
    if not is_number(value) or not 0 < value <= 1:
        raise InputError(f"{name}: {value!r} is not a fraction; accepted: a number above 0 and at most 1")


def check_keep(name: str, value) -> None:
    """Raise InputError unless `value` is a fraction in (0, 1], or a whole number above 1: images of every class."""
    if not is_number(value) or value <= 0 or (value > 1 and value != int(value)):
        accepted = "a number above 0 and at most 1, or a whole number of images of every class above 1"
        raise InputError(f"{name}: {value!r} is neither a fraction nor a number of images; accepted: {accepted}")


def check_seed(seed) -> None:
    """Raise InputError on a seed that is no whole number from 0 to below 2^63, which files can hold."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InputError(f"seed: {seed!r} is not accepted; accepted: a whole number, 0 or more, below 2^63")


def check_positive_int(name: str, value) -> None:
    """Raise InputError unless `value` is an int of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name}: {value!r} is not accepted; accepted: a positive whole number")


def check_positive(name: str, value) -> None:
    """Raise InputError unless `value` is a number above 0."""
    if not is_number(value) or value <= 0:
        raise InputError(f"{name}: {value!r} is not accepted; accepted: a positive number")


def check_finite(name: str, tensor) -> None:
    """Raise InputError if a floating tensor holds NaN or infinity, with how many."""
    if bad := int((~tensor.isfinite()).sum()):
        raise InputError(f"{name}: {bad} of {tensor.numel()} values are NaN or infinite; accepted: finite numbers")
