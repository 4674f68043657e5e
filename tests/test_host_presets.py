"""Published settings and numbers of IDM, IDC and the kernel methods: complete, of the kinds the code expects, and what is built of them."""

import pytest
import torch

from distillery.data import NORMALIZATIONS, Standardize
from distillery.data.synthetic import FORMATIONS, Synthetic, pack
from distillery.distill import Optimizer, distill
from distillery.matching import hosts
from distillery.matching.hosts import build, preset, presets, rate, steps
from distillery.matching.idc import METRICS, MultiFormation
from distillery.matching.idm import QueueMatching
from distillery.networks import ConvNet
from distillery.recipes import PUBLISHED
from distillery.sampling import Uniform
from distillery.seeds import generator
from distillery.training.dsa import DSA, parse

CELLS = [
    (method, dataset, ipc)
    for method, table in presets().items()
    for dataset, settings in table.items()
    if dataset != "common"
    for ipc in settings.get("ipc", (1, 10, 20, 50))
]


def network():
    return ConvNet((1, 8, 8), 3, width=4, depth=1)


@pytest.mark.parametrize("method, dataset, ipc", CELLS)
def test_settings_are_complete_and_make_an_objective(method, dataset, ipc):
    settings = preset(method, dataset, ipc)
    assert settings["source"].split(":")[0] in ("paper", "code", "issue", "other paper")
    assert settings["formation"] in FORMATIONS and settings["initialize"] == "real"
    assert settings["normalization"] in NORMALIZATIONS and settings["lr"] > 0
    assert settings.get("metric", "mse") in METRICS
    kernel = settings["objective"] == "kernel"
    assert kernel or settings["augmented"] or parse(settings["augmentation"])
    transform = Standardize(torch.tensor([0.5]), torch.tensor([0.2]))
    made = build(settings, network(), DSA, transform=transform)
    assert made.name == method and made.batch == settings["batch"]


@pytest.mark.parametrize(
    "cell, expected",
    [
        (("IDM", "cifar10", 1), {"ce_weight": 0.5, "batch": 5000, "interval": 5, "lr": 0.2, "capacity": 100}),
        (("IDM", "cifar100", 10), {"ce_weight": 0.1, "train_steps": 50, "interval": 30, "batch": 256}),
        (("IDM", "tiny-imagenet", 50), {"ce_weight": 0.8, "train_steps": 50, "depth": 4}),
        (("IDC", "cifar10", 10), {"lr": 5e-3, "n_data": 2000, "metric": "mse", "formation": "partition2"}),
        (("IDC", "svhn", 50), {"lr": 2.5e-2, "n_data": 500}),
        (("IDC", "mnist", 10), {"lr": 1e-4, "metric": "l1", "augmentation": "color+crop", "cutmix": 0.0}),
        (("IDC-I", "mnist", 10), {"augmentation": "color+crop+cutout", "cutmix": 0.5, "formation": "identity"}),
        (("IDC-I", "fashion-mnist", 50), {"lr": 3.83e-4, "metric": "l1"}),
        (
            ("KIP", "cifar10", 10),
            {"lr": 0.04, "batch": 500, "rho": 1e-6, "layers": 1, "labels": False, "optimizer": "adam"},
        ),
        (
            ("FRePo", "cifar10", 10),
            {"lr": 3e-4, "batch": 1024, "rho": 1e-6, "pool": 10, "age": 100, "flip": True, "labels": True},
        ),
        (("FRePo", "cifar100", 10), {"flip": False, "optimizer": "lamb", "iterations": 500000, "width": 128}),
        (
            ("RFAD", "cifar10", 1),
            {"lr": 1e-3, "lr_scale": 1e-2, "batch": 5120, "rho": 5e-3, "networks": 8, "judged": 16, "width": 256},
        ),
        (("RFAD", "mnist", 1), {"normalization": "published", "optimizer": "adabelief", "platt": True}),
        (("IDC-I", "cifar100", 20), {"lr": 1e-2, "normalization": "published:cifar10", "cutmix": 0.5}),
    ],
    ids=str,
)
def test_some_cells_by_hand(cell, expected):
    settings = preset(*cell)
    for name, value in expected.items():
        assert settings[name] == (pytest.approx(value, rel=1e-3) if isinstance(value, float) else value)


def test_a_preset_becomes_an_objective():
    made = build(preset("IDM", "cifar100", 10), network(), DSA)
    assert isinstance(made, QueueMatching) and made.augmentation == DSA
    assert (made.ce_weight, made.train_steps, made.interval, made.capacity) == (0.1, 50, 30, 100)
    transform = Standardize(torch.tensor([0.5]), torch.tensor([0.2]))
    made = build(preset("IDC", "mnist", 1), network(), DSA, transform=transform, n_data=64)
    assert isinstance(made, MultiFormation) and made.augmentation == "color+crop"
    assert (made.cutmix, made.train_steps, made.updates) == (0.0, 1, 100)
    assert made.metric is METRICS["l1"] and "images" in made.bounds


def test_rates_and_steps():
    """One step for ten classes is that of .2 (1 - .5^10) / .5; 2000 networks of IDC see 100 updates each."""
    settings = preset("IDM", "cifar10", 10)
    assert rate(settings, 10) == pytest.approx(0.4 * (1 - 0.5**10)) and steps(settings) == 20_000
    assert steps(preset("IDC", "cifar10", 10)) == 200_000


@pytest.mark.parametrize("method", [method for method in presets() if method not in hosts.KERNELS])
def test_a_few_steps_of_a_preset(tiny, method):
    settings = preset(method, "cifar10", 1)
    copies = FORMATIONS[settings["formation"]]
    chosen = torch.cat([tiny.of_class(c)[:copies] for c in range(3)])
    images = pack(tiny.batch(chosen), settings["formation"], settings["shrink"])
    start = Synthetic({"images": images, "targets": torch.arange(3)}, tiny.classes, settings["formation"])
    short = {"n_data": 128} if method != "IDM" else {"train_steps": 2}
    objective = build(settings, network(), DSA, transform=tiny.transform, **short)
    done = distill(
        start, objective, tiny, Uniform(tiny.targets), {"images": Optimizer(rate(settings, 3))}, 3, generator(0, "x")
    )
    assert done.last.tensors["images"].isfinite().all()
    assert not torch.equal(done.last.tensors["images"], images)


def test_unpublished_cells_are_refused(refused):
    with refused("DREAM", "IDC-I"):
        preset("DREAM", "cifar10", 1)
    with refused("svhn", "tiny-imagenet"):
        preset("IDM", "svhn", 1)
    with refused(20, "1, 10, 50"):
        preset("IDM", "cifar10", 20)
    with refused(0, "ipc"):
        preset("IDC", "cifar10", 0)


def test_settings_of_one_cell_are_not_those_of_another():
    preset("IDM", "cifar10", 1)["lr"] = 7
    assert preset("IDM", "cifar10", 1)["lr"] == 0.2 and "ipc" in hosts.presets()["IDM"]["cifar10"]


def test_published_numbers_are_pairs_in_percent():
    rows = {(s, m): row for s, table in PUBLISHED.items() for m, row in table.items() if m in presets()}
    assert {key: len(row) for key, row in rows.items()} == {
        ("cifar10", "IDM"): 3,
        ("cifar10", "IDC"): 3,
        ("cifar100", "IDM"): 3,
        ("tiny-imagenet", "IDM"): 3,
        ("imagenet-100", "IDM"): 3,
    }
    assert PUBLISHED["cifar10"]["IDM"][50] == [67.5, 0.1] and PUBLISHED["cifar10"]["IDC"][1] == [50.0, 0.4]
