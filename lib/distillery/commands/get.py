"""`distillery get`: sets of the zoo evaluated again by the protocol of their cards, and copies of them; `evaluate --out` makes them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distillery import store
from distillery.checks import InputError, local_path
from distillery.commands import own as owns
from distillery.commands import trial as trials
from distillery.commands.evaluate import Data, Judged, checked
from distillery.commands.own import Tell, quiet
from distillery.data import ImageSet, kept
from distillery.data.export import export
from distillery.evaluation.judge import Judge
from distillery.notebook import parameters
from distillery.report import zoo
from distillery.report.external import fitting


@dataclass(frozen=True, eq=False)
class Checked:
    """A set that was evaluated again: its entry, accuracies[seed][network] as fractions, and what a reader should know, in words."""

    entry: zoo.Entry
    accuracies: list[list[float]]
    notes: list[str]

    @property
    def difference(self) -> float:
        """Of the mean accuracy to the recorded one."""
        return float(np.mean(self.accuracies)) - self.entry.measured["value"]

    @property
    def within(self) -> bool:
        """Whether that is within the tolerance."""
        return abs(self.difference) <= self.entry.tolerance

    def told(self) -> str:
        """Both accuracies, and whether they agree, in a line."""
        same = self.accuracies == self.entry.evaluation["accuracies"]
        how = "the same bit by bit" if same else f"{100 * self.difference:+.1f} points, tolerance {100 * self.entry.tolerance:.1f}"
        value, verdict = 100 * self.entry.measured["value"], "agrees with its record" if self.within else "does not agree with its record"
        twins = 100 * self.entry.random["value"]
        return (
            f"{self.entry.name}: recorded {value:.1f}%, now {100 * np.mean(self.accuracies):.1f}% ({how}): {verdict}; random {twins:.1f}%"
        )


def check(
    name: str | Path, data: str | Path, *, data_root: str | Path = "", device: str = "auto", tell: Tell = quiet, progress: bool = False
) -> Checked:
    """Evaluate a set of the zoo, or a file of that form, as its card says: its network, protocol and seeds.

    data, data_root  as of `evaluate`
    raises           InputError as `zoo.find` and `evaluate`
    """
    entry, where = zoo.find(name), parameters.device(device)
    given = Data(data, data_root, 0, "own", where, False, tell, progress)
    [made], splits, notes = given.read(checked(entry.path, data, "ConvNet"))
    source, protocol, found = fitting(made, splits), entry.protocol, entry.evaluation
    if splits.test.digest != found["test"]:
        notes.append("the test images are not those of the record")
    judge, seeds = Judge(splits, entry.network), range(found["seed"], found["seed"] + len(found["accuracies"]))
    visit = trials.seconds_a_visit(entry.network, splits.train, protocol.networks, protocol.augmentation)
    visits = len(seeds) * protocol.networks * (len(source) * (protocol.epochs + 1) + len(splits.test) / 3)  # tests go forward alone
    tell(f"this takes about {owns.span(visits * visit)}: {len(seeds)} x {protocol.networks} networks, E {protocol.epochs}")
    return Checked(entry, [judge(source, protocol, seed)["accuracies"] for seed in seeds], notes)


def copy(name: str | Path, out: str | Path, to: str = "") -> Path:
    """Write a set of the zoo elsewhere: its file, '', or in a form of `export`. Raises InputError as `zoo.find` and `export`."""
    entry, out = zoo.find(name), local_path("out", out)
    if to:
        return export(entry.path, to, out)
    kept.absent(out, None)
    return store.copy_file(entry.path, out)


def enter(judged: Judged, out: str | Path, method: str = "", source: str = "") -> Path:
    """Write a set that was evaluated, with this evaluation: an entry of the zoo.

    method, source  what the board says of it, '' = what its card says
    raises          InputError where nobody says it, and as `zoo.write`
    """
    card = {} if isinstance(judged.made, ImageSet) else {name: one for name, one in judged.made.card.items() if name not in zoo.OWN}
    told = {"method": method or card.get("method"), "source": source or card.get("evaluation", {}).get("source")}
    for name, value in told.items():
        if not value:
            raise InputError(
                f"--{name}: of a set whose card has none; accepted: what the board says, such as 'DM' or the address of its code"
            )
    row, twins = judged.rows[:2]
    card |= {"method": told["method"], "size": card.get("size", row["ipc"])}
    protocol = judged.protocol if isinstance(judged.made, ImageSet) else judged.protocol.fitting(judged.made)
    parts = row["accuracies"], twins["accuracies"], judged.seed, protocol, judged.network.spec(), judged.splits.test, "", told["source"]
    return zoo.write(out, judged.made, judged.splits, card, zoo.evaluation(*parts))
