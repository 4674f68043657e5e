"""The zoo: sets under results/sets that carry their evaluation, so that anybody can list, export and evaluate them again.

A set is three files, as `data.synthetic.export` writes them: NAME.safetensors with its card inside, NAME.json (the card again, to read) and
NAME.safetensors.sha256. Beside what all sets say of themselves, card['evaluation'] is an `Evaluation`.
"""

import math
import tempfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, Field, ValidationError

from distillery import places, store
from distillery.checks import InputError, check_choice, local_path, unknown
from distillery.data import ImageSet, Splits, kept, synthetic
from distillery.data.synthetic import Synthetic
from distillery.evaluation import Mixing, Protocol
from distillery.networks import pool
from distillery.report.external import fitting
from distillery.report.statistics import measured
from distillery.report.tables import markdown, plain

LARGEST = 1_000_000  # bytes that a file stays below
TOLERANCE = 0.01, 0.03  # the least and the most by which a mean accuracy that is found again may differ
PROTOCOLS = {one.kind: one for one in (Protocol, Mixing)}
ACCEPTED = f"a set below {LARGEST:,} bytes with its evaluation, as `distillery evaluate --out` and `distillery row --out` write it"
OWN = ("format", "classes", "formation", "shapes", "stored_numbers", "transform", "start", "pixels")  # what `export` says of a set itself
Accuracies = Annotated[list[Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=1)]], Field(min_length=1)]


class Evaluation(BaseModel, strict=True):
    """How accurate networks trained on a set are.

    accuracies, random  [seed][network], as fractions, of the set and of as many random images of each class, drawn anew for every seed
    seed                the first of the set's; the others follow it
    protocol, network   by which: what their `spec` says
    test                digest of the images that judged
    scale, source       'paper' or another scale of a notebook, '' = none; where the set and its evaluation come from
    """

    accuracies: Accuracies
    random: Accuracies
    seed: int
    protocol: dict
    network: dict
    test: str
    scale: str
    source: str


class Card(BaseModel, strict=True):
    """What else the card of a set says: the names of method and data, images a class, and of what part of the real images it was made."""

    method: str
    data: str
    size: float
    prune: dict = {}
    evaluation: Evaluation


@dataclass(frozen=True, eq=False)
class Entry:
    """A set with its evaluation; path: its file. Raises InputError on a card that does not say all of it."""

    path: Path
    made: Synthetic

    def __post_init__(self):
        try:
            if {len(one) for one in self.card.evaluation.accuracies} != {self.protocol.networks}:
                raise ValueError("accuracies of another number of networks")
            _ = self.network
        except (TypeError, ValueError, KeyError) as error:
            where = ".".join(map(str, error.errors()[0]["loc"])) if isinstance(error, ValidationError) else str(error)
            said = where.partition("; accepted")[0]
            raise InputError(f"{self.path}: its card has no whole evaluation ({said}); accepted: {ACCEPTED}") from error

    @property
    def name(self) -> str:
        return self.path.stem

    @cached_property
    def card(self) -> Card:
        return Card(**{name: value for name, value in self.made.card.items() if name in Card.model_fields})

    @property
    def method(self) -> str:
        """Its method, and what was left of the real images where that is a part."""
        part = self.card.prune
        return self.card.method + (f", {part.get('rule', 'lowest')} {part.get('keep')}" if part else "")

    @cached_property
    def protocol(self) -> Protocol:
        found = dict(self.card.evaluation.protocol)
        check_choice("protocol", kind := found.pop("kind"), PROTOCOLS)
        return PROTOCOLS[kind](**found)

    @cached_property
    def network(self):
        return pool.of(self.card.evaluation.network)

    @cached_property
    def found(self) -> tuple[dict, dict]:
        """What the accuracies of the set and of random images come to, see `statistics.measured`."""
        return measured(self.card.evaluation.accuracies), measured(self.card.evaluation.random)

    @property
    def tolerance(self) -> float:
        """How far a mean accuracy may lie from the recorded one on another machine, where rounding leads networks elsewhere: three standard errors
        of the difference of two means over the networks of all seeds, within TOLERANCE. On the machine of the record there is no difference."""
        error = (self.found[0]["std_networks"] or 0) * math.sqrt(2 / (self.found[0]["n_sets"] * self.found[0]["n_networks"]))
        return min(max(3 * error, TOLERANCE[0]), TOLERANCE[1])


def read(path: str | Path) -> Entry:
    """A set with its evaluation. Raises InputError on a file that is none, is corrupt or too large, or whose .sha256 or .json, where there is
    one beside it, is of another file."""
    path = local_path("set", path)
    if path.is_file() and (size := path.stat().st_size) >= LARGEST:
        raise InputError(f"{path}: {size:,} bytes; accepted: {ACCEPTED}")
    entry, digest, card = Entry(path, synthetic.load(path)), path.with_name(path.name + ".sha256"), path.with_suffix(".json")
    other = [digest] if digest.is_file() and digest.read_text().split()[:1] != [store.file_digest(path)] else []
    if card.is_file() and store.read_json(card).get("evaluation") != entry.made.card["evaluation"]:
        other.append(card)
    if other:
        raise InputError(f"{path}: {other[0].name} is of another file; accepted: all three files as they were written")
    return entry


def files(folder: Path) -> list[Path]:
    """The sets of a folder. Raises InputError on one without its digest."""
    found = sorted(folder.glob("*.safetensors"))
    for path in found:
        if not path.with_name(path.name + ".sha256").is_file():
            raise InputError(f"{path}: no {path.name}.sha256 beside it; accepted: {ACCEPTED}")
    return found


def find(name: str | Path) -> Entry:
    """A set of the zoo by its name, or of a file. Raises InputError as `read`, and on a name that there is not, with the nearest one."""
    if Path(name).suffix == ".safetensors":
        return read(name)
    paths = {path.stem: path for path in files(places.SETS)}
    if name not in paths:
        raise unknown("set", name, [*paths, "a .safetensors file"])
    return read(paths[name])


def card(path: str | Path, made: Synthetic | ImageSet, network, method: str = "", source: str = "") -> dict:
    """What the card of a set that is about to be evaluated will say; method '' = as it says already.

    raises  InputError where a name or a source is missing, `write` could not write to `path`, the set is too large, or the network none of the pool
    """
    known = {} if isinstance(made, ImageSet) else made.card
    method = method or known.get("method", "")
    if not (method and source):
        raise InputError(f"--{'source' if method else 'method'}: none; accepted: what the board says of the set, see CHALLENGE.md")
    if (size := 4 * (made.pixels.shape.numel() if isinstance(made, ImageSet) else made.stored_numbers())) >= LARGEST:
        raise InputError(f"set: {size:,} bytes of numbers; accepted: {ACCEPTED}")
    _free(path)
    pool.of(network.spec())
    return {name: one for name, one in known.items() if name not in OWN} | {"method": method}


def _free(path: str | Path) -> Path:
    path = local_path("out", path)
    check_choice("out: a file that ends in", path.suffix, [".safetensors"])
    kept.absent(path, None)
    return path


def write(path: str | Path, made: Synthetic | ImageSet, splits: Splits, says: dict, found: Evaluation) -> Path:
    """Write a set with its evaluation: all three files, once they have been read back.

    made    the set, standardized as the images of `splits` are
    says    what else its card says: at least 'method' and 'size'; without 'data' the name of the images
    raises  InputError as `read`, and where a file is there already
    """
    path = _free(path)
    if isinstance(made, ImageSet):
        made = Synthetic({"images": made.batch(torch.arange(len(made), device=made.device)), "targets": made.targets})
    fitting(made, splits)
    says = {"data": splits.test.name} | says | {"evaluation": found.model_dump()}
    with tempfile.TemporaryDirectory() as folder:
        there = synthetic.export(replace(made, classes=splits.train.classes), Path(folder) / path.name, says, splits.train.transform)
        try:
            read(there)
        except InputError as error:
            raise InputError(str(error).replace(str(there), str(path))) from error
        for one in (there.with_suffix(".json"), there.with_name(there.name + ".sha256"), there):  # last: it says that all is there
            store.copy_file(one, path.with_name(one.name))
    return path


def table(entries: list[Entry]) -> str:
    """The sets in Markdown, the most accurate first among those of as many images of the same data."""
    head = [
        "set",
        "data",
        "method",
        "images a class",
        "images",
        "KB",
        "accuracy, %",
        "random images, %",
        "gain",
        "judged by",
        "scale",
        "source",
    ]
    lines = []
    for entry in sorted(entries, key=lambda one: (one.card.data, len(one.made), -one.found[0]["value"])):
        (value, twins), evaluation = entry.found, entry.card.evaluation
        shown = [
            f"{100 * one['value']:.1f} ± {100 * (one[spread] or 0):.1f}" for one, spread in ((value, "std_networks"), (twins, "std_sets"))
        ]
        cells = [entry.name, plain(entry.card.data), plain(entry.method), f"{entry.card.size:g}", len(entry.made)]
        cells += [f"{entry.path.stat().st_size / 1000:.0f}", *shown, f"{100 * (value['value'] - twins['value']):+.1f}"]
        judged = f"{value['n_sets']} x {value['n_networks']} {entry.network.name.partition(',')[0]}, E {entry.protocol.epochs}"
        lines.append([*cells, judged, evaluation.scale or "-", plain(evaluation.source)])
    return markdown(head, lines)


def page(folder: Path) -> str:
    """The board: every set of a folder. Raises InputError on one that is not accepted."""
    told = """# The zoo

Generated by `distillery report --write` from the cards of the files in [sets](sets). Each set is below 1 MB and carries its evaluation:

    distillery get                                              # this list
    distillery get NAME --check --data DATA                     # evaluate it again, by the protocol of its card
    distillery get NAME --to imagefolder --out FOLDER           # or pt, npz; without --to the file itself

Accuracy is that of fresh networks (seeds x networks) trained on the set alone and tested once, at the end; ± is the spread over networks, of random
images that over draws. Random images are as many real ones of each class, judged alike. [How to add a set](../CHALLENGE.md)."""
    return f"{told}\n\n{table([read(path) for path in files(folder)])}\n"
