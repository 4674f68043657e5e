"""Experiments: sets and evaluations are made once and stored apart, what makes no sense is refused, two runs give the same bits."""

import copy
import weakref
from collections import Counter
from dataclasses import fields, replace

import pytest
import torch

from distillery import distill as distilling
from distillery import job as jobs
from distillery.checks import InputError
from distillery.data import ImageSet, LazyImages
from distillery.data.cache import Building, Shards
from distillery.evaluation import FineTuning, Protocol, evaluate
from distillery.experiment import Compute, Experiment, Presets, ScoreSettings, Validation
from distillery.methods import METHODS
from distillery.networks import ConvNet
from distillery.recipe import ByLoss, Effect, Evaluate, Prune, Recipe
from distillery.runs import Runs
from distillery.scores import dynamics
from distillery.scores.registry import SCORES
from distillery.seeds import generator
from distillery.training.views import Views
from experiments import SHORT, TINY, experiment, made_for, unlabelled, untrained
from made_up import refusal

LABELLED = [name for name, one in METHODS.items() if one.labels is not False]


@pytest.fixture(scope="session")
def encoder(splits):
    return untrained(splits)


def test_looks_tell_the_best_beside_the_last(splits, tmp_path):
    plain, looked = (experiment(splits, tmp_path, protocol=Protocol(2, 4, lr=0.1, looks=looks)) for looks in (0, 3))
    recipe = Recipe("random", 1, 0)
    found, before = looked.run(recipe), plain.run(recipe)
    assert found["accuracies"] == before["accuracies"] and "best" not in before and found["artifact"] == before["artifact"]
    assert all(best >= last for best, last in zip(found["best"], found["accuracies"]))


def test_hard_labels_of_a_set_are_learned_by_cross_entropy(splits, tmp_path):
    """Of hard labels nothing changes; of learned ones the likeliest class is trained on, by the default protocol."""
    here = experiment(splits, tmp_path, TINY, protocol=Protocol(2, 2, loss="half squared error"))
    for method in ("random", "FRePo"):
        own, hard = (Recipe(method, 1, 0, evaluate=Evaluate(labels=labels)) for labels in ("own", "hard"))
        found, judged = here.run(own), here.run(hard)
        made = here.synthetic(found)
        targets = made.tensors["targets"]
        labels = targets.argmax(1) if targets.is_floating_point() else targets
        source = made.replace(targets=labels).source()
        by_hand = evaluate(here.network, source, Protocol(2, 2), splits.test, generator(0, "evaluation"))
        assert judged["accuracies"] == by_hand.tolist() != found["accuracies"] and judged["artifact"] == found["artifact"]


def test_the_best_rate_is_that_of_validation_images(splits, tmp_path):
    here, recipe = experiment(splits, tmp_path, protocol=Protocol(2, 8)), Recipe("random", 2, 0)
    found = here.best_rate(recipe, [1e-5, 0.1])
    assert [rate for rate, _ in found["tried"]] == [0.01, 1e-5, 0.1]
    best = max(found["tried"], key=lambda one: one[1])[0]
    assert found["rate"] == (0.0 if best == 0.01 else best)
    source, stream = here.synthetic(here.run(recipe)).source(), generator(0, "rate")
    by_hand = evaluate(here.network, source, Protocol(1, 8, lr=0.1), splits.validation, stream)
    assert found["tried"][2][1] == float(by_hand)
    assert here.best_rate(recipe, [1e-5])["rate"] == 0.0 and here.best_rate(recipe, [])["tried"] == found["tried"][:1]
    computed = here.runs.computed
    assert here.best_rate(recipe, [1e-5, 0.1]) == found and here.runs.computed == computed
    nothing = replace(splits, validation=splits.validation.subset(torch.arange(0)))
    with refusal("validation"):
        experiment(nothing, tmp_path).best_rate(recipe, [0.1])


def loops(monkeypatch) -> list:
    """Calls of the one loop from here on."""
    calls, real = [], jobs.distill
    monkeypatch.setattr(jobs, "distill", lambda *a, **o: calls.append(1) or real(*a, **o))
    return calls


# What is made, and from what


@pytest.mark.parametrize("method", METHODS)
def test_two_runs_with_one_seed_give_the_same_bits(splits, encoder, tmp_path, method):
    first, second = (made_for(method, splits, encoder, tmp_path / name) for name in "ab")
    makes, rule = METHODS[method].makes_set, "lowest" if METHODS[method].labels is not False else "random"
    prune = Prune(0.5, rule) if METHODS[method].prunes else None
    start = "random" if method == "DATM" else ""  # its experts here classify nothing right
    size = 4 if METHODS[method].labels is False else 1
    recipe = Recipe(method, size * makes, 3, prune, start)
    one, two = first.run(recipe), second.run(recipe)
    assert one["accuracies"] == two["accuracies"] and one["loss"] == two["loss"]
    assert (one["artifact"] is not None) == makes
    if makes:
        made = [here.synthetic(result).tensors for here, result in ((first, one), (second, two))]
        assert all(torch.equal(value, made[1][name]) for name, value in made[0].items())
    assert first.run(recipe) == one and first.runs.computed == 1 + makes and first.runs.reused == 1


def test_methods_start_from_the_random_row(splits, tmp_path):
    """Paired seeds: DM and DSA start from the very images of the random selection."""
    here = experiment(splits, tmp_path)
    random = here.synthetic(here.run(Recipe("random", 2, 1)))
    for method in ("DM", "DSA"):
        made = here.synthetic(here.run(Recipe(method, 2, 1)))
        assert torch.equal(made.card["start"], random.tensors["images"])
        assert not torch.equal(made.tensors["images"], random.tensors["images"])


def test_a_pruned_set_distills_from_what_is_kept(splits, tmp_path):
    here = experiment(splits, tmp_path)
    recipe = Recipe("DM", 1, 0, Prune(0.2))
    kept, loss = here.kept(recipe), here.scores.scratch(0)["loss"]
    for label in range(10):
        members = splits.train.of_class(label)
        inside = kept[splits.train.targets[kept] == label]
        assert loss[inside].max() <= loss[members].sort().values[len(inside) - 1]
    start = here.synthetic(here.run(recipe)).card["start"]
    pool = splits.train.batch(kept).flatten(1)
    assert all((image == pool).all(1).any() for image in start.flatten(1))


def test_a_number_of_images_of_each_class_is_kept(splits, tmp_path, refused):
    here = experiment(splits, tmp_path)
    assert len(here.kept(Recipe("DM", 1, 0, Prune(3)))) == 30
    with refused("at least 4"):
        here.kept(Recipe("DM", 4, 0, Prune(3)))


def test_converged_scores_are_scores_of_their_own(splits, tmp_path):
    here = experiment(splits, tmp_path, scores=ScoreSettings(early=(2, 1), converged=(2, 4)))
    early, late = here.scores.scratch(0)["loss"], here.scores.scratch(0, "converged loss")["loss"]
    assert late.mean() < early.mean()
    assert sorted(here.scores.costs) == [("converged loss", 0), ("loss", 0)]
    assert here.scores.costs["converged loss", 0]["samples"] == 4 * here.scores.costs["loss", 0]["samples"]
    assert len({here.set_id(Recipe("DM", 1, 0, Prune(0.2, score=score))) for score in ("loss", "converged loss")}) == 2


@pytest.mark.parametrize("recipe", [Recipe("DM", 1, 0, Prune(0.5)), Recipe("herding", 1, 0)], ids=["pruned", "herding"])
def test_scores_are_made_before_the_clock_of_a_set_starts(splits, tmp_path, monkeypatch, recipe):
    """Many sets share them: their cost is billed apart, not with the set that comes first."""
    here, order, score = experiment(splits, tmp_path), [], dynamics.dynamics
    method = METHODS[recipe.method]
    monkeypatch.setattr(dynamics, "dynamics", lambda *args, **options: order.append("scores") or score(*args, **options))
    make = method.make
    monkeypatch.setattr(method, "make", lambda job: order.append("set") or make(job), raising=False)
    here.run(recipe)
    assert order == ["scores", "set"] and here.scores.costs["loss", 0]["seconds"] > 0
    assert here.scores.costs["loss", 0] in here.billed_passes
    here.run(replace(recipe, evaluate=Evaluate(network="LeNet")))
    assert order == ["scores", "set"]  # the set is there: nothing is scored or made


@pytest.mark.parametrize("method", ["DC", "DSA", "DM"])
def test_treatment_effects_are_a_plug(splits, tmp_path, method):
    """A share of each batch is dropped in every step; the result says how many images were left."""
    here = experiment(splits, tmp_path, TINY)
    plain = Recipe(method, 1, 0)
    ours = replace(plain, batches=Effect(0.5, every=2), prune=Prune(0.5))
    result = here.run(ours)
    assert 1 <= result["effective_batch"] < 8 and "effective_batch" not in here.run(plain)
    assert here.run(ours) == result and here.runs.computed == 4


def test_precision_identifies_a_set_and_keeps_the_pairing(splits, tmp_path):
    """Low precision is another set on the same start, close to the float32 one."""
    plain, low = (experiment(splits, tmp_path, compute=Compute(precision)) for precision in ("float32", "bfloat16"))
    for method in ("DM", "DSA"):
        results = [one.run(Recipe(method, 1, 1)) for one in (plain, low)]
        made = [one.synthetic(result) for one, result in zip((plain, low), results)]
        assert results[0]["artifact"] != results[1]["artifact"]
        assert torch.equal(made[0].card["start"], made[1].card["start"])
        moved = [one.tensors["images"] - one.card["start"] for one in made]
        assert not torch.equal(*moved)
        assert torch.nn.functional.cosine_similarity(*(one.flatten() for one in moved), dim=0) > 0.98


# Sets and evaluations are apart


def test_another_protocol_uses_every_set_again(splits, tmp_path, monkeypatch):
    recipes = [Recipe(method, 1, 0) for method in ("random", "herding", "DM", "DSA", "MTT")]
    before = [experiment(splits, tmp_path, TINY).run(one) for one in recipes]
    calls, made = loops(monkeypatch), []
    for one in recipes:
        monkeypatch.setattr(METHODS[one.method], "make", lambda job: made.append(job), raising=False)
    here = experiment(splits, tmp_path, TINY, protocol=Protocol(3, 1))
    for one, old in zip(recipes, before):
        result = here.run(one)
        assert result["artifact"] == old["artifact"] and result["loss"] == old["loss"]
        assert len(result["accuracies"]) == 3 and len(old["accuracies"]) == 2
    assert not calls and not made and here.runs.computed == len(recipes)


def test_a_methods_version_is_its_own(splits, tmp_path, monkeypatch):
    here = experiment(splits, tmp_path, TINY)
    recipes = {name: Recipe(name, 1, 0) for name in LABELLED if METHODS[name].makes_set}
    before = {name: here.set_id(one) for name, one in recipes.items()}
    for raised in ("DM", "herding", "DSA"):
        with monkeypatch.context() as patch:
            patch.setattr(type(METHODS[raised]), "version", METHODS[raised].version + 1)
            changed = {name for name, one in recipes.items() if here.set_id(one) != before[name]}
        stand = {name for name in changed if METHODS[name].common.get("host") == raised}  # on sets that this method makes
        assert raised in changed and all(isinstance(METHODS[name], type(METHODS[raised])) for name in changed - stand)
    assert len(set(before.values())) == len(before)


def another(value):
    """A value of the same type."""
    if isinstance(value, Views):
        return replace(value, flip=value.flip / 2)
    if isinstance(value, bool):
        return not value
    if value in METHODS:
        return "DC"
    return value + 1 if isinstance(value, int | float) else f"{value}+"


@pytest.mark.parametrize("method", [name for name in METHODS if fields(METHODS[name].Settings)])
def test_every_setting_is_in_the_id(splits, encoder, tmp_path, monkeypatch, method):
    here = made_for(method, splits, encoder, tmp_path)
    recipe = Recipe(method, int(METHODS[method].makes_set), 0)
    settings, seen = here.job(recipe).settings, {here.set_id(recipe)}
    for one in fields(settings):
        changed, job = copy.copy(settings), here.job(recipe)
        object.__setattr__(changed, one.name, another(getattr(settings, one.name)))
        job.__dict__["settings"] = changed
        with monkeypatch.context() as patch:
            patch.setattr(here, "job", lambda *_, job=job: job)
            seen.add(here.set_id(recipe))
    assert len(seen) == 1 + len(fields(settings))


def test_parts_of_a_recipe_are_in_the_id_where_they_are_there(splits, tmp_path):
    here = experiment(splits, tmp_path)
    plain = Recipe("DM", 1, 0)
    assert not {"prune", "batches", "scores"} & set(here.set_inputs(plain))
    assert here.set_id(plain) == here.set_id(replace(plain, prune=Prune(1.0))) == here.set_id(replace(plain, start="random"))
    parts = [
        {"prune": Prune(0.5)}, {"prune": Prune(0.5, rule="highest")}, {"prune": Prune(0.5, "flexrand", gamma=0.5)},
        {"prune": Prune(0.5, "random")}, {"prune": Prune(0.5, "random", draw=1)}, {"start": "noise"}, {"batches": Effect(0.2)},
        {"batches": Effect(0.2, every=2)}, {"batches": ByLoss(0.2)}, {"batches": ByLoss(0.2, reweight=True)}, {"size": 2}, {"seed": 1},
        {"settings": {"lr": 3.0}},
    ]  # fmt: skip
    assert len({here.set_id(replace(plain, **part)) for part in [{}, *parts]}) == 1 + len(parts)
    judged = replace(plain, evaluate=Evaluate(network="MLP"))
    assert here.set_id(judged) == here.set_id(plain)
    by_loss = [here.set_inputs(Recipe(method, 1, 0, batches=ByLoss(0.2))) for method in ("RFAD", "KIP")]
    assert ["logits" in one for one in by_loss] == [True, False] and "logits" not in here.set_inputs(Recipe("RFAD", 1, 0))


def test_preprocessing_is_in_the_ids(splits, tmp_path):
    """The same pixels in another standardization are other sets, and whole data another evaluation."""
    transform = replace(splits.train.transform, std=2 * splits.train.transform.std)
    other = replace(splits, **{name: replace(getattr(splits, name), transform=transform) for name in ("train", "validation", "test")})
    here, there = experiment(splits, tmp_path), experiment(other, tmp_path)
    assert other.digest == splits.digest
    for recipe in (Recipe("DM", 1, 0), Recipe("random", 1, 0)):
        assert here.set_id(recipe) != there.set_id(recipe)
    whole = Recipe("whole", 1, 0)
    assert here.evaluation_inputs(whole) != there.evaluation_inputs(whole)


def test_images_labels_encoder_and_tasks_are_in_the_ids(splits, encoder, tmp_path):
    """As they are, wherever their files lie."""

    def with_part(name, **changes):
        return replace(splits, **{name: replace(getattr(splits, name), **changes)})

    others = [with_part(name, targets=getattr(splits, name).targets.flip(0)) for name in ("train", "validation", "test")]
    others.append(with_part("train", pixels=splits.train.pixels ^ 1))
    assert len({experiment(one, tmp_path).set_id(Recipe("DM", 1, 0)) for one in (splits, *others)}) == 1 + len(others)
    shifted = replace(encoder, weights={name: value + 1e-3 for name, value in encoder.weights.items()})
    tuned = {"protocol": FineTuning(epochs=4)}
    here, there = (experiment(splits, tmp_path, encoder=one, **tuned) for one in (encoder, shifted))
    assert here.evaluation_inputs(Recipe("whole", 1, 0)) != there.evaluation_inputs(Recipe("whole", 1, 0))
    by_score = Recipe("DM", 1, 0, Prune(0.5, score="complexity"))
    assert here.set_id(by_score) != there.set_id(by_score)
    plain, changed = unlabelled(splits, tmp_path), unlabelled(splits, tmp_path)
    changed.tasks["digits"] = others[2]
    assert plain.evaluation_inputs(Recipe("MKDT", 1, 0)) != changed.evaluation_inputs(Recipe("MKDT", 1, 0))


def test_how_scores_are_made_is_in_the_ids_of_what_goes_by_them(splits, tmp_path):
    here, there = experiment(splits, tmp_path), experiment(splits, tmp_path, scores=ScoreSettings(early=(2, 2)))
    by_score = [Recipe("DM", 1, 0, Prune(0.5)), Recipe("DM", 1, 0, start="herding"), Recipe("herding", 1, 0)]
    by_none = [Recipe("DM", 1, 0), Recipe("DM", 1, 0, Prune(0.5, "random")), Recipe("random", 1, 0)]
    assert all(here.set_id(one) != there.set_id(one) for one in by_score)
    assert all(here.set_id(one) == there.set_id(one) for one in by_none)


def test_another_architecture_is_tested_on_the_same_set(splits, tmp_path):
    here = experiment(splits, tmp_path)
    recipe = Recipe("DM", 1, 0)
    on = replace(recipe, evaluate=Evaluate(network="LeNet"))
    assert len(here.run(on)["accuracies"]) == 2
    assert here.runs.computed == 2  # the set, and its test on the other network
    result = here.run(recipe)
    assert here.runs.computed == 3 and result["artifact"] == here.run(on)["artifact"]
    bills = here.billed([result, here.run(on)])
    assert bills[0] == {"seconds": result["seconds"], "samples": result["samples"]}
    assert bills[1]["samples"] == 0 and bills[1]["seconds"] == here.run(on)["seconds_evaluation"]


def test_a_set_whose_file_is_gone_is_made_again(splits, tmp_path):
    """As in a fresh clone: the stored result stays as it is, and without time the run is listed."""
    here = experiment(splits, tmp_path)
    recipe, on = Recipe("DM", 1, 0), Recipe("DM", 1, 0, evaluate=Evaluate(network="LeNet"))
    result = here.run(recipe)
    run, file = (path(result["artifact"]) for path in (here.runs.path, here.runs.artifact))
    before, made = run.read_bytes(), file.read_bytes()
    file.unlink()
    here.runs.deadline = 0
    assert here.run(on) is None and here.runs.missing and not file.exists()
    here.runs.deadline = float("inf")
    assert here.run(recipe) == result and not file.exists()  # nothing asks for the set
    assert here.run(on)["artifact"] == result["artifact"]
    assert run.read_bytes() == before and file.read_bytes() == made


def test_a_spent_budget_lists_what_is_missing(splits, tmp_path):
    here = experiment(splits, tmp_path)
    here.runs.deadline = 0.0
    assert here.run(Recipe("random", 1, 0)) is None
    assert here.runs.missing[0]["method"] == "random"


def test_a_set_whose_result_is_gone_is_refused(splits, tmp_path, refused):
    here = experiment(splits, tmp_path)
    recipe = Recipe("random", 1, 0)
    here.run(recipe)
    here.runs.path(here.set_id(recipe)).unlink()
    with refused(here.set_id(recipe)):
        here.run(recipe)


def test_another_rate_and_as_many_steps_as_real_images_take(splits, tmp_path):
    here = experiment(splits, tmp_path, protocol=Protocol(2, 2, batch=32))
    plain = Recipe("random", 1, 0)
    asked = [plain, replace(plain, evaluate=Evaluate(lr=0.5)), replace(plain, evaluate=Evaluate(equal_steps=True))]
    results = [here.run(one)["accuracies"] for one in asked]
    assert here.runs.computed == 4 and len({str(one) for one in results}) == 3


# Refusals


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "magic"}, {"size": 0}, {"size": 1.5}, {"seed": -1}, {"seed": True}, {"seed": 2**70}, {"start": "zeros"}, {"settings": {"stepps": 3}},
        {"method": "random", "settings": {"steps": 5}}, {"method": "herding", "start": "random"}, {"method": "whole", "size": -1},
        {"start": "correct"}, {"evaluate": Evaluate(iterate="ema")}, {"method": "MTT", "batches": Effect(0.2)},
        {"method": "random", "batches": Effect(0.2)}, {"method": "KIP", "batches": Effect(0.2)},
        {"method": "FTD", "settings": {"batch": 8}}, {"method": "FTD", "evaluate": Evaluate(iterate="first")},
    ],
    ids=str,
)  # fmt: skip
def test_recipes_that_make_no_sense(wrong, refused):
    with refused():
        Recipe(**({"method": "DM", "size": 1, "seed": 0} | wrong))


@pytest.mark.parametrize(
    "part, wrong",
    [
        (Prune, {"keep": 0.0}), (Prune, {"keep": 1.5}), (Prune, {"keep": 0.5, "rule": "best"}), (Prune, {"keep": 0.5, "score": "beauty"}),
        (Prune, {"keep": 0.5, "rule": "random", "score": "leverage"}), (Prune, {"keep": 0.3, "rule": "flexrand", "gamma": 0.1}),
        (Prune, {"keep": 0.3, "gamma": 0.3}), (Prune, {"keep": 0.3, "draw": 1}), (Prune, {"keep": 0.3, "rule": "random", "draw": -1}),
        (Effect, {"drop": 1.0}), (Effect, {"drop": -0.1}), (Effect, {"drop": 0.2, "every": 0}), (Effect, {"drop": 0.2, "tails": "left"}),
        (ByLoss, {"share": -0.1}), (ByLoss, {"share": 1.5}), (ByLoss, {"share": 0.5, "every": 0}), (Evaluate, {"network": "ResNet50"}),
        (Evaluate, {"lr": -0.1}), (Evaluate, {"lr": float("nan")}),
    ],
    ids=str,
)  # fmt: skip
def test_parts_that_make_no_sense(part, wrong, refused):
    with refused():
        part(**wrong)


def test_settings_are_refused_before_anything_is_made(splits, tmp_path, monkeypatch, refused):
    calls = loops(monkeypatch)
    here = experiment(splits, tmp_path)
    for recipe, word in (
        (Recipe("DM", 1, 0, settings={"lr": -1.0}), "lr"),
        (Recipe("DM", 1, 0, settings={"batch": 0}), "batch"),
        (Recipe("FRePo", 1, 0), "half squared error"),
        (Recipe("KAKURENBO", 0, 0), "fine-tune"),
    ):
        with refused(word):
            here.run(recipe)
    with refused("n_date"):
        Presets("svhn", {"n_date": 64})
    with refused("digits", "FTD"):
        experiment(splits, tmp_path, presets=Presets("digits")).run(Recipe("FTD", 1, 0))
    with refused("size", 3):
        here.run(Recipe("FTD", 3, 0))
    assert not calls and not list(tmp_path.glob("runs/*.json"))


def test_changed_settings(splits, tmp_path):
    here = experiment(splits, tmp_path, presets=Presets("svhn", SHORT | {"n_data": 64, "ce_weight": 0.1}))
    recipe = Recipe("IDC", 1, 0)
    settings = here.job(recipe).settings
    assert settings.n_data == 64 and settings.batch == 8 and not hasattr(settings, "ce_weight")
    first = here.run(recipe)
    other = experiment(splits, tmp_path, presets=Presets("svhn", SHORT | {"n_data": 128}))
    assert other.run(recipe)["loss"] != first["loss"] and other.runs.computed == 2
    own = experiment(splits, tmp_path, presets=Presets("svhn", SHORT | {"IDC": {"n_data": 32}}))
    assert own.job(recipe).settings.n_data == 32
    assert own.job(replace(recipe, settings={"n_data": 16})).settings.n_data == 16
    with pytest.raises(InputError, match="imagenet-100.*accepted"):
        experiment(splits, tmp_path, presets=Presets("imagenet-100")).run(recipe)


def test_experiments_that_make_no_sense(splits, encoder, tmp_path, refused):
    with refused("encoder"):
        experiment(splits, tmp_path, protocol=FineTuning())
    other = ConvNet(splits.train.shape, 10, width=8)
    with refused("encoder", "width 4"):
        Experiment(splits, other, Protocol(), Runs(tmp_path), encoder=encoder)


# Trajectories


def test_average_and_best_are_evaluated_without_another_distillation(splits, tmp_path, monkeypatch, refused):
    here = experiment(splits, tmp_path, TINY, validation=Validation(3))
    recipe = Recipe("FTD", 1, 0, settings={"steps": 5})
    last, calls = here.run(recipe), loops(monkeypatch)
    before = here.runs.computed
    for iterate in ("ema", "best"):
        result = here.run(replace(recipe, evaluate=Evaluate(iterate=iterate)))
        assert len(result["accuracies"]) == 2 and result["artifact"] == last["artifact"]
        assert len(here.run(replace(recipe, evaluate=Evaluate("LeNet", iterate)))["accuracies"]) == 2
    assert here.runs.computed == before + 4 and not calls
    sets = {name: here.synthetic(last, name).tensors for name in ("last", "ema", "best")}
    assert not torch.equal(sets["last"]["images"], sets["ema"]["images"])
    assert torch.equal(sets["last"]["step_size"], sets["ema"]["step_size"])
    assert last["best_step"] in (2, 4, 5) and 0 <= last["best_score"] <= 1
    with refused("iterate of DATM", "ema"):
        Recipe("DATM", 1, 0, evaluate=Evaluate(iterate="ema"))
    with refused("best", "validations"):
        experiment(splits, tmp_path, TINY).run(replace(recipe, evaluate=Evaluate(iterate="best")))


def test_a_set_that_cannot_be_made_is_listed_and_stops_no_other(splits, tmp_path):
    here = experiment(splits, tmp_path, TINY | {"lr_step_size": 1e6, "steps": 3})
    assert here.run(Recipe("MTT", 1, 0)) is None
    assert "numbers at step" in here.runs.missing[0]["stopped"] and str(tmp_path) not in str(here.runs.missing)
    assert here.run(Recipe("random", 1, 0))


class Killed(Exception):
    pass


@pytest.mark.parametrize("method", ["FTD", "DM"])
def test_a_killed_distillation_goes_on_with_the_same_bits(splits, tmp_path, monkeypatch, method):
    recipe = Recipe(method, 1, 0, settings={"steps": 6})
    whole = experiment(splits, tmp_path / "whole", TINY, validation=Validation(2))
    expected = whole.run(recipe)
    broken = experiment(splits, tmp_path / "broken", TINY, validation=Validation(2), compute=Compute(checkpoint_seconds=0.0))
    save, left = distilling._save, iter(range(3))

    def killed(*args):
        save(*args)
        if next(left, None) is None:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(distilling, "_save", killed)
        with pytest.raises(Killed):
            broken.run(recipe)
    assert list((tmp_path / "broken" / "artifacts").glob("*.checkpoint.safetensors"))
    found = broken.run(recipe)
    assert found["accuracies"] == expected["accuracies"]
    assert not list((tmp_path / "broken" / "artifacts").glob("*.checkpoint.safetensors"))
    for iterate in ("last", "ema", "best") if method == "FTD" else ("last",):
        one, two = whole.synthetic(expected, iterate), broken.synthetic(found, iterate)
        assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


def test_a_checkpoint_in_the_folder_of_another_notebook_is_left_alone(splits, tmp_path):
    recipe = Recipe("DM", 1, 0, settings={"steps": 6})
    own = experiment(splits, tmp_path / "own", TINY)
    own.runs.also = (tmp_path / "other",)
    theirs = tmp_path / "other" / "artifacts" / f"{own.set_id(recipe)}.checkpoint.safetensors"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"of a distillation that goes on there")
    assert own.run(recipe) and theirs.read_bytes() == b"of a distillation that goes on there"
    assert own.runs.own(own.set_id(recipe)).exists()


def test_architecture_search(splits, tmp_path):
    here = experiment(splits, tmp_path, TINY)
    grid = [ConvNet(splits.train.shape, 10, width=width, depth=1) for width in (2, 4)]
    for recipe in (Recipe("FTD", 1, 0), Recipe("random", 1, 0), Recipe("whole", 1, 0)):
        found = here.search(recipe, grid)
        assert [len(one) for one in found["accuracies"]] == [2, 2] and here.search(recipe, grid) == found
    assert here.runs.computed == 5  # three searches and the two sets


def test_experts_are_made_before_recipes_are_mapped(ray, splits, tmp_path, monkeypatch):
    """The driver maps the experts of all recipes, then the recipes, whose workers find them: the bits are the same."""
    from distillery import experts

    recipes = [Recipe("FTD", 1, 0, evaluate=Evaluate(iterate="ema")), *(Recipe("MTT", 1, s, Prune(0.5)) for s in (0, 1))]
    here, there = experiment(splits, tmp_path / "local", TINY), experiment(splits, tmp_path / "ray", TINY)
    expected, mapped, make = here.run_all(recipes), [], experts.make

    def watched(*args, where, **options):
        mapped.append(where)
        return make(*args, where=where, **options)

    monkeypatch.setattr(experts, "make", watched)
    found = there.run_all(recipes, "ray")
    assert mapped == ["ray", "ray", "ray"]
    assert [one["accuracies"] for one in found] == [one["accuracies"] for one in expected]
    assert there.runs.computed == 6 and found[1]["experts"] != found[2]["experts"]
    assert ("loss", 0) in there.scores.costs and ("loss", 1) in there.scores.costs
    again = experiment(splits, tmp_path / "ray", TINY)
    again.run_all(recipes, "ray")
    assert mapped == ["ray"] * 3 and again.runs.computed == 0 and again.runs.reused == 3


def test_no_method_and_no_score_holds_more_than_a_quarter_of_the_images(splits, encoder, tmp_path, monkeypatch):
    """Images on disk: what is read at once, and what is alive of it at any time, is counted in images."""
    train, times = splits.train, 16
    rows = torch.arange(len(train)).repeat(times)
    Building(train.pixels.shape, tmp_path / "pixels").fill(train.pixels.numpy()).note()
    mapped = replace(train, pixels=LazyImages(Shards(tmp_path / "pixels"), rows), targets=train.targets.repeat(times))
    alive, most, batch = Counter(), Counter(), ImageSet.batch

    def watched(images, indices):
        found = batch(images, indices)
        if isinstance(images.pixels, LazyImages):
            alive["now"] += indices.numel()
            most[doing] = max(most[doing], alive["now"])
            weakref.finalize(found, alive.subtract, {"now": indices.numel()})
        return found

    monkeypatch.setattr(ImageSet, "batch", watched)
    data = replace(splits, train=mapped)
    for doing in LABELLED:
        made_for(doing, data, encoder, tmp_path / "runs").run(Recipe(doing, 1, 0))
    lengths = ScoreSettings(early=(1, 1), converged=(1, 1), importance={"k-means": "random features", "width": 4, "networks": 1})
    scores = experiment(data, tmp_path / "runs", TINY, encoder=encoder, protocol=FineTuning(epochs=1), scores=lengths).scores
    for doing, score in SCORES.items():
        if score.labels is not False:
            scores.get(doing, 0)
    assert len(most) > 25  # others read the stored scores of these
    by_pixels = {"k-means sensitivity", "k-means++"}  # distances of all, see below
    assert {name for name, n in most.items() if n > len(rows) / 4} == by_pixels


def test_distances_of_pixels_are_refused_where_they_do_not_fit(splits, tmp_path, monkeypatch, refused):
    monkeypatch.setattr("distillery.scores.cached.SHARE", 1e-9)
    with refused("k-means sensitivity", "GB as numbers", "random features"):
        experiment(splits, tmp_path).run(Recipe("k-means sensitivity", 1, 0))
