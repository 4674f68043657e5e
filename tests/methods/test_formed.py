"""IDM and IDC in an experiment: packed starts, the rate of one step for all classes, changed settings, refusals."""

import pytest
import torch

from distillery.evaluation import Protocol
from distillery.experiment import Experiment, Presets
from distillery.methods import METHODS
from distillery.networks import ConvNet
from distillery.recipe import Effect, Prune, Recipe
from distillery.runs import Runs

SHORT = {"steps": 3, "batch": 8, "train_batch": 16}


def experiment(splits, folder, dataset="cifar10", **changes):
    network, presets = ConvNet(splits.train.shape, 10, width=4), Presets(dataset, changes)
    return Experiment(splits, network, Protocol(2, 1), Runs(folder), presets=presets)


@pytest.mark.parametrize(("method", "interpolation"), [("IDM", "bilinear"), ("IDC", "nearest")])
def test_packed_sets_hold_four_images_in_each(method, interpolation, splits, tmp_path):
    """Each method starts from the very images of the packed random row that shrinks as it does."""
    here = experiment(splits, tmp_path)
    packed = here.synthetic(here.run(Recipe("random, packed", 1, 1, settings={"interpolation": interpolation})))
    assert len(packed) == 10 and len(packed.decode()[0]) == 40
    made = here.synthetic(here.run(Recipe(method, 1, 1, settings=SHORT | {"lr": 1e-9})))
    assert torch.allclose(made.tensors["images"], packed.tensors["images"], atol=1e-5)
    assert torch.equal(made.card["start"], packed.tensors["images"])


@pytest.mark.parametrize(
    ("method", "size", "steps"), [("IDM", 1, 1001), ("IDM", 10, 2002), ("IDC", 50, 8008), ("IDM", 50, 8008), ("DM", 50, 2002)]
)
def test_an_evaluation_counts_every_image_that_is_stored_with_others(method, size, steps, splits, tmp_path):
    """As the public code of IDM has it on CIFAR-10: 2,000 images of 50 stored ones a class are eight batches of 256."""
    here = Experiment(splits, ConvNet(splits.train.shape, 10, width=4), Protocol(5, 1000), Runs(tmp_path))
    recipe = Recipe(method, size, 0)
    protocol, images = METHODS[method].protocol(here.job(recipe), here.protocol, None)
    assert protocol.optimizer(images)[1] == steps
    assert here.evaluation_inputs(recipe).get("steps", steps) == steps
    assert ("steps" in here.evaluation_inputs(recipe)) == (method != "DM" and size > 1)  # ids of what has not changed stay


def test_too_few_images_are_refused(splits, tmp_path, refused):
    with refused("at least 8"):
        experiment(splits, tmp_path).run(Recipe("IDC", 2, 1, Prune(5), settings=SHORT))


@pytest.mark.parametrize("method", ["IDM", "IDC", "IDC-I"])
def test_one_step_serves_all_classes(method, splits, tmp_path):
    """That of .2 (1 - .5^10) / .5 for IDM on ten classes, without momentum."""
    job = experiment(splits, tmp_path).job(Recipe(method, 10, 0))
    (optimizer,) = job.method.optimizers(job).values()
    assert optimizer.lr == pytest.approx(2 * job.settings.lr * (1 - 0.5**10)) and optimizer.momentum == 0


@pytest.mark.parametrize("method", ["IDM", "IDC", "IDC-I"])
def test_treatment_effects_are_a_plug(method, splits, tmp_path):
    """A share of each batch is dropped in every step; the run says how many images were left."""
    here = experiment(splits, tmp_path, n_data=32, train_steps=2)
    result = here.run(Recipe(method, 1, 0, Prune(0.5), batches=Effect(0.5, 2), settings=SHORT))
    assert 1 <= result["effective_batch"] < 8
    assert "effective_batch" not in here.run(Recipe(method, 1, 0, settings=SHORT))


def test_changed_settings(splits, tmp_path, refused):
    """Those that a method does not have do not concern it."""
    here = experiment(splits, tmp_path, "svhn", n_data=64, ce_weight=0.1)
    job = here.job(Recipe("IDC", 1, 0, settings=SHORT))
    assert job.settings.n_data == 64 and not hasattr(job.settings, "ce_weight")
    assert job.method.matching(job).train_steps == 4
    there = experiment(splits, tmp_path, "svhn", n_data=128)
    assert here.run(job.recipe)["loss"] != there.run(job.recipe)["loss"]
    with refused("imagenet-100"):
        experiment(splits, tmp_path, "imagenet-100").run(job.recipe)
    with refused("formation", "grid", "partition2"):
        here.check(Recipe("IDC", 1, 0, settings={"formation": "grid"}))


def test_no_cutout_where_cutmix_is_on(splits, tmp_path):
    """Neither where sets are judged nor where networks train on real images; what is matched meets no CutMix."""
    trainings = [one for method in METHODS.values() for one in (method.judged, *method.judged_on.values()) if one]
    stages = [(one.augmentation, one.cutmix) for one in trainings]
    mixing = [name for name, method in METHODS.items() if "cutmix" in method.common]
    for name in mixing:
        for dataset in METHODS[name].published:
            made = METHODS[name].matching(experiment(splits, tmp_path, dataset).job(Recipe(name, 1, 0)))
            stages.append((made.train_augmentation, made.cutmix))
    assert set(mixing) == {"IDC", "IDC-I"} and any("cutout" in families for families, _ in stages)
    assert [families for families, cutmix in stages if cutmix and "cutout" in families] == []


def test_augmentation_is_that_of_the_method_or_of_the_experiment(splits, tmp_path):
    here = experiment(splits, tmp_path)
    for settings, expected in (({}, "color+crop+cutout"), ({"augmented": True}, here.augmentation)):
        job = here.job(Recipe("IDC", 1, 0, settings=settings))
        assert METHODS["IDC"].matching(job).augmentation == expected
