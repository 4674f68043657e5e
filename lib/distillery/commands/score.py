"""`distillery score`: any sets beside random images under one protocol, by LRS and ARS, see `report.scoreboard`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from distillery import store
from distillery.checks import InputError
from distillery.commands import own as owns
from distillery.commands import trial as trials
from distillery.commands.evaluate import Data, checked, network_of
from distillery.commands.own import Tell, quiet
from distillery.data import ImageSet, Splits
from distillery.data.folders import cache_folder
from distillery.data.load import VALIDATION, split_per_class
from distillery.data.synthetic import Synthetic
from distillery.evaluation import Protocol
from distillery.notebook import parameters
from distillery.report.scoreboard import RATES, Entry, Settings
from distillery.runs import Runs
from distillery.seeds import generator
from distillery.training.dsa import DSA, DSA_NO_FLIP

REAL_EPOCHS = 60  # of all images of one's own; fewer would flatter every set


@dataclass(frozen=True, eq=False)
class Scored:
    """What `score` found: a row a set, see `Entry.row`, how it was found, in words, and what a reader should know."""

    rows: list[dict]
    how: str
    notes: list[str]


def score(
    sets: Sequence[str | Path], data: str | Path, *, data_root: str | Path = "", pixels: str = "auto", logits: bool = False,
    formation: str = "identity", normalization: str = "own", network: str = "ConvNet", width: int = 0, side: int = 0, networks: int = 3,
    epochs: int = 0, real_epochs: int = 0, seeds: int = 3, seed: int = 0, rates: Sequence[float] = RATES, looks: int = 5,
    labels: str = "own", temperature: float = 1.0, equal_seconds: bool = False, flip: bool = True, device: str = "auto",
    skip_unreadable: bool = False, tell: Tell = quiet, progress: bool = False,
) -> Scored:  # fmt: skip
    """Score sets: those of `distill` and of notebooks, foreign files, lists of `prune`, folders of images; finished evaluations are kept.

    sets, data and others  as of `evaluate`; a folder with metadata.csv may have soft labels, a file of DC, DSA or DM several sets
    epochs       of sets and random images: 0 = 1000 for published data as the field has it, else by the size of the set
    real_epochs  of all real images: 0 = 200 for published data as DD-Ranking has it for CIFAR, else REAL_EPOCHS
    looks        how often accuracies on test images are looked at on the way, for what is called best; 0 = never
    others       as `Settings` has them
    raises       InputError on sets that cannot be read or do not fit, before anything is trained
    """
    if not sets or len(set(map(str, sets))) < len(sets):
        raise InputError(f"sets: {', '.join(map(str, sets)) or 'none'}; accepted: at least one, and each once")
    paths, where = [checked(one, data, network) for one in sets], parameters.device(device)
    families, runs = DSA if flip else DSA_NO_FLIP, Runs(cache_folder() / "own")
    Settings(Protocol(networks, looks=looks), real_epochs or 1, tuple(rates), seeds, seed, labels, temperature)  # refuses what there is not
    given, groups = Data(data, data_root, seed, normalization, where, skip_unreadable, tell, progress), {}
    for one, path in zip(sets, paths):
        made, splits, told = given.read(path, side, "", pixels, logits, formation)
        key = _alike(made[0], splits)
        if not key or made[0].card["seed"] in [other.card["seed"] for other in groups.get(key, ("", []))[1]]:
            key = str(path)
        name = Path(one).name if [Path(other).name for other in sets].count(Path(one).name) == 1 else str(one)
        same = groups.setdefault(key, (name, [], splits, told))
        same[1].extend(made)
    entries, notes = [], []
    for name, made, splits, told in groups.values():
        splits, notes = with_validation(splits, seed), [*notes, *told]
        if isinstance(made[0], ImageSet) and (n := owns.seen(made[0], splits.validation)):
            notes.append(f"{name}: {n} of the set's images are among the {len(splits.validation)} by which rates are chosen")
        n = len(made[0] if isinstance(made[0], ImageSet) else made[0].decode()[0])
        passes = epochs or (1000 if given.published else trials.passes(n, where.type))
        protocol = Protocol(networks, passes, augmentation=families, looks=looks)
        how = Settings(
            protocol,
            real_epochs or (200 if given.published else REAL_EPOCHS),
            tuple(rates),
            seeds,
            seed,
            labels,
            temperature,
            equal_seconds,
        )
        entries.append(Entry(name, made, splits, network_of(network, width or (128 if given.published else 0), splits), how, runs))
    visit = trials.seconds_a_visit(entries[0].network, entries[0].splits.train, networks, families)
    tell(f"this takes at most {owns.cost(sum(one.cost(visit) for one in entries), entries[0].splits.train)}; what is finished is kept")
    rows = [one.row(tell) for one in entries]
    how = f"{networks} networks, {seeds} seeds or one a set (± over them / over networks), augmentation {families}, final weights; rates "
    how += f"{', '.join(f'{one:g}' for one in rates)} by validation images, of all real images {entries[0].whole.lr:g}"
    return Scored(rows, "\n".join([how, *dict.fromkeys(map(_where, entries))]), list(dict.fromkeys(notes)))


def _where(entry: Entry) -> str:
    """On what data an entry is scored, by what network."""
    parts, name = entry.splits, entry.network.name
    sizes = f"{len(parts.train)} images to learn from, {len(parts.validation)} to choose by, {len(parts.test)} to judge by"
    return f"{parts.test.name}: {sizes}; {name}"


def _alike(made: Synthetic | ImageSet, splits: Splits) -> str:
    """What sets that differ by their seeds alone have in common, '' of those that do not say."""
    card = {} if isinstance(made, ImageSet) else made.card
    own = ("seed", "accuracies", "seconds", "held_out", "transform", "start", "evaluation")
    if "seed" not in card:
        return ""
    told = {name: value for name, value in card.items() if name not in own}
    return store.canonical(told | {"transform": store.transform_digest(splits.train.transform)}) + splits.digest


def with_validation(splits: Splits, seed: int) -> Splits:
    """Data with validation images, a tenth of each class of the training images where they have none."""
    if len(splits.validation):
        return splits
    train, validation = split_per_class(splits.train, VALIDATION, generator(seed, "data", "validation split"))
    return replace(splits, train=train, validation=validation)
