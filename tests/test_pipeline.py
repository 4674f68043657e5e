"""The pipeline: recipes are refused where they make no sense, runs are computed once, and two runs give the same bits."""

import pytest
import torch

from distillery import store
from distillery.augment import DSA_NO_FLIP
from distillery.checks import InputError
from distillery.data import load
from distillery.evaluation import Protocol
from distillery.networks import ConvNet
from distillery.pipeline import PRESETS, PUBLISHED, Bench, Recipe, compatibility, published, published_steps

SHORT = {"steps": 2, "batch": 8}


@pytest.fixture(scope="module")
def splits():
    return load("digits", per_class=30)


def bench(splits, folder, **options):
    runs = store.Runs(folder, **options)
    network, protocol = ConvNet(splits.train.shape, 10, width=8), Protocol(2, 4)
    return Bench(splits, network, protocol, runs, augmentation=DSA_NO_FLIP, score_trials=2, score_epochs=1)


@pytest.mark.parametrize("method", [*PRESETS, "random", "herding", "k-means", "highest loss", "whole"])
def test_two_runs_with_one_seed_give_the_same_bits(splits, tmp_path, method):
    recipe = Recipe(method, 1, 3, keep=0.5, **(SHORT if method in PRESETS else {}))
    first, second = bench(splits, tmp_path / "a"), bench(splits, tmp_path / "b")
    one, two = first.run(recipe), second.run(recipe)
    assert one["accuracies"] == two["accuracies"] and one["loss"] == two["loss"]
    if one["artifact"]:
        assert torch.equal(first.synthetic(one).tensors["images"], second.synthetic(two).tensors["images"])
    assert first.run(recipe) == one and first.runs.computed == 1 and first.runs.reused == 1


def test_methods_start_from_the_random_row(splits, tmp_path):
    """Paired seeds: DM and DSA start from the very images of the random selection."""
    here = bench(splits, tmp_path)
    random = here.synthetic(here.run(Recipe("random", 2, 1)))
    for method in ("DM", "DSA"):
        made = here.synthetic(here.run(Recipe(method, 2, 1, **SHORT)))
        assert torch.equal(made.card["start"], random.tensors["images"])
        assert not torch.equal(made.tensors["images"], random.tensors["images"])


def test_a_pruned_set_distills_from_what_is_kept(splits, tmp_path):
    here = bench(splits, tmp_path)
    recipe = Recipe("DM", 1, 0, keep=0.2, **SHORT)
    kept, loss = here.kept(recipe), here.scores(0)["loss"]
    for label in range(10):
        members = splits.train.of_class(label)
        inside = kept[splits.train.targets[kept] == label]
        assert loss[inside].max() <= loss[members].sort().values[len(inside) - 1]
    start = here.synthetic(here.run(recipe)).card["start"]
    pool = splits.train.batch(kept).flatten(1)
    assert all((image == pool).all(1).any() for image in start.flatten(1))


def test_another_architecture_is_tested_on_the_same_set(splits, tmp_path):
    here = bench(splits, tmp_path)
    recipe = Recipe("DM", 1, 0, **SHORT)
    on = Recipe("DM", 1, 0, **SHORT, evaluate_on="LeNet")
    assert len(here.run(on)["accuracies"]) == 2
    assert here.runs.computed == 2  # the set itself, then its test on the other network
    assert here.run(recipe) and here.runs.computed == 2
    here.runs.artifact(here.run(recipe)["artifact"]).unlink()
    assert (
        here.run(Recipe("DM", 1, 0, **SHORT, evaluate_on="MLP")) is None and here.runs.missing
    )  # nothing to test


def test_a_spent_budget_lists_what_is_missing(splits, tmp_path):
    ticks = iter([0.0, *[100.0] * 9])
    here = bench(splits, tmp_path, budget_minutes=1.0, clock=lambda: next(ticks))
    assert here.run(Recipe("random", 1, 0)) is None
    assert here.runs.missing[0]["recipe"]["method"] == "random"


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "magic"}, {"ipc": 0}, {"keep": 0.0}, {"rule": "best"}, {"steps": -1}, {"batch": -3}, {"initialize": "zeros"},
        {"method": "random", "steps": 5}, {"method": "whole", "evaluate_on": "LeNet"}, {"evaluate_on": "ResNet50"},
        {"method": "whole, trained out"}, {"method": "herding", "initialize": "real"},
    ],
    ids=str,
)  # fmt: skip
def test_recipes_that_make_no_sense(wrong):
    with pytest.raises(InputError, match="accepted"):
        Recipe(**({"method": "DM", "ipc": 1, "seed": 0} | wrong))


def test_published_numbers_and_loops():
    assert published("cifar10", "DM", 10) == {"mean": 0.489, "std": 0.006}
    assert published("digits", "DM", 10) is None and published("cifar10", "random", 1) is None
    assert (
        published_steps("DM", 50) == 20000
        and published_steps("DSA", 1) == 1000
        and published_steps("DC", 10) == 10000
    )
    for methods in PUBLISHED.values():
        for sizes in methods.values():
            assert all(0 < mean < 100 and 0 < std < 3 for mean, std in sizes.values())


def test_compatibility_names_every_method():
    assert all(f"| {name} |" in compatibility() for name in PRESETS)


def test_precision_identifies_a_run_and_keeps_the_pairing(splits, tmp_path):
    """Low precision is another run on the same start, and its set is close to the float32 one."""
    runs = store.Runs(tmp_path)
    network, protocol = ConvNet(splits.train.shape, 10, width=8), Protocol(2, 4)
    plain, low = (
        Bench(splits, network, protocol, runs, augmentation=DSA_NO_FLIP, precision=precision)
        for precision in ("float32", "bfloat16")
    )
    for method in ("DM", "DSA"):
        results = [one.run(Recipe(method, 1, 1, **SHORT)) for one in (plain, low)]
        made = [one.synthetic(result) for one, result in zip((plain, low), results)]
        assert results[0]["artifact"] != results[1]["artifact"]
        assert torch.equal(made[0].card["start"], made[1].card["start"])
        moved = [one.tensors["images"] - one.card["start"] for one in made]
        assert not torch.equal(*moved)
        assert torch.nn.functional.cosine_similarity(*(one.flatten() for one in moved), dim=0) > 0.98
    assert (
        plain.context == bench(splits, tmp_path).context
    )  # runs made before the option existed are still found
