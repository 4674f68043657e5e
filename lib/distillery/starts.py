"""First images of a set, chosen among the real ones: each by name under `@start`, and each a selection by itself.

Without classes, features are the targets. A start of one method alone is registered in its file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distillery.data.synthetic import Synthetic
from distillery.scores.geometry import herding, kmeans_nearest
from distillery.selection import select

if TYPE_CHECKING:
    from distillery.job import Job

STARTS: dict[str, "Start"] = {}


@dataclass(frozen=True)
class Start:
    """A way to choose first images.

    choose     (job, n) -> n positions (of each class, where there are classes) among the images that the job keeps
    score      the score it goes by, '' = none
    general    whether every method may start so
    selection  whether what it chooses is also a method of its own
    labels     True where it needs classes, False where it needs real-valued targets, None = it takes either
    then       what becomes of the real images it chose, None = they are the first images
    prepare    (job, where) makes what it stands on beside a score, before the clock starts, on an engine; None = nothing
    """

    name: str
    choose: Callable[["Job", int], Tensor]
    score: str = ""
    general: bool = True
    selection: bool = True
    labels: bool | None = None
    then: Callable[["Job", Synthetic], Synthetic] | None = None
    prepare: Callable[["Job", str], None] | None = None


def start(name: str, **declared) -> Callable:
    """Function decorator: `choose` of a `Start` with this name."""

    def add(choose: Callable) -> Callable:
        STARTS[name] = Start(name, choose, **declared)
        return choose

    return add


@start("random")
def random(job: "Job", n: int) -> Tensor:
    """At random."""
    return select(None, n, job.kept_labels, "random", job.stream("random subset"), total=len(job.kept))


start(  # standard normal images in place of real ones, whose labels stay
    "noise", selection=False, labels=True,
    then=lambda job, real: real.replace(images=torch.randn(real.tensors["images"].shape, generator=job.stream("noise")).to(real.device)),
)(random)  # fmt: skip


@start("herding", score="loss", labels=True)
def by_herding(job: "Job", n: int) -> Tensor:
    """The next image is the one that brings the mean feature of those taken nearest to the class mean (iCaRL, as DC and DM compare it)."""
    return select(herding(job.features, job.kept_labels, n), n, job.kept_labels, "lowest")


@start("k-means", score="loss")
def by_kmeans(job: "Job", n: int) -> Tensor:
    """Nearest to the centres of k-means with k = n."""
    return select(kmeans_nearest(job.features, job.kept_labels, n, job.stream("k-means")), n, job.kept_labels, "lowest")


def _by_score(score: str, rule: str) -> Callable:
    return lambda job, n: select(job.score(score, n)[job.kept], n, job.kept_labels, rule, job.stream(score))


for _rule in ("lowest", "highest"):  # easiest and hardest early in training: BiLP
    start(f"{_rule} loss", score="loss", labels=True)(_by_score("loss", _rule))
for _name in ("ridge sensitivity", "leverage", "k-means sensitivity"):  # our construction after the abstract of arXiv 2307.08086
    start(_name, score=_name, labels=True)(_by_score(_name, "proportional"))


@start("k-means++", score="k-means++", labels=True)
def by_seeding(job: "Job", n: int) -> Tensor:
    """The order in which D^2 seeding takes them (Arthur and Vassilvitskii 2007)."""
    return select(job.experiment.scores.seeded(job.recipe.seed, n, job.kept), n, job.kept_labels, "lowest")
