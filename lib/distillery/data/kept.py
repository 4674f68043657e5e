"""A list of images with what is kept of them: a CSV for every tool, a folder of links or copies at full size, a torch Dataset."""

import csv
import io
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from distillery import store
from distillery.checks import InputError, check_choice
from distillery.data import synthetic
from distillery.data.decoding import open_image

HEAD = ["file", "class", "score", "rank", "kept"]
PARTS = {"kept": True, "dropped": False, "held out": None}  # and what a line says of them


@dataclass(frozen=True, eq=False)
class Kept:
    """Which images of a folder are kept.

    root     the folder, or the archive, that they lie in
    files    (N) names below it
    labels   (N,) int64 classes
    classes  names of the classes
    scores   (N,) float, high = hard; NaN where nothing was scored
    kept     (N,) bool
    how      what decided it, fit for JSON
    held     (N,) bool images held out to judge by: neither kept nor dropped, and not ranked; None = there are none
    """

    root: Path
    files: list[str]
    labels: Tensor
    classes: tuple[str, ...]
    scores: Tensor
    kept: Tensor
    how: dict = field(default_factory=dict)
    held: Tensor | None = None

    @property
    def ranks(self) -> Tensor:
        """(N,) int64 place of each image within its class, 1 = the lowest score, 0 = held out; ties go by the order of the files."""
        ranks, rows = torch.zeros(len(self.files), dtype=torch.int64), torch.nonzero(~self._held())[:, 0]
        rows = rows[self.scores[rows].argsort(stable=True)]
        rows = rows[self.labels[rows].argsort(stable=True)]  # by class, then by score
        counts = torch.bincount(self.labels[rows])
        ranks[rows] = torch.arange(1, len(rows) + 1) - (counts.cumsum(0) - counts)[self.labels[rows]]
        return ranks

    def counts(self) -> list[tuple[int, int]]:
        """(kept, ranked) of each class."""
        both = (torch.bincount(self.labels[part], minlength=len(self.classes)).tolist() for part in (self.kept, ~self._held()))
        return list(zip(*both))

    def _held(self) -> Tensor:
        return torch.zeros(len(self.files), dtype=torch.bool) if self.held is None else self.held

    def write(self, path: str | Path) -> Path:
        """The list as a CSV: a line an image, `file` as seen from the folder of the CSV; `kept` is 1, 0 or, held out, empty.

        The same list gives the same bytes. Beside it, PATH.json says how it was made. Raises InputError where it cannot be written.
        """
        path, text = Path(path), io.StringIO()
        base = os.path.relpath(self.root.resolve(), path.resolve().parent)
        kept = ["" if held else int(one) for one, held in zip(self.kept.tolist(), self._held().tolist())]
        rows = zip(self.files, self.labels.tolist(), self.scores.tolist(), self.ranks.tolist(), kept)
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(HEAD)
        for name, label, score, rank, mark in rows:
            shown = "" if score != score else f"{score:.6g}"  # NaN
            writer.writerow([Path(base, name).as_posix(), self.classes[label], shown, rank or "", mark])
        store.write_json(path.with_name(path.name + ".json"), self.how)
        return store.write_bytes(path, text.getvalue().encode(errors="surrogateescape"))

    def place(self, folder: str | Path, copy: bool = False) -> Path:
        """The kept images as class folders of links to them, or of copies, at full size; all of them or nothing.

        raises  InputError where the folder is there, cannot be written, and on images in an archive
        """
        folder = Path(folder)
        if not self.root.is_dir():
            raise InputError(f"{self.root}: images in an archive have no files of their own; accepted: the archive unpacked")
        absent(folder)
        with store.new_folder(folder) as made:
            for row in torch.nonzero(self.kept)[:, 0].tolist():
                put(self.root / self.files[row], made / self.classes[self.labels[row]], copy)
        return folder


def put(file: Path, folder: Path, copy: bool = False) -> Path:
    """A link to a file, or a copy of it, in a folder, under its own name; where that is taken, its folder's name and a number go before."""
    folder.mkdir(parents=True, exist_ok=True)
    target, n = folder / file.name, 0
    while os.path.lexists(target):
        n += 1
        target = folder / f"{file.parent.name}-{n}-{file.name}"
    source = file.resolve()
    shutil.copy2(source, target) if copy else target.symlink_to(source)
    return target


def absent(path: str | Path, force: bool | None = False, data: str | Path = "") -> None:
    """Raise InputError where an output is there already, or would lie in the images it is made of; nothing is removed.

    force  files may be replaced, which happens when they are written; folders never; None = nor files
    data   the folder or archive of the images
    """
    path = Path(path)
    if data and Path(data).resolve() in (path.resolve(), *path.resolve().parents):
        raise InputError(f"{path} lies in {data}, of which it is made; accepted: a place outside")
    if path.is_dir():
        raise InputError(f"{path} is there already; accepted: another place, for a folder is never removed here")
    if not force and (path.exists() or path.is_symlink()):
        raise InputError(f"{path} is there already; accepted: another place{'' if force is None else ', or --force to replace it'}")


def read(path: str | Path) -> list[dict]:
    """The lines of a list: 'file' as a path, 'class', 'score' (None where there is none), 'rank' and 'kept' (None = held out).

    Raises InputError on a file that is missing or no such list.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            lines = csv.DictReader(file)
            if lines.fieldnames is None or not {"file", "class", "kept"} <= set(lines.fieldnames):
                raise InputError(f"{path}: columns {lines.fieldnames}; accepted: {', '.join(HEAD)}, as `distillery prune` writes them")
            return [
                {
                    "file": path.parent / line["file"], "class": line["class"], "score": float(line["score"]) if line.get("score") else None,
                    "rank": int(line.get("rank") or 0), "kept": bool(int(line["kept"])) if line["kept"] else None,
                }
                for line in lines
            ]  # fmt: skip
    except (OSError, ValueError, csv.Error) as error:
        raise error if isinstance(error, InputError) else InputError(f"{path}: {error}; accepted: a list of `distillery prune`") from error


class KeptDataset(torch.utils.data.Dataset):
    """The kept images of a list as a torch Dataset: upright RGB images at full size, with the number of their class.

    path       the CSV
    transform  of each image, as torchvision's; None = Pillow images
    part       'kept', 'dropped', 'held out' or 'all'
    classes    names of the classes, sorted, also those of which nothing is kept
    raises     InputError as `read`, on a part that there is not, and where the first file is not there
    """

    def __init__(self, path: str | Path, transform: Callable | None = None, part: str = "kept"):
        check_choice("part", part, ("all", *PARTS))
        lines = read(path)
        self.classes = sorted({line["class"] for line in lines})
        number = {name: i for i, name in enumerate(self.classes)}
        self.samples = [(line["file"], number[line["class"]]) for line in lines if part == "all" or line["kept"] is PARTS[part]]
        self.targets, self.transform = [label for _, label in self.samples], transform
        if self.samples and not self.samples[0][0].is_file():
            raise InputError(f"{self.samples[0][0]} is not there; accepted: the list beside its images, these not in an archive")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple:
        file, label = self.samples[index]
        image, met = open_image(file)
        if image is None:
            raise InputError(f"{file} cannot be read ({met[0]}); accepted: a whole image file")
        upright = image.convert("RGB")
        return (self.transform(upright) if self.transform else upright), label


class SyntheticDataset(torch.utils.data.Dataset):
    """A distilled set as a torch Dataset: images (C, H, W) in [0, 1], and the number of their class, or soft labels (classes,).

    path       a .safetensors file of `distillery distill`
    transform  of each image
    raises     InputError on a file that is none of them
    """

    def __init__(self, path: str | Path, transform: Callable | None = None):
        made = synthetic.load(path)
        self.images, self.targets = synthetic.unit_pixels(made), made.decode()[1]
        self.classes, self.transform = made.classes, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple:
        target = self.targets[index]
        image = self.images[index]
        return (self.transform(image) if self.transform else image), target if target.is_floating_point() else int(target)
