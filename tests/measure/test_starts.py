"""First images before any step: chances against uniform ones, and many draws judged at once as one after another."""

import pytest
import torch

from distillery.evaluation import Protocol
from distillery.experiment import Experiment
from distillery.measure import starts
from distillery.methods.kip import ntk_matrix_plain
from distillery.networks import ConvNet
from distillery.networks.ridge import kernel_ridge_plain
from distillery.recipe import Recipe
from distillery.runs import Runs
from distillery.scores.cached import ScoreSettings
from distillery.training.losses import centred


@pytest.fixture
def here(splits, tmp_path):
    scores = ScoreSettings(early=(1, 1), importance={"ridge": "ntk"})
    protocol = Protocol(1, 1, loss="half squared error")
    return Experiment(splits, ConvNet(splits.train.shape, 10, width=4), protocol, Runs(tmp_path), scores=scores)


def test_variation_by_hand():
    """Chances 1/8, 1/8, 1/4, 1/2 against quarters: 1/4 too much in one place; of two equal scores nothing. The mean is 1/8."""
    assert starts.variation(torch.tensor([1.0, 7, 1, 7, 2, 4]), torch.tensor([4, 0, 4, 0, 4, 4])) == pytest.approx(1 / 8)
    assert starts.variation(torch.tensor([0.0, 3]), torch.zeros(2)) == pytest.approx(0.5)


def test_of_which_starts_chances_are_known(here):
    found = {
        (how, n): starts.from_uniform(here.job(Recipe("KIP", n, 0, start=how)))
        for how in ("random", "k-means++", "leverage")
        for n in (1, 2)
    }
    assert found["random", 2] == found["k-means++", 1] == 0 and found["k-means++", 2] is None
    assert found["leverage", 1] == starts.variation(here.scores.get("leverage", 0), here.labels) > 0
    assert starts.from_uniform(here.job(Recipe("KIP", 1, 0, start="herding"))) is None
    told = {how: starts.alike(here.job(Recipe("KIP", 1, 0, start=how))) for how in ("k-means++", "leverage", "herding")}
    assert "0.000" in told["k-means++"] and not told["herding"] and bool(told["leverage"]) == (found["leverage", 1] < 0.1)


def test_the_table_of_starts(here):
    values = here.scores.ridge()
    found = starts.described(here.job(Recipe("KIP", 1, 0, start="ridge sensitivity")))
    far = starts.variation(values["tau"] + 1 / len(values["tau"]), here.labels)
    part = float(1 - values["leverage"].sum() / values["tau"].sum())
    assert found == [f"{far:.3f}", f"{100 * far:.1f}", f"{float(values['dimension']):.0f}", f"{part:.3%}"] and 0 < part < 0.5
    assert starts.described(here.job(Recipe("KIP", 1, 0, start="herding"))) == ["-"] * 4


@pytest.mark.parametrize("held", [5, 5000])
def test_many_draws_are_judged_as_one_after_another(held, here, monkeypatch):
    monkeypatch.setattr(starts, "HELD", held)
    monkeypatch.setattr(starts, "BLOCK", 7)
    arms = {how: here.job(Recipe("KIP", 2, 3, start=how)) for how in ("random", "ridge sensitivity")}
    found = starts.at_start(arms, 3)
    for how, scores in found.items():
        for seed, score in zip((3, 4, 5), scores, strict=True):
            made = here.run(Recipe("KIP", 2, seed, start=how, settings={"steps": 1, "batch": 4}))
            assert made["at_start"] == [score]  # what the method itself says of the images it starts from
    computed = here.runs.computed
    assert starts.at_start(arms, 3) == found and here.runs.computed == computed  # it is stored


def test_a_draw_equals_the_plain_regression(here):
    recipe = Recipe("KIP", 1, 0)
    chosen, train, test = here.job(recipe).chosen("random"), here.data.train, here.data.test.subset(torch.arange(40))
    images, judged = train.batch(chosen).double(), test.batch(torch.arange(40)).double()
    own, across = ntk_matrix_plain(images, images, 1), ntk_matrix_plain(judged, images, 1)
    outputs = kernel_ridge_plain(own, centred(train.targets[chosen], 10), across, 1e-6 * own.trace() / 10)
    wanted = float((outputs.argmax(1) == test.targets).double().mean())
    job = here.job(recipe)
    assert starts.accuracies(job.method.regression(job), train, test, chosen[None]) == [wanted] and wanted > 0.2


def test_without_budget_there_are_no_draws(here):
    here.runs.deadline = 0.0
    assert starts.at_start({"random": here.job(Recipe("KIP", 1, 0))}, 2) == {"random": []} and len(here.runs.missing) == 1
