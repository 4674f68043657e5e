"""Along expert paths: enough segments, the same for both kinds, experts as replicates, and kinds that differ."""

import numpy as np
import pytest
import torch

from distillery.data import load
from distillery.evaluation import Protocol
from distillery.experiment import Experiment, Presets
from distillery.experts import Experts
from distillery.measure import paths
from distillery.networks import ConvNet
from distillery.recipe import Recipe
from distillery.runs import Runs

SETTINGS = {
    "experts": 2, "expert_lr": 0.1, "expert_batch": 16, "expert_training_epochs": 10, "student_steps": 2, "expert_epochs": 1,
    "max_start_epoch": 2, "step_size": 0.05,
}  # fmt: skip


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    splits = load("digits", per_class=10)
    network = ConvNet(splits.train.shape, 10, width=4)
    return Experiment(splits, network, Protocol(1, 1), Runs(tmp_path_factory.mktemp("runs")), presets=Presets("cifar10", SETTINGS))


def job(here, method="MTT", **settings):
    return here.job(Recipe(method, 1, 0, settings=settings))


def test_experts_of_paths_have_a_length_of_their_own_and_leave_sets_as_they_are(here):
    short, key = job(here).method.experts(job(here)), here.set_id(Recipe("MTT", 1, 0))
    long = job(here).method.path(job(here), 2, 0)
    assert (short.epochs, long.epochs) == (2, 10) and here.set_id(Recipe("MTT", 1, 0)) == key
    assert all(torch.equal(value, long.weights[name][:, :3]) for name, value in short.weights.items())  # the same experts, trained on
    assert len(job(here).method.path(job(here), 1, 3)) == 1


def test_an_error_needs_many_segments_to_pile_up(here, refused):
    """The experts of the smallest sets are stored for one segment, in which nothing can pile up."""
    mtt, made = job(here), job(here).method.first(job(here))
    with refused("2 segments of 1", "10 segments"):
        paths.accumulated(mtt.method.matching(mtt), made, 0, 0)
    bank = mtt.method.path(mtt, 2, 10)
    errors = paths.accumulated(mtt.method.matching(mtt, bank), made, 1, 0)
    assert {len(values) for values in errors.values()} == {10} and min(errors["accumulated"] + errors["way"]) > 0
    assert errors["initialization"][0] == 0 and min(errors["initialization"][1:]) > 0
    wide = job(here, expert_epochs=2)
    with refused("5 segments of 2", "20 epochs"):
        paths.accumulated(wide.method.matching(wide, bank), made, 0, 0)


def test_sets_that_share_an_expert_are_one_replicate():
    """Three sets on two experts are two numbers, not six."""
    plain = np.array([[1.0, 2.0], [2.0, 4.0], [4.0, 8.0]])
    flat = plain * np.array([[0.9, 0.5], [0.8, 0.5], [0.7, 0.5]])
    assert paths.less(flat, plain) == pytest.approx([0.2, 0.5])


def experts(*way):
    """Two experts with one weight, which goes this way, and the same one mirrored."""
    path = torch.tensor([0.0, *way])
    return Experts({"w": torch.stack([path, -path])[:, :, None]})


@pytest.mark.parametrize("second, expected, testable", [((1.02, 2.1), [0.02, 0.05], False), ((1.2, 2.4), [0.2, 0.2], True)])
def test_kinds_of_experts_must_differ(second, expected, testable):
    shares = paths.contrast({"plain": experts(1.0, 2.0), "flat": experts(*second)})
    assert shares == pytest.approx(np.array([expected, expected]), rel=1e-5)
    assert (paths.too_alike(shares) == "") == testable
    assert testable or "5.0%" in paths.too_alike(shares)


def test_sharpness_is_of_the_first_middle_and_last_epoch(here):
    banks = {kind: job(here, method).method.path(job(here, method), 2, 4) for kind, method in (("plain", "MTT"), ("flat", "FTD"))}
    found, epochs = paths.sharpness(here.network, here.real, banks, 20, 3, 0)
    assert epochs == [0, 2, 4] and {kind: np.shape(values) for kind, values in found.items()} == {"plain": (2, 3), "flat": (2, 3)}
    assert found["plain"][0][0] == found["flat"][0][0] and found["plain"][0][2] != found["flat"][0][2]
