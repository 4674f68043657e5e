"""The zoo: sets under results/sets that carry their evaluation, so that anybody can list, export and evaluate them again.

A set is three files, as `data.synthetic.export` writes them: NAME.safetensors with its card inside, NAME.json (the card again, to read) and
NAME.safetensors.sha256. card['evaluation'] says how accurate networks trained on it are, beside random images, and by what.
"""

import math
import tempfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from distillery import places, store
from distillery.checks import InputError, check_choice, is_number, local_path, unknown
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


@dataclass(frozen=True, eq=False)
class Entry:
    """A set with its evaluation; path: its file. Raises InputError on a card that does not say all of it."""

    path: Path
    made: Synthetic

    def __post_init__(self):
        try:
            card, found = self.made.card, self.made.card["evaluation"]
            texts = [card["method"], card["data"], found["test"], found["scale"], found["source"]]
            fractions = [one for name in ("accuracies", "random") for seed in found[name] for one in seed]
            if not all(isinstance(one, str) for one in texts) or not all(is_number(one) and 0 <= one <= 1 for one in fractions):
                raise ValueError("no text, or no fraction")
            if {len(seed) for seed in found["accuracies"]} != {self.protocol.networks} or not measured(found["random"]):
                raise ValueError("accuracies of other networks")
            if not isinstance(found["seed"], int) or not is_number(card["size"]):
                raise ValueError("no seed or no size")
            _ = self.network
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            said = f"no {error}" if isinstance(error, KeyError) else str(error).partition("; accepted")[0]
            raise InputError(f"{self.path}: its card has no whole evaluation ({said}); accepted: {ACCEPTED}") from error

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def method(self) -> str:
        """Its method, and what was left of the real images where that is a part."""
        prune = self.made.card.get("prune") or {}
        return self.made.card["method"] + (f", {prune.get('rule', 'lowest')} {prune.get('keep')}" if prune else "")

    @property
    def evaluation(self) -> dict:
        return self.made.card["evaluation"]

    @cached_property
    def protocol(self) -> Protocol:
        found = dict(self.evaluation["protocol"])
        check_choice("protocol", kind := found.pop("kind"), PROTOCOLS)
        return PROTOCOLS[kind](**found)

    @cached_property
    def network(self):
        return pool.of(self.evaluation["network"])

    @cached_property
    def measured(self) -> dict:
        """What its accuracies come to, see `statistics.measured`."""
        return measured(self.evaluation["accuracies"])

    @cached_property
    def random(self) -> dict:
        """Likewise of random images: as many, judged alike."""
        return measured(self.evaluation["random"])

    @property
    def tolerance(self) -> float:
        """How far a mean accuracy may lie from the recorded one on another machine, where rounding leads networks elsewhere: three standard errors
        of the difference of two means over networks, within TOLERANCE. On the machine of the record there is no difference."""
        error = (self.measured["std_networks"] or 0) * math.sqrt(2 / self.measured["n_networks"])
        return min(max(3 * error, TOLERANCE[0]), TOLERANCE[1])

    def told(self) -> str:
        """What it is, in a few lines, with the commands that check and export it."""
        value, twins, protocol, card = self.measured, self.random, self.protocol, self.made.card
        judged = f"{value['n_sets']} x {value['n_networks']} networks, {self.network.name}, E {protocol.epochs}, rate {protocol.lr:g}"
        return "\n".join(
            [
                f"{self.name}: {self.method}, {len(self.made)} images for {card['data']}, {self.path.stat().st_size:,} bytes",
                f"{_percent(value, 'std_networks')}% of the test images right, {_percent(twins, 'std_sets')}% by as many random images",
                f"judged by {judged}, augmentation {protocol.augmentation or 'none'}",
                f"source: {self.evaluation['source']}",
                f"evaluate it again:  distillery get {self.name} --check --data DATA",
                f"export it:          distillery get {self.name} --out {self.name}.safetensors  (or --to imagefolder, pt, npz)",
            ]
        )


def read(path: str | Path) -> Entry:
    """A set with its evaluation. Raises InputError on a file that is none, is corrupt or too large, or whose .sha256 or .json, where there is
    one beside it, is of another file."""
    path = local_path("set", path)
    if path.is_file() and (size := path.stat().st_size) >= LARGEST:
        raise InputError(f"{path}: {size:,} bytes; accepted: {ACCEPTED}")
    entry, digest, card = Entry(path, synthetic.load(path)), path.with_name(path.name + ".sha256"), path.with_suffix(".json")
    if digest.is_file() and digest.read_text().split()[:1] != [store.file_digest(path)]:
        raise InputError(f"{path}: {digest.name} is of another file; accepted: the file as it was written")
    if card.is_file() and store.read_json(card).get("evaluation") != entry.evaluation:
        raise InputError(f"{path}: {card.name} is of another file; accepted: the card as it was written")
    return entry


def find(name: str | Path) -> Entry:
    """A set of the zoo by its name, or of a file. Raises InputError as `read`, and on a name that there is not, with the nearest one."""
    if Path(name).suffix == ".safetensors":
        return read(name)
    names = [path.stem for path in files(places.SETS)]
    if name not in names:
        raise unknown("set", name, [*names, "a .safetensors file"])
    return read(places.SETS / f"{name}.safetensors")


def files(folder: Path) -> list[Path]:
    """The sets of a folder. Raises InputError on one without its digest."""
    found = sorted(folder.glob("*.safetensors"))
    for path in found:
        if not path.with_name(path.name + ".sha256").is_file():
            raise InputError(f"{path}: no {path.name}.sha256 beside it; accepted: {ACCEPTED}")
    return found


def evaluation(
    accuracies: list, random: list, seed: int, protocol: Protocol, network: dict, test: ImageSet, scale: str, source: str
) -> dict:
    """What a card says of an evaluation.

    accuracies, random  of the set and of random images, [seed][network], fractions; the set's first seed is `seed`, the others follow
    protocol, network   by which; the `spec` of the network
    test                images that judged, known by their digest
    scale, source       'paper' or another scale of a notebook, '' of none; where the set and its evaluation come from
    """
    found = {"accuracies": accuracies, "random": random, "seed": seed, "protocol": protocol.spec(), "network": network}
    return found | {"test": test.digest, "scale": scale, "source": source}


def write(path: str | Path, made: Synthetic | ImageSet, splits: Splits, card: dict, found: dict) -> Path:
    """Write a set with its evaluation: all three files, once they have been read back.

    made    the set, standardized as the images of `splits` are
    card    what else its file says: at least 'method' and 'size'; 'data', '' = the name of the images
    found   of `evaluation`
    raises  InputError as `read`, and where a file is there already
    """
    path = local_path("out", path)
    check_choice("out: a file that ends in", path.suffix, [".safetensors"])
    kept.absent(path, None)
    if isinstance(made, ImageSet):
        made = Synthetic({"images": made.batch(torch.arange(len(made), device=made.device)), "targets": made.targets}, made.classes)
    fitting(made, splits)
    made = replace(made, classes=splits.train.classes)
    said = {"data": splits.test.name} | card | {"evaluation": found}
    with tempfile.TemporaryDirectory() as folder:
        there = synthetic.export(made, Path(folder) / path.name, said, splits.train.transform)
        try:
            read(there)
        except InputError as error:
            raise InputError(str(error).replace(str(there), str(path))) from error
        for one in (there.with_suffix(".json"), there.with_name(there.name + ".sha256"), there):  # last: it says that all is there
            store.copy_file(one, path.with_name(one.name))
    return path


def table(entries: list[Entry], sources: bool = False) -> str:
    """The sets in Markdown, the most accurate first among those of as many images of the same data."""

    def place(entry: Entry) -> tuple:
        return entry.made.card["data"], len(entry.made), -entry.measured["value"]

    head = ["set", "data", "method", "images a class", "images", "KB", "accuracy, %", "random images, %", "gain", "judged by", "scale"]
    lines = []
    for entry in sorted(entries, key=place):
        card, value, twins = entry.made.card, entry.measured, entry.random
        cells = [
            entry.name,
            plain(card["data"]),
            plain(entry.method),
            card["size"],
            len(entry.made),
            f"{entry.path.stat().st_size / 1000:.0f}",
        ]
        cells += [_percent(value, "std_networks"), _percent(twins, "std_sets"), f"{100 * (value['value'] - twins['value']):+.1f}"]
        judged = f"{entry.network.name.partition(',')[0]}, E {entry.protocol.epochs}"
        lines.append([*cells, judged, entry.evaluation["scale"] or "-", *[plain(entry.evaluation["source"])] * sources])
    return markdown([*head, *["source"] * sources], lines)


def page(folder: Path) -> str:
    """The board: every set of a folder. Raises InputError on one that is not accepted."""
    told = """# The zoo

Generated by `distillery report --write` from the cards of the files in [sets](sets). Each set is below 1 MB and carries its evaluation:

    distillery get                                              # this list
    distillery get NAME --check --data DATA                     # evaluate it again, by the protocol of its card
    distillery get NAME --to imagefolder --out FOLDER           # or pt, npz; without --to the file itself

Accuracy is that of fresh networks trained on the set alone and tested once, at the end; ± is the spread over networks, of random images that
over draws. Random images are as many real ones of each class, judged by the same protocol. [How to add a set](../CHALLENGE.md)."""
    return f"{told}\n\n{table([read(path) for path in files(folder)], sources=True)}\n"


def _percent(value: dict, spread: str) -> str:
    """'26.1 ± 0.9'."""
    return f"{100 * value['value']:.1f}" + ("" if value[spread] is None else f" ± {100 * value[spread]:.1f}")
