"""Where work runs: one verb, `map`, over independent shards (runs, experts, classes), results in order."""

from collections.abc import Callable, Iterable

from distillery.checks import check_choice

ENGINES = ("local",)


def map(function: Callable, shards: Iterable, engine: str = "local") -> list:
    """[function(shard) for shard in shards] on the chosen engine. Raises InputError on an unknown engine."""
    check_choice("engine", engine, ENGINES)
    return [function(shard) for shard in shards]
