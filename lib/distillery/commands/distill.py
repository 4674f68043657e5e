"""`distillery distill`: a few synthetic images that stand for a folder of one's own, and whether they were worth it."""

import io
import re
import shutil
import tempfile
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from distillery import store
from distillery.checks import InputError, check_choice, check_positive_int, check_seed
from distillery.commands import own as owns
from distillery.commands import trial as trials
from distillery.commands.own import Tell, quiet
from distillery.commands.trial import Trial
from distillery.data import synthetic
from distillery.data.synthetic import Synthetic, export
from distillery.methods import DEFAULT, METHODS
from distillery.notebook import parameters
from distillery.recipe import Recipe
from distillery.report.external import compare_with_random

# on a CPU, where published loops take days: updates, real images a class and step; of experts, and of their students
SHORT = {"steps": 300, "batch": 64, "experts": 5, "max_start_epoch": 2, "student_steps": 20}
JUDGED = 0.1  # of each class, held out to judge by where there is no test/


@dataclass(frozen=True, eq=False)
class Distilled:
    """What `distill` made.

    set       the synthetic set, its images standardized
    rows      `records.row` of the set, of random images of the same number, of the images it started from and of random ones of as many
              bytes, on images held out
    trial     what they were compared under
    recipe    what it was made by
    seconds   that making it took
    """

    set: Synthetic
    rows: list[dict]
    trial: Trial
    recipe: Recipe
    seconds: float

    def pixels(self) -> torch.Tensor:
        """The images (M, C, H, W) in [0, 1], as used: those of one stored image side by side."""
        return self.trial.splits.train.transform.inverse(self.set.decode()[0]).clamp(0, 1).cpu()

    def write(self, path: str | Path) -> Path:
        """PATH.safetensors with its card and checksum; beside it a folder of PNG files by class, and a contact sheet, PATH.png.

        Files that are there are replaced, and the folder of PNG files of a set that is. Raises InputError on another folder.
        """
        path = Path(path).with_suffix(".safetensors")
        splits = self.trial.splits
        card = {"method": self.recipe.method, "size": self.recipe.size, "seed": self.recipe.seed, "data": splits.train.name}
        card |= {"data_digest": splits.digest, "network": self.trial.network.spec(), "settings": self.recipe.settings}
        card |= {"held_out": {"share": JUDGED, "seed": self.recipe.seed}}
        card |= {
            "seconds": self.seconds,
            "resize": splits.train.shape[1],
            "accuracies": {row["method"]: row["accuracies"] for row in self.rows},
        }
        pixels, labels, names = self.pixels(), self.labels(), splits.train.classes
        if drawn(path.with_suffix("")):
            shutil.rmtree(path.with_suffix(""))
        with store.new_folder(path.with_suffix("")) as folder:
            for label, name in enumerate(names):
                (folder / name).mkdir()
                for i, image in enumerate(pixels[labels == label]):
                    (folder / name / f"{i:03d}.png").write_bytes(_png(image))
        columns = ipc if (ipc := len(labels) // len(names)) > 1 else min(10, len(names))  # a class a row, or ten classes
        sheet = make_grid(pixels[labels.argsort(stable=True)], columns, padding=1, pad_value=1.0)
        store.write_bytes(path.with_suffix(".png"), _png(sheet))
        return export(self.set, path, card, splits.train.transform)

    def labels(self) -> torch.Tensor:
        """The class (M,) of each image, of soft labels the likeliest."""
        targets = self.set.decode()[1].cpu()
        return targets.argmax(1) if targets.is_floating_point() else targets


def drawn(folder: Path) -> bool:
    """Whether a folder is what `Distilled.write` drew of the set beside it: as many numbered PNG files in folders of its classes, and nothing else."""
    file = folder.with_suffix(".safetensors")
    if folder.is_symlink() or not folder.is_dir() or not file.is_file():
        return False
    with suppress(InputError):
        made, below = synthetic.load(file), [one.relative_to(folder) for one in folder.rglob("*")]
        names = set(made.classes or ())
        images = [one for one in below if re.fullmatch(r"\d{3,}\.png", one.name) and str(one.parent) in names]
        return len(images) == len(made.decode()[0]) and {str(one) for one in below if one not in images} == names
    return False


def _png(image: torch.Tensor) -> bytes:
    """An image (C, H, W) in [0, 1] as PNG."""
    buffer = io.BytesIO()
    to_pil_image(image).save(buffer, "PNG")
    return buffer.getvalue()


def shortened(method: str, device: str) -> dict:
    """SHORT settings of a method on a kind of device."""
    known = {one.name for one in fields(METHODS[method].Settings)}
    return {name: value for name, value in SHORT.items() if name in known and device == "cpu"}


def seconds(trial: Trial, recipe: Recipe) -> float:
    """About how long a set takes to make: what it shares with others, and its updates by three that are measured."""
    n, method = recipe.size * len(trial.splits.train.classes), METHODS[recipe.method]
    job = trial.experiment(n).job(recipe)
    if not (updates := method.updates(job.settings, recipe.size)):
        return 0.0
    with tempfile.TemporaryDirectory(prefix="distillery-") as folder, redirect_stdout(io.StringIO()):
        probe = replace(trial, folder=Path(folder), budget_minutes=0.0, progress=False).experiment(n)
        made = probe.set_result(replace(recipe, settings=recipe.settings | method.quick | {"steps": 3}))
    return method.seconds_shared(job) + updates / 3 * made["seconds"]


def distill(
    data: str | Path, ipc: int, *, method: str = DEFAULT, settings: dict | None = None, side: int = 0, seed: int = 0, networks: int = 3,
    flip: bool = True, device: str = "auto", skip_unreadable: bool = False, tell: Tell = quiet, progress: bool = False,
) -> Distilled:  # fmt: skip
    """Make `ipc` synthetic images of each class of a folder or archive of class folders. A stopped one goes on where it was.

    method    one of `distillery.METHODS` that makes sets of labelled images
    settings  changes of its published settings (those of CIFAR-10); on a CPU loops are SHORT unless they say otherwise
    side      pixels a side, 0 = one that suits the images
    flip      whether a mirrored image keeps its class
    raises    InputError on images that cannot be read, a method that does not fit and more images than the smallest class has
    """
    check_positive_int("ipc", ipc)
    check_seed(seed)
    check_choice("method", method, [name for name, one in METHODS.items() if one.makes_set and one.labels is not False])
    where = parameters.device(device)
    own = owns.read(data, side, where, tell, progress, skip_unreadable)
    for note in own.notes:
        tell(f"note: {note}")
    trial = Trial(trials.split(own, seed, test=JUDGED, tell=tell), networks, flip, progress=progress)
    if short := {name: value for name, value in shortened(method, where.type).items() if name not in (settings or {})}:
        tell(f"on a CPU: {', '.join(f'{name} {value}' for name, value in short.items())} (published: days); --set NAME VALUE changes them")
    recipe = Recipe(method, ipc, seed, settings=short | (settings or {}))
    experiment, splits = trial.experiment(ipc * len(own.images.classes)), trial.splits
    experiment.check(recipe)
    tell(f"{len(splits.train)} images to learn from, {len(splits.test)} to judge by; {trial.why}; E {experiment.protocol.epochs}")
    several = min(4 * ipc, min(splits.train.counts())) * len(splits.train.classes)  # as many bytes
    judging = 3 * trial.seconds(ipc * len(splits.train.classes)) + trial.seconds(several)
    tell(f"this takes {owns.cost(seconds(trial, recipe) + judging, splits.train)}")
    result = experiment.set_result(recipe)
    made = experiment.synthetic(result)
    rows = compare_with_random(made, splits, trial.network, experiment.protocol, 1, seed, made.card["start"], trial.runs)
    rows[0] |= {"seconds": result["seconds"], "steps": result["steps"]}  # of making it, once
    return Distilled(made, rows, trial, recipe, result["seconds"])
