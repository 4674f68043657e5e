"""The rows of paper scale: what is done, what is missing, how many minutes that needs on this device, and running it: `distillery paper`.

A row is a method at a size, as `distillery row` runs it by a file of parameters. Its steps and its evaluation are timed for a while on
made-up images of the published shape and number, and multiplied: seconds a step times published updates, and those of an epoch times
epochs, for every set; experts, which the sets of a row share, once, by a few of their steps. What was timed on a device is kept beside the cached
images. Left out are scores, teachers and validation on the way, that another file may have trained the same experts, and rows of parts of the
images, of other networks and other iterates, which the notebook itself runs: `distillery run NOTEBOOK -f FILE --budget TIME`.
"""

import hashlib
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path

import torch

from distillery import places, store
from distillery.checks import InputError, check_choice, is_number
from distillery.data import ImageSet, Splits
from distillery.data.cache import cache_folder
from distillery.data.images import ZCA, Standardize
from distillery.encoders.regression_set import RegressionSet
from distillery.evaluation.probe import Probing
from distillery.experiment import Experiment, Validation
from distillery.methods import METHODS
from distillery.methods.base import SUBSETS
from distillery.networks import ConvNet
from distillery.notebook import parameters, rows, timing
from distillery.notebook.progress import duration
from distillery.notebook.standard import own_protocol
from distillery.recipe import Recipe
from distillery.report import provenance, records, tables

SHAPES = {  # published set -> classes, channels, side, training images of a class
    "mnist": (10, 1, 28, 6000), "fashion-mnist": (10, 1, 28, 6000), "svhn": (10, 3, 32, 7326), "cifar10": (10, 3, 32, 5000),
    "cifar100": (100, 3, 32, 500), "tiny-imagenet": (200, 3, 64, 500), "imagenet-1k": (1000, 3, 64, 1281),
} | dict.fromkeys(SUBSETS, (10, 3, 128, 1000))  # fmt: skip
TARGETS = 512  # real numbers that a student regresses without labels, the features of a ResNet-18
HEAD = ["file", "data", "method", "size", "sets", "done", "missing", "updates", "s an update", "s an evaluation", "s of experts", "minutes"]
DEVICE = ("processor", "cpu_flags", "threads", "gpu", "distillery")  # what a time is of, and the packages
PATIENCE = 4  # times the time for a row, after which it is given up
SHORT = 2560  # made-up images where updates meet none of them, or as many as the set holds


def files(named: list[str], methods: list[str]) -> list[Path]:
    """Files `notebooks/params/*.paper-*.yaml` whose names hold one of some parts, [] = all of them.

    raises  InputError on a name that no file has, and an unknown method
    """
    for method in methods:
        check_choice("method", method, METHODS)
    every = sorted((places.NOTEBOOKS / "params").glob("*.paper-*.yaml"))
    for part in named:
        if not any(part in path.name for path in every):
            raise InputError(f"{part!r} is in no name of a file; accepted: parts of {', '.join(path.stem for path in every)}")
    return [path for path in every if not named or any(part in path.name for part in named)]


def lines(named: list[str], methods: list[str], seconds: float, given: dict | None = None) -> Iterator[str]:
    """A Markdown table of the rows of `files`, line by line as they are measured, and what is missing in all.

    methods  names, [] = all that a notebook makes sets by
    seconds  for which the updates of a row are timed that was not timed on this device before; it is given up after PATIENCE times as many
    given    changes of the parameters in the files, as texts of the command line; those that a notebook does not have do not concern it
    """
    head, rule = tables.markdown(HEAD, []).split("\n")
    yield head
    yield rule
    kept, counts, total = Times(), [0, 0, 0], 0.0
    for path in files(named, methods):
        with tempfile.TemporaryDirectory(prefix="distillery-") as folder:
            session = _session(path, (given or {}) | {"results_dir": folder})
            for method, size in asked(session) if session else ():
                if not methods or method in methods:
                    row, minutes = _row(path, session, method, size, seconds, kept)
                    yield tables.markdown([], [row]).split("\n")[-1]
                    counts = [a + b for a, b in zip(counts, (row[HEAD.index("done")], row[HEAD.index("missing")], minutes is None))]
                    total += minutes or 0.0
    yield ""
    yield f"{counts[0]} sets done, {counts[1]} missing; about {duration(60 * total)}" + f", and {counts[2]} rows not timed" * bool(
        counts[2]
    )


def run(named: list[str], methods: list[str], given: dict, minutes: float = 0.0) -> Iterator[str]:
    """Run what is missing of the rows of `files`, in their order, and tell each set; what is stored is not run again.

    given    changes of the parameters in the files, such as data_root, as texts of the command line
    minutes  after which nothing new is started, 0 = no limit
    raises   InputError as `files`, on files of several data sets, whose images one data_root cannot be, and on parameters that a notebook does not take
    """
    end, every = time.monotonic() + 60 * minutes, files(named, methods)
    about = {str((one := parameters.read_values(path)).get("label") or one.get("dataset")) for path in every}
    if len(about) > 1:
        raise InputError(f"--run: rows of {', '.join(sorted(about))}; accepted: parts of names of files of one data set")
    for path in every:
        notebook = places.NOTEBOOKS / f"{path.name.split('.')[0]}.ipynb"
        kinds, _ = parameters.declared(notebook)
        changes = {name: parameters.from_text(text, kinds.get(name)) for name, text in given.items()}
        values = parameters.typed(parameters.read_values(path), kinds) | changes
        parameters.planned(notebook, values)
        here = _session(path, given)
        for method, size in asked(here) if here else ():
            if methods and method not in methods:
                continue
            if minutes and (left := (end - time.monotonic()) / 60) <= 0:
                yield f"the {minutes:g} minutes are over; the same command goes on"
                return
            row = rows.asked(notebook, values | ({"budget_minutes": left} if minutes else {}), method, size, list(range(here.p.n_seeds)))
            yield f"{path.stem}: {row.cost() or f'{method} at {size}: done'}"
            yield from row.told()


class Times:
    """What was timed on this device, in a file beside the cached images: a row's key -> seconds, () = it took too long and is tried again."""

    def __init__(self):
        here = provenance.provenance()
        self.device = store.canonical([here[name] for name in DEVICE] + [here["packages"]["torch"]])
        self.path, self.known = cache_folder() / "paper-times.json", {}
        with suppress(InputError, TypeError, ValueError):  # there is none, or what there is is damaged: rows are timed again
            self.known = {key: one for key, one in dict(store.read_json(self.path)).items() if _three(one)}
        self.now: dict[str, tuple] = {}  # of this call, given up ones too

    def get(self, key: str, measure: Callable[[], tuple]) -> tuple:
        key = hashlib.sha256((self.device + key).encode()).hexdigest()[:16]
        if key in self.known:
            return tuple(self.known[key])
        if key not in self.now:
            self.now[key] = measure()
            if self.now[key]:
                self.known[key] = list(self.now[key])
                store.write_json(self.path, self.known)
        return self.now[key]


def _three(times) -> bool:
    return isinstance(times, list) and len(times) == 3 and all(is_number(one) for one in times)


def _session(path: Path, changes: dict):
    """The session of a file of parameters with made-up images; None where its rows are not of published settings."""
    notebook = places.NOTEBOOKS / f"{path.name.split('.')[0]}.ipynb"
    kinds, _ = parameters.declared(notebook)
    values = parameters.typed(parameters.read_values(path), kinds)
    values |= {name: parameters.from_text(text, kinds[name]) for name, text in changes.items() if name in kinds}
    where = parameters.device(values["device"])
    if where.type == "cpu" and "precision" in kinds:
        values["precision"] = "auto"
    with redirect_stdout(io.StringIO()):
        session = rows.session(notebook, values)
    if not hasattr(session.p, "settings_for") and not hasattr(session.p, "published_for") or session.published_set not in SHAPES:
        return None
    session.data = images(session.published_set, session.p.max_side, session.p.normalization, where)
    return session


def asked(session) -> list[tuple[str, int]]:
    """(method, size) of the rows of a notebook that learn, where something is published for the size.

    Methods are those of its parameter `methods`, else those that its code and its parameter `others` name.
    """
    code = (places.NOTEBOOKS / f"{session.notebook}.ipynb").read_text()
    others = getattr(session.p, "others", [])
    named = getattr(session.p, "methods", None) or [name for name in METHODS if f'\\"{name}\\"' in code or name in others]
    found, dataset = [], getattr(session.p, "settings_for", "cifar10")
    for size in session.p.ipc:
        for name in named:
            try:
                settings = METHODS[name].settings(dataset, size, len(session.data.train))
            except InputError:  # nothing is published
                continue
            found += [(name, size)] * bool(METHODS[name].updates(settings, size))
    return found


def images(dataset: str, most: int, normalization: str, device: torch.device, of_class: int = 0) -> Splits:
    """Made-up images of the shape of a published set, `of_class` of each class (0 = as published), which are one and the same in memory.

    most  pixels a side at most, 0 = as published
    """
    classes, channels, side, n = SHAPES[dataset]
    side, n = min(side, most or side), of_class or n
    pixel = torch.randint(256, (1, channels, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).to(device)
    with device:  # beside the images, so that no step waits for it
        transform = Standardize(torch.full((channels,), 0.5), torch.ones(channels))
        if normalization == "zca":
            eye = torch.eye(channels * side**2)
            transform = ZCA(torch.zeros(len(eye)), eye, eye)

    def part(n: int) -> ImageSet:
        targets = torch.arange(classes, device=device).repeat_interleave(n)
        return ImageSet(pixel.expand(classes * n, -1, -1, -1), targets, tuple(map(str, range(classes))), transform, dataset)

    return Splits(part(n), part(0), part(10))


def experiment(session, splits: Splits, method: str, size: int) -> Experiment:
    """What judges a row, on some images."""
    p, how = session.p, {"validation": Validation()}
    if METHODS[method].labels is False:
        targets = torch.randn(len(splits.train), TARGETS, generator=torch.Generator().manual_seed(0))
        data, network = RegressionSet(splits.train, targets, splits.train.digest), ConvNet(splits.train.shape, TARGETS, p.width)
        protocol = Probing(p.networks, p.pretraining_epochs, p.pretraining_lr, batch=p.pretraining_batch)
        return session.experiment(data=data, network=network, protocol=protocol, **how)
    made = session.experiment(data=splits, **how)
    return made.under(own_protocol(made, method, size)) if getattr(p, "published_protocols", False) else made


def _row(path: Path, session, method: str, size: int, seconds: float, kept: Times) -> tuple[list, float | None]:
    """The cells of a row, and the minutes of what is missing; None where it was not timed."""
    p, whole = session.p, experiment(session, session.data, method, size)
    job = whole.job(Recipe(method, size, 0))
    updates = job.method.updates(job.settings, size)
    how = whole.fast.spec(), whole.protocol.spec(), job.method.spec(job), session.published_set, p.normalization, str(whole.device)
    have = min(done(session, method, size), p.n_seeds)
    missing, told = p.n_seeds - have, [path.stem, session.label, method, size, p.n_seeds, have, p.n_seeds - have, updates]
    if not missing:
        return [*told, "-", "-", "-", 0], 0.0
    found = kept.get(store.canonical([method, size, *how]), lambda: measured(session, whole, method, size, seconds))
    if not found:
        return [*told, "-", "-", "-", f"not timed in {PATIENCE * seconds:g} s"], None
    step, evaluation, shared = found
    minutes = (missing * (updates * step + evaluation) + shared) / 60
    return [*told, *(f"{value:.3g}" for value in (step, evaluation, shared, minutes))], minutes


def measured(session, whole: Experiment, method: str, size: int, seconds: float) -> tuple:
    """Seconds of an update, of the evaluation of a set, and of what sets share; nothing where timing them takes too long."""
    one, job = METHODS[method], whole.job(Recipe(method, size, 0))
    classes, _, _, most = SHAPES[session.published_set]
    short = whole
    if one.no_batches:  # experts of one epoch, which shall not take long
        n = min(most, max(-(-SHORT // classes), job.held if one.labels is not False else -(-job.held // classes)))
        some = images(session.published_set, session.p.max_side, session.p.normalization, whole.device, n)
        short = experiment(session, some, method, size)

    try:
        with redirect_stdout(io.StringIO()), timing.within(PATIENCE * seconds):
            return *timing.of_a_set(short, whole, Recipe(method, size, 0), seconds), one.seconds_shared(job)
    except timing.TooLong:
        return ()


def done(session, method: str, size: int) -> int:
    """Sets of a row that the kept records of paper scale hold."""
    found, same = 0, ("dataset", "label", "normalization", "scale")
    for record in records.find(parameters.results_root("")):
        given, asked_for = ([one.get(name, "") for name in same] for one in (record["parameters"], vars(session.p)))
        if record["notebook"] == session.notebook and given == asked_for:
            kept = (row for row in record["rows"] if (row["method"], row["ipc"]) == (method, size) and row["measured"])
            found = max([found, *(row["measured"]["n_sets"] for row in kept)])
    return found
