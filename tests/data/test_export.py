"""What came out is read by others: torchvision, NumPy, our own `evaluate` and `data convert`."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import to_tensor

from distillery import api, cli
from distillery.data import ZCA, ImageSet, Standardize, external, fit_zca, folders, synthetic
from distillery.data.export import export
from distillery.data.kept import Kept
from distillery.data.synthetic import Synthetic
from made_up import files, to_folder

CLASSES = ("elk", "dog", "cat")
PIXELS = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))  # in [0, 1]
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
OWN = Standardize(torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25]))
WHITE = fit_zca(ImageSet.of(torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.zeros(40, dtype=torch.long)))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLERY_CACHE", str(tmp_path / "cache"))


def saved(tmp_path, transform=OWN, targets=LABELS, classes=CLASSES, formation="identity", pixels=PIXELS):
    made = Synthetic({"images": transform(pixels) if transform else pixels, "targets": targets}, classes, formation)
    return synthetic.export(made, tmp_path / "set", {}, transform)


@pytest.mark.parametrize("transform", [OWN, WHITE], ids=["own", "ZCA"])
def test_pixels_come_back_in_every_form(tmp_path, transform):
    file = saved(tmp_path, transform)
    for i, (image, label) in enumerate(api.SyntheticDataset(file)):
        torch.testing.assert_close(image, PIXELS[i], atol=1e-4, rtol=0)
        assert label == LABELS[i]
    with np.load(export(file, "npz", tmp_path / "a.npz")) as arrays:
        np.testing.assert_allclose(arrays["images"], PIXELS, atol=1e-4)
        assert arrays["labels"].tolist() == LABELS.tolist() and arrays["classes"].tolist() == list(CLASSES)
    folder = ImageFolder(export(file, "imagefolder", tmp_path / "folder"))
    assert folder.classes == sorted(CLASSES) and len(folder) == 6
    for path, label in folder.samples:
        row = int(path[-10:-4])
        assert folder.classes[label] == CLASSES[LABELS[row]]
        torch.testing.assert_close(to_tensor(Image.open(path)), PIXELS[row], atol=0.5 / 255 + 1e-4, rtol=0)
    with open(tmp_path / "folder/metadata.csv", newline="") as text:
        rows = list(csv.DictReader(text))
    assert [row["label"] for row in rows] == [CLASSES[label] for label in LABELS] and (tmp_path / "folder" / rows[5]["file_name"]).is_file()


def test_the_pair_is_read_as_it_was_stored(tmp_path):
    file = saved(tmp_path)
    pair = export(file, "pt", tmp_path / "pair")
    made = external.read(pair / "images_best.pt", pair / "labels_best.pt", "standardized")
    assert torch.equal(made.tensors["images"], OWN(PIXELS)) and torch.equal(made.tensors["targets"], LABELS)
    says = json.loads((pair / "README.json").read_text())
    assert says["standardized by"]["std"] == pytest.approx([0.2, 0.3, 0.25]) and says["classes"] == list(CLASSES)
    assert "ZCA" in json.loads((export(saved(tmp_path, WHITE), "pt", tmp_path / "white") / "README.json").read_text())["images"]


def test_what_is_exported_is_read_by_the_commands(tmp_path):
    file = saved(tmp_path)
    export(file, "npz", tmp_path / "a.npz")
    export(file, "imagefolder", tmp_path / "folder")
    api.convert(tmp_path / "a.npz", tmp_path / "again")
    api.convert(tmp_path / "folder", tmp_path / "third")
    first, *others = (folders.load_files(tmp_path / name) for name in ("folder", "again", "third"))
    assert all(torch.equal(first.pixels, one.pixels) and first.classes == one.classes for one in others)


def test_soft_labels_and_packed_images(tmp_path):
    soft = torch.rand(6, 3).softmax(1)
    file = saved(tmp_path, targets=soft, formation="partition2")
    with np.load(export(file, "npz", tmp_path / "a.npz")) as arrays:
        assert arrays["images"].shape == (24, 3, 8, 8) and np.array_equal(arrays["labels"], soft.repeat_interleave(4, 0))
    folder = export(file, "imagefolder", tmp_path / "folder")
    with open(folder / "metadata.csv", newline="") as text:
        rows = list(csv.DictReader(text))
    assert len(rows) == 24 and json.loads(rows[4]["soft_label"]) == pytest.approx(soft[1].tolist())
    assert [row["label"] for row in rows[::4]] == [CLASSES[label] for label in soft.argmax(1)]
    labels = torch.load(export(file, "pt", tmp_path / "pair") / "labels_best.pt", weights_only=True)
    assert torch.equal(labels, soft.repeat_interleave(4, 0))


@pytest.mark.parametrize("copy", [False, True])
def test_what_a_list_keeps(tmp_path, capsys, copy):
    content = files(parts=("",), n=4)
    root = to_folder(tmp_path / "photos", content)
    plan, keep = folders.plan_of(api_origin(root)), torch.arange(8) % 2 == 0
    Kept(root, plan.files, torch.tensor(plan.labels), tuple(plan.classes), torch.zeros(8), keep).write(tmp_path / "kept.csv")
    command = ["export", str(tmp_path / "kept.csv"), "--to", "imagefolder", "--out", str(tmp_path / "out"), *["--copy"] * copy]
    assert cli.main(command) == 0 and str(tmp_path / "out") in capsys.readouterr().out
    made = sorted((tmp_path / "out").glob("*/*"))
    assert [path.name for path in made] == ["0.png", "2.png"] * 2 and all(path.is_symlink() != copy for path in made)
    assert made[0].read_bytes() == content["cat/0.png"] and len(ImageFolder(tmp_path / "out")) == 4
    with open(tmp_path / "out/metadata.csv", newline="") as text:
        assert [tuple(row.values()) for row in csv.DictReader(text)][2] == ("dog/0.png", "dog")


def test_no_list_is_exported_into_its_own_images(tmp_path, capsys):
    root = to_folder(tmp_path / "photos", files(parts=("",), n=4))
    plan = folders.plan_of(api_origin(root))
    Kept(root, plan.files, torch.tensor(plan.labels), tuple(plan.classes), torch.zeros(8), torch.ones(8) > 0).write(tmp_path / "kept.csv")
    for place in (root / "new", root / "cat" / "new"):
        assert cli.main(["export", str(tmp_path / "kept.csv"), "--to", "imagefolder", "--out", str(place)]) == 2
        assert "of which it is made" in capsys.readouterr().err and not place.exists()


def api_origin(root):
    from distillery.data.archives import origin

    return origin(root)


def test_what_cannot_be_exported_leaves_nothing(tmp_path, refused):
    file = saved(tmp_path)
    unknown = saved(tmp_path / "unknown", None)
    real = saved(tmp_path / "real", targets=torch.rand(6, 5), classes=None)
    (tmp_path / "kept.csv").write_text("file,class,kept\ngone.png,cat,1\n")
    (tmp_path / "none.csv").write_text("file,class,kept\ngone.png,cat,0\n")
    (tmp_path / "taken").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "out"
    for given, to, place, word in (
        (file, "webdataset", out, "imagefolder, pt, npz"),
        (file, "npz", tmp_path / "taken", "is there already; accepted: another place"),
        (unknown, "npz", out, "tensors none"),
        (unknown, "imagefolder", out, "tensors none"),
        (real, "imagefolder", out, "targets (6, 5)"),
        (tmp_path / "kept.csv", "npz", out, "of a list"),
        (tmp_path / "kept.csv", "imagefolder", out, "1 of 1 files are not there"),
        (tmp_path / "none.csv", "imagefolder", out, "nothing is kept"),
        (tmp_path / "gone.safetensors", "pt", out, "gone.safetensors"),
    ):
        with refused(word):
            export(given, to, place)
    assert sorted(tmp_path.rglob("*")) == before
    assert isinstance(WHITE, ZCA) and "not known" in (export(unknown, "pt", out) / "README.json").read_text()
