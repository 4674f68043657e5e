"""What methods of a ridge regression share: what a run says, iterates, refusals, and that test images decide nothing."""

from dataclasses import replace

import pytest
import torch

from distillery.evaluation import Protocol
from distillery.experiment import Experiment, Presets, Validation
from distillery.networks import ConvNet
from distillery.recipe import Effect, Evaluate, Prune, Recipe
from distillery.runs import Runs

SHORT = {"steps": 4, "batch": 8}


def experiment(splits, folder, times=0, loss="half squared error", **options):
    changes = {"width": 4, "networks": 2, "eval_networks": 2, "pool": 2, "flip": False}
    network, protocol = ConvNet(splits.train.shape, 10, width=4), Protocol(2, 1, loss=loss)
    presets, validation = Presets("cifar10", changes), Validation(times)
    return Experiment(splits, network, protocol, Runs(folder), presets=presets, validation=validation, **options)


@pytest.mark.parametrize("method, draws, learned", [("KIP", 1, 0), ("FRePo", 2, 100), ("RFAD", 2, 1)])
def test_a_run_says_how_its_regression_did(method, draws, learned, splits, tmp_path):
    """Learned labels, or a scale, count as stored."""
    here = experiment(splits, tmp_path, times=2)
    result = here.run(Recipe(method, 1, 0, settings=SHORT))
    assert len(result["regression"]) == len(result["at_start"]) == draws
    assert [step for step, _ in result["curve"]] == [2, 4]
    assert result["stored_numbers"] == 640 + learned and result["steps"] == 4
    best = here.run(Recipe(method, 1, 0, settings=SHORT, evaluate=Evaluate(iterate="best")))
    assert len(best["accuracies"]) == 2 and best["artifact"] == result["artifact"]
    never = experiment(splits, tmp_path).run(Recipe(method, 1, 0, settings=SHORT))
    assert "curve" not in never and never["artifact"] != result["artifact"]
    assert never["loss"] == result["loss"]


def test_test_images_decide_nothing_that_is_learned(splits, tmp_path):
    """Other test images: the same set, the same curve."""
    here = experiment(splits, tmp_path / "a", times=2)
    there = experiment(replace(splits, test=splits.validation), tmp_path / "b", times=2)
    one, other = (each.run(Recipe("KIP", 1, 0, settings=SHORT)) for each in (here, there))
    assert torch.equal(*(e.synthetic(r).tensors["images"] for e, r in ((here, one), (there, other))))
    assert one["curve"] == other["curve"]


def test_learned_labels_need_a_protocol_that_takes_them(splits, tmp_path, refused):
    """Refused before anything is made."""
    here = experiment(splits, tmp_path, loss="cross-entropy")
    with refused("squared error", "FRePo"):
        here.run(Recipe("FRePo", 1, 0, settings={"steps": 10**9}))
    assert here.run(Recipe("KIP", 1, 0, settings=SHORT))["regression"]
    with refused("best", "validations"):
        here.run(Recipe("KIP", 1, 0, settings={"steps": 10**9}, evaluate=Evaluate(iterate="best")))


@pytest.mark.parametrize("method", ["KIP", "FRePo", "RFAD"])
def test_settings_that_an_objective_refuses_are_refused_before_it_runs(method, splits, tmp_path, refused):
    here = experiment(splits, tmp_path)
    for name, value in (("rho", 0.0), ("batch", 0), ("optimizer", "sgdd"), ("schedule", "steep"), ("lr", -1.0)):
        with refused(name, value):
            here.check(Recipe(method, 1, 0, settings={name: value}))


def test_treatment_effects_are_refused(refused):
    """Real images enter by no mean of a statistic."""
    with refused("KIP", "statistic"):
        Recipe("KIP", 1, 0, batches=Effect(0.2))


def test_a_pruned_set_is_drawn_by_sensitivity(splits, tmp_path):
    here = experiment(splits, tmp_path)
    recipe = Recipe("KIP", 1, 0, Prune(0.5, "proportional", "ridge sensitivity"), settings=SHORT)
    kept = here.kept(recipe)
    assert len(kept) == len(splits.train) // 2 and len(kept.unique()) == len(kept)
    assert here.run(recipe)["regression"]
