"""The registered scores: each is a function under `@register_score` in the file that computes it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from distillery.checks import InputError

if TYPE_CHECKING:
    from distillery.scores.cached import CachedScores


@dataclass(frozen=True)
class Score:
    """A number for each real image, high = hard; of a greedy method its rank, low = taken first.

    compute  (scores, seed, k) -> (N,): from stored passes, a seed and the number of images of a class that it serves
    needs    what the experiment must have where it has classes: '' = nothing, an 'encoder', whose 'masks' also identify the score, or a
             'tuning', an encoder and a way to fine-tune it
    seeded   whether a seed changes it
    labels   True where it needs classes, False where it needs real-valued targets, None = it takes either
    spec     scores -> what identifies it beside images and network, None = its needs do
    version  raise it when a change makes stored sets that went by it stale
    """

    name: str
    compute: Callable[["CachedScores", int, int], Tensor]
    needs: Literal["", "encoder", "masks", "tuning"] = ""
    seeded: bool = True
    labels: bool | None = None
    spec: Callable[["CachedScores"], object] | None = None
    version: int = 1


SCORES: dict[str, Score] = {}
# of first images that draw by themselves and are no score: name -> what identifies them, as `Score.spec`
ORDERS: dict[str, Callable[["CachedScores"], object]] = {}


def register_score(name: str, **options) -> Callable:
    """Function decorator: `compute` of a `Score` with this name and options. Raises InputError on a name taken by another function."""

    def add(compute: Callable[["CachedScores", int, int], Tensor]) -> Callable:
        taken = SCORES[name].compute if name in SCORES else compute
        if (taken.__module__, taken.__qualname__) != (compute.__module__, compute.__qualname__):  # a notebook's cell may run again
            raise InputError(f"score: {name!r} is taken by {taken.__module__}.{taken.__qualname__}; accepted: a name of its own")
        SCORES[name] = Score(name, compute, **options)
        return compute

    return add
