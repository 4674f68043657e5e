"""Sets without labels in an experiment: what each method makes, how encoders are trained on it, what is shared and refused."""

import json
import time
from dataclasses import replace

import pytest
import torch

from distillery.data import Splits
from distillery.encoders.regression_set import RegressionSet
from distillery.evaluation import Probing, embed, probe
from distillery.experiment import Compute, Experiment, Presets
from distillery.matching.trajectory import TrajectoryMatching
from distillery.methods import METHODS, mkdt
from distillery.methods.mkdt import high_loss, losses, students
from distillery.networks import ConvNet
from distillery.recipe import Evaluate, Prune, Recipe
from distillery.runs import Runs
from distillery.seeds import generator, split
from made_up import blobs

WIDTH = 6  # of the targets
SMALL = {
    "experts": 2, "expert_lr": 0.05, "expert_batch": 8, "student_steps": 2, "expert_epochs": 1, "max_start_epoch": 1, "student_batch": 4,
    "lr_images": 10.0, "lr_step_size": 1e-4, "step_size": 0.05, "iterations": 3,
}  # fmt: skip
CHANGES = {
    "MKDT": SMALL,
    "MTT-SSL": SMALL | {"expert_lr": 1e-3, "lr_images": 0.1, "lr_step_size": 1e-7},
    "KRR-ST": {"width": 4, "pool": 2, "age": 4, "batch": 8, "iterations": 3, "lr": 1e-2},
}
PROTOCOL = Probing(2, 3, 0.05, batch=4, labels=(0.25, 0.5))
EASY = Prune(0.5, score="student loss")
UNLABELLED = [name for name, one in METHODS.items() if one.labels is False] + ["random", "k-means", "whole"]
DISTILLED = [name for name in UNLABELLED if METHODS[name].learns]


def made(folder, budget=0.0, changes=CHANGES, **options):
    images = blobs(per_class=8)
    targets = torch.randn(len(images), WIDTH, generator=generator(0, "targets"))
    real = RegressionSet(images, targets, images.digest)
    tasks = {"own": Splits(images, images, blobs(4, seed=0)), "other": Splits(blobs(6, 2, seed=3), images, blobs(4, 2, seed=3))}
    network, presets = ConvNet(images.shape, WIDTH, width=4, depth=1), Presets("cifar10", changes)
    return Experiment(real, network, PROTOCOL, Runs(folder, budget), presets=presets, tasks=tasks, **options)


def recipe(method, **more):
    return Recipe(method, 0 if method in ("none", "whole") else 5, 0, **more)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """One experiment and a run of every method."""
    here = made(tmp_path_factory.mktemp("runs"))
    return here, {method: here.run(recipe(method)) for method in UNLABELLED}


def test_all_that_fit_are_there():
    assert set(DISTILLED) == {"MKDT", "MTT-SSL", "KRR-ST"}
    assert {"none", "random, self-supervised", "high loss"} < set(UNLABELLED)
    assert METHODS["MKDT"].starts == ("random", "k-means", "high loss") and METHODS["MKDT"].start == "high loss"


@pytest.mark.parametrize("method", UNLABELLED)
def test_every_method_runs_and_is_read_again(results, method):
    here, found = results
    one = found[method]
    for task in ("own", "other"):
        assert list(one["accuracies"][task]) == ["0.25", "0.5"]
        assert all(len(values) == 2 and all(0 <= v <= 1 for v in values) for values in one["accuracies"][task].values())
    assert one["probes"]["own"]["labels"] == [6, 12] and one["probes"]["other"]["labels"] == [3, 6]
    computed = here.runs.computed
    assert here.run(recipe(method)) == one and here.runs.computed == computed
    assert (one["artifact"] is not None) == METHODS[method].makes_set


def test_steps_of_pretraining(results):
    """3 passes over 5 images in batches of 4; SimCLR sees all 5 at once; all images take 24 as far."""
    here, found = results
    steps = {method: one["pretraining_steps"] for method, one in found.items()}
    assert steps["none"] == 0 and steps["whole"] == 3 * 6
    assert {steps[name] for name in ("random", "k-means", "high loss", *DISTILLED)} == {3 * 2}
    assert steps["random, self-supervised"] == 3
    equal = Evaluate(equal_steps=True)
    assert here.run(recipe("random", evaluate=equal))["pretraining_steps"] == 3 * 6
    # 72 images: 14 passes over 5
    assert here.run(recipe("random, self-supervised", evaluate=equal))["pretraining_steps"] == 14


def test_a_random_encoder_is_probed_as_it_is(results):
    here, found = results
    params = here.network.init(split(generator(0, "pre-training"), 2)[0], 2)  # the networks that sets start from
    task = here.tasks["own"]
    accuracies, _ = probe(here.network, params, task.train, task.test, PROTOCOL, generator(0, "labels", "own"))
    assert [accuracies[:, i].tolist() for i in range(2)] == list(found["none"]["accuracies"]["own"].values())


def test_targets_of_mkdt_stay_and_images_move(results):
    here, found = results
    chosen = high_loss(here.network, students(here), here.real, 5)
    fixed = here.synthetic(found["MKDT"])
    assert torch.equal(fixed.card["start"], here.real.batch(chosen))
    assert torch.equal(fixed.tensors["targets"], here.real.targets[chosen])
    moved = float((fixed.tensors["images"] - fixed.card["start"]).abs().mean())
    assert found["MKDT"]["moved"] == pytest.approx(moved) and moved > 0 and found["MKDT"]["step_size"] != 0.05
    assert torch.equal(here.synthetic(found["high loss"]).tensors["images"], fixed.card["start"])
    learned = here.synthetic(here.run(recipe("MKDT", settings={"learned": True})))
    assert not torch.equal(learned.tensors["targets"], fixed.tensors["targets"])
    assert torch.equal(learned.card["start"], fixed.card["start"])


def test_labels_are_read_by_the_probes_alone(results, tmp_path):
    """With all labels of the unlabelled images wrong, every set is the same, bit for bit."""
    here, found = results
    other = made(tmp_path)
    images = replace(other.real.images, targets=torch.zeros_like(other.real.images.targets))
    real = RegressionSet(images, other.real.targets, images.digest)
    other = Experiment(real, other.network, PROTOCOL, other.runs, presets=other.presets, tasks=other.tasks)
    for method in DISTILLED:
        theirs, ours = other.synthetic(other.run(recipe(method))), here.synthetic(found[method])
        assert all(torch.equal(value, theirs.tensors[name]) for name, value in ours.tensors.items()), method


def test_encoders_share_a_set_which_is_billed_once(results):
    """A larger encoder, another rate and equal budgets evaluate the set that is there."""
    here, found = results
    for change in ({"equal_steps": True}, {"lr": 0.01}, {"network": "LeNet"}):
        one = here.run(recipe("MKDT", evaluate=Evaluate(**change)))
        assert one["artifact"] == found["MKDT"]["artifact"] and one["loss"] == found["MKDT"]["loss"]
        first, second, other = here.billed([found["MKDT"], one, found["random"]])
        assert first["seconds"] == found["MKDT"]["seconds"] and other["seconds"] == found["random"]["seconds"]
        assert second == {"seconds": one["seconds_evaluation"], "samples": 0}


@pytest.mark.parametrize("name, normalization", [("ResNet10", "batch"), ("ResNet18", "batch"), ("LeNet", "none"), ("ResNet18_AP", "batch")])
def test_larger_encoders_have_batch_normalization_where_they_can(results, name, normalization):
    """As in MKDT's public code ("Batchnorm Added")."""
    here, _ = results
    judged = here.judged_network(recipe("random", evaluate=Evaluate(network=name)))
    assert judged.spec()["normalization"] == normalization
    assert any("running_mean" in name for name in judged.init(generator(0, "x"), 1)) == (normalization == "batch")
    assert here.judged_network(recipe("random")).spec() == here.fast.spec()


def test_students_are_billed_apart(results):
    """A bank of MKDT's on 24 images, and one of MTT-SSL's."""
    here, found = results
    assert found["MKDT"]["experts"] == here.costs[found["MKDT"]["experts"]["id"]]
    samples = [found[name]["experts"]["samples"] for name in ("MKDT", "MTT-SSL")]
    assert samples == [2 * 24, 2 * 24]


def test_every_seed_has_a_bank_and_hardest_images_of_its_own(results):
    here, found = results
    other = here.run(Recipe("MKDT", 5, 1))
    assert other["experts"]["id"] != found["MKDT"]["experts"]["id"]
    theirs = [losses(here.network, students(here, seed=seed), here.real) for seed in (0, 1)]
    assert not torch.equal(*theirs)
    assert all(torch.equal(here.scores.get("student loss", seed), theirs[seed]) for seed in (0, 1))
    hardest = here.real.batch(theirs[1].argsort(descending=True)[:5])
    assert torch.equal(here.synthetic(other).card["start"], hardest)
    assert torch.equal(here.synthetic(here.run(Recipe("high loss", 5, 1))).tensors["images"], hardest)
    banks = [here.job(Recipe("MTT-SSL", 5, seed)).method.bank(here.job(Recipe("MTT-SSL", 5, seed)))[0] for seed in (0, 1)]
    assert banks[0].seed != banks[1].seed


def test_a_line_of_progress_names_scores_and_not_how_they_were_made(tmp_path):
    here = made(tmp_path)
    here.runs.events = tmp_path / "events"
    here.scores.get("student loss", 1)
    assert [json.loads(line)["scores"] for line in here.runs.events.read_text().splitlines()] == ["student loss seed 1"]


def test_losses_of_students_are_made_once_and_before_the_clock_starts(tmp_path, monkeypatch):
    """For sets of both sizes, rows and the notebook, in later starts too; no row pays for them."""
    calls = []
    monkeypatch.setattr(mkdt, "losses", lambda *args: calls.append(time.sleep(1)) or losses(*args))
    ours = [
        made(tmp_path).run(one) for one in (recipe("high loss"), Recipe("high loss", 6, 0), recipe("MKDT"), recipe("random", prune=EASY))
    ]
    assert len(calls) == 1 and all(one["seconds"] - one["seconds_evaluation"] < 1 for one in ours)


def test_pruned_images_are_those_of_lowest_student_loss(results):
    here, _ = results
    kept = here.kept(recipe("MKDT", prune=EASY))
    hardest = high_loss(here.network, students(here), here.real, 12)
    assert len(kept) == 12 and set(kept.tolist()).isdisjoint(hardest.tolist())
    for method in ("MKDT", "MTT-SSL", "high loss"):
        found = here.synthetic(here.run(recipe(method, prune=EASY)))
        first = found.tensors["images"] if method == "high loss" else found.card["start"]
        pool = here.real.batch(kept)
        assert all(any(torch.equal(one, image) for image in pool) for one in first)
    own = students(here, here.real.subset(kept))  # the hardest ones under students that saw what is kept
    expected = kept[high_loss(here.network, own, here.real.subset(kept), 5)]
    assert torch.equal(here.synthetic(here.run(recipe("high loss", prune=EASY))).tensors["images"], here.real.batch(expected))


def test_flat_students_are_others_and_the_first_images_the_same(results):
    here, found = results
    flat = here.run(recipe("MKDT", settings={"flat": True}))
    assert flat["experts"]["id"] != found["MKDT"]["experts"]["id"] and flat["loss"] != found["MKDT"]["loss"]
    assert torch.equal(here.synthetic(flat).card["start"], here.synthetic(found["MKDT"]).card["start"])


def test_students_are_part_of_the_id_of_what_is_chosen_by_them(results, tmp_path):
    here, _ = results
    other = made(tmp_path, changes=CHANGES | {"MKDT": SMALL | {"expert_lr": 0.06}})
    for one in (recipe("high loss"), recipe("KRR-ST", start="high loss"), recipe("random", prune=EASY), recipe("MKDT")):
        assert here.set_id(one) != other.set_id(one)
    for one in (recipe("random"), recipe("KRR-ST"), recipe("MTT-SSL"), recipe("random", prune=Prune(0.5, "random"))):
        assert here.set_id(one) == other.set_id(one)


def test_settings_of_a_recipe_hold_for_the_students_of_its_first_images(results):
    """Other students, other first images; one bank serves both."""
    here, found = results
    own = here.run(recipe("MKDT", settings={"expert_lr": 1.0}))
    assert own["experts"]["id"] != found["MKDT"]["experts"]["id"]
    job = here.job(recipe("MKDT", settings={"expert_lr": 1.0}))
    chosen = high_loss(here.network, job.method.experts(job), here.real, 5)
    assert torch.equal(here.synthetic(own).card["start"], here.real.batch(chosen))


def test_a_killed_distillation_goes_on(tmp_path, monkeypatch):
    """The same set, bit for bit, as one that was never cut off; the steps before are not made again."""
    here, other = made(tmp_path / "a", compute=Compute(checkpoint_seconds=0.0)), made(tmp_path / "b")
    step, made_steps = TrajectoryMatching.step, []

    def cut(self, *args):
        if len(made_steps) == 2:
            raise KeyboardInterrupt
        made_steps.append(1)
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(TrajectoryMatching, "step", cut)
        with pytest.raises(KeyboardInterrupt):
            here.run(recipe("MKDT"))
    monkeypatch.setattr(TrajectoryMatching, "step", lambda *args: made_steps.append(1) or step(*args))
    ours = here.synthetic(here.run(recipe("MKDT"))).tensors
    assert len(made_steps) == 3
    theirs = other.synthetic(other.run(recipe("MKDT"))).tensors
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_spent_budget_lists_what_is_missing(tmp_path):
    here = made(tmp_path, budget=1e-9)
    assert here.run(recipe("MKDT")) is None and here.run(recipe("none")) is None
    assert [one["method"] for one in here.runs.missing][-1] == "none" and "MKDT" in str(here.runs.missing)


def test_bad_recipes_are_refused(results, refused):
    here, _ = results
    for change, named in (
        ({"size": 0}, "size"),
        ({"method": "none"}, "size"),
        ({"method": "none", "size": 0, "evaluate": Evaluate(equal_steps=True)}, "none"),
        ({"method": "none", "size": 0, "prune": EASY}, "prune"),
        ({"method": "random", "settings": {"steps": 5}}, "steps"),
        ({"start": "noise"}, "noise"),
        ({"start": "correct"}, "correct"),
        ({"method": "KRR-ST", "settings": {"learned": True}}, "learned"),
        ({"evaluate": Evaluate(iterate="best")}, "best"),
        ({"method": "MTT"}, "MTT"),
        ({"prune": Prune(0.5)}, "loss"),
        ({"size": 100}, "100"),
    ):
        with refused(named):
            here.run(Recipe(**{"method": "MKDT", "size": 5, "seed": 0} | change))


def test_labels_have_no_students(refused, digits, tmp_path):
    from distillery.evaluation import Protocol

    here = Experiment(digits, ConvNet(digits.train.shape, 10, width=4), Protocol(1, 1), Runs(tmp_path))
    for one in (Recipe("MKDT", 5, 0), Recipe("high loss", 5, 0)):
        with refused(one.method, "labels"):
            here.run(one)
    with refused("student loss"):
        here.run(Recipe("random", 1, 0, Prune(0.5, score="student loss")))


def test_features_of_a_batchnorm_encoder_do_not_depend_on_neighbours(results):
    """Encoders with BatchNorm are probed in evaluation mode: an image's features do not depend on its neighbours."""
    here, _ = results
    asked = recipe("random", evaluate=Evaluate(network="ResNet18"))
    job, network = here.job(asked), here.judged_network(asked)
    source = here.real.subset(job.chosen("random"))
    params, _, _ = job.method.train(job, network, source, PROTOCOL, generator(0, "pre-training"), 0)
    images = here.tasks["own"].test
    together = embed(network, params, images)
    alone = embed(network, params, images.subset(torch.tensor([3])))
    assert torch.allclose(together[:, 3:4], alone, atol=1e-5)
