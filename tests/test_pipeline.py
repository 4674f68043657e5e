"""The pipeline: recipes are refused where they make no sense, runs are computed once, and two runs give the same bits."""

import time
from dataclasses import replace

import pytest
import torch

from distillery import distill as distilling
from distillery import experts, store
from distillery.checks import InputError
from distillery.data import load, synthetic
from distillery.evaluation import Protocol
from distillery.networks import ConvNet
from distillery.pipeline import Bench
from distillery.recipes import (
    HOSTS,
    PRESETS,
    PUBLISHED,
    TRAJECTORIES,
    Hosts,
    Recipe,
    Trajectory,
    compatibility,
    published,
    published_steps,
)
from distillery.runs import Runs
from distillery.scores.cached import CachedScores
from distillery.training.dsa import DSA_NO_FLIP

SHORT = {"steps": 2, "batch": 8}


@pytest.fixture(scope="module")
def splits():
    return load("digits", per_class=30)


TINY = {
    "experts": 2,
    "expert_lr": 0.05,
    "expert_batch": 32,
    "steps": 3,
    "span": 1,
    "last": 2,
    "lr_images": 50.0,
    "step_size": 0.05,
    "epochs": 3,
    "initialize": "real",
    "ema": 0.9,
    "threshold": 0,
}


def bench(splits, folder, changes=None, validations=0, **options):
    runs = Runs(folder, **options)
    network, protocol = ConvNet(splits.train.shape, 10, width=8), Protocol(2, 4)
    settings = Trajectory("cifar10", TINY | (changes or {}), validations=validations)
    return Bench(
        splits, network, protocol, runs, augmentation=DSA_NO_FLIP, score_trials=2, score_epochs=1, trajectory=settings
    )


def trained(monkeypatch):
    """The number of epochs of each training of experts from here on; steps timed for the cost are none."""
    calls, train = [], experts.train

    def watched(*args, **options):
        calls.extend([options["epochs"]] if "epochs" in options else [])
        return train(*args, **options)

    monkeypatch.setattr(experts, "train", watched)
    return calls


@pytest.mark.parametrize(
    "method",
    [*PRESETS, *HOSTS, *TRAJECTORIES, "random", "random, packed", "herding", "k-means", "highest loss", "whole"],
)
def test_two_runs_with_one_seed_give_the_same_bits(splits, tmp_path, method):
    short = SHORT if method in (*PRESETS, *HOSTS) else {"steps": 2} if method in TRAJECTORIES else {}
    recipe = Recipe(method, 1, 3, keep=0.5, **short)
    first, second = bench(splits, tmp_path / "a"), bench(splits, tmp_path / "b")
    if method == "FRePo":  # it learns real-valued labels
        for one in (first, second):
            one.protocol = replace(one.protocol, loss="squared error")
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


def test_a_number_of_images_of_each_class_is_kept(splits, tmp_path):
    here = bench(splits, tmp_path)
    assert len(here.kept(Recipe("DM", 1, 0, keep=3))) == 30
    with pytest.raises(InputError, match="at least 4"):
        here.kept(Recipe("DM", 4, 0, keep=3))


def test_converged_scores_are_scores_of_their_own(splits, tmp_path):
    here = bench(splits, tmp_path)
    here.score_lengths["converged loss"] = (2, 4)
    early, late = here.scores(0)["loss"], here.scores(0, "converged loss")["loss"]
    assert late.mean() < early.mean()
    assert sorted(here.scoring) == [("converged loss", 0), ("loss", 0)]
    assert here.scoring["converged loss", 0]["samples"] == 4 * here.scoring["loss", 0]["samples"]
    recipe = Recipe("DM", 1, 0, keep=0.2)
    ids = {store.identity("bench", 1, here._inputs(r), "") for r in (recipe, replace(recipe, score="converged loss"))}
    assert len(ids) == 2 and "score" not in recipe.spec()


def test_packed_sets_hold_four_images_in_each(splits, tmp_path):
    """IDM starts from the very images of the packed random row."""
    here = bench(splits, tmp_path)
    packed, plain = (here.synthetic(here.run(Recipe(m, 1, 1))) for m in ("random, packed", "random"))
    assert len(packed) == len(plain) == 10 and len(packed.decode()[0]) == 40
    made = here.synthetic(here.run(Recipe("IDM", 1, 1, steps=1, batch=8, lr=1e-9)))
    assert torch.allclose(made.tensors["images"], packed.tensors["images"], atol=1e-5)
    with pytest.raises(InputError, match="at least 8"):
        here.run(Recipe("IDC", 2, 1, keep=5, steps=1))


def test_changed_settings_of_hosts(splits, tmp_path):
    here = bench(splits, tmp_path)
    short = Recipe("IDC", 1, 0, steps=2, batch=8)
    here.hosts = Hosts("svhn", {"n_data": 64, "ce_weight": 0.1})
    assert here.hosts.settings("IDC", 1)["n_data"] == 64 and "ce_weight" not in here.hosts.settings("IDC", 1)
    first = here.run(short)
    here.hosts = Hosts("svhn", {"n_data": 128})
    assert here.run(short)["loss"] != first["loss"] and here.runs.computed == 2
    with pytest.raises(InputError, match="'n_date'.*accepted"):
        Hosts("svhn", {"n_date": 64})
    here.hosts = Hosts("imagenet-100")
    with pytest.raises(InputError, match="imagenet-100.*accepted"):
        here.run(short)


@pytest.mark.parametrize("recipe", [Recipe("DM", 1, 0, keep=0.5, **SHORT), Recipe("herding", 1, 0)], ids=str)
def test_scores_are_made_before_the_clock_of_a_run_starts(splits, tmp_path, monkeypatch, recipe):
    """Many runs share them: their cost is `scoring`'s, not that of the run which comes first."""
    here, order, score, make = bench(splits, tmp_path), [], CachedScores._make, Bench._make
    monkeypatch.setattr(CachedScores, "_make", lambda *args: order.append("scores") or score(*args))
    monkeypatch.setattr(Bench, "_make", lambda *args: order.append("set") or make(*args))
    here.run(recipe)
    assert order == ["scores", "set"] and here.scoring["loss", 0]["seconds"] > 0
    here.run(replace(recipe, evaluate_on="LeNet"))
    assert order == ["scores", "set"]  # the set is there: nothing is scored or made


@pytest.mark.parametrize("method", ["DC", "DSA", "DM", "IDM", "IDC", "IDC-I"])
def test_treatment_effects_are_a_plug(splits, tmp_path, method):
    """A share of each batch is dropped in every step; the run says how many images were left."""
    here = bench(splits, tmp_path)
    plain = Recipe(method, 1, 0, **SHORT)
    ours = replace(plain, effect=0.5, effect_every=2, keep=0.5)
    result = here.run(ours)
    assert 1 <= result["effective_batch"] < 8 and "effective_batch" not in here.run(plain)
    assert here.run(ours) == result and here.runs.computed == 2


def test_another_architecture_is_tested_on_the_same_set(splits, tmp_path):
    here = bench(splits, tmp_path)
    recipe = Recipe("DM", 1, 0, **SHORT)
    on = Recipe("DM", 1, 0, **SHORT, evaluate_on="LeNet")
    assert len(here.run(on)["accuracies"]) == 2
    assert here.runs.computed == 2  # the set itself, then its test on the other network
    assert here.run(recipe) and here.runs.computed == 2
    here.runs.artifact(here.run(recipe)["artifact"]).unlink()
    assert here.run(Recipe("DM", 1, 0, **SHORT, evaluate_on="MLP")) is None and here.runs.missing  # nothing to test


def test_a_spent_budget_lists_what_is_missing(splits, tmp_path):
    ticks = iter([0.0, *[100.0] * 9])
    here = bench(splits, tmp_path, budget_minutes=1.0, clock=lambda: next(ticks))
    assert here.run(Recipe("random", 1, 0)) is None
    assert here.runs.missing[0]["recipe"]["method"] == "random"


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "magic"},
        {"ipc": 0},
        {"keep": 0.0},
        {"rule": "best"},
        {"steps": -1},
        {"batch": -3},
        {"initialize": "zeros"},
        {"method": "random", "steps": 5},
        {"method": "whole", "evaluate_on": "LeNet"},
        {"evaluate_on": "ResNet50"},
        {"method": "whole, trained out"},
        {"method": "herding", "initialize": "real"},
        {"method": "FTD", "batch": 8},
        {"initialize": "correct"},
        {"iterate": "ema"},
        {"method": "FTD", "iterate": "first"},
        {"score": "beauty"},
        {"effect": 1.0},
        {"effect": -0.1},
        {"effect": 0.2, "effect_every": 0},
        {"effect": 0.2, "effect_tails": "left"},
        {"effect_every": 5},
        {"method": "MTT", "effect": 0.2},
        {"method": "random", "effect": 0.2},
    ],
    ids=str,
)
def test_recipes_that_make_no_sense(wrong):
    with pytest.raises(InputError, match="accepted"):
        Recipe(**({"method": "DM", "ipc": 1, "seed": 0} | wrong))


def test_published_numbers_and_loops():
    assert published("cifar10", "DM", 10) == {"mean": 0.489, "std": 0.006}
    assert published("digits", "DM", 10) is None and published("cifar10", "random", 1) is None
    assert (
        published_steps("DM", 50) == 20000 and published_steps("DSA", 1) == 1000 and published_steps("DC", 10) == 10000
    )
    for methods in PUBLISHED.values():
        for sizes in methods.values():
            assert all(0 < mean < 100 and 0 < std < 3 for mean, std in sizes.values())


def test_compatibility_names_every_method():
    assert all(f"| {name} |" in compatibility() for name in (*PRESETS, *HOSTS, *TRAJECTORIES))
    assert compatibility().count("refused: it has no real batch") == len(TRAJECTORIES)


def test_precision_identifies_a_run_and_keeps_the_pairing(splits, tmp_path):
    """Low precision is another run on the same start, and its set is close to the float32 one."""
    runs = Runs(tmp_path)
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
    assert plain.context == bench(splits, tmp_path).context  # runs made before the option existed are still found


# Trajectory methods


def test_ids_of_other_methods_do_not_know_of_trajectories(splits, tmp_path):
    """A stored run of before is found: its recipe has the fields it had, and settings of trajectories do not count."""
    first = bench(splits, tmp_path)
    inputs = first._inputs(Recipe("DM", 1, 0))
    assert "trajectory" not in inputs and "iterate" not in inputs["recipe"] and len(inputs["recipe"]) == 11
    first.run(Recipe("random", 1, 0))
    second = bench(splits, tmp_path, {"steps": 7})
    assert second.run(Recipe("random", 1, 0)) and second.runs.computed == 0


def test_settings_are_the_published_ones_with_changes(refused):
    plain = Trajectory("cifar10").settings("DATM", 10)
    assert (plain["steps"], plain["begin"], plain["growth"], plain["lr_labels"]) == (80, 10, 1000, 2)
    changed = Trajectory("cifar10", {"last": 3, "alpha": 1.0}).settings("DATM", 10)
    assert (changed["last"], changed["begin"], changed["growth"], changed["alpha"]) == (3, 0, 0, 1.0)
    assert "alpha" not in Trajectory("cifar10", {"alpha": 1.0}).settings("MTT", 1)
    with refused("stepps"):
        Trajectory("cifar10", {"stepps": 3})
    with refused("ipc", 3):
        Trajectory("cifar10").settings("FTD", 3)
    with refused("data set", "digits"):
        Trajectory("digits").settings("FTD", 1)


def test_a_bench_without_settings_refuses_trajectories(splits, tmp_path, refused):
    here = bench(splits, tmp_path)
    here.trajectory = None
    with refused("trajectory", "FTD"):
        here.run(Recipe("FTD", 1, 0))


def test_experts_are_trained_once_and_their_cost_is_told(splits, tmp_path, monkeypatch, capsys):
    calls = trained(monkeypatch)
    here = bench(splits, tmp_path)
    first, second = (here.run(Recipe("FTD", 1, seed, steps=1)) for seed in (0, 1))
    (told,) = capsys.readouterr().out.splitlines()
    assert told.startswith("2 experts: ") and "MB on disk" in told
    assert calls == [2] and first["experts"] == second["experts"]
    assert first["experts"]["samples"] == 2 * 2 * len(splits.train) and first["experts"]["seconds"] > 0
    more = here.run(Recipe("DATM", 1, 0, steps=1))  # the same flat experts, one epoch longer
    assert calls == [2, 3] and more["experts"]["samples"] == 2 * len(splits.train)
    here.run(Recipe("MTT", 1, 0, steps=1))
    here.run(Recipe("TESLA", 1, 0, steps=1))  # with plain experts, those of MTT
    assert calls == [2, 3, 2]
    bench(splits, tmp_path).run(Recipe("FTD", 1, 2, steps=1))
    assert calls == [2, 3, 2]
    here.run(Recipe("FTD", 1, 0, steps=1, keep=0.5))  # other images, other experts
    assert calls == [2, 3, 2, 2]


def test_pruned_experts_have_seen_only_what_is_kept(splits, tmp_path):
    here = bench(splits, tmp_path)
    recipe = Recipe("MTT", 1, 0, steps=1, keep=0.2)
    bank = here.experts(recipe)
    pool = splits.train.subset(here.kept(recipe))
    training = here.trajectory.training(here.trajectory.settings("MTT", 1), DSA_NO_FLIP)
    assert len(pool) < len(splits.train)
    again = experts.load(tmp_path / "artifacts" / "experts", here.network, pool, training, 2)
    assert all(torch.equal(bank.weights[name], again.weights[name]) for name in bank.weights)


def test_foreign_experts_are_refused(splits, tmp_path, refused):
    here = bench(splits, tmp_path)
    recipe = Recipe("MTT", 1, 0, steps=1)
    here.experts(recipe)
    (mine,) = (tmp_path / "artifacts" / "experts").glob("experts-*")
    other = bench(splits, tmp_path / "other", {"expert_lr": 0.01})
    other.experts(recipe)
    (theirs,) = (tmp_path / "other" / "artifacts" / "experts").glob("experts-*")
    (mine / "001.safetensors").write_bytes((theirs / "001.safetensors").read_bytes())
    with refused("optimizer differs", "0.01"):
        bench(splits, tmp_path).run(recipe)


def test_average_and_best_are_evaluated_without_another_distillation(splits, tmp_path):
    here = bench(splits, tmp_path, validations=3)
    recipe = Recipe("FTD", 1, 0, steps=5)
    last = here.run(recipe)
    before = here.runs.computed
    for iterate in ("ema", "best"):
        result = here.run(replace(recipe, iterate=iterate))
        assert len(result["accuracies"]) == 2 and result["steps"] == 0
        assert len(here.run(replace(recipe, iterate=iterate, evaluate_on="LeNet"))["accuracies"]) == 2
    assert here.runs.computed == before + 4
    sets = {name: here.synthetic(last, name).tensors for name in ("last", "ema", "best")}
    assert not torch.equal(sets["last"]["images"], sets["ema"]["images"])
    assert torch.equal(sets["last"]["step_size"], sets["ema"]["step_size"])
    assert last["best_step"] in (2, 4, 5) and 0 <= last["best_score"] <= 1
    assert here.run(Recipe("DATM", 1, 0, steps=1, iterate="ema")) is None  # it has no average


def test_evaluation_takes_the_learned_rate_and_labels(splits, tmp_path, monkeypatch):
    seen = []

    def watched(network, source, protocol, *args, **options):
        seen.append((protocol.lr, protocol.batch, source.targets))
        return torch.tensor([0.5], dtype=torch.float64)

    monkeypatch.setattr("distillery.pipeline.evaluate", watched)
    here = bench(splits, tmp_path)
    result = here.run(Recipe("DATM", 1, 0, steps=2))
    rate, batch, targets = seen[0]
    assert rate == pytest.approx(result["step_size"]) and batch == 128
    made = here.synthetic(result)
    assert torch.equal(targets, made.tensors["label_logits"].softmax(1))
    path = synthetic.export(made, tmp_path / "set", {})
    read = synthetic.load(path)
    assert torch.equal(read.decode()[1], targets) and read.stored_numbers() == made.stored_numbers()


def test_a_run_that_stops_is_listed_and_stops_no_other(splits, tmp_path):
    here = bench(splits, tmp_path, {"lr_step_size": 1e6})
    assert here.run(Recipe("MTT", 1, 0, steps=3)) is None
    assert "numbers at step" in here.runs.missing[0]["stopped"] and str(tmp_path) not in str(here.runs.missing)
    assert here.run(Recipe("random", 1, 0))


def test_first_images_that_an_expert_classifies_right(splits, tmp_path):
    here = bench(splits, tmp_path, {"epochs": 12, "initialize": "correct"})
    result = here.run(Recipe("DATM", 1, 0, steps=1))
    start = here.synthetic(result).card["start"]
    last = here.experts(Recipe("DATM", 1, 0)).at(0, 12), here.experts(Recipe("DATM", 1, 0)).at(1, 12)
    guesses = [here.network.apply(params, start, train=False).logits[0].argmax(1) for params in last]
    assert any(torch.equal(guess, torch.arange(10)) for guess in guesses)


class Killed(Exception):
    pass


def test_experts_that_were_killed_keep_the_time_they_took(splits, tmp_path, monkeypatch):
    recipe, write, left = Recipe("FTD", 1, 0, steps=1), experts._write, iter(range(2))

    def slow(*args):
        time.sleep(0.3)
        if next(left, None) is None:
            raise Killed
        write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(experts, "_write", slow)  # epochs 0 and 1 are written, 2 is lost
        with pytest.raises(Killed):
            bench(splits, tmp_path).run(recipe)
    cost = bench(splits, tmp_path).run(recipe)["experts"]
    assert cost["seconds"] > 0.3 and cost["samples"] == 2 * 2 * len(splits.train)


def test_experts_are_made_before_runs_are_mapped(ray, splits, tmp_path, monkeypatch):
    """The driver maps the experts of all recipes, then the recipes, whose workers find them: the bits are the same."""
    recipes = [Recipe("FTD", 1, 0, steps=1, iterate="ema"), *(Recipe("MTT", 1, s, steps=1) for s in (0, 1))]
    here, there = bench(splits, tmp_path / "local"), bench(splits, tmp_path / "ray")
    expected, mapped, make = here.run_all(recipes), [], experts.make

    def watched(*args, where, **options):
        mapped.append(where)
        return make(*args, where=where, **options)

    monkeypatch.setattr(experts, "make", watched)
    found = there.run_all(recipes, "ray")
    assert mapped == ["ray", "ray"]
    assert [one["accuracies"] for one in found] == [one["accuracies"] for one in expected]
    assert there.runs.computed == 4 and found[1]["experts"] == found[2]["experts"]
    bench(splits, tmp_path / "ray").run_all(recipes, "ray")
    assert mapped == ["ray", "ray"]
    there.engine = "ray"
    bank = there.experts(Recipe("DATM", 1, 0))
    assert mapped[2:] == ["ray"] and bank.epochs == 3


def test_a_killed_distillation_goes_on_with_the_same_bits(splits, tmp_path, monkeypatch):
    recipe = Recipe("FTD", 1, 0, steps=6)
    whole = bench(splits, tmp_path / "whole", validations=2)
    expected = whole.run(recipe)
    broken = bench(splits, tmp_path / "broken", validations=2)
    broken.checkpoint_seconds = 0.0
    save, left = distilling._save, iter(range(3))

    def killed(*args):
        save(*args)
        if next(left, None) is None:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(distilling, "_save", killed)
        with pytest.raises(Killed):
            broken.run(recipe)
    found = broken.run(recipe)
    assert found["accuracies"] == expected["accuracies"] and found["best_step"] == expected["best_step"]
    for iterate in ("last", "ema", "best"):
        one, two = (here.synthetic(expected if here is whole else found, iterate) for here in (whole, broken))
        assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


def test_architecture_search(splits, tmp_path):
    here = bench(splits, tmp_path)
    grid = [ConvNet(splits.train.shape, 10, width=width, depth=1) for width in (2, 4, 6)]
    for recipe in (Recipe("FTD", 1, 0, steps=1), Recipe("random", 1, 0), Recipe("whole", 1, 0)):
        found = here.search(recipe, grid)
        assert [len(one) for one in found["accuracies"]] == [2, 2, 2] and here.search(recipe, grid) == found
    assert here.runs.computed == 5  # three searches and the two sets
