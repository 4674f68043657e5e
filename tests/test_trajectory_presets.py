"""Published settings and numbers of the trajectory methods: complete, and of the kinds the code expects."""

import math

import pytest
import torch

from distillery.experts import Training
from distillery.matching.trajectory import GRADIENTS, Starts, build, preset, presets, starts
from distillery.recipes import PUBLISHED, TRAJECTORIES, Trajectory, expert_epochs, published
from distillery.training import cross_entropy, squared_error
from distillery.training.optimizers import GSAM, SGD, Adam

CELLS = [
    (method, dataset, ipc)
    for method, table in presets().items()
    for dataset, rows in table.items()
    if dataset != "common"
    for ipc in rows
]
RATES = ("lr_images", "lr_step_size", "step_size")


def test_every_published_row_is_there():
    """9 rows of MTT and 8 of FTD, each with a subset row for two ipc; 3 of TESLA; 12 of DATM; 6 of MKDT; as many of MTT-SSL."""
    counts = {method: sum(cell[0] == method for cell in CELLS) for method in presets()}
    assert counts == {"MTT": 11, "FTD": 10, "TESLA": 3, "DATM": 12, "MKDT": 6, "MTT-SSL": 6}


@pytest.mark.parametrize("method, dataset, ipc", CELLS)
def test_settings_are_complete_and_of_the_right_kind(method, dataset, ipc):
    row = preset(method, dataset, ipc)
    assert row["source"].split(":")[0] in ("paper", "code", "issue", "other paper")
    for name in ("steps", "span", "last", "iterations", "experts", "epochs", "expert_batch"):
        assert isinstance(row[name], int) and row[name] > 0, name
    assert isinstance(row["batch"], int) and row["batch"] >= 0
    for name in (*RATES, *(n for n in row if n.startswith(("momentum", "lr_", "expert_")))):
        assert isinstance(row[name], int | float) and row[name] > 0, name
    assert isinstance(starts(row), Starts) and row["last"] - 1 + row["span"] <= row["epochs"]
    assert row["gradient"] in GRADIENTS and row["zca"] in (True, False, None)
    options = {name: row[name] for name in ("rho", "alpha")} if row["optimizer"] == "GSAM" else {}
    assert all((name in row) == row["labels"] for name in ("lr_labels", "momentum_labels"))
    assert {"SGD": SGD, "GSAM": GSAM, "Adam": Adam}[row["optimizer"]](row["expert_lr"], 0.0, 0.0, **options)
    assert (row["ema"] > 0) == (method == "FTD") and (row["threshold"] > 0) == (method == "DATM")


@pytest.mark.parametrize(
    "cell, expected",
    [
        (("MTT", "cifar10", 10), {"steps": 30, "last": 20, "step_size": 0.001, "zca": True, "batch": 0}),
        (("FTD", "cifar100", 50), {"steps": 80, "batch": 1000, "alpha": 1.0, "ema": 0.999, "lr_images": 1000}),
        (("FTD", "imagenet-subset", 10), {"step_size": 0.001, "batch": 64, "zca": False}),
        (("TESLA", "imagenet-1k", 1), {"experts": 50, "span": 3, "batch": 100, "gradient_scale": 0.5}),
        (("DATM", "cifar10", 1), {"threshold": 1.1, "batch": 10, "lr_labels": 5, "begin": 0}),
        (("DATM", "tiny-imagenet", 1), {"begin": 15, "growth": 2000, "threshold": 1.0, "lr_step_size": 1e-4}),
        (("DATM", "cifar100", 50), {"initialize": "real", "first": 20, "last": 70}),
        (("MKDT", "cifar10", 100), {"steps": 40, "span": 2, "last": 5, "lr_images": 1000, "batch": 256}),
        (("MKDT", "cifar100", 10), {"steps": 40, "last": 2, "lr_images": 1000, "step_size": 0.1}),
        (("MKDT", "cifar100", 25), {"last": 5, "lr_images": 10000, "targets": False, "lr_step_size": 1e-4}),
        (("MKDT", "tiny-imagenet", 25), {"steps": 10, "last": 2, "lr_images": 100000, "depth": 4, "side": 64}),
    ],
)
def test_some_cells_by_hand(cell, expected):
    row = preset(*cell)
    assert {name: row[name] for name in expected} == expected


class Moving:
    """Experts whose only weight is the epoch."""

    epochs = 100

    def __len__(self):
        return 2

    def at(self, expert, epoch):
        return {"w": torch.tensor([[float(epoch)]])}


def test_a_preset_becomes_an_objective():
    made = build("DATM", None, Moving(), preset("DATM", "cifar10", 1), augmentation="flip")
    assert (made.name, made.steps, made.span, made.batch) == ("DATM", 80, 2, 10)
    assert made.learns == ("images", "step_size", "label_logits") and made.threshold == 1.1
    assert made.starts == Starts(0, 4) and made.augmentation == "flip"
    made = build("TESLA", None, Moving(), preset("TESLA", "cifar10", 1) | {"steps": 3})
    assert made.gradient == "frozen" and made.learns == ("images", "step_size") and made.threshold == math.inf
    assert made.steps == 3


def test_the_preset_of_mkdt_matches_regressions():
    """Fixed targets, as in the paper, unless it is told to learn them; settings of the others have no loss by name."""
    found = preset("MKDT", "cifar100", 10)
    made = build("MKDT", None, Moving(), found)
    assert made.loss is squared_error and made.learns == ("images", "step_size") and made.augmentation == ""
    assert (made.steps, made.span, made.batch, made.starts) == (40, 2, 256, Starts(0, 2))
    learning = build("MKDT", None, Moving(), found | {"targets": True})
    assert learning.learns == ("images", "step_size", "targets")
    others = [cell for cell in CELLS if cell[0] not in ("MKDT", "MTT-SSL")]
    assert all(not {"loss", "targets", "expert_momentum"} & set(preset(*cell)) for cell in others)
    assert all(build(*cell[:1], None, Moving(), preset(*cell)).loss is cross_entropy for cell in others)


def test_students_are_trained_as_published_and_no_longer_than_they_are_read():
    for dataset, ipc, last in (("cifar10", 100, 6), ("cifar100", 10, 3), ("tiny-imagenet", 25, 3)):
        how = Trajectory(dataset, seed=7)
        settings = how.settings("MKDT", ipc)
        assert expert_epochs(settings) == last
        assert how.training(settings, "") == Training(100, SGD(0.1, 0.9, 1e-4), 256, "", 7, loss="squared error")
    assert "MKDT" not in TRAJECTORIES


def test_unpublished_cells_are_refused(refused):
    with refused("FDT", "FTD"):
        preset("FDT", "cifar10", 1)
    with refused("mnist", "tiny-imagenet"):
        preset("FTD", "mnist", 1)
    with refused(20, "1, 10, 50"):
        preset("FTD", "cifar10", 20)


def test_published_numbers_are_pairs_in_percent():
    rows = [
        (s, m, ipc, pair) for s, table in PUBLISHED.items() for m, row in table.items() for ipc, pair in row.items()
    ]
    assert all(len(pair) == 2 and 0 < pair[1] < 5 and 1 < pair[0] < 100 for *_, pair in rows)
    of = [(s, m) for s, m, *_ in rows]
    assert [sum(m == method for _, m in of if " on " not in _) for method in ("FTD", "DATM", "TESLA")] == [16, 9, 9]
    assert published("cifar10", "FTD", 50) == {"mean": pytest.approx(0.738), "std": pytest.approx(0.002)}
    assert published("tiny-imagenet", "FTD", 50) is None
