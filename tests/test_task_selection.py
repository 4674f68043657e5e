"""From a score to a fine-tuned part: the bench under a fine-tuning protocol, stored passes, refusals."""

from dataclasses import replace

import nbformat
import pytest
import torch

from distillery import data, report
from distillery.encoders import pretrained
from distillery.evaluation import FineTuning, Protocol
from distillery.networks import ConvNet
from distillery.networks.encoder import Encoder
from distillery.notebook import parameters
from distillery.pipeline import Bench
from distillery.recipes import BASELINES, Recipe
from distillery.runs import Runs
from distillery.scores import cached, complexity, dynamics
from distillery.scores.cached import FREE, NAMES, TUNED, CachedScores
from distillery.seeds import generator

TUNING = FineTuning(epochs=3, lr=0.01, batch=20)


@pytest.fixture(scope="module")
def splits():
    return data.take_classes(data.load("digits", per_class=24), "5-9")


@pytest.fixture(scope="module")
def encoder(splits):
    other = data.take_classes(data.load("digits", per_class=24), "0-4").train
    weights = pretrained.pretrain(ConvNet(other.shape, 5, width=8), other, 3, generator(0, "e"), batch=16)
    return Encoder(ConvNet(splits.train.shape, 5, width=8), weights)


def bench(splits, encoder, folder, protocol=TUNING, **options):
    return Bench(splits, encoder.network, protocol, Runs(folder), encoder=encoder, **options)


def whole(**changes):
    return Recipe("whole", 1, 0, **changes)


def test_classes_are_taken_and_relabelled(splits, refused):
    everything = data.load("digits", per_class=24)
    assert splits.train.classes == ("5", "6", "7", "8", "9") and splits.train.counts() == [
        n for n in everything.train.counts()[5:]
    ]
    rows = torch.nonzero(everything.test.targets >= 5)[:, 0]
    assert torch.equal(splits.test.pixels, everything.test.pixels[rows])
    assert torch.equal(splits.test.targets, everything.test.targets[rows] - 5)
    two = data.take_classes(everything, "7,1")
    assert two.train.classes == ("7", "1")
    first = int(torch.nonzero(everything.train.targets == 7)[0, 0])
    at = int((two.train.pixels == everything.train.pixels[first]).flatten(1).all(1).nonzero()[0, 0])
    assert int(two.train.targets[at]) == 0
    for spec in ("5-", "a", "3", "8-12", "1,1", "4-2", "1,3-2"):
        with refused(spec):
            data.take_classes(everything, spec)


def test_the_path_of_the_bench_is_that_of_the_encoder(splits, encoder, tmp_path):
    found = bench(splits, encoder, tmp_path).passes.of("complexity", 7)
    path = complexity.prototype_path(encoder.network, encoder.params, splits.train, 5)
    assert torch.equal(found, path.complexity())


def test_every_score_has_a_name_and_is_made_once(splits, encoder, tmp_path, monkeypatch):
    """Seven passes: two from scratch, the encoder's, one fine-tuning, its early gradients, one ridge, clusters."""
    made, real = [], CachedScores._make
    monkeypatch.setattr(CachedScores, "_make", lambda self, path, *a: made.append(path.name) or real(self, path, *a))
    one = bench(splits, encoder, tmp_path, score_trials=1, score_epochs=1, converged=(1, 2))
    n = len(splits.train)
    for name in NAMES:
        scores = one.passes.of(name, 0)
        assert scores.shape == (n,) and scores.isfinite().all() and scores.device.type == "cpu", name
    assert len(made) == 7
    again = bench(splits, encoder, tmp_path, score_trials=1, score_epochs=1, converged=(1, 2))
    assert torch.equal(again.passes.of("AUM", 0), one.passes.of("AUM", 0)) and len(made) == 7
    assert set(again.scoring) == {("tuning", 0)} and again.scoring["tuning", 0]["samples"] == 7 * n
    one.passes.of("complexity", 1)
    assert len(made) == 7  # no seed changes it
    one.passes.of("entropy", 1)
    assert len(made) == 8


def test_scores_of_a_fine_tuning_are_those_of_training_dynamics(splits, encoder, tmp_path):
    found = bench(splits, encoder, tmp_path).passes
    stream = generator(0, "tuning scores")
    passed = dynamics.dynamics(
        encoder.network,
        splits.train,
        1,
        3,
        stream,
        batch=20,
        start=encoder.start(stream, 1),
        checkpoints=True,
        optimizer=TUNING.optimizer(len(splits.train))[0],
        collect=cached.COLLECTED,
        snapshots=(1,),
    )
    events, drawn = dynamics.forgetting(passed), found.of("forgetting", 0)
    assert torch.equal(drawn.floor(), events) and len(drawn.unique()) == len(drawn)  # ties are drawn
    assert torch.equal(found.of("cumulative loss", 0), dynamics.cumulative_loss(passed))
    early = passed.stats.snapshots[1]
    gradients = dynamics.grand(encoder.network, early, splits.train)
    p = dynamics.predictions(encoder.network, early, splits.train)
    assert torch.allclose(found.of("EL2N", 0), dynamics.el2n(p, splits.train.targets))
    assert torch.allclose(found.of("GraNd", 0), gradients)  # stored weights come back in another order


@pytest.mark.parametrize("name", BASELINES)
def test_published_ways_to_keep_a_part(splits, encoder, tmp_path_factory, name):
    score, rule = BASELINES[name]
    one = bench(splits, encoder, tmp_path_factory.getbasetemp() / "baselines")
    kept = one.kept(whole(keep=0.25, rule=rule, score=score))
    assert len(set(kept.tolist())) == len(kept)
    sizes = torch.bincount(splits.train.targets)
    assert torch.bincount(splits.train.targets[kept]).tolist() == [int(n) - int(0.75 * n) for n in sizes]


def test_a_part_is_fine_tuned_validated_and_stored(splits, encoder, tmp_path):
    one, recipe = (bench(splits, encoder, tmp_path), whole(keep=0.5, rule="flexrand", score="complexity", gamma=0.4))
    result = one.run(recipe)
    n = len(one.kept(recipe))
    assert result["steps"] == 3 * -(-n // 20) and result["samples"] == 3 * n
    assert len(result["accuracies"]) == len(result["validation"]) == 1
    again = bench(splits, encoder, tmp_path)
    assert again.run(recipe) == result and again.runs.reused == 1
    other = bench(splits, Encoder(encoder.network, {k: v * 1.1 for k, v in encoder.weights.items()}), tmp_path)
    other.run(recipe)
    assert other.runs.computed == 1  # another encoder is another run


def test_equal_steps(splits, encoder, tmp_path):
    one = bench(splits, encoder, tmp_path, replace(TUNING, equal="steps"))
    result = one.run(whole(keep=0.2, rule="random"))
    assert result["steps"] == 3 * -(-len(splits.train) // 20)


def test_draws_differ_and_the_first_is_what_it_was(splits, encoder, tmp_path):
    one = bench(splits, encoder, tmp_path)
    kept = [one.kept(whole(keep=0.3, rule="random", draw=i)).tolist() for i in range(3)]
    assert kept[0] != kept[1] != kept[2]
    assert "draw" not in whole(keep=0.3, rule="random").spec()


def test_hiding_takes_fewer_steps(splits, encoder, tmp_path):
    easy = replace(TUNING, epochs=8, lr=0.05)
    one = bench(splits, encoder, tmp_path, easy)
    all_, hidden = one.run(whole()), one.run(whole(hide=0.4))
    assert hidden["hidden"][0] == 0 and sum(hidden["hidden"]) > 0
    assert hidden["samples"] == all_["samples"] - sum(hidden["hidden"])
    assert hidden["refreshed"] == sum(hidden["hidden"])


def test_scores_come_before_a_distillation_too(splits, encoder, tmp_path):
    one = bench(splits, encoder, tmp_path, Protocol(1, 2))
    loop = {"steps": 2, "batch": 8, "keep": 0.3, "score": "complexity"}
    for rule, gamma in (("lowest", 0.0), ("flexrand", 0.5)):
        result = one.run(Recipe("DM", 1, 0, rule=rule, gamma=gamma, **loop))
        assert len(one.synthetic(result)) == 5


def test_recipes_that_make_no_sense(refused):
    with refused("gamma", 0.1, "0.15"):
        whole(keep=0.3, rule="flexrand", score="complexity", gamma=0.1)
    with refused("gamma", "lowest"):
        whole(keep=0.3, rule="lowest", score="complexity", gamma=0.3)
    with refused("draw", "lowest"):
        whole(keep=0.3, rule="lowest", draw=1)
    with refused("hide", "DM"):
        Recipe("DM", 1, 0, hide=0.3)
    for share in (-0.1, 1.0):
        with refused("hide", share):
            whole(hide=share)
    with refused("gamma", 0.0):
        whole(keep=5, rule="flexrand", score="complexity")
    with refused("score", "difficulty"):
        whole(keep=0.3, score="difficulty")


def test_all_images_with_the_steps_of_a_part(splits, encoder, tmp_path):
    result = bench(splits, encoder, tmp_path).run(Recipe("whole", 4, 0))
    assert result["steps"] == 3 * -(-4 * 5 // 20)


def test_what_a_set_took_to_make_stands_in_its_result(splits, encoder, tmp_path, refused):
    one = bench(splits, encoder, tmp_path)
    result = one.run(Recipe("DM", 1, 0, steps=3, batch=8))
    assert result["steps"] == 3 and "validation" in result
    with refused("evaluate_on", "MLP"):
        one.run(Recipe("DM", 1, 0, steps=3, batch=8, evaluate_on="MLP"))


def test_other_masks_are_kept_too(splits, encoder, tmp_path):
    one = bench(splits, encoder, tmp_path)
    path = {"steps": 3, "how": "random"}
    losses = one.passes.along(path, 1)
    wanted = complexity.prototype_path(
        encoder.network, encoder.params, splits.train, 3, how="random", generator=generator(1, "masks")
    ).losses
    assert torch.equal(losses, wanted) and not torch.equal(losses, one.passes.along(path, 2))
    assert torch.equal(bench(splits, encoder, tmp_path).passes.along(path, 1), losses)


def test_benches_that_make_no_sense(splits, encoder, tmp_path, refused):
    runs = Runs(tmp_path)
    with refused("encoder"):
        Bench(splits, encoder.network, TUNING, runs)
    with refused("encoder", "width 8"):
        Bench(splits, ConvNet(splits.train.shape, 5, width=4), TUNING, runs, encoder=encoder)
    plain = Bench(splits, encoder.network, Protocol(1, 2), runs)
    for name in ("complexity", "forgetting"):
        with refused("encoder"):
            plain.run(whole(keep=0.5, score=name))
    with refused("hide", "scratch"):
        plain.run(whole(hide=0.3))
    for changed in ({"networks": 2, "epochs": 4}, {"equal": "steps", "epochs": 4}, {"epochs": 6}):
        with refused("hiding"):
            bench(splits, encoder, tmp_path, replace(TUNING, **changed)).run(whole(hide=0.3, keep=0.5, rule="random"))
    assert set(FREE) & set(TUNED) == set()


def test_a_fine_tuning_of_chosen_length(splits, encoder, tmp_path):
    result = bench(splits, encoder, tmp_path).run(Recipe("whole, trained out", 1, 0, epochs=2, batch=30))
    assert result["steps"] == 2 * -(-len(splits.train) // 30)


def test_the_best_of_several_results(refused):
    def result(validation, test):
        return {"validation": [validation], "accuracies": [test]}

    a, b = [result(0.5, 0.9), result(0.6, 0.4), None], [result(0.5, 0.95), result(0.7, 0.3), result(0.9, 0.9)]
    assert report.best_of([a, b]) == [a[0], b[1], None]
    assert report.best_of([a, b], "accuracies") == [b[0], a[1], None]
    with refused("luck"):
        report.best_of([a, b], "luck")


def test_paths_of_a_command_are_those_of_its_folder(tiny_notebook, tmp_path, monkeypatch):
    """'encoder' may be a name as well: it is a path where a file is there."""
    path = tiny_notebook("")
    cell = nbformat.read(path, as_version=4)
    cell.cells[0].source += '\nencoder: str = "pretrain"  # encoder\nencoder_root: str = ""  # its data'
    cell.cells[0].source += '\nother_roots: list[str] = [""]  # more'
    nbformat.write(cell, path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.pth").touch()
    given, _ = parameters.planned(path, {"encoder": "weights.pth", "encoder_root": "cars"})
    assert given == {"encoder": str(tmp_path / "weights.pth"), "encoder_root": str(tmp_path / "cars")}
    assert parameters.planned(path, {"other_roots": ["cars", ""]})[0] == {"other_roots": [str(tmp_path / "cars"), ""]}
    assert parameters.planned(path, {"other_roots": "cars"})[0] == {"other_roots": [str(tmp_path / "cars")]}
    assert parameters.planned(path, {"encoder": "torchvision:vit_b_16"})[0] == {"encoder": "torchvision:vit_b_16"}
