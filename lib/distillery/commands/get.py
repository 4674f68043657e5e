"""`distillery get`: sets of the zoo evaluated again by the protocol of their cards, and copies of them."""

from pathlib import Path

import numpy as np

from distillery import store
from distillery.checks import local_path
from distillery.commands import own as owns
from distillery.commands import trial as trials
from distillery.commands.evaluate import Data, checked
from distillery.commands.own import Tell, quiet
from distillery.data import kept
from distillery.data.export import export
from distillery.evaluation.judge import Judge
from distillery.notebook import parameters
from distillery.report import zoo
from distillery.report.external import fitting


def check(
    name: str | Path, data: str | Path, *, data_root: str | Path = "", device: str = "auto", tell: Tell = quiet, progress: bool = False
) -> tuple[list[str], bool]:
    """Evaluate a set of the zoo, or a file of that form, as its card says: by its network, protocol and seeds.

    data, data_root  as of `evaluate`
    returns          lines: what a reader should know, then the recorded and the new accuracy; whether they agree within the tolerance
    raises           InputError as `zoo.find` and `evaluate`
    """
    entry, where = zoo.find(name), parameters.device(device)
    given = Data(data, data_root, entry.card.evaluation.seed, "own", where, False, tell, progress)
    [made], splits, notes = given.read(checked(entry.path, data, "ConvNet"))
    source, protocol, record = fitting(made, splits), entry.protocol, entry.card.evaluation
    if splits.test.digest != record.test:
        notes.append("the test images are not those of the record")
    seeds = range(record.seed, record.seed + len(record.accuracies))
    visits = len(seeds) * protocol.networks * (len(source) * (protocol.epochs + 1) + len(splits.test) / 3)  # tests go forward alone
    seconds = visits * trials.seconds_a_visit(entry.network, splits.train, protocol.networks, protocol.augmentation)
    tell(f"this takes about {owns.span(seconds)}: {len(seeds)} x {protocol.networks} networks, E {protocol.epochs}")
    found = [Judge(splits, entry.network)(source, protocol, seed)["accuracies"] for seed in seeds]
    before, now, twins = entry.found[0]["value"], float(np.mean(found)), entry.found[1]["value"]
    how = f"{100 * (now - before):+.1f} points, tolerance {100 * entry.tolerance:.1f}"
    how, within = "the same bit by bit" if found == record.accuracies else how, abs(now - before) <= entry.tolerance
    line = f"{entry.name}: recorded {100 * before:.1f}%, now {100 * now:.1f}% ({how}), random images {100 * twins:.1f}%: "
    return [*(f"note: {note}" for note in notes), line + ("it agrees" if within else "it does not agree")], within


def copy(name: str | Path, out: str | Path, to: str = "") -> Path:
    """Write a set of the zoo elsewhere: its file, '', or in a form of `export`. Raises InputError as `zoo.find` and `export`."""
    entry, out = zoo.find(name), local_path("out", out)
    if to:
        return export(entry.path, to, out)
    kept.absent(out, None)
    return store.copy_file(entry.path, out)
