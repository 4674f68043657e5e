"""Input checks: every refusal names the offending value and what is accepted, before compute is spent."""

import math
from collections.abc import Iterable


class InputError(ValueError):
    """Input the user can mend. The message is one line; the command line prints it alone and exits with 2."""


class RunFailed(InputError):
    """A run that cannot go on by what it computed; other runs are not concerned, and what it had is kept."""


def is_number(value) -> bool:
    """Whether it is a finite int or float, True and False left out."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def check_choice(name: str, value, accepted: Iterable) -> None:
    """Raise InputError unless `value` is one of `accepted`."""
    accepted = list(accepted)
    if value not in accepted:
        raise InputError(f"{name}: {value!r} is unknown; accepted: {', '.join(map(str, accepted))}")


def check_fraction(name: str, value) -> None:
    """Raise InputError unless `value` is a number in (0, 1]."""
    if not is_number(value) or not 0 < value <= 1:
        raise InputError(f"{name}: {value!r} is not a fraction; accepted: a number above 0 and at most 1")


def check_keep(name: str, value) -> None:
    """Raise InputError unless `value` is a fraction in (0, 1], or a whole number above 1: images of every class."""
    if not is_number(value) or value <= 0 or (value > 1 and value != int(value)):
        accepted = "a number above 0 and at most 1, or a whole number of images of every class above 1"
        raise InputError(f"{name}: {value!r} is neither a fraction nor a number of images; accepted: {accepted}")


def check_positive_int(name: str, value) -> None:
    """Raise InputError unless `value` is an int of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name}: {value!r} is not accepted; accepted: a positive whole number")


def check_finite(name: str, tensor) -> None:
    """Raise InputError if a floating tensor holds NaN or infinity, with how many."""
    if bad := int((~tensor.isfinite()).sum()):
        raise InputError(f"{name}: {bad} of {tensor.numel()} values are NaN or infinite; accepted: finite numbers")
