"""Many splits: disjoint draws of every class, what is stored of each, and choices among tries by validation and by an oracle."""

import numpy as np
import pytest
import torch

from distillery import selection
from distillery.data import Splits
from distillery.encoders import pretrained
from distillery.evaluation import FineTuning
from distillery.evaluation.probe import RIDGE, fit_ridge_plain
from distillery.experiment import Experiment, ScoreSettings
from distillery.measure import many_splits
from distillery.networks import ConvNet
from distillery.networks.encoder import Encoder
from distillery.recipe import Prune, Recipe
from distillery.runs import Runs
from distillery.scores import SCORES
from distillery.seeds import generator
from made_up import blobs


@pytest.fixture
def experiment(tmp_path):
    images, network = blobs(per_class=10), ConvNet((1, 8, 8), 3, width=4)
    encoder = Encoder(network, pretrained.pretrain(network, images, 4, generator(0, "encoder"), batch=8))
    data = Splits(images, blobs(4, seed=1), blobs(6, seed=2))
    scores = ScoreSettings(path={"steps": 2})
    return Experiment(data, network, FineTuning(epochs=1, batch=8), Runs(tmp_path), scores=scores, encoder=encoder)


def test_a_split_draws_every_image_once():
    targets = torch.arange(40) % 2
    parts = many_splits.drawn(targets, [[10, 12], [4, 2], [6, 6]], generator(0, "x"))
    assert sorted(torch.cat(parts).tolist()) == list(range(40))
    assert [torch.bincount(targets[part]).tolist() for part in parts] == [[10, 12], [4, 2], [6, 6]]


def test_splits_are_stored_and_chosen_from(experiment):
    found = many_splits.run(experiment, [0.2, 0.5], 3, 2, 0)
    before = {path.name for path in experiment.runs.folder.rglob("*.json")}
    experiment.runs.artifact("x").parent.rename(experiment.runs.folder / "gone")  # features are not needed again
    assert many_splits.run(experiment, [0.2, 0.5], 3, 2, 0) == found and {p.name for p in experiment.runs.folder.rglob("*.json")} == before
    told = found[0]["0.5"]
    assert {name: len(tries) for name, tries in told.items()} == {"random": 3, "FlexRand": 3, "easiest": 1, "hardest": 1} | dict.fromkeys(
        many_splits.FREE, 1
    )
    ways = many_splits.by_way([*found, None], 0.5)
    for name, tries in (("FlexRand", "FlexRand"), ("best of random", "random")):
        best = max(told[tries], key=lambda one: one[0])
        assert ways[name][0] == [best[1]] and ways[name][2] is None
        assert ways[f"{name}, oracle on test"][0] == [max(test for _, test in told[tries])]
    assert ways["FlexRand, 1/2"][0] == [told["FlexRand"][1][1]] and ways["hardest"][0] == [told["hardest"][0][1]]
    assert ways["random"][0] == pytest.approx([np.mean([test for _, test in told["random"]])])
    gained = np.mean([one["0.5"]["FlexRand"][0][1] - np.mean([test for _, test in one["0.5"]["random"]]) for one in found])
    along = many_splits.along_gamma([*found, None], [0.2, 0.5])
    assert list(along) == ["0%", "50%", "100%"] and along["0%"]["50%"]["mean"] == pytest.approx(gained)
    assert many_splits.gaps(found, [0.2, 0.5], ["FlexRand, 1/2"])["FlexRand, 1/2"]["50%"]["mean"] == pytest.approx(
        along["50%"]["50%"]["mean"]
    )
    both = [many_splits.by_way(found, part)["hardest"] for part in (0.2, 0.5)]
    assert many_splits.means(found, [0.2, 0.5])["hardest"][1] == pytest.approx(np.mean([one[1] for one in both]))


def test_features_are_those_of_the_scores_and_baselines_are_their_registered_twins(experiment):
    along, targets = many_splits.features(experiment)
    path = experiment.scores.free()
    n = len(experiment.data.train)
    assert along.shape[:2] == (2, 30 + 12 + 18) and torch.allclose(along[0, :n], path["features"], atol=1e-5)
    for name, score in many_splits.FREE.items():
        registered = experiment.scores.get(selection.BASELINES[name][0], 0)
        assert torch.allclose(score(path["features"], path["losses"].mean(0), targets[:n]).float(), registered), name
        assert SCORES[selection.BASELINES[name][0]].needs in ("encoder", "masks")


def test_probes_of_kept_parts_are_plain_classifiers(experiment):
    ways = {"easiest": lambda part: Prune(part, score="complexity"), "random": lambda part: Prune(part, "random")}
    found = many_splits.probed(experiment, ways, [0.5], range(2), "random")
    along, targets = many_splits.features(experiment)
    gaps = []
    for seed in range(2):
        kept = [selection.prune(experiment.scores.get("complexity", 0), 0.5, targets[:30], "lowest")]
        kept += [experiment.kept(Recipe("whole", 0, seed, prune=ways["random"](0.5)))]
        fitted = [fit_ridge_plain(along[0][one], targets[one], RIDGE) for one in kept]
        right = [((along[0][-18:].double() @ w + b).argmax(1) == targets[-18:]).double().mean() for w, b in fitted]
        gaps.append(float(right[0] - right[1]))
    assert list(found) == ["easiest"] and found["easiest"]["50%"]["mean"] == pytest.approx(np.mean(gaps))
