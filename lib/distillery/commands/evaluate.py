"""`distillery evaluate`: networks trained on a finished set, beside random images of the same size and what the set started from."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from distillery.checks import InputError, check_choice, local_path
from distillery.commands import own as owns
from distillery.commands import trial as trials
from distillery.commands.own import Tell, quiet
from distillery.data import ImageSet, Splits, external, folders, kept, load, named, synthetic
from distillery.data.archives import origin, shown
from distillery.data.images import fit_standardize
from distillery.evaluation import Protocol
from distillery.networks import ConvNet, pool
from distillery.networks.module import ModuleNetwork
from distillery.notebook import parameters
from distillery.report.external import compare_with_random
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
    device: str = "auto", tell: Tell = quiet, progress: bool = False,
) -> Judged:  # fmt: skip
    """Train fresh networks on a finished set and on random images of the same number, and test all on images that neither has seen.

    found    a set of `distill` or of a notebook, a foreign file (`external.read` has labels, pixels, logits, formation), a list of `prune`, or
             a folder of class folders
    data     a folder or archive of class folders, or the name of a published data set whose files lie in `data_root`. Where it has no
             test/, those images judge that were held out of the set; a list has some only by `prune(hold_out=..)`
    network  of `pool.NAMES`, or 'torchvision:NAME' without its weights
    width    channels of the ConvNet, others in proportion to 128; 0 = 128 for published data, else one that the images bear
    side     pixels a side at which images of a list or a folder are looked at, 0 = one that suits them
    epochs   0 = 1000 for published data as the field has it, else by the size of the set
    seeds    evaluations of `networks` networks; the set is the same in all, random images are drawn anew
    raises   InputError on files that are not there or no set, a set that does not fit the data, and where no image is left to judge by
    """
    path, where = local_path("set", found), parameters.device(device)
    if not path.exists():
        raise InputError(f"{path} is not there; accepted: a set, a list of `distillery prune`, or a folder of class folders")
    published, stored = str(data) in named.NAMES, not path.is_dir() and path.suffix != ".csv"
    if not published:
        origin(data)
    if not network.startswith("torchvision:"):
        check_choice("network", network, pool.NAMES)
    Protocol(networks, augmentation=DSA if flip else DSA_NO_FLIP, loss=loss)  # refuses what there is not
    options = {"device": where, "tell": tell, "progress": progress}
    if stored:
        splits = splits_of(path, data, data_root, seed, normalization, **options)
        made = external.read(path, labels, pixels, splits, logits, formation)
        splits, notes = external.compare(made, splits)
    elif path.is_dir():
        side = side or (0 if published else fitting_side(data, **options))
        splits = loaded(data, data_root, {"resize": side}, seed, normalization, **options)
        made, notes = of_folder(path, splits, progress), []
    else:
        splits, made = of_list(path, data, side, **options)
        notes = []
    notes += splits.notes
    if not stored and (n := seen(made, splits.test)):
        notes.append(f"{n} of the set's images are among the {len(splits.test)} that judge")
        if n > len(made) / 20:  # more than a few images that a data set repeats
            raise InputError(f"{shown(path)}: {notes[-1]}; accepted: data with test/, or a list of `distillery prune --hold-out 0.2`")
    judging = network_of(network, width or (128 if published else 0), splits)
    n = len(made) if isinstance(made, ImageSet) else len(made.decode()[0])
    epochs = epochs or (1000 if published else trials.passes(n, where.type))
    protocol = Protocol(networks, epochs, augmentation=(DSA if flip else DSA_NO_FLIP) if augmentation else "", loss=loss)
    what = f"{len(made)} stored images, {made.stored_numbers()} stored numbers" if stored else f"{n} real images"
    how = f"{path.name} on {splits.test.name}: {what}, {len(splits.test)} images to judge by\n{judging.name}, E {epochs}, {loss}, "
    how += f"augmentation {protocol.augmentation or 'none'}, final weights, pixels {made.card.get('pixels', 'as exported') if stored else 'as bytes'}"
    start = made.card.get("start") if stored else None
    return Judged(compare_with_random(made, splits, judging, protocol, seeds, seed, start), judging, protocol, how, notes)


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


def loaded(data, data_root, sides: dict, seed: int, normalization: str, device, tell: Tell, progress: bool) -> Splits:
    """A published data set by its name, or a folder whose test images are a fifth of each class where it has none."""
    where = (str(data), data_root) if str(data) in named.NAMES else ("folder", data)
    return load(*where, **sides, seed=seed, normalization=normalization, progress=progress).to(device)


def splits_of(path: Path, data, data_root, seed: int, normalization: str, device, tell: Tell, progress: bool) -> Splits:
    """The data that a stored set is judged on, at the size of its images, parted as its card says."""
    height, width = external.sides(path)
    sides = {"resize": height} if height == width else {"max_side": max(height, width)}
    held = synthetic.load(path).card.get("held_out") if external.ours(path) else None
    if held and str(data) not in named.NAMES:
        return trials.split(owns.read(data, height, device, tell, progress), held["seed"], test=held["share"])
    options = {"device": device, "tell": tell, "progress": progress}
    if str(data) in named.NAMES:
        found = loaded(data, data_root, {}, seed, normalization, **options)
        if found.test.shape[1:] == (height, width):
            return found
    return loaded(data, data_root, sides, seed, normalization, **options)


def fitting_side(data, device, tell: Tell, progress: bool) -> int:
    """A side that suits the images of a folder or archive."""
    where = origin(data)
    side, why = owns.fitting_side(where, folders.plan_of(where).files, device.type)
    tell(f"side: {side} x {side} pixels, for {why}")
    return side


def of_folder(path: Path, splits: Splits, progress: bool) -> ImageSet:
    """The images of a folder of class folders, as large as those of the data and of the same classes."""
    own = folders.load_files(path, resize=splits.test.shape[1], progress=progress)
    if tuple(own.classes) != splits.train.classes:
        odd = sorted(set(own.classes) ^ set(splits.train.classes))
        raise InputError(
            f"{shown(path)}: classes differ from those of the data in {', '.join(map(shown, odd[:5]))}; accepted: the same classes"
        )
    images = ImageSet.of(own.pixels, own.targets, own.classes, own.name)
    return replace(images, transform=splits.train.transform).to(splits.test.device)


def of_list(path: Path, data, side: int, device, tell: Tell, progress: bool) -> tuple[Splits, ImageSet]:
    """The data that a list of `prune` is of, and what it keeps of them. Judges are the images it holds out, else those of test/."""
    own = owns.read(data, side, device, tell, progress)
    root, rows = os.path.realpath(own.root), {name: row for row, name in enumerate(own.files)}
    lines: dict[bool | None, list[int]] = {True: [], False: [], None: []}
    for line in kept.read(path):
        name = os.path.relpath(
            os.path.normpath(os.path.join(os.path.realpath(path.parent), os.path.relpath(line["file"], path.parent))), root
        )
        if name not in rows:
            raise InputError(f"{path}: {shown(line['file'])} is no image of {shown(data)}; accepted: the data that the list was made of")
        lines[line["kept"]].append(rows[name])
    parts = {mark: own.subset(torch.tensor(sorted(found), dtype=torch.int64)).images for mark, found in lines.items()}
    rest = own.subset(torch.tensor(sorted(lines[True] + lines[False]))).images
    if not (test := own.test or parts[None]):
        accepted = "`distillery prune --hold-out 0.2`, whose list says which; or data with test/; `prune --check` scores anew"
        raise InputError(f"{path}: chosen among all images of {shown(data)}, so that none is left to judge by; accepted: {accepted}")
    transform = fit_standardize(rest)
    rest, test, none = (replace(one, transform=transform) for one in (rest, test, rest.subset(torch.arange(0))))
    return Splits(rest, none, test, tuple(own.notes)), replace(parts[True], transform=transform)


def seen(made: ImageSet, test: ImageSet) -> int:
    """How many images of a set are, pixel by pixel, among those that judge."""
    judges = {bytes(image.numpy().data) for image in test.pixels[:].cpu().contiguous()}
    return sum(bytes(image.numpy().data) in judges for image in made.pixels[:].cpu().contiguous())
