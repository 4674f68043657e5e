"""TESLA: published settings, its gradient and the rate that goes with it."""

from distillery.data import load
from distillery.distill import Optimizer
from distillery.evaluation import Protocol
from distillery.experiment import Experiment, Presets
from distillery.methods import METHODS
from distillery.networks import ConvNet
from distillery.recipe import Recipe
from distillery.runs import Runs


def test_a_cell_by_hand():
    settings = METHODS["TESLA"].settings("imagenet-1k", 1)
    assert (settings.experts, settings.expert_epochs, settings.student_batch) == (50, 3, 100)
    assert (settings.gradient, settings.gradient_scale, settings.iterations) == ("frozen", 0.5, 10000)
    assert {data: list(cells) for data, cells in METHODS["TESLA"].published.items()} == {
        "cifar10": [1],
        "cifar100": [50],
        "imagenet-1k": [1],
    }


def test_the_rate_of_the_pixels_is_half_the_published_one(tmp_path):
    splits = load("digits", per_class=10)
    changes = {"experts": 2, "expert_batch": 16, "student_steps": 3, "expert_epochs": 1, "max_start_epoch": 1}
    network, presets = ConvNet(splits.train.shape, 10, width=4), Presets("cifar10", changes)
    job = Experiment(splits, network, Protocol(1, 1), Runs(tmp_path), presets=presets).job(Recipe("TESLA", 1, 0))
    assert job.method.optimizers(job) == {"images": Optimizer(500.0, 0.5), "step_size": Optimizer(1e-7, 0.5)}
    made = job.method.matching(job)
    assert (made.gradient, made.learns, made.name, made.student_steps) == ("frozen", ("images", "step_size"), "TESLA", 3)
