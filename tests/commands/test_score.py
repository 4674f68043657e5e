"""`distillery score`: every kind of set in one command beside random images, costs first, refusals before anything is trained."""

import json

import numpy as np
import pytest
import torch

from distillery import api, cli
from distillery.data import load, synthetic
from distillery.data.export import export
from distillery.data.synthetic import Synthetic
from distillery.report.scoreboard import table
from made_up import class_folders

QUICK = ["--networks", "2", "--seeds", "2", "--epochs", "3", "--real-epochs", "1", "--rates", ".01,.1", "--looks", "2", "--width", "4"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLERY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path):
    """Three classes of 14 photographs of 8 x 8 to learn from, and as many to judge by."""
    for part, seed in (("train", 0), ("test", 1)):
        class_folders(tmp_path / "photos" / part, "RGB", (8, 8), seed)
    return tmp_path / "photos"


@pytest.fixture
def tensors(photos):
    train = load("folder", photos, held_out=0.0).train
    rows = torch.cat([train.of_class(c)[:2] for c in range(3)])
    return train, train.batch(rows), train.targets[rows]


def test_sets_of_every_kind_in_one_command(photos, tensors, tmp_path, capsys):
    train, images, labels = tensors
    soft = 0.7 * torch.nn.functional.one_hot(labels, 3) + 0.1
    accuracies = {"ConvNet": [np.float64(0.3)] * 20}
    torch.save(
        {"data": [[images, labels], [images + 0.1, labels]], "accs_all_exps": accuracies}, tmp_path / "res_DM_CIFAR10_ConvNet_2ipc.pt"
    )
    np.savez(tmp_path / "set.npz", images=train.transform.inverse(images).clamp(0, 1).numpy(), labels=labels.numpy())
    ours = synthetic.export(Synthetic({"images": images, "targets": soft}, train.classes), tmp_path / "ours", {}, train.transform)
    (tmp_path / "pair").mkdir()
    torch.save(images, tmp_path / "pair" / "images_best.pt")
    torch.save(labels, tmp_path / "pair" / "labels_best.pt")
    folder = export(ours, "imagefolder", tmp_path / "folder")  # with soft labels in metadata.csv
    links = api.prune(photos, 2, rule="random").place(tmp_path / "links")
    names = {tmp_path / "res_DM_CIFAR10_ConvNet_2ipc.pt": "hard", tmp_path / "set.npz": "hard", ours: "stored"}
    names |= {tmp_path / "pair": "hard", folder: "stored", links: "hard"}
    command = ["score", *map(str, names), "--data", str(photos), *QUICK, "--json", str(tmp_path / "rows.json")]
    assert cli.main(command) == 0
    said = capsys.readouterr()
    assert "this takes at most" in said.err and said.err.index("this takes") < said.err.index("all real images")
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(row["set"], row["labels"]) for row in rows] == [(path.name, labels) for path, labels in names.items()]
    assert [row["sets"] for row in rows] == [2, 1, 1, 1, 1, 1] and all(row["images"] == 6 for row in rows)
    size = 6 * 3 * 8 * 8
    assert [row["bytes"]["images"] for row in rows] == [4 * size, 4 * size, 4 * size, 4 * size, size, size]
    assert [row["bytes"]["labels"] for row in rows] == [0, 0, 72, 0, 72, 0]
    assert all(len(row["scores"]["lrs_curve"]) == 11 and row["scores"]["lrs"]["ci95"] for row in rows)
    assert all(f"| {row['set']}" in said.out for row in rows) and "| HLR | IOR |" in said.out and "best on test" in said.out
    first, pair = (rows[i]["trained"]["own"]["accuracies"][0] for i in (0, 3))
    assert first == pair  # the same images under the same seed
    runs = sorted((tmp_path / "cache" / "own" / "runs").iterdir())
    assert cli.main(command) == 0 and capsys.readouterr().out == said.out
    assert sorted((tmp_path / "cache" / "own" / "runs").iterdir()) == runs


def test_our_sets_of_several_seeds_are_one_row(photos, tensors, tmp_path):
    train, images, labels = tensors
    made = [Synthetic({"images": images + i, "targets": labels}, train.classes) for i in range(4)]
    same = {"method": "DM", "size": 2, "settings": {}}
    cards = [same | {"seed": i, "seconds": i} for i in range(2)] + [same | {"seed": 2, "settings": {"lr": 3}}, same | {"seed": 1}]
    files = [synthetic.export(one, tmp_path / f"set-{i}", card, train.transform) for i, (one, card) in enumerate(zip(made, cards))]
    found = api.score(files, photos, networks=1, epochs=2, real_epochs=1, rates=[0.1], looks=0, width=4, seeds=1)
    assert [(row["set"], row["sets"]) for row in found.rows] == [(f"set-{i}.safetensors", n) for i, n in ((0, 2), (2, 1), (3, 1))]
    first, second, _ = (row["trained"]["own"]["accuracies"] for row in found.rows)
    assert len(first) == 2 and len(second) == 1 and "best" not in found.rows[0] and "best" not in table(found.rows)
    assert found.rows[0]["scores"]["ior"]["ci95"] and found.rows[1]["scores"]["ior"]["ci95"] is None


@pytest.mark.parametrize(
    "more, words",
    [
        (["--labels", "soft"], "labels"),
        (["--rates", "a"], "--rates: 'a'"),
        (["--rates", "0"], "rates: 0.0"),
        (["--temperature", "0"], "temperature: 0.0"),
        (["--seeds", "0"], "--seeds: 0"),
        (["--looks", "-1"], "looks: -1"),
        (["--real-epochs", "-1"], "--real-epochs: -1"),
        (["--network", "Conv"], "network"),
        (["--device", "tpu"], "tpu"),
        (["none.pt"], "none.pt is not there"),
        (["set.pt"], "sets: set.pt, set.pt"),
        (["other.pt"], "labels 3 to 4"),
        (["kernel.pt"], "no distributions"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_anything_is_trained(photos, tensors, tmp_path, capsys, monkeypatch, more, words):
    monkeypatch.setattr("distillery.evaluation.judge.fit", lambda *_, **__: pytest.fail("it was trained"))
    monkeypatch.chdir(tmp_path)
    _, images, labels = tensors
    torch.save((images, labels), "set.pt")
    torch.save((images, labels % 2 + 3), "other.pt")
    torch.save((images, torch.nn.functional.one_hot(labels, 3) - 1 / 3), "kernel.pt")
    assert (
        cli.main(["score", "set.pt", *more[: not more[0].startswith("-")], "--data", str(photos), *QUICK, *more[more[0][0] != "-" :]]) == 2
    )
    said = capsys.readouterr().err.splitlines()
    assert words in said[-1] and "accepted" in said[-1] and said[-1].startswith("error: ")


def test_options_of_foreign_files_are_checked_and_said_to_be_unused_for_a_set_that_says_them_itself(photos, tensors, tmp_path, capsys):
    train, images, labels = tensors
    ours = synthetic.export(Synthetic({"images": images, "targets": labels}, train.classes), tmp_path / "ours", {}, train.transform)
    np.savez(tmp_path / "set.npz", images=train.transform.inverse(images).clamp(0, 1).numpy(), labels=labels.numpy())
    for option in ("--normalization", "--formation", "--pixels"):
        for path in (ours, tmp_path / "set.npz"):
            assert cli.main(["score", str(path), "--data", str(photos), *QUICK, option, "wholly"]) == 2
            assert "wholly" in capsys.readouterr().err
    given = ["--pixels", "unit", "--formation", "partition2", "--normalization", "zca", "--side", "16"]
    assert cli.main(["evaluate", str(ours), "--data", str(photos), "--networks", "2", "--epochs", "1", "--width", "4", *given]) == 0
    assert "side, pixels, formation, normalization not used" in capsys.readouterr().out
