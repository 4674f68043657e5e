"""`distillery evaluate`: networks trained on a finished set, beside random images of the same size and what the set started from."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from distillery.checks import InputError, check_choice, local_path
from distillery.commands import own as owns
from distillery.commands import trial as trials
from distillery.commands.own import Tell, quiet
from distillery.data import NORMALIZATIONS, ImageSet, Splits, external, folders, kept, load, named, synthetic
from distillery.data.archives import origin, shown
from distillery.data.images import fit_standardize
from distillery.data.synthetic import Synthetic
from distillery.evaluation import Protocol
from distillery.networks import ConvNet, pool
from distillery.networks.module import ModuleNetwork
from distillery.notebook import parameters
from distillery.report import zoo
from distillery.report.external import compare_with_random
from distillery.runs import Runs
from distillery.training.dsa import DSA, DSA_NO_FLIP


@dataclass(frozen=True, eq=False)
class Judged:
    """What `evaluate` found.

    rows      `records.row` of the set, of random images of the same number, and of a synthetic set of random ones of as many bytes and of
              the images it started from, where its file has them
    network   that was trained
    protocol  by which
    how       what was judged, by what, in words
    notes     what a reader of the rows should know, in words
    """

    rows: list[dict]
    network: object
    protocol: Protocol
    how: str
    notes: list[str]


def evaluate(
    found: str | Path, data: str | Path, *, data_root: str | Path = "", labels: str | Path = "", pixels: str = "auto", logits: bool = False,
    formation: str = "identity", normalization: str = "own", network: str = "ConvNet", width: int = 0, side: int = 0, networks: int = 5,
    epochs: int = 0, seeds: int = 1, seed: int = 0, flip: bool = True, augmentation: bool = True, loss: str = "cross-entropy",
    device: str = "auto", skip_unreadable: bool = False, out: str | Path = "", method: str = "", source: str = "", tell: Tell = quiet,
    progress: bool = False,
) -> Judged:  # fmt: skip
    """Train fresh networks on a finished set and on random images of the same number, and test all on images that neither has seen.

    found    a set of `distill` or of a notebook, a foreign file (`external.read` has labels, pixels, logits, formation), a list of `prune`, or
             a folder of class folders, with soft labels where its metadata.csv has them
    data     a folder or archive of class folders, or the name of a published data set whose files lie in `data_root`. Where it has no
             test/, those images judge that were held out of the set; a list has some only by `prune(hold_out=..)`
    network  of `pool.NAMES`, or 'torchvision:NAME' without its weights
    width    channels of the ConvNet, others in proportion to 128; 0 = 128 for published data, else one that the images bear
    side     pixels a side at which images of a list or a folder are looked at, 0 = one that suits them
    epochs   0 = 1000 for published data as the field has it, else by the size of the set
    seeds    evaluations of `networks` networks; the set is the same in all, random images are drawn anew
    out      where the set is written with this evaluation, as the zoo holds sets, '' = nowhere; `method`, '' = that of its card, and
             `source` are what the board says of it
    raises   InputError on files that are not there or no set, a set that does not fit the data, and where no image is left to judge by
    """
    path, where = checked(found, data, network), parameters.device(device)
    given = Data(data, data_root, seed, normalization, where, skip_unreadable, tell, progress)
    Protocol(networks, augmentation=DSA if flip else DSA_NO_FLIP, loss=loss)  # refuses what there is not
    [made, *more], splits, notes = given.read(path, side, labels, pixels, logits, formation)
    if more:
        notes.append(f"the file holds {1 + len(more)} sets, of which this is the first; `distillery score` looks at all")
    published, stored = given.published, not isinstance(made, ImageSet)
    judging = network_of(network, width or (128 if published else 0), splits)
    n = len(made) if isinstance(made, ImageSet) else len(made.decode()[0])
    epochs = epochs or (1000 if published else trials.passes(n, where.type))
    protocol = Protocol(networks, epochs, augmentation=(DSA if flip else DSA_NO_FLIP) if augmentation else "", loss=loss)
    what = f"{len(made)} stored images, {made.stored_numbers()} stored numbers" if stored else f"{n} real images"
    card = zoo.card(out, made, judging, method, source) if out else {}
    how = f"{path.name} on {splits.test.name}: {what}, {len(splits.test)} images to judge by\n{judging.name}, E {epochs}, {loss}, "
    how += f"augmentation {protocol.augmentation or 'none'}, final weights, pixels {made.card.get('pixels', 'as exported') if stored else 'as bytes'}"
    start = made.card.get("start") if stored else None
    rows = compare_with_random(made, splits, judging, protocol, seeds, seed, start, Runs(folders.cache_folder() / "own"))
    if out:
        ours, twins = (row["accuracies"] for row in rows[:2])
        entry = zoo.Evaluation(
            accuracies=ours, random=twins, seed=seed, protocol=(protocol.fitting(made) if stored else protocol).spec(),
            network=judging.spec(), test=splits.test.digest, scale="", source=source,
        )  # fmt: skip
        zoo.write(out, made, splits, {"size": round(n / len(splits.train.classes), 2)} | card, entry)
    return Judged(rows, judging, protocol, how, notes)


def checked(found: str | Path, data: str | Path, network: str) -> Path:
    """Where a set lies. Raises InputError, before anything is read, where it or the data are not there, and on an unknown network."""
    path = local_path("set", found)
    if not path.exists():
        raise InputError(f"{path} is not there; accepted: a set, a list of `distillery prune`, or a folder of class folders")
    if str(data) not in named.NAMES:
        origin(data)
    if not network.startswith("torchvision:"):
        check_choice("network", network, pool.NAMES)
    return path / "images_best.pt" if (path / "images_best.pt").is_file() else path  # a folder as MTT's code writes it


def network_of(name: str, width: int, splits: Splits):
    """A fresh network of a name for images and classes; a ConvNet of width 0 is one that the images bear."""
    shape, classes = splits.train.shape, len(splits.train.classes)
    kind, _, model = name.partition(":")
    if kind == "torchvision":
        from torchvision import models

        if model not in models.list_models(module=models):
            raise InputError(f"network: {model!r} is no model of torchvision; accepted: resnet18, resnet50, vit_b_16, ..")
        return ModuleNetwork(lambda: models.get_model(model, num_classes=classes), f"torchvision {model}")
    width = width or owns.network_for(splits.train)[0].channels
    return ConvNet(shape, classes, width) if name == "ConvNet" else pool.build(name, shape, classes, width / 128)


@dataclass(frozen=True)
class Data:
    """The data that a set is judged on, a folder, an archive or a published name, and how they are read."""

    name: str | Path
    root: str | Path
    seed: int
    normalization: str
    device: torch.device
    skip: bool
    tell: Tell
    progress: bool

    def __post_init__(self) -> None:
        check_choice("normalization", self.normalization, NORMALIZATIONS)

    @property
    def published(self) -> bool:
        return str(self.name) in named.NAMES

    def own(self, side: int) -> owns.Own:
        """All images of a folder or archive."""
        return owns.read(self.name, side, self.device, self.tell, self.progress, self.skip)

    def load(self, **sides: int) -> Splits:
        """Test images are a fifth of each class where there are none."""
        where = (str(self.name), self.root) if self.published else ("folder", self.name)
        found = load(*where, **sides, seed=self.seed, normalization=self.normalization, skip_unreadable=self.skip, progress=self.progress)
        return found.to(self.device)

    def read(
        self, path: Path, side: int = 0, labels: str | Path = "", pixels: str = "auto", logits: bool = False, formation: str = "identity"
    ) -> tuple[list[Synthetic] | list[ImageSet], Splits, list[str]]:
        """The sets of a file, the images of a folder or of a list; the data that they are judged on; and what a reader should know, in words.

        raises  InputError as `external.read` and `external.compare`, and where more than a few images of a set are among those that judge
        """
        if not path.is_dir() and path.suffix != ".csv":
            splits = self.for_set(path)
            made = [external.read(path, labels, pixels, splits, logits, formation, i) for i in range(external.sets_in(path))]
            splits, notes = external.compare(made[0], splits)
            return made, splits, [*notes, *self._unused(path, made[0], side, labels, pixels, logits, formation), *splits.notes]
        splits, made = self.for_folder(path, side) if path.is_dir() else self.for_list(path, side)
        notes = list(splits.notes)
        if n := owns.seen(made, splits.test):
            notes.append(f"{n} of the set's images are among the {len(splits.test)} that judge")
            if n > len(made) / 20:  # more than a few images that a data set repeats
                accepted = "data with test/, or a list of `distillery prune --hold-out 0.2`, without images that are there twice (`distillery data check`)"
                raise InputError(f"{shown(path)}: {notes[-1]}; accepted: {accepted}")
        if path.is_dir():
            files = folders.plan_of(origin(path)).files
            if (soft := external.soft_labels(path, files, len(made.classes))) is not None:
                images = made.batch(torch.arange(len(made), device=made.device))
                made = Synthetic({"images": images, "targets": soft.to(made.device)}, made.classes, card={"pixels": "bytes, of files"})
        return [made], splits, notes

    def _unused(self, path: Path, made: Synthetic, side: int, labels: str | Path, pixels: str, logits: bool, formation: str) -> list[str]:
        """What was asked of a file that says it itself, in words."""
        given = {"side": side}
        if external.ours(path) and not labels:
            given |= {"pixels": pixels != "auto", "logits": logits, "formation": formation != "identity"}
        if made.card.get("transform"):
            given |= {"normalization": self.normalization != "own"}
        names = [name for name, is_given in given.items() if is_given]
        return [f"{path.name}: {', '.join(names)} not used, since the file itself says so"] if names else []

    def for_set(self, path: Path) -> Splits:
        """At the size of a stored set's images, parted as its card says."""
        height, width = external.sides(path)
        held = synthetic.load(path).card.get("held_out") if external.ours(path) else None
        if held and not self.published:
            return trials.split(self.own(height), held["seed"], test=held["share"])
        if self.published and (found := self.load()).test.shape[1:] == (height, width):
            return found
        return self.load(**({"resize": height} if height == width else {"max_side": max(height, width)}))

    def for_folder(self, path: Path, side: int) -> tuple[Splits, ImageSet]:
        """The data and the images of a folder of class folders, which are as large and of the same classes."""
        if not (side or self.published):
            where = origin(self.name)
            side, why = owns.fitting_side(where, folders.plan_of(where, self.skip).files, self.device.type)
            self.tell(f"side: {side} x {side} pixels, for {why}")
        splits = self.load(resize=side)
        found = folders.load_files(path, resize=splits.test.shape[1], skip_unreadable=self.skip, progress=self.progress)
        if tuple(found.classes) != splits.train.classes:
            odd = ", ".join(map(shown, sorted(set(found.classes) ^ set(splits.train.classes))[:5]))
            raise InputError(f"{shown(path)}: classes differ from those of the data in {odd}; accepted: the same classes")
        images = ImageSet.of(found.pixels, found.targets, found.classes, found.name)
        return splits, replace(images, transform=splits.train.transform).to(self.device)

    def for_list(self, path: Path, side: int) -> tuple[Splits, ImageSet]:
        """The data that a list of `prune` is of, and what it keeps. Judges are the images it holds out, else those of test/."""
        own, lines = self.own(side), {True: [], False: [], None: []}
        root, rows = os.path.realpath(own.root), {name: row for row, name in enumerate(own.files)}
        for line in kept.read(path):
            beside = os.path.join(os.path.realpath(path.parent), os.path.relpath(line["file"], path.parent))
            if (name := os.path.relpath(beside, root)) not in rows:
                accepted = "the data that the list was made of"
                raise InputError(f"{path}: {shown(line['file'])} is no image of {shown(self.name)}; accepted: {accepted}")
            lines[line["kept"]].append(rows[name])

        def part(*marks: bool | None) -> ImageSet:
            return own.subset(torch.tensor(sorted(row for mark in marks for row in lines[mark]), dtype=torch.int64)).images

        rest = part(True, False)
        if not (test := own.test or part(None)):
            accepted = "`distillery prune --hold-out 0.2`, whose list says which; or data with test/; `prune --check` scores anew"
            raise InputError(
                f"{path}: chosen among all images of {shown(self.name)}, so that none is left to judge by; accepted: {accepted}"
            )
        transform = fit_standardize(rest)
        found, rest, test, none = (replace(one, transform=transform) for one in (part(True), rest, test, rest.subset(torch.arange(0))))
        return Splits(rest, none, test, tuple(own.notes)), found
