"""What a method is: its name and paper, its settings and published numbers with their sources, and how it makes a set.

A method is one file of this folder with one class under `@register`. Nothing else names it: recipes, experiments, tables and the command
line find it in METHODS. `Method` has the defaults of a selection, which makes a set and learns nothing.
"""

import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, ClassVar, get_type_hints

from torch import Tensor

from distillery.checks import InputError, check_choice, check_positive_int
from distillery.data.synthetic import Synthetic
from distillery.distill import Distilled
from distillery.evaluation import Protocol, fit
from distillery.runs import subsample
from distillery.starts import STARTS
from distillery.training.dsa import without_flip

if TYPE_CHECKING:
    from distillery.job import Job

METHODS: dict[str, "Method"] = {}
ANY = 0  # as a size in `published`: every size that is not named
TINY = {"depth": 4, "side": 64}  # the ConvNet for Tiny-ImageNet, and for ten classes of ImageNet, with ImageNet's constants
SUBSET = {"depth": 5, "side": 128, "normalization": "published:tiny-imagenet"}
SUBSETS = ("imagenette", "imagewoof", "imagefruit", "imagemeow")  # ten classes of ImageNet each; settings of "imagenet-subset"


def register(cls: type["Method"]) -> type["Method"]:
    """Class decorator: the method is known by its name. Raises InputError on a name that is taken by another class."""
    taken = METHODS.get(cls.name)
    if taken is not None and type(taken).__qualname__ != cls.__qualname__:
        raise InputError(f"method: {cls.name!r} is taken by {type(taken).__name__}; accepted: a name of its own")
    METHODS[cls.name] = cls()
    return cls


@dataclass(frozen=True)
class Settings:
    """Settings of a method; each field is part of the id of a set. Raises InputError on values of another type, and on numbers below 0 or not finite."""

    def __post_init__(self):
        for name, kind in get_type_hints(type(self)).items():
            value, accepted = getattr(self, name), {bool: (bool,), int: (int,), float: (int, float), str: (str,)}.get(kind)
            if accepted and (not isinstance(value, accepted) or isinstance(value, bool) and kind is not bool):
                words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[kind]
                raise InputError(f"{name}: {value!r} is not accepted; accepted: {words}")
        for name, value in vars(self).items():
            if isinstance(value, int | float) and not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name}: {value} is not accepted; accepted: 0 or more")

    def spec(self) -> dict:
        """What identifies them in the id of a set."""
        return asdict(self)


@dataclass(frozen=True)
class Made:
    """What a method made: the set, and what belongs to it."""

    last: Synthetic
    start: Tensor | None = None  # the images it started from, as stored, None = it started from nothing
    iterates: dict[str, Synthetic] = field(default_factory=dict)  # others of it by name, such as 'ema'
    log: dict = field(default_factory=dict)  # what the result says beside: JSON-able values


def made(start: Synthetic, done: Distilled, **log) -> Made:
    """What a loop yielded, with its iterates and log."""
    cost = done.cost
    log = {"steps": cost["steps"], "samples": cost["samples"], "loss": subsample(done.log["loss"])} | log | {"seconds": cost["seconds"]}
    if "effective_batch" in done.log:
        log["effective_batch"] = float(done.log["effective_batch"].mean())
    iterates = {name: one for name, one in (("ema", done.ema), ("best", done.best)) if one is not None}
    return Made(done.last, start.tensors["images"], iterates, log)


class Method:
    """Declarations with their defaults, and the three things a method does: `prepare`, `make` and `protocol`."""

    name: ClassVar[str] = ""
    kind: ClassVar[str] = "selection"
    paper: ClassVar[str] = ""  # arXiv number
    source: ClassVar[str] = ""  # of the published settings
    version: ClassVar[int] = 1  # of everything that decides its sets: raise it, and its own stored sets alone are stale
    labels: ClassVar[bool | None] = True  # whether it needs labels; False: real-valued targets in their place, None = it takes either
    makes_set: ClassVar[bool] = True
    Settings: ClassVar[type[Settings]] = Settings
    common: ClassVar[dict] = {}  # published settings
    published: ClassVar[dict[str, dict[int, dict]]] = {}  # what differs: data set -> size (or ANY) -> settings
    about: ClassVar[tuple[str, ...]] = ("start", "normalization", "depth", "side", "source")  # keys of both that are no settings
    numbers: ClassVar[dict[str, dict[int, tuple[float, float]]]] = {}  # accuracies in percent: data set -> size -> (mean, deviation)
    judged: ClassVar[Protocol | None] = None  # how, on the ConvNet of width 128; None = not known, or not by networks trained on the set
    judged_on: ClassVar[dict[str | tuple[str, int], Protocol]] = {}  # where it differs: data set, or data set and size
    numbers_by: ClassVar[Protocol | None] = None  # how the numbers of a selection were measured, which is judged as what it stands beside
    start: ClassVar[str] = ""  # how first images are chosen as published, '' = there are none to choose
    selects: ClassVar[str] = ""  # of a selection the start by which it chooses what it keeps
    own_starts: ClassVar[tuple[str, ...]] = ()  # that are not general
    iterates: ClassVar[tuple[str, ...]] = ("last",)  # of its sets that can be evaluated
    learns: ClassVar[tuple[str, ...]] = ()  # names of tensors
    objective: ClassVar[type | None] = None  # the class whose steps it takes, None = it has no loop
    no_batches: ClassVar[str] = "it has no loop"  # why it takes no sampler, '' = it does
    by_epochs: ClassVar[bool] = False  # whether its loop counts epochs of the real images, which are shorter where a part is held out
    prunes: ClassVar[bool] = True  # whether real images may be pruned first
    quick: ClassVar[dict] = {}  # settings by which a set of a few steps takes a moment, to time them

    @property
    def starts(self) -> tuple[str, ...]:
        """Names of the first images it may start from."""
        if not self.start:
            return ()
        fitting = STARTS if self.labels is None else [name for name, one in STARTS.items() if one.labels in (None, self.labels)]
        return (*(name for name in fitting if STARTS[name].general), *self.own_starts)

    @property
    def own_labels(self) -> bool:
        """Whether its sets bring other labels than the classes of their images."""
        return bool({"targets", "label_logits"} & {*self.learns})

    def lacks(self, sampler: type) -> list[str]:
        """What a sampler of real batches asks of the objective in vain."""
        return [need for need in sampler.needs if not hasattr(self.objective, need)]

    def check(self, recipe) -> None:
        """Raise InputError on parts of a recipe that the method does not take."""
        check_choice(f"iterate of {self.name}", recipe.evaluate.iterate, self.iterates)
        if self.makes_set:
            check_positive_int("size", recipe.size)
        elif not isinstance(recipe.size, int) or recipe.size < 0:
            raise InputError(f"size: {recipe.size!r} with {self.name!r}; accepted: a whole number, 0 or more")
        if recipe.start and not self.start:
            raise InputError(f"start: {recipe.start!r} with {self.name!r}, which starts from nothing; accepted: ''")
        if recipe.start:
            check_choice(f"start of {self.name}", recipe.start, self.starts)
        for name in recipe.settings:
            check_choice(f"setting of {self.name}", name, [one.name for one in fields(self.Settings)])
        if recipe.prune and not self.prunes:
            raise InputError(f"prune: {recipe.prune.keep:g} with {self.name!r}; accepted: None")
        if recipe.batches and self.no_batches:
            raise InputError(f"batches: {recipe.batches} with {self.name!r}, which has no real batch: {self.no_batches}; accepted: None")
        if recipe.batches and (lacking := ", ".join(self.lacks(recipe.batches.sampler_class))):
            raise InputError(f"batches: {recipe.batches} with {self.name!r}, which has no {lacking}; accepted: None, or another sampler")

    def refuse(self, job: "Job") -> None:
        """Raise InputError on an experiment that the method does not fit, before anything is computed."""
        if job.recipe.evaluate.iterate == "best" and not job.experiment.validation.times:
            raise InputError("iterate: 'best' with 0 validations; accepted: 'last', or an experiment that validates")

    def cell(self, dataset: str, size: int, n: int) -> dict:
        """What is published for a data set and a size beside `common`; n = number of real images. Raises InputError where nothing is."""
        if not self.published:
            return {}
        check_choice(f"{self.name} data set", dataset, self.published)
        cells = self.published[dataset]
        if size not in cells and ANY not in cells:
            check_choice(f"{self.name} on {dataset}, size", size, cells)
        return cells.get(size, cells.get(ANY))

    def settings(self, dataset: str, size: int, n: int = 0, changes: dict | None = None, own: dict | None = None) -> Settings:
        """The published settings, with changes of an experiment and then those of a recipe.

        changes  by name; those that are no settings of the method do not concern it. A dict under the method's name is for it alone
        own      changes of a recipe: all must be settings of the method
        """
        names, changes = {one.name for one in fields(self.Settings)}, changes or {}
        changes = {name: v for name, v in changes.items() if name in names} | changes.get(self.name, {}) | (own or {})
        values = self.changed(self.common | self.cell(dataset, size, n), changes)
        return self.Settings(**{name: value for name, value in values.items() if name not in self.about})

    def published_protocol(self, dataset: str, size: int, like: Protocol, flip: bool, numbers: bool = False) -> Protocol | None:
        """How published accuracies were measured, None where it is not known; rates of some methods are learned.

        like     whose number of networks, and of looks, it has; the published numbers of networks are 1 to 20
        flip     whether images are mirrored where they are augmented
        numbers  whether a selection has a protocol too, that of its own numbers
        """
        found = self.judged_on.get((dataset, size)) or self.judged_on.get(dataset) or self.judged or (self.numbers_by if numbers else None)
        families = found and (found.augmentation if flip else without_flip(found.augmentation))
        return found and replace(found, networks=like.networks, looks=like.looks, augmentation=families)

    def changed(self, values: dict, changes: dict) -> dict:
        """Published values with changes; a subclass says what else a change changes."""
        return values | changes

    def updates(self, settings: Settings, size: int) -> int:
        """How often the tensors of a set are updated: `steps`, 0 = in the published `iterations`."""
        return getattr(settings, "steps", 0) or getattr(settings, "iterations", 0)

    def spec(self, job: "Job") -> dict:
        """What identifies a set beside recipe, network, preprocessing and data."""
        return {"settings": found} if (found := job.settings.spec()) else {}

    def scores(self, job: "Job") -> list[str]:
        """Names of the scores that its set goes by, beside pruning."""
        how = STARTS.get(self.chooses(job))
        by_classes = how and (how.labels is not None or job.experiment.labels is not None)
        return [how.score] if by_classes and how.score else []

    def loss_of_labels(self, job: "Job") -> str:
        """The loss by which networks learn the labels of its sets, '' = that of the protocol."""
        return ""

    def chooses(self, job: "Job") -> str:
        """The start by which it chooses real images, '' = none."""
        return self.selects or job.start

    def stored(self, job: "Job") -> tuple[int, str, str]:
        """(stored images, of each class where there are classes; formation; how real images shrink into it)."""
        return job.recipe.size, "identity", "bilinear"

    def prepare(self, job: "Job", where: str = "local") -> None:
        """Make what many sets share: scores, experts, students. Its cost is billed apart from the set's."""
        job.score_first()
        how = STARTS.get(self.chooses(job))
        if how and how.prepare:
            how.prepare(job, where)

    def seconds_shared(self, job: "Job") -> float:
        """About how long it takes to make what many sets share and scores do not, by timed steps."""
        return 0.0

    def make(self, job: "Job") -> Made:
        """Make the set: here the real images that a start chooses, as they are."""
        return Made(job.packed(job.chosen(self.selects)))

    def protocol(self, job: "Job", protocol: Protocol, made: Synthetic | None) -> tuple[Protocol, int]:
        """(how the set is evaluated, number of images whose training steps it gets, 0 = its own)."""
        return protocol, job.steps_of(protocol)

    def train(self, job: "Job", network, source, protocol: Protocol, stream, steps_of: int) -> tuple:
        """Train fresh networks on the set: (weights, what training counted, what the result says beside)."""
        encoder, device = job.experiment.encoder, job.experiment.device
        return *fit(network, source, protocol, stream, steps_of=steps_of, encoder=encoder, device=device), {}
