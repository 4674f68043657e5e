"""Patches of real images: where they are cut, which are kept, how they are stored and labelled."""

import pytest
import torch
from torchvision.transforms.functional import resized_crop

from distillery.evaluation import Protocol, Teacher
from distillery.experiment import Experiment, Presets
from distillery.methods import METHODS
from distillery.methods.rded import boxes, cut, realistic, realistic_plain
from distillery.networks import ConvNet, Output
from distillery.recipe import Prune, Recipe
from distillery.runs import Runs
from distillery.seeds import generator

NAMES = ("RDED", "RDED, hard labels", "patches", "patches, early network")
SHORT = {"teacher_epochs": 4, "crops": 3, "factor": 2}


def experiment(splits, folder, dataset="cifar10", **changes):
    network, presets = ConvNet(splits.train.shape, 10, width=4), Presets(dataset, changes)
    return Experiment(splits, network, Protocol(2, 2), Runs(folder), presets=presets)


def teacher(shape, classes=3):
    network = ConvNet(shape, classes, width=4, depth=1)
    return Teacher(network, network.init(generator(0, "teacher")))


def test_boxes_lie_inside_and_show_what_was_asked():
    places = boxes(500, 4, 12, 20, 0.25, generator(0, "boxes")).flatten(0, 1)
    top, left, tall, wide = places.T
    assert (places >= 0).all() and (top + tall).max() == 12 and (left + wide).max() == 20
    part = tall * wide / (12 * 20)
    assert 0.2 < part.min() < 0.3 and part.max() > 0.95 and float(part.mean()) == pytest.approx((1 + 0.25) / 2, abs=0.02)
    assert (tall * 20 - wide * 12).abs().max() <= 16  # of the image's proportions, but for rounding


def test_a_patch_is_cut_as_torchvision_cuts_it():
    images, places = torch.rand(3, 3, 16, 12, generator=generator(0, "images")), boxes(3, 5, 16, 12, 0.08, generator(1, "boxes"))
    for image, patches, own in zip(images, cut(images, places, 8, 6), places.tolist(), strict=True):
        for patch, box in zip(patches, own, strict=True):
            assert torch.allclose(patch, resized_crop(image, *box, [8, 6], antialias=True), atol=1e-6)


@pytest.mark.parametrize(
    "shape, factor, crops, n", [((1, 8, 8), 2, 3, 4), ((3, 9, 7), 2, 2, 5), ((3, 8, 8), 1, 4, 6), ((1, 8, 8), 2, 1, 1)]
)
@pytest.mark.parametrize("enlarged", [False, True], ids=["framed", "enlarged"])
def test_patches_in_batches_are_those_of_one_after_another(shape, factor, crops, n, enlarged):
    images = torch.randn(6, *shape, generator=generator(1, "images"))
    places = boxes(6, crops, *shape[1:], 0.08, generator(2, "boxes"))
    h, w = (side // factor for side in shape[1:])
    found = realistic(teacher(shape), cut(images, places, h, w), 2, n, *shape[1:], enlarged)
    assert torch.allclose(found, realistic_plain(teacher(shape), images, places, 2, n, h, w, enlarged), atol=1e-5)
    assert found.shape == (n, shape[0], h, w)


def test_the_best_patch_of_each_image_and_then_the_best_of_these():
    """By a teacher who tells class 0 by the brightness of the middle: of three images, two patches each."""

    class Bright:
        def apply(self, weights, images, train):
            assert not train
            middle = images[0, :, 0, 2, 2]
            logits = torch.stack([middle, torch.zeros_like(middle)], -1)[None]
            return Output(logits, logits, {})

    class One(Teacher):
        def logits(self, images):
            return Bright().apply({}, images[None], train=False).logits[0]

    values = torch.tensor([[1.0, 5.0], [6.0, 2.0], [3.0, 4.0]])
    patches = values[:, :, None, None, None].expand(3, 2, 1, 2, 2)
    assert realistic(One(None, {}), patches, 0, 2, 4, 4)[:, 0, 0, 0].tolist() == [6.0, 5.0]
    assert realistic(One(None, {}), patches, 1, 3, 4, 4)[:, 0, 0, 0].tolist() == [1.0, 2.0, 3.0]


@pytest.fixture(scope="module")
def sets(splits, tmp_path_factory):
    here = experiment(splits, tmp_path_factory.mktemp("runs"), **SHORT)
    changes = {"patches": {"teacher_epochs": 0}, "patches, early network": {"teacher_epochs": 1}}
    recipes = {name: Recipe(name, 2, 0, Prune(0.8, "random"), settings=changes.get(name, {})) for name in NAMES}
    return here, recipes, {name: here.synthetic(here.run(recipe)) for name, recipe in recipes.items()}


def test_patches_are_stored_best_first_across_the_images_of_a_class(sets):
    """The two stored images of a class hold the ranks 0, 2, 4, 6 and 1, 3, 5, 7 of patches from kept images alone."""
    here, recipes, made = sets
    job = here.job(recipes["RDED, hard labels"])
    seen, stream, one = job.method.teacher(job), job.stream("patches"), made["RDED, hard labels"]
    for label in range(10):
        members = job.kept[job.kept_labels == label]
        members = members[torch.randperm(len(members), generator=stream)]
        places = boxes(len(members), 3, 8, 8, 0.08, stream)
        ranked = realistic_plain(seen, here.real.batch(members), places, label, 8, 4, 4)
        stored = one.tensors["images"][2 * label : 2 * label + 2]
        quarters = [stored[:, :, rows, columns] for rows in (slice(4), slice(4, 8)) for columns in (slice(4), slice(4, 8))]
        assert torch.allclose(torch.cat(quarters), ranked, atol=1e-5)  # first quarters of both images, then second ones


def test_labels_are_the_teachers_or_the_classes(sets):
    here, recipes, made = sets
    job = here.job(recipes["RDED"])
    soft, hard = made["RDED"], made["RDED, hard labels"]
    images, labels = soft.decode()
    assert soft.formation == "partition2" and images.shape[0] == 80 and soft.tensors["targets"].shape == (20, 4, 10)
    assert torch.allclose(labels, job.method.teacher(job).logits(images).softmax(-1), atol=1e-6)
    assert torch.equal(soft.tensors["images"], hard.tensors["images"])
    for name in NAMES[1:]:
        assert torch.equal(made[name].tensors["targets"], torch.arange(10).repeat_interleave(2))
    assert len({tuple(one.tensors["images"].flatten().tolist()) for one in made.values()}) == 3  # soft and hard ones are the same


def test_an_enlarged_patch_is_scored_as_networks_see_it(splits, tmp_path):
    """Patches are kept in the order of the teacher's loss on what the set decodes to."""
    here = experiment(splits, tmp_path, **SHORT)
    made, framed = (here.synthetic(here.run(Recipe("RDED, hard labels", 2, 0, settings={"enlarged": how}))) for how in (True, False))
    logits = (
        here.job(Recipe("RDED, hard labels", 2, 0)).method.teacher(here.job(Recipe("RDED, hard labels", 2, 0))).logits(made.decode()[0])
    )
    losses = torch.nn.functional.cross_entropy(logits, made.decode()[1], reduction="none").view(10, 2, 4)
    ranked = losses.transpose(1, 2).flatten(1)  # slot by slot
    assert torch.equal(ranked.sort(1).values, ranked) and not torch.equal(made.tensors["images"], framed.tensors["images"])


def test_without_a_teacher_nothing_is_trained(splits, tmp_path):
    here = experiment(splits, tmp_path, factor=2)
    result = here.run(Recipe("patches", 1, 0))
    assert not here.billed_passes and not list(tmp_path.rglob("experts-*")) and result["samples"] == 40
    assert here.run(Recipe("patches, early network", 1, 0))["samples"] == len(splits.train)
    (bill,) = here.billed_passes
    assert bill["samples"] == len(splits.train)  # one epoch


def test_whole_patches_are_stored_as_published(splits, tmp_path):
    """The scripts for 32 and 64 pixels put one patch in each image, under one label each."""
    here = experiment(splits, tmp_path, teacher_epochs=2)
    made = here.synthetic(here.run(Recipe("RDED", 3, 0)))
    assert made.formation == "identity" and made.tensors["targets"].shape == (30, 10)
    assert [METHODS[name].settings(data, 10).factor for name in NAMES for data in ("cifar10", "imagenette")] == 4 * [1, 2]
    assert METHODS["RDED"].settings("my own", 1).candidates == 300


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"factor": 3}, ("factor", 3, "1, 2")),
        ({"crops": 0}, ("crops", 0)),
        ({"min_scale": 1.5}, ("min_scale", 1.5)),
        ({"teacher_epochs": 0}, ("soft", "teacher")),
        ({"teacher_lr": 0.0}, ("teacher_lr",)),
        ({"candidates": 3, "factor": 2}, ("candidates", "3 images", "4 or more")),
        ({"teacher_epochs": 1.5}, ("teacher_epochs", 1.5)),
    ],
)
def test_settings_that_are_none_are_refused(splits, tmp_path, refused, settings, words):
    with refused(*words):
        experiment(splits, tmp_path).run(Recipe("RDED", 1, 0, settings=settings))
