"""Pre-training without labels: which sets are made, how encoders are trained on them, what is stored and refused."""

from dataclasses import replace

import pytest
import torch

from distillery import store
from distillery.data import Splits
from distillery.encoders.students import RegressionSet, high_loss
from distillery.evaluation import Probing, embed, probe
from distillery.matching.trajectory import TrajectoryMatching
from distillery.networks import ConvNet
from distillery.pretraining import (
    DISTILLED,
    METHODS,
    Pretraining,
    PretrainingBench,
    Settings,
    compatibility,
    published,
    read,
)
from distillery.recipes import Trajectory
from distillery.runs import Runs
from distillery.seeds import generator
from made_up import blobs

WIDTH = 6  # of the targets
CHANGES = {
    "experts": 2,
    "expert_lr": 0.05,
    "expert_batch": 8,
    "steps": 2,
    "span": 1,
    "last": 1,
    "batch": 4,
    "lr_images": 10.0,
    "lr_step_size": 1e-4,
    "step_size": 0.05,
    "iterations": 3,
}
PRIOR = {"width": 4, "pool": 2, "age": 4, "batch": 8, "iterations": 3, "lr": 1e-2}
PROTOCOL = Probing(2, 3, 0.05, batch=4, labels=(0.25, 0.5))


def made(folder, seed=0, protocol=PROTOCOL, budget=0.0, settings=None, precision="float32"):
    images = blobs(per_class=8)
    targets = torch.randn(len(images), WIDTH, generator=generator(seed, "targets"))
    real = RegressionSet(images, targets, images.digest)
    tasks = {
        "own": Splits(images, images, blobs(4, seed=0)),
        "other": Splits(blobs(6, 2, seed=3), images, blobs(4, 2, seed=3)),
    }
    settings = settings or Settings(
        Trajectory(changes=CHANGES),
        Trajectory(changes=CHANGES | {"expert_lr": 1e-3, "lr_images": 0.1, "lr_step_size": 1e-7}),
        PRIOR,
    )
    network = ConvNet(images.shape, WIDTH, width=4, depth=1)
    return PretrainingBench(real, network, protocol, tasks, Runs(folder, budget), settings, precision=precision)


def recipe(method, **more):
    return Pretraining(method, 0 if method in ("none", "full") else 5, 0, **more)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """One bench and a run of every method."""
    bench = made(tmp_path_factory.mktemp("runs"))
    return bench, {method: bench.run(recipe(method)) for method in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_is_read_again(results, method):
    bench, found = results
    one = found[method]
    for task in ("own", "other"):
        assert list(one["accuracies"][task]) == ["0.25", "0.5"]
        assert all(len(values) == 2 and all(0 <= v <= 1 for v in values) for values in one["accuracies"][task].values())
    assert one["probes"]["own"]["labels"] == [6, 12] and one["probes"]["other"]["labels"] == [3, 6]
    computed = bench.runs.computed
    assert bench.run(recipe(method)) == one and bench.runs.computed == computed
    assert (one["artifact"] is not None) == (method in DISTILLED)


def test_steps_of_pretraining(results):
    """3 passes over 5 images in batches of 4; SimCLR sees all 5 at once; everything takes 24 images as far."""
    _, found = results
    steps = {method: one["pretraining_steps"] for method, one in found.items()}
    assert steps["none"] == 0 and steps["full"] == 3 * 6
    assert {steps[name] for name in ("random", "k-means", "high loss", "MKDT", "KRR-ST", "MTT-SSL")} == {3 * 2}
    assert steps["random, self-supervised"] == 3


def test_matched_budgets(results):
    bench, _ = results
    assert bench.run(recipe("random", matched=True))["pretraining_steps"] == 3 * 6
    # 72 images: 14 passes over 5
    assert bench.run(recipe("random, self-supervised", matched=True))["pretraining_steps"] == 14


def test_a_random_encoder_is_probed_as_it_is(results):
    bench, found = results
    params = bench.network.init(generator(0, "pre-training"), 2)
    task = bench.tasks["own"]
    accuracies, _ = probe(bench.network, params, task.train, task.test, PROTOCOL, generator(0, "labels", "own"))
    assert [accuracies[:, i].tolist() for i in range(2)] == list(found["none"]["accuracies"]["own"].values())


def test_targets_of_mkdt_stay_and_images_move(results):
    bench, found = results
    chosen = high_loss(bench.network, bench.students(), bench.real, 5)
    fixed = bench.synthetic(found["MKDT"])
    assert torch.equal(fixed.card["start"], bench.real.batch(chosen))
    assert torch.equal(fixed.tensors["targets"], bench.real.targets[chosen])
    assert found["MKDT"]["moved"] == pytest.approx(float((fixed.tensors["images"] - fixed.card["start"]).abs().mean()))
    assert found["MKDT"]["moved"] > 0 and found["MKDT"]["step_size"] != 0.05
    learned = bench.synthetic(bench.run(recipe("MKDT", learned=True)))
    assert not torch.equal(learned.tensors["targets"], fixed.tensors["targets"])
    assert torch.equal(learned.card["start"], fixed.card["start"])


def test_labels_are_read_by_the_probes_alone(results, tmp_path):
    """With all labels of the unlabelled images wrong, every set is the same, bit for bit."""
    bench, found = results
    other = made(tmp_path)
    images = replace(other.real.images, targets=torch.zeros_like(other.real.images.targets))
    other.real = RegressionSet(images, other.real.targets, images.digest)
    for method in DISTILLED:
        theirs = other.synthetic(other.run(recipe(method)))
        ours = bench.synthetic(found[method])
        assert all(torch.equal(value, theirs.tensors[name]) for name, value in ours.tensors.items()), method


def test_encoders_share_a_set(results):
    """A larger encoder, another rate and equal budgets evaluate the set that is there."""
    bench, found = results
    for change in ({"matched": True}, {"lr": 0.01}, {"encoder": "LeNet"}):
        one = bench.run(recipe("MKDT", **change))
        assert one["artifact"] == found["MKDT"]["artifact"] and one["loss"] == found["MKDT"]["loss"]


def test_a_shared_set_is_billed_once(results):
    bench, found = results
    again = bench.run(recipe("MKDT", lr=0.01))
    first, second, other = bench.billed([found["MKDT"], again, found["random"]])
    made = store.read_json(bench.runs.path(again["artifact"]))["result"]
    assert first["seconds"] == found["MKDT"]["seconds"] and other["seconds"] == found["random"]["seconds"]
    assert (
        second["seconds"] == pytest.approx(again["seconds"] - made["seconds"])
        and 0 <= second["seconds"] < made["seconds"] + again["seconds"]
    )


def test_pruned_images_are_those_of_lowest_student_loss(results):
    bench, _ = results
    kept = bench.pruned(recipe("MKDT", keep=0.5))
    hardest = high_loss(bench.network, bench.students(), bench.real, 12)
    assert len(kept) == 12
    assert {tuple(one.tolist()) for one in kept.targets}.isdisjoint(
        {tuple(one.tolist()) for one in bench.real.targets[hardest]}
    )
    start = bench.synthetic(bench.run(recipe("MKDT", keep=0.5))).card["start"]
    pool = kept.batch(torch.arange(12))
    assert all(any(torch.equal(one, image) for image in pool) for one in start)


def test_flat_students_are_others(results):
    bench, found = results
    flat = bench.run(recipe("MKDT", flat=True))
    assert flat["artifact"] != found["MKDT"]["artifact"] and flat["loss"] != found["MKDT"]["loss"]


def test_a_killed_distillation_goes_on(tmp_path, monkeypatch):
    """The same set, bit for bit, as one that was never cut off; the steps before are not made again."""
    bench, other = made(tmp_path / "a"), made(tmp_path / "b")
    bench.checkpoint_seconds = 0
    step, made_steps = TrajectoryMatching.step, []

    def cut(self, *args):
        if len(made_steps) == 2:
            raise KeyboardInterrupt
        made_steps.append(1)
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(TrajectoryMatching, "step", cut)
        with pytest.raises(KeyboardInterrupt):
            bench.run(recipe("MKDT"))
    monkeypatch.setattr(TrajectoryMatching, "step", lambda *args: made_steps.append(1) or step(*args))
    ours = bench.synthetic(bench.run(recipe("MKDT"))).tensors
    assert len(made_steps) == 3
    theirs = other.synthetic(other.run(recipe("MKDT"))).tensors
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_spent_budget_lists_what_is_missing(tmp_path):
    bench = made(tmp_path, budget=1e-9)
    assert bench.run(recipe("MKDT")) is None and bench.run(recipe("none")) is None
    assert [one["recipe"]["method"] for one in bench.runs.missing] == ["MKDT", "none"]


def test_read_takes_one_task_and_fraction(results):
    _, found = results
    assert read([found["none"], None], "own", 0.5)[0]["accuracies"] == found["none"]["accuracies"]["own"]["0.5"]
    assert read([None], "own", 0.5) == [None]


def test_published_numbers_by_hand():
    assert published("cifar10", "2%", "1%", "cifar10", "MKDT") == {
        "mean": pytest.approx(0.4436),
        "std": pytest.approx(0.0161),
    }
    assert published("cifar10", "5%", "5%", "cifar10", "random")["mean"] == pytest.approx(0.4813)
    assert published("cifar100", "5%", "5%", "cifar100", "full") == published(
        "cifar100", "2%", "5%", "cifar100", "full"
    )
    assert (
        published("cifar10", "3%", "1%", "cifar10", "MKDT") is None
        and published("folder", "2%", "1%", "x", "MKDT") is None
    )


def test_the_table_of_what_combines_names_every_method():
    assert all(f"| {name} |" in compatibility() for name in DISTILLED)


def test_bad_recipes_are_refused(refused):
    for change, named in (
        ({"method": "magic"}, "magic"),
        ({"images": 0}, "0"),
        ({"method": "none"}, "images"),
        ({"method": "random", "steps": 5}, "initialize, steps"),
        ({"initialize": "noise"}, "noise"),
        ({"method": "KRR-ST", "learned": True}, "learned"),
        ({"method": "full", "images": 0, "matched": True}, "matched"),
        ({"encoder": "GPT"}, "GPT"),
        ({"keep": 1.5}, "1.5"),
        ({"rule": "flexrand"}, "flexrand"),
        ({"lr": -1.0}, "-1.0"),
    ):
        with refused(named):
            Pretraining(**{"method": "MKDT", "images": 5, "seed": 0} | change)


def test_settings_that_krrst_has_not_are_refused(tmp_path, refused):
    with refused("widht", "width"):
        made(tmp_path, settings=Settings(Trajectory(changes=CHANGES), prior={"widht": 4})).run(recipe("KRR-ST"))


def test_targets_and_tasks_that_do_not_fit_are_refused(tmp_path, refused):
    bench = made(tmp_path)
    options = PROTOCOL, bench.tasks, bench.runs
    with refused("targets", str(WIDTH)):
        PretrainingBench(bench.real, ConvNet((1, 8, 8), 7, width=4, depth=1), *options)
    with refused("big"):
        big = blobs(shape=(1, 16, 16))
        PretrainingBench(bench.real, bench.network, PROTOCOL, {"big": Splits(big, big, big)}, bench.runs)
    with refused("100"):
        bench.run(Pretraining("random", 100, 0))


def test_features_of_a_batchnorm_encoder_do_not_depend_on_neighbours(results):
    """Encoders with BatchNorm are probed in evaluation mode: an image's features do not depend on its neighbours."""
    bench, _ = results
    network, params, _ = bench._pretrained(recipe("random", encoder="ResNet18"), None)
    images = bench.tasks["own"].test
    together = embed(network, params, images)
    alone = embed(network, params, images.subset(torch.tensor([3])))
    assert torch.allclose(together[:, 3:4], alone, atol=1e-5)
