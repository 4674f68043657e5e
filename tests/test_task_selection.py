"""From a score to a fine-tuned part: an experiment under a fine-tuning protocol, stored passes, refusals."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from distillery import data, store
from distillery.encoders import pretrained
from distillery.evaluation import FineTuning, Protocol, embed
from distillery.experiment import Experiment
from distillery.networks import ConvNet
from distillery.networks.encoder import Encoder
from distillery.recipe import Evaluate, Prune, Recipe
from distillery.report.records import best_of
from distillery.runs import Runs
from distillery.scores import SCORES, cached, complexity, dynamics
from distillery.scores.cached import ScoreSettings
from distillery.seeds import generator
from distillery.selection import BASELINES

TUNING = FineTuning(epochs=3, lr=0.01, batch=20)


@pytest.fixture(scope="module")
def splits():
    return data.take_classes(data.load("digits", per_class=24), "5-9")


@pytest.fixture(scope="module")
def encoder(splits):
    other = data.take_classes(data.load("digits", per_class=24), "0-4").train
    weights = pretrained.pretrain(ConvNet(other.shape, 5, width=8), other, 3, generator(0, "e"), batch=16)
    return Encoder(ConvNet(splits.train.shape, 5, width=8), weights)


def experiment(splits, encoder, folder, protocol=TUNING, **options):
    return Experiment(splits, encoder.network, protocol, Runs(folder), encoder=encoder, **options)


def part(*pruned, **settings):
    """All images, or the part of them that pruning leaves."""
    return Recipe("whole", 0, 0, Prune(*pruned) if pruned else None, settings=settings)


def hide(*pruned, fraction):
    return Recipe("KAKURENBO", 0, 0, Prune(*pruned) if pruned else None, settings={"fraction": fraction})


def test_classes_are_taken_and_relabelled(splits, refused):
    everything = data.load("digits", per_class=24)
    assert splits.train.classes == ("5", "6", "7", "8", "9") and splits.train.counts() == [n for n in everything.train.counts()[5:]]
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


def test_the_path_of_the_experiment_is_that_of_the_encoder(splits, encoder, tmp_path):
    found = experiment(splits, encoder, tmp_path).scores.get("complexity", 7)
    shares = [1 - 0.98**t for t in range(5)]  # as published
    weights = {name: encoder.params[name] for name in complexity.maskable(complexity._skeleton(encoder.network))}
    wanted, centres = [], None
    for one in complexity.masked(weights, shares):
        features = embed(encoder.network, encoder.params | one, splits.train)[0].cpu()
        centres = complexity.prototypes(features, splits.train.targets) if centres is None else centres
        wanted.append(F.cross_entropy(complexity.prototype_logits(features, centres), splits.train.targets, reduction="none"))
    assert torch.allclose(found, torch.stack(wanted).mean(0).float())


def test_other_masks_make_another_score_but_not_another_k_center(splits, encoder, tmp_path):
    """What went by five even shares is not taken for what goes by the published ones; features alone know no masks."""
    even = {"steps": 5, "schedule": "linear"}
    default, linear = (
        experiment(splits, encoder, tmp_path).scores,
        experiment(splits, encoder, tmp_path, scores=ScoreSettings(path=even)).scores,
    )
    for name in ("complexity", "D2"):
        assert default.spec(name) != linear.spec(name) and linear.spec(name)["path"] == even
    for name in ("k-center", "herding", "prototype distance", "prototype loss"):
        assert default.spec(name) == linear.spec(name)
        assert torch.equal(default.get(name, 0), linear.get(name, 0))
    assert not torch.equal(default.get("complexity", 0), linear.get("complexity", 0))


def test_every_score_has_a_name_and_is_made_once(splits, encoder, tmp_path, monkeypatch):
    """Eight passes: two from scratch, that of TDDS, the encoder's, one fine-tuning, its early gradients, one ridge, clusters."""
    made, real = [], store.save_tensors
    monkeypatch.setattr(store, "save_tensors", lambda path, *a: made.append(path.name) or real(path, *a))
    one = experiment(splits, encoder, tmp_path, scores=ScoreSettings((1, 1), (1, 2)))
    n = len(splits.train)
    for name in [one for one in SCORES if SCORES[one].labels]:
        scores = one.scores.get(name, 0)
        assert scores.shape == (n,) and scores.isfinite().all() and scores.device.type == "cpu", name
    assert len(made) == 8
    again = experiment(splits, encoder, tmp_path, scores=ScoreSettings((1, 1), (1, 2)))
    assert torch.equal(again.scores.get("AUM", 0), one.scores.get("AUM", 0)) and len(made) == 8
    assert set(again.scores.costs) == {("tuning", 0)} and again.scores.costs["tuning", 0]["samples"] == 7 * n
    one.scores.get("complexity", 1)
    assert len(made) == 8  # no seed changes it
    one.scores.get("entropy", 1)
    assert len(made) == 9


def test_scores_of_a_fine_tuning_are_those_of_training_dynamics(splits, encoder, tmp_path):
    found = experiment(splits, encoder, tmp_path).scores
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
    events, drawn = dynamics.forgetting(passed), found.get("forgetting", 0)
    assert torch.equal(drawn.floor(), events) and len(drawn.unique()) == len(drawn)  # ties are drawn
    assert torch.equal(found.get("cumulative loss", 0), dynamics.cumulative_loss(passed))
    early = passed.stats.snapshots[1]
    gradients = dynamics.grand(encoder.network, early, splits.train)
    p = dynamics.predictions(encoder.network, early, splits.train)
    assert torch.allclose(found.get("EL2N", 0), dynamics.el2n(p, splits.train.targets))
    assert torch.allclose(found.get("GraNd", 0), gradients)  # stored weights come back in another order


@pytest.mark.parametrize("name", BASELINES)
def test_published_ways_to_keep_a_part(splits, encoder, tmp_path_factory, name):
    score, rule = BASELINES[name]
    one = experiment(splits, encoder, tmp_path_factory.getbasetemp() / "baselines")
    kept = one.kept(part(0.25, rule, score))
    assert len(set(kept.tolist())) == len(kept)
    sizes = torch.bincount(splits.train.targets)
    assert torch.bincount(splits.train.targets[kept]).tolist() == [int(n) - int(0.75 * n) for n in sizes]


def test_a_part_is_fine_tuned_validated_and_stored(splits, encoder, tmp_path):
    one, recipe = (experiment(splits, encoder, tmp_path), part(0.5, "flexrand", "complexity", 0.4))
    result = one.run(recipe)
    n = len(one.kept(recipe))
    assert result["steps"] == 3 * -(-n // 20) and result["samples"] == 3 * n
    assert len(result["accuracies"]) == len(result["validation"]) == 1
    again = experiment(splits, encoder, tmp_path)
    assert again.run(recipe) == result and again.runs.reused == 1
    other = experiment(splits, Encoder(encoder.network, {k: v * 1.1 for k, v in encoder.weights.items()}), tmp_path)
    other.run(recipe)
    assert other.runs.computed == 1  # another encoder is another run


def test_equal_steps(splits, encoder, tmp_path):
    one = experiment(splits, encoder, tmp_path, replace(TUNING, equal="steps"))
    result = one.run(part(0.2, "random"))
    assert result["steps"] == 3 * -(-len(splits.train) // 20)


def test_draws_differ_and_the_first_is_what_it_was(splits, encoder, tmp_path):
    one = experiment(splits, encoder, tmp_path)
    kept = [one.kept(part(0.3, "random", "loss", 0.0, i)).tolist() for i in range(3)]
    assert kept[0] != kept[1] != kept[2]
    assert "draw" not in Prune(0.3, "random").spec()


def test_hiding_takes_fewer_steps(splits, encoder, tmp_path):
    easy = replace(TUNING, epochs=8, lr=0.05)
    one = experiment(splits, encoder, tmp_path, easy)
    all_, hidden = one.run(part()), one.run(hide(fraction=0.4))
    assert hidden["hidden"][0] == 0 and sum(hidden["hidden"]) > 0
    assert hidden["samples"] == all_["samples"] - sum(hidden["hidden"])
    assert hidden["refreshed"] == sum(hidden["hidden"])


def test_scores_come_before_a_distillation_too(splits, encoder, tmp_path):
    one = experiment(splits, encoder, tmp_path, Protocol(1, 2))
    for prune in (Prune(0.3, score="complexity"), Prune(0.3, "flexrand", "complexity", 0.5)):
        result = one.run(Recipe("DM", 1, 0, prune, settings={"steps": 2, "batch": 8}))
        assert len(one.synthetic(result)) == 5


def test_recipes_that_make_no_sense(splits, encoder, tmp_path, refused):
    with refused("gamma", 0.1, "0.15"):
        part(0.3, "flexrand", "complexity", 0.1)
    with refused("gamma", "lowest"):
        part(0.3, "lowest", "complexity", 0.3)
    with refused("draw", "lowest"):
        part(0.3, "lowest", "loss", 0.0, 1)
    with refused("setting of DM", "fraction"):
        Recipe("DM", 1, 0, settings={"fraction": 0.3})
    for share in (-0.1, 0.0, 1.0):
        with refused("fraction", share):
            experiment(splits, encoder, tmp_path).run(hide(fraction=share))
    with refused("gamma", 0.0):
        part(5, "flexrand", "complexity")
    with refused("score", "difficulty"):
        part(0.3, "lowest", "difficulty")


def test_all_images_with_the_steps_of_a_part(splits, encoder, tmp_path):
    result = experiment(splits, encoder, tmp_path).run(Recipe("whole", 4, 0))
    assert result["steps"] == 3 * -(-4 * 5 // 20)


def test_what_a_set_took_to_make_stands_in_its_result(splits, encoder, tmp_path, refused):
    one = experiment(splits, encoder, tmp_path)
    recipe = Recipe("DM", 1, 0, settings={"steps": 3, "batch": 8})
    result = one.run(recipe)
    assert result["steps"] == 3 and "validation" in result
    with refused("network", "MLP"):
        one.run(replace(recipe, evaluate=Evaluate("MLP")))


def test_other_masks_are_kept_too(splits, encoder, tmp_path):
    one = experiment(splits, encoder, tmp_path)
    path = {"steps": 3, "how": "random"}
    losses = one.scores.along(path, 1)["losses"]
    options = {"how": "random", "generator": generator(1, "masks")}
    wanted = complexity.prototype_path(encoder.network, encoder.params, splits.train, 3, **options).losses
    assert torch.equal(losses, wanted) and not torch.equal(losses, one.scores.along(path, 2)["losses"])
    assert torch.equal(experiment(splits, encoder, tmp_path).scores.along(path, 1)["losses"], losses)


def test_experiments_that_make_no_sense(splits, encoder, tmp_path, refused):
    runs = Runs(tmp_path)
    with refused("encoder"):
        Experiment(splits, encoder.network, TUNING, runs)
    with refused("encoder", "width 8"):
        Experiment(splits, ConvNet(splits.train.shape, 5, width=4), TUNING, runs, encoder=encoder)
    plain = Experiment(splits, encoder.network, Protocol(1, 2), runs)
    for name in ("complexity", "forgetting"):
        with refused("encoder"):
            plain.run(part(0.5, "lowest", name))
    with refused("fine-tune", "scratch"):
        plain.run(hide(fraction=0.3))
    for changed in ({"networks": 2, "epochs": 4}, {"equal": "steps", "epochs": 4}, {"epochs": 6}):
        with refused("hiding"):
            experiment(splits, encoder, tmp_path, replace(TUNING, **changed)).run(hide(0.5, "random", fraction=0.3))


def test_a_fine_tuning_of_chosen_length(splits, encoder, tmp_path):
    result = experiment(splits, encoder, tmp_path).run(part(epochs=2, batch=30))
    assert result["steps"] == 2 * -(-len(splits.train) // 30)


def test_the_best_of_several_results(refused):
    def result(validation, test):
        return {"validation": [validation], "accuracies": [test]}

    a, b = [result(0.5, 0.9), result(0.6, 0.4), None], [result(0.5, 0.95), result(0.7, 0.3), result(0.9, 0.9)]
    assert best_of([a, b]) == [a[0], b[1], None]
    assert best_of([a, b], "accuracies") == [b[0], a[1], None]
    with refused("luck"):
        best_of([a, b], "luck")
