"""Agreement is a correlation within classes, of paths of masks that one long path holds; work is timed."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from distillery.data import Splits
from distillery.encoders import pretrained
from distillery.evaluation import FineTuning
from distillery.experiment import Experiment, ScoreSettings
from distillery.measure import learning_complexity
from distillery.networks import ConvNet
from distillery.networks.encoder import Encoder
from distillery.recipe import Prune, Recipe
from distillery.runs import Runs
from distillery.scores import geometry
from distillery.seeds import generator
from made_up import blobs


@pytest.fixture
def experiment(tmp_path):
    images, network = blobs(per_class=10), ConvNet((1, 8, 8), 3, width=4)
    weights = pretrained.pretrain(network, images, 4, generator(0, "encoder"), batch=8)
    protocol, scores = FineTuning(epochs=2, lr=0.01, batch=8), ScoreSettings(path={"steps": 2})
    data = Splits(images, blobs(4), blobs(4))
    return Experiment(data, network, protocol, Runs(tmp_path), scores=scores, encoder=Encoder(network, weights))


def test_correlations_are_within_classes():
    targets = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    ours, theirs = torch.arange(9.0), torch.tensor([1.0, 2, 3, 3, 2, 1, 5, 5, 5])
    assert learning_complexity.within_classes(ours, theirs, targets) == pytest.approx([1, -1, 0])  # 0: one is constant


def test_a_part_of_the_longest_path_is_the_path_of_fewer_masks(experiment, refused):
    scores, targets = experiment.scores, experiment.labels
    reference = scores.get("cumulative loss", 1)
    found = learning_complexity.agreement(scores, reference, [1, 2, 4], 0.1, 2, 0)
    assert set(found) == {(how, schedule) for how in ("magnitude", "random") for schedule in ("linear", "geometric")}
    for schedule in ("linear", "geometric"):
        own = scores.along({"steps": 2, "schedule": schedule, "interval": 0.1, "how": "magnitude"})["losses"].mean(0)
        wanted = [spearmanr(own[targets == label], reference[targets == label])[0] for label in range(3)]
        assert found["magnitude", schedule][2] == pytest.approx(wanted)
        assert np.array_equal(found["magnitude", schedule][1], found["random", schedule][1])  # one mask is none
    with refused([2, 3], "divide"):
        learning_complexity.agreement(scores, reference, [2, 3], 0.1, 1, 0)


def test_curves_are_means_over_classes_with_their_errors():
    found = {("random", "linear"): {1: np.array([0.2, 0.4]), 5: np.array([0.5, 0.5])}}
    x, mean, error = learning_complexity.curves(found)["random: linear"]
    assert x.tolist() == [1, 5] and mean == pytest.approx([0.3, 0.5]) and error == pytest.approx([0.1, 0])


def test_what_masks_leave_of_the_prototypes(experiment):
    shares, right = learning_complexity.knowing(experiment.scores, {"steps": 4, "schedule": "linear"})
    assert shares.tolist() == [0, 25, 50, 75]
    assert right == pytest.approx(100 * experiment.scores.along({"steps": 4, "schedule": "linear"})["accuracies"].numpy())
    shares, published = learning_complexity.knowing(experiment.scores, {})
    assert shares == pytest.approx([0, 2, 3.96, 5.88, 7.76], abs=0.01) and published[0] == right[0]


def test_savings_are_ratios_of_what_ran_on_both_sides():
    ours = [{"seconds": 2.0, "samples": 80}, None, {"seconds": 4.0, "samples": 50}]
    theirs = [{"seconds": 3.0, "samples": 100}, {"seconds": 1.0, "samples": 1}, {"seconds": 2.0, "samples": 100}]
    assert learning_complexity.savings(ours, theirs) == {"seconds": [[1.5], [0.5]], "visits": [[1.25], [2.0]]}
    assert learning_complexity.savings([], []) == {"seconds": [], "visits": []}


def test_the_easiest_are_farther_from_all_than_a_random_part(experiment):
    ways = {"all": lambda part: None, "easiest": lambda part: Prune(part, score="complexity"), "random": lambda part: Prune(part, "random")}
    found = learning_complexity.shift(experiment, ways, [0.3], range(2))
    assert found["all", 0.3] == [[0.0], [0.0]] and found["easiest", 0.3][0] == found["easiest", 0.3][1]
    kept = experiment.kept(Recipe("whole", 0, 1, prune=Prune(0.3, "random")))
    assert found["random", 0.3][1] == [geometry.mmd(experiment.scores.free()["features"], kept)]


def test_work_is_counted_in_passes_and_timed(experiment, monkeypatch):
    """Round by round, a first one for warming up: a slow hour of the machine slows all kinds of work alike."""
    real, calls = learning_complexity.timed, []
    monkeypatch.setattr(learning_complexity, "timed", lambda way: calls.append(way) or real(way))
    work = learning_complexity.work(experiment, 3, rounds=2)
    assert len(calls) == 15 and calls[:5] == calls[5:10] == calls[10:]
    assert list(work)[0] == "complexity, 3 masks" and list(work)[-1] == "one epoch of fine-tuning"
    assert [one.passes for one in work.values()] == [3, 1, 1, 1, 3]
    assert all(len(one.seconds) == 2 and min(one.seconds) > 0 for one in work.values())
