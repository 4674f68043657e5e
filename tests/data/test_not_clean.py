"""Folders as people have them: what is passed over, what is refused, and that the commands and torchvision see the same."""

import os
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from distillery import cli
from distillery.data import folders
from distillery.data.archives import Listing, origin
from distillery.data.check import check
from distillery.data.kept import Kept
from made_up import WRITERS, encoded, files, picture, to_folder

CLEAN = files(parts=("",), n=5)
NOT_CLEAN = {  # what lies in a class folder beside images, and what is said of it
    "notes.txt": (b"buy milk", "cat/notes.txt"),
    "IMG_1.HEIC": (b"\0\0\0\x18ftypheic", "cat/IMG_1.HEIC"),
    "old.gif": (encoded(picture(), "GIF"), "cat/old.gif"),
    "scan.tif": (encoded(picture(), "TIFF"), "cat/scan.tif"),
    "session 1/readme.md": (b"x", "cat/session 1/readme.md"),
    "gif.jpg": (encoded(picture(), "GIF"), "cat/gif.jpg (GIF)"),
    "cut.png": (encoded(picture())[:60], "cat/cut.png ("),
    "empty.png": (b"", "cat/empty.png (an empty file)"),
    "page.jpg": (b"<!DOCTYPE html>", "cat/page.jpg (text)"),
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLERY_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", NOT_CLEAN)
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_other_files_are_refused_or_passed_over_and_named(tmp_path, refused, capsys, name, kind):
    content, told = NOT_CLEAN[name]
    path = WRITERS[kind](tmp_path / f"a.{kind}", CLEAN | {f"cat/{name}": content})
    with refused(name.rpartition("/")[2]):
        folders.load_files(path)
    clean = folders.load_files(to_folder(tmp_path / "clean", CLEAN))
    for _ in range(2):  # decoded, then from the cache
        found = folders.load_files(path, skip_unreadable=True)
        assert torch.equal(found.pixels, clean.pixels) and torch.equal(found.targets, clean.targets) and found.n_train == 10
        (note,) = found.notes
        assert note.startswith("1 ") and told in note and "passed over" in note
        kept = folders.plan_of(origin(path), True).without(found.skipped)
        assert kept.files == sorted(CLEAN) and kept.labels == found.targets.tolist()
    assert cli.main(["data", "check", str(path)]) == 2
    assert cli.main(["data", "check", str(path), "--skip-unreadable"]) == 0
    out = capsys.readouterr().out
    assert "10 images, no test part" in out and told.partition(" (")[0] in out and out.splitlines()[-1] == "usable"


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
def test_folders_in_class_folders_are_descended_as_torchvision_does(tmp_path, kind):
    content = CLEAN | {"cat/monday/0.png": encoded(picture(90)), "cat/monday/deep/0.png": encoded(picture(91))}
    root = to_folder(tmp_path / "plain", content)
    path = root if kind == "folder" else WRITERS[kind](tmp_path / f"a.{kind}", content)
    plan, theirs = folders.plan_of(origin(path)), ImageFolder(root).samples
    assert sorted(zip(plan.files, plan.labels)) == sorted((os.path.relpath(file, root), label) for file, label in theirs)
    assert len(folders.load_files(path).pixels) == 12 and check(path)[1]


def test_files_of_one_name_in_a_class_are_all_placed(tmp_path):
    root = to_folder(tmp_path / "a", CLEAN | {f"cat/{day}/0.png": encoded(picture(i)) for i, day in enumerate(("mon", "tue"))})
    plan = folders.plan_of(origin(root))
    n = len(plan.files)
    kept = Kept(root, plan.files, torch.tensor(plan.labels), tuple(plan.classes), torch.zeros(n), torch.ones(n, dtype=torch.bool))
    placed = kept.place(tmp_path / "kept")
    assert sorted(file.resolve() for file in placed.glob("*/*")) == sorted((root / name).resolve() for name in plan.files)


def test_forty_thousand_classes_take_seconds():
    names = [f"c{i:05d}" for i in range(40_000)]
    began = time.monotonic()
    plan = folders.arrange(Listing({f"{name}/{i}.png": 1 for name in names for i in (0, 1)}, set(names)), "many")
    labels, keep = torch.tensor(plan.labels), torch.ones(80_000, dtype=torch.bool)
    kept = Kept(None, plan.files, labels, tuple(plan.classes), torch.arange(80_000.0).flip(0), keep)
    assert kept.ranks.tolist() == [2, 1] * 40_000 and kept.counts() == [(2, 2)] * 40_000
    assert time.monotonic() - began < 20  # a quadratic way takes minutes


def circle(root):
    (root / "cat/again").symlink_to(root)


def parts_inside(root):
    to_folder(root, {"cat/train/0.png": encoded(picture()), "cat/val/0.png": encoded(picture())})


def nothing_readable(root):
    for file in (root / "cat").iterdir():
        file.write_bytes(b"GIF89a")


def one_class(root):
    for file in (root / "cat").iterdir():
        file.unlink()
    (root / "cat").rmdir()


def flat_with_a_table(root):
    for file in root.glob("*/*"):
        file.rename(root / f"{file.parent.name}{file.name}")
    for folder in ("cat", "dog"):
        (root / folder).rmdir()
    (root / "labels.csv").write_text("file,label\ncat0.png,cat\n")


@pytest.mark.parametrize(
    "harm, words",
    [
        (circle, ["'again' is a link to a folder above"]),
        (parts_inside, ["cat holds train and val", "outside"]),
        (nothing_readable, ["class 'cat'", "no image of it can be read"]),
        (one_class, ["holds 1 class folder(s)"]),
        (flat_with_a_table, ["holds 0 class folder(s)", "`distillery data convert` makes of labels.csv"]),
    ],
)
def test_what_no_flag_mends(tmp_path, refused, harm, words):
    root = to_folder(tmp_path / "a", CLEAN)
    harm(root)
    with refused(*words):
        folders.load_files(root, skip_unreadable=True)


@pytest.mark.parametrize(
    "name", ["set.npz", "train-0000.parquet", "labels.csv", "metadata.jsonl", "train-images-idx3-ubyte.gz", "batches.meta"]
)
def test_other_forms_given_as_data_name_the_command(tmp_path, refused, name):
    (tmp_path / name).write_bytes(b"x")
    of = name if name.endswith((".npz", ".csv", ".jsonl")) else "it"
    with refused(f"`distillery data convert` makes of {of}"):
        origin(tmp_path / name)
    with refused("holds 0 class folder(s)", f"`distillery data convert` makes of {of}"):
        folders.load_files(tmp_path)


def test_photographs_as_links_and_one_image_a_class(tmp_path, refused):
    """A folder of links is read as one of files; a class of one image is read, and refused where it has to be split."""
    root = to_folder(tmp_path / "a", files(parts=("",), n=1))
    (tmp_path / "links").mkdir()
    (tmp_path / "links/cat").symlink_to(root / "cat")
    (tmp_path / "links/dog").symlink_to(root / "cat")  # twice the same is no circle
    assert len(folders.load_files(tmp_path / "links").pixels) == 2
    lines, usable = check(tmp_path / "links")
    assert not usable and "fewer than 3 images, first cat" in lines[-1]
    assert cli.main(["prune", str(root), "--keep", "1", "--rule", "random", "--out", str(tmp_path / "k.csv")]) == 0
    assert np.asarray(Image.open(root / "cat/0.png")).shape == (8, 8, 3)
