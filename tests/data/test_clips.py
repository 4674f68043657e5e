"""Drawn clips whose class a still frame does not tell, and the methods on clips."""

from dataclasses import replace

import pytest
import torch

from distillery.checks import InputError
from distillery.data import LazyImages, clips
from distillery.evaluation import Protocol
from distillery.experiment import Experiment, Presets, ScoreSettings
from distillery.networks import ConvNet
from distillery.networks.video import ConvNet3D, PerFrame, frames_of
from distillery.recipe import Prune, Recipe
from distillery.runs import Runs
from distillery.seeds import generator


@pytest.fixture(scope="module")
def moving():
    return clips.moving_shapes(6, frames=5, side=12, seed=1)


def test_shapes_move_one_pixel_a_frame(moving):
    train = moving.train
    assert train.shape == (5, 12, 12) and len(train.classes) == 12 and train.counts() == [6] * 12 and moving.test.counts() == [6] * 12
    frames = train.pixels.float()
    for row in range(len(train)):
        way = list(clips.DIRECTIONS.values())[int(train.targets[row]) % 4]
        shifts = [(0, 1), (0, -1), (1, 0), (-1, 0)]
        errors = {shift: float((frames[row, 1:] - frames[row, :-1].roll(shift, (-2, -1))).square().mean()) for shift in shifts}
        assert min(errors, key=errors.get) == way
    again, other = (clips.moving_shapes(6, frames=5, side=12, seed=seed) for seed in (1, 2))
    assert torch.equal(again.train.pixels, train.pixels) and not torch.equal(other.train.pixels, train.pixels)
    assert not torch.equal(moving.test.pixels, train.pixels)
    pixels = train.batch(torch.arange(len(train)))
    assert abs(float(pixels.mean())) < 1e-4 and abs(float(pixels.std()) - 1) < 1e-3


def on_disk(images, seed=0):
    """The same images as rows of a larger array in another order."""
    rows = torch.randperm(2 * len(images), generator=generator(seed, "rows"))[: len(images)]
    base = torch.zeros(2 * len(images), *images.shape, dtype=torch.uint8)
    base[rows] = images.pixels
    return replace(images, pixels=LazyImages(base, rows))


@pytest.mark.parametrize("change", [lambda one: clips.still(one, 5), lambda one: clips.shuffled(one, 5, generator(0, "order"))])
def test_controls_of_clips_on_disk_are_those_in_memory(moving, change):
    expected, found = change(moving.train), change(on_disk(moving.train))
    some = torch.tensor([[3, 1], [0, 7]])
    assert isinstance(found.pixels, LazyImages) and torch.equal(found.pixels[some], expected.pixels[some])
    assert torch.equal(found.pixels[5], expected.pixels[5]) and torch.equal(found.subset(some[0]).pixels[:], expected.pixels[some[0]])
    twice = clips.still(found, 5)
    assert found.digest == expected.digest and torch.equal(twice.pixels[:], clips.still(expected, 5).pixels)
    with pytest.raises(InputError):
        clips.still(on_disk(moving.train), 4)


def test_a_still_clip_is_its_middle_frame(moving):
    found = clips.still(moving.train, 5)
    assert all(torch.equal(found.pixels[:, t], moving.train.pixels[:, 2]) for t in range(5)) and torch.equal(
        found.targets, moving.train.targets
    )


def test_a_shuffled_clip_has_the_same_frames():
    one = clips.moving_shapes(4, frames=6, side=8)
    found = clips.shuffled(one.train, 6, generator(0, "x"))
    orders = set()
    for before, after in zip(one.train.pixels, found.pixels):
        order = [next(t for t in range(6) if torch.equal(before[t], frame)) for frame in after]
        assert sorted(order) == list(range(6))
        orders.add(tuple(order))
    assert len(orders) > 20
    colored = one.train.pixels.repeat_interleave(3, 1)  # frames of three channels stay together
    found = clips.shuffled(clips.ImageSet(colored, one.train.targets, one.train.classes), 6, generator(0, "x"))
    assert torch.equal(*(frames_of(found.pixels, 6)[:, :, c] for c in (0, 2)))


@pytest.mark.parametrize("wrong", [{"per_class": 1}, {"frames": 1}, {"side": 4}])
def test_too_few_of_anything_is_named(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        clips.moving_shapes(**{"per_class": 4} | wrong)


@pytest.mark.parametrize("method", ["random", "herding", "lowest loss", "DM", "DC"])
def test_methods_make_sets_of_clips(moving, tmp_path, method):
    """Selections, distribution and gradient matching, from a pruned set and from all, without a line of their own for clips."""
    network = ConvNet3D(moving.train.shape, 12, 5, width=8)
    changes = {"DM": {"steps": 2, "batch": 4}, "DC": {"steps": 1, "batch": 4}}
    here = Experiment(
        moving, network, Protocol(2, 2, batch=16, augmentation=""), Runs(tmp_path), presets=Presets("cifar10", changes),
        scores=ScoreSettings(early=(1, 1)), augmentation="",
    )  # fmt: skip
    found = here.run(Recipe(method, 1, 0))
    made = here.synthetic(found)
    assert made.decode()[0].shape == (12, 5, 12, 12) and len(found["accuracies"]) == 2
    assert torch.equal(torch.tensor(here.run(Recipe(method, 1, 0))["accuracies"]), torch.tensor(found["accuracies"]))
    if method in ("DM", "DC"):
        assert not torch.equal(made.tensors["images"], made.card["start"])
        assert here.run(Recipe(method, 1, 0, Prune(0.5)))["accuracies"]


def test_a_network_of_frames_runs_under_a_protocol(moving, tmp_path):
    network = PerFrame(ConvNet((1, 12, 12), 12, width=8), 5)
    here = Experiment(moving, network, Protocol(2, 2, batch=16, augmentation=""), Runs(tmp_path), augmentation="")
    assert len(here.run(Recipe("random", 2, 0))["accuracies"]) == 2


def test_networks_are_those_of_the_run_and_tested_elsewhere(moving, tmp_path):
    network = ConvNet3D(moving.train.shape, 12, 5, width=8)
    here = Experiment(moving, network, Protocol(2, 3, 0.05, batch=16, augmentation=""), Runs(tmp_path), augmentation="")
    recipe, still = Recipe("random", 2, 0), clips.still(moving.test, 5)
    found, run = here.elsewhere(recipe, {"as they are": moving.test, "still": still}), here.run(recipe)
    assert found["accuracies"]["as they are"] == run["accuracies"] and len(found["accuracies"]["still"]) == 2
    assert here.elsewhere(recipe, {"still": still})["accuracies"]["still"] == found["accuracies"]["still"]
