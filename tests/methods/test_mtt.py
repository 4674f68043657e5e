"""MTT, and what trajectory methods share: published settings, banks of experts, iterates, protocol, ids, refusals."""

from dataclasses import replace

import pytest
import torch

from distillery import experts
from distillery.evaluation import Protocol
from distillery.experiment import Experiment, Presets, Validation
from distillery.experts import Training
from distillery.matching.trajectory import GRADIENTS, StartEpochs
from distillery.methods import METHODS, published
from distillery.methods.trajectories import Trajectories, make_bank
from distillery.networks import ConvNet
from distillery.recipe import Effect, Evaluate, Prune, Recipe
from distillery.runs import Runs
from distillery.training.dsa import DSA
from distillery.training.optimizers import SGD

NAMES = [name for name, one in METHODS.items() if isinstance(one, Trajectories)]
LABELLED = [name for name in NAMES if METHODS[name].labels]
CELLS = [(name, data, size) for name in NAMES for data, sizes in METHODS[name].published.items() for size in sizes]
SMALL = {
    "experts": 2, "expert_lr": 0.1, "expert_batch": 16, "expert_training_epochs": 10, "student_steps": 2, "expert_epochs": 1,
    "max_start_epoch": 2, "lr_images": 10.0, "lr_step_size": 1e-4, "step_size": 0.05, "steps": 4,
}  # fmt: skip


def experiment(splits, folder, times=0, network=None, protocol=None, **changes):
    network = network or ConvNet(splits.train.shape, 10, width=8)
    presets, validation = Presets("cifar10", SMALL | changes), Validation(times, 1, 2)
    return Experiment(splits, network, protocol or Protocol(2, 2), Runs(folder), presets=presets, validation=validation)


@pytest.fixture(scope="module")
def here(splits, tmp_path_factory):
    return experiment(splits, tmp_path_factory.mktemp("runs"), times=2)


@pytest.mark.parametrize("rate", [0.0, -0.1, float("nan")])
def test_a_rate_that_leaves_the_positive_numbers_is_not_judged_on_the_way(here, rate):
    job = here.job(Recipe("MTT", 1, 0))
    assert job.validated(job.first().replace(step_size=torch.tensor(rate))) == 0.0


# Published settings


def test_every_published_row_is_there():
    """9 rows of MTT and 8 of FTD, each with a subset row for two sizes; 3 of TESLA; 12 of DATM; 6 of MKDT; as many of MTT-SSL."""
    counts = {name: sum(cell[0] == name for cell in CELLS) for name in NAMES}
    assert counts == {"MTT": 11, "FTD": 10, "TESLA": 3, "DATM": 12, "MKDT": 6, "MTT-SSL": 6}


@pytest.mark.parametrize("name, dataset, size", CELLS)
def test_settings_are_of_the_right_kind(name, dataset, size):
    settings = METHODS[name].settings(dataset, size, 50_000)
    assert settings.start_epochs and 0 < settings.max_start_epoch - 1 + settings.expert_epochs <= settings.expert_training_epochs
    for one in ("lr_images", "lr_step_size", "step_size", "momentum", "expert_lr", "expert_batch", "experts", "iterations"):
        assert getattr(settings, one) > 0, one
    assert settings.gradient in GRADIENTS and isinstance(settings.student_batch, int)
    assert isinstance(settings.expert_optimizer, SGD) and settings.steps == settings.expert_seed == 0
    assert METHODS[name].cell(dataset, size, 50_000).keys().isdisjoint({"ema", "labels"} if name == "MTT" else {})


@pytest.mark.parametrize(
    "dataset, size, expected",
    [
        ("cifar10", 10, {"student_steps": 30, "max_start_epoch": 20, "step_size": 0.001, "student_batch": 0}),
        ("cifar100", 50, {"student_steps": 80, "student_batch": 125, "max_start_epoch": 40, "lr_step_size": 1e-5}),
        ("imagenet-subset", 1, {"student_steps": 20, "lr_images": 100000, "lr_step_size": 1e-6, "max_start_epoch": 10}),
    ],
)
def test_some_cells_by_hand(dataset, size, expected):
    settings = METHODS["MTT"].settings(dataset, size)
    assert {name: getattr(settings, name) for name in expected} == expected
    assert METHODS["MTT"].updates(settings, size) == 5000 and settings.ema == 0 and "ema" not in settings.spec()


def test_images_were_whitened_where_it_is_said():
    found = {(d, n): (METHODS["MTT"].common | cell)["normalization"] for d, c in METHODS["MTT"].published.items() for n, cell in c.items()}
    whitened = {("cifar10", 1), ("cifar10", 10), ("cifar100", 1), ("cifar100", 50)}
    assert {key for key, value in found.items() if value == "zca"} == whitened


def test_cells_that_are_not_published_are_refused(refused):
    with refused("mnist", "tiny-imagenet"):
        METHODS["FTD"].settings("mnist", 1)
    with refused(20, "1, 10, 50"):
        METHODS["FTD"].settings("cifar10", 20)


def test_published_numbers():
    counts = {name: sum(len(row) for data, row in METHODS[name].numbers.items() if " on " not in data) for name in LABELLED}
    assert counts == {"MTT": 17, "FTD": 16, "TESLA": 9, "DATM": 9}
    assert published("imagewoof", "MTT", 10) == {"mean": pytest.approx(0.358), "std": pytest.approx(0.018)}


# Changes


@pytest.mark.parametrize("name", LABELLED)
def test_a_changed_range_of_start_epochs_starts_at_0_and_does_not_grow(name):
    dataset, size = ("cifar100", 50) if name in ("DATM", "TESLA") else ("cifar10", 1)
    method = METHODS[name]
    assert method.settings(dataset, size, changes={"max_start_epoch": 4}).start_epochs == StartEpochs(0, 4)
    both = {"max_start_epoch": 4, "min_start_epoch": 2}
    assert method.settings(dataset, size, own=both).start_epochs == StartEpochs(2, 4)


def test_a_change_gives_no_method_a_setting_that_it_has_not(splits, tmp_path):
    there = experiment(splits, tmp_path, ema=0.5, lr_labels=1.0)
    assert there.job(Recipe("MTT", 1, 0)).settings.ema == 0
    assert there.job(Recipe("FTD", 1, 0)).settings.ema == 0.5


def test_impossible_settings_are_refused(here, refused):
    wrong = {
        "gradient": "exakt", "optimizer": "GSAM", "student_steps": 0, "expert_epochs": 0, "experts": 0, "lr_images": -1.0,
        "min_start_epoch": 3, "expert_precision": "bfloat16",
    }  # fmt: skip
    for name, value in wrong.items():
        with refused(value):
            here.check(Recipe("MTT", 1, 0, settings={name: value}))
    with refused("max_start", "max_start_epoch"):
        Recipe("MTT", 1, 0, settings={"max_start": 2})


# Experts


def test_experts_are_trained_once_as_far_as_they_are_read_and_billed_apart(splits, tmp_path, monkeypatch):
    there, trained = experiment(splits, tmp_path), []
    train = Training.train
    monkeypatch.setattr(Training, "train", lambda *args, **more: trained.append(1) or train(*args, **more))
    first = there.run(Recipe("MTT", 1, 0))
    made = len(trained)
    second = there.run(Recipe("TESLA", 1, 1))
    assert made and len(trained) == made
    cost = first["experts"]
    assert second["experts"] == cost == there.costs[cost["id"]] and cost["samples"] == 2 * 2 * len(splits.train)
    job = there.job(Recipe("MTT", 1, 0))
    assert job.method.experts(job).epochs == 2 and len(there.shared) == 1
    assert there.run(Recipe("FTD", 1, 0))["experts"]["id"] != cost["id"] and len(there.shared) == 1
    assert there.billed_passes == [*there.scores.costs.values(), *there.costs.values()]


def test_experts_of_a_pruned_set_are_trained_on_what_is_kept(here, splits):
    job = here.job(Recipe("MTT", 1, 0, Prune(0.5, "random")))
    source = splits.train.subset(job.kept)
    assert make_bank(here, source, *job.method.bank(job))["samples"] == 2 * 2 * len(source) < 4 * len(splits.train)
    found = experts.load(here.runs.folder / "artifacts" / "experts", here.network, source, *job.method.bank(job))
    bank = job.method.experts(job)
    assert all(torch.equal(value, found.weights[name]) for name, value in bank.weights.items())


def test_experts_meet_the_augmentation_of_the_experiment_and_have_a_seed_of_their_own(here, splits, tmp_path):
    job = here.job(Recipe("MTT", 1, 7))
    assert job.method.bank(job) == (Training(2, SGD(0.1, 0.0, 0.0), 16, DSA, 0), 2)
    other = experiment(splits, tmp_path, expert_seed=3).job(Recipe("MTT", 1, 7))
    assert other.method.bank(other)[0].seed == 3


def test_the_precision_of_experts_is_part_of_an_id_where_it_is_not_float32(here):
    plain, same, low = (here.job(Recipe("MTT", 1, 0, settings=s)) for s in ({}, *({"expert_precision": p} for p in experts.PRECISIONS)))
    assert here.set_id(plain.recipe) == here.set_id(same.recipe) != here.set_id(low.recipe)
    assert "expert_precision" not in plain.settings.spec() and low.method.bank(low)[0].precision == "tf32"


# Sets


@pytest.mark.parametrize("name", LABELLED)
def test_a_run_learns_what_it_says(here, name):
    result = here.run(Recipe(name, 1, 0))
    made = here.synthetic(result)
    assert set(made.tensors) == {"targets", *METHODS[name].learns} and result["steps"] == 4 and result["samples"] == 0
    assert result["step_size"] == float(made.tensors["step_size"]) != 0.05 and result["moved"] > 0
    assert result["skipped"] >= 0 and result["best_step"] in (0, 2, 4) and 0 <= result["best_score"] <= 1
    job = here.job(Recipe(name, 1, 0))
    protocol, steps_of = job.method.protocol(job, here.protocol, made)
    assert protocol.lr == pytest.approx(result["step_size"]) and steps_of == 10
    assert protocol.batch == here.protocol.batch


@pytest.mark.parametrize("start", ["noise", "herding", "k-means"])
def test_starts(here, start):
    result = here.run(Recipe("MTT", 1, 0, start=start))
    first = here.synthetic(result).card["start"]
    if start == "noise":
        assert abs(float(first.mean())) < 0.2
    else:
        assert torch.equal(first, here.synthetic(here.run(Recipe(start, 1, 0))).tensors["images"])


def test_the_best_iterate_needs_validation_and_is_of_its_protocol(here, splits, tmp_path, refused):
    best = Evaluate(iterate="best")
    assert here.run(Recipe("MTT", 1, 0, evaluate=best))["artifact"] == here.run(Recipe("MTT", 1, 0))["artifact"]
    never = experiment(splits, tmp_path)
    with refused("best", "validations"):
        never.run(Recipe("MTT", 1, 0, evaluate=best))
    with refused("ema", "last, best"):
        Recipe("MTT", 1, 0, evaluate=Evaluate(iterate="ema"))
    longer = replace(here.protocol, epochs=3)
    others = [experiment(splits, tmp_path, times, protocol=one) for times in (0, 2) for one in (here.protocol, longer)]
    ids = [one.set_id(Recipe("MTT", 1, 0)) for one in others]
    assert ids[0] == ids[1] and len(set(ids)) == 3  # without validation a set is of no protocol


def test_gradients_are_a_setting(here):
    """The exact sweep and the unrolled loop give one set up to rounding, TESLA's another."""
    found = {}
    for gradient in GRADIENTS:
        settings = {"gradient": gradient, "student_steps": 4}
        found[gradient] = here.synthetic(here.run(Recipe("MTT", 1, 0, settings=settings))).tensors["images"]
    assert torch.allclose(found["exact"], found["unrolled"], atol=1e-3)
    assert not torch.allclose(found["exact"], found["frozen"], atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_samplers_are_refused(name, refused):
    with refused(name, "experts have seen the real images"):
        Recipe(name, 1, 0, batches=Effect(0.2))
