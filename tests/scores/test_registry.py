"""Scores are plugs: one function under one decorator is pruned by, identified, listed and refused like those of the package."""

import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from distillery.checks import InputError
from distillery.evaluation import Protocol
from distillery.experiment import Experiment
from distillery.networks import ConvNet
from distillery.recipe import Prune, Recipe
from distillery.report.registered import compatibility
from distillery.runs import Runs
from distillery.scores import ORDERS, SCORES, register_score

NAMES = (
    "loss", "converged loss", "complexity", "prototype loss", "prototype distance", "herding", "k-center", "D2", "alignment",
    "local spread", "alignment + spread", "DBP", "SSP", "cumulative loss", "forgetting", "EL2N", "GraNd", "AUM", "least confidence", "entropy", "margin", "contextual diversity", "ridge sensitivity",
    "leverage", "k-means sensitivity",
)  # fmt: skip


@pytest.fixture
def experiment(splits, tmp_path):
    return Experiment(splits, ConvNet(splits.train.shape, 10, width=4), Protocol(1, 1), Runs(tmp_path))


@pytest.fixture
def toy():
    calls = []

    @register_score("darkness")
    def darkness(scores, seed, k):
        calls.append(seed)
        return -scores.images.batch(torch.arange(len(scores.images))).flatten(1).mean(1)

    yield calls
    SCORES.pop("darkness")


def test_all_scores_are_registered_whatever_is_imported_first():
    assert set(NAMES) <= set(SCORES) and "k-means++" in ORDERS  # and what methods add
    code = "from distillery.scores import dynamics, SCORES; print(*SCORES, sep='\\n')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert set(NAMES) <= set(found)


def test_a_toy_score_prunes(toy, experiment, splits):
    recipe = Recipe("random", 2, 0, Prune(0.5, score="darkness"))
    assert len(experiment.run(recipe)["accuracies"]) == 1
    brightness, kept = splits.train.batch(torch.arange(len(splits.train))).flatten(1).mean(1), experiment.kept(recipe)
    for label in range(10):
        members = splits.train.of_class(label)
        inside = kept[splits.train.targets[kept] == label]
        assert set(inside.tolist()) == set(members[brightness[members].argsort(descending=True, stable=True)[: len(inside)]].tolist())
    assert toy == [0]  # once
    assert "darkness" in compatibility()


def test_a_score_is_part_of_the_id_of_what_went_by_it(toy, experiment):
    ids = {experiment.set_id(Recipe("random", 2, 0, part)) for part in (None, Prune(0.5), Prune(0.5, score="darkness"))}
    assert len(ids) == 3
    before = experiment.set_id(Recipe("random", 2, 0, Prune(0.5, score="darkness")))
    SCORES.pop("darkness")
    register_score("darkness", version=2)(lambda scores, seed, k: torch.zeros(len(scores.images)))
    assert experiment.set_id(Recipe("random", 2, 0, Prune(0.5, score="darkness"))) != before


@pytest.mark.parametrize("name", ["loss", "ridge sensitivity", "k-means sensitivity"])
def test_a_score_that_says_what_identifies_it_has_a_version_too(name, experiment, monkeypatch):
    before = experiment.scores.spec(name)
    monkeypatch.setitem(SCORES, name, replace(SCORES[name], version=SCORES[name].version + 1))
    assert experiment.scores.spec(name) != before


def test_what_no_seed_changes_is_computed_once(experiment):
    seen = []

    @register_score("constant", seeded=False)
    def constant(scores, seed, k):
        seen.append(seed)
        return torch.zeros(len(scores.images))

    try:
        for seed in (0, 1, 1):
            experiment.scores.get("constant", seed)
    finally:
        SCORES.pop("constant")
    assert len(seen) == 1


def test_refusals(toy, experiment, refused):
    with refused("darknes", "darkness"):
        Prune(0.5, score="darknes")
    with refused("k-means++"):
        Prune(0.5, score="k-means++")
    for name in ("complexity", "forgetting"):
        with refused("encoder", name):
            experiment.scores.spec(name)
    with pytest.raises(InputError, match="taken"):
        register_score("loss")(lambda scores, seed, k: None)

    def early_loss(scores, seed, k):
        return None

    early_loss.__qualname__ = "early_loss"  # as in another file
    with refused("loss", "dynamics.early_loss"):
        register_score("loss")(early_loss)


def test_a_score_of_targets_is_refused_where_there_are_classes(experiment, refused):
    register_score("of targets", labels=False)(lambda scores, seed, k: torch.zeros(len(scores.images)))
    try:
        with refused("of targets", "no classes"):
            experiment.run(Recipe("random", 1, 0, Prune(0.5, score="of targets")))
    finally:
        SCORES.pop("of targets")


def test_what_was_read_is_not_copied_to_workers(experiment):
    experiment.scores.get("leverage", 0)
    copy = pickle.loads(pickle.dumps(experiment)).scores
    assert not copy._read and not copy.costs and torch.equal(copy.get("leverage", 0), experiment.scores.get("leverage", 0))
