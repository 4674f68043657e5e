"""FTD: published settings, flat experts, and the moving average of its images."""

import pytest
import torch

from distillery.data import load
from distillery.evaluation import Protocol
from distillery.experiment import Experiment, Presets
from distillery.methods import METHODS, published
from distillery.networks import ConvNet
from distillery.recipe import Evaluate, Recipe
from distillery.runs import Runs
from distillery.training.optimizers import GSAM, SGD

SMALL = {
    "experts": 2, "expert_lr": 0.1, "expert_batch": 16, "student_steps": 2, "expert_epochs": 1, "max_start_epoch": 2, "lr_images": 10.0,
    "lr_step_size": 1e-4, "step_size": 0.05, "steps": 4,
}  # fmt: skip


@pytest.mark.parametrize(
    "dataset, size, expected",
    [
        ("cifar10", 1, {"student_steps": 50, "max_start_epoch": 2, "alpha": 0.3, "ema": 0.9999, "lr_step_size": 1e-7}),
        ("cifar100", 50, {"student_steps": 80, "student_batch": 1000, "alpha": 1.0, "ema": 0.999, "lr_images": 1000}),
        ("imagenet-subset", 10, {"step_size": 0.001, "student_batch": 64}),
    ],
)
def test_some_cells_by_hand(dataset, size, expected):
    settings = METHODS["FTD"].settings(dataset, size)
    assert {name: getattr(settings, name) for name in expected} == expected
    assert settings.expert_optimizer == GSAM(0.01, 0.0, 0.0, rho=0.01, alpha=expected.get("alpha", 1.0))


def test_subsets_of_imagenet_have_a_source_of_their_own():
    method = METHODS["FTD"]
    assert all(cell["source"].startswith("issue") for cell in method.published["imagenet-subset"].values())
    assert all(cell["normalization"] == "published:tiny-imagenet" for cell in method.published["imagenet-subset"].values())
    assert method.common["normalization"] == "zca" and "source" not in method.published["cifar10"][1]


def test_published_numbers():
    """With the average; without it DATM's authors measured less."""
    assert published("cifar10", "FTD", 50) == {"mean": pytest.approx(0.738), "std": pytest.approx(0.002)}
    assert published("cifar10", "FTD without EMA (DATM's run)", 50)["mean"] == pytest.approx(0.732)
    assert published("tiny-imagenet", "FTD", 50) is None


@pytest.fixture
def here(tmp_path):
    splits = load("digits", per_class=10)
    network, presets = ConvNet(splits.train.shape, 10, width=4), Presets("cifar10", SMALL | {"ema": 0.5})
    return Experiment(splits, network, Protocol(2, 2), Runs(tmp_path), presets=presets)


def test_the_average_is_an_iterate_of_one_set(here, refused):
    """Its images are others; step size and labels are the last ones."""
    last, averaged = (here.run(Recipe("FTD", 1, 0, evaluate=Evaluate(iterate=one))) for one in ("last", "ema"))
    assert last["artifact"] == averaged["artifact"]
    made, mean = here.synthetic(last), here.synthetic(averaged, "ema")
    assert not torch.equal(made.tensors["images"], mean.tensors["images"])
    assert torch.equal(made.tensors["step_size"], mean.tensors["step_size"])
    with refused("ema", "0"):
        here.run(Recipe("FTD", 1, 0, settings={"ema": 0.0}, evaluate=Evaluate(iterate="ema")))
    with refused("ema", "1.5"):
        here.run(Recipe("FTD", 1, 0, settings={"ema": 1.5}))


def test_without_flat_experts_and_average_it_is_mtt(here):
    """At equal settings: SGD's experts, the last images."""
    settings = {"optimizer": "SGD", "ema": 0.0}
    job = here.job(Recipe("FTD", 1, 0, settings=settings))
    assert job.settings.expert_optimizer == SGD(0.1, 0.0, 0.0)
    ours, theirs = (here.synthetic(here.run(one)) for one in (job.recipe, Recipe("MTT", 1, 0)))
    assert all(torch.equal(value, theirs.tensors[name]) for name, value in ours.tensors.items())


@pytest.mark.parametrize(
    "settings, judged",
    [
        ({"ema": 0.98, "steps": 150}, False),
        ({"ema": 0.98, "steps": 1000}, True),
        ({"ema": 0.999, "steps": 0}, True),
        ({"ema": 0.999, "steps": 4999}, False),
    ],
)
def test_an_average_is_judged_where_its_lag_is_short_or_published(here, settings, judged):
    """150 updates are three lags of .98; the published 5000 are five of .999, and judged."""
    job = here.job(Recipe("FTD", 1, 0, settings=settings))
    assert (job.method.behind(job) == "") == judged
    assert judged or f"of {settings['steps']} updates" in job.method.behind(job)
