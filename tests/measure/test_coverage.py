"""Coverage of held-out samples by a kept set: by hand, against the plain twin, as the radius of k-center, and beside accuracies."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from distillery.data import Splits
from distillery.encoders import pretrained
from distillery.evaluation import FineTuning
from distillery.evaluation.probe import RIDGE, fit_ridge_plain
from distillery.experiment import Experiment, ScoreSettings
from distillery.measure import many_splits
from distillery.measure.coverage import Coverage, coverage, coverage_plain, foretold, of_ways
from distillery.networks import ConvNet
from distillery.networks.encoder import Encoder
from distillery.recipe import Prune, Recipe
from distillery.runs import Runs
from distillery.scores.geometry import k_center
from distillery.seeds import generator
from distillery.selection import select
from made_up import blobs, normal

ROWS, TARGETS = 0.3 * normal(70, 4), torch.arange(70) % 3
KEPT, LABELS = ROWS[50:], TARGETS[50:]


def line(*points):
    return torch.tensor(points, dtype=torch.float32)[:, None]


def test_coverage_on_a_line():
    """0, 1, 5 of one class and 9 of another, kept 2 and 8: distances 2, 1, 3, 1. By class, kept 2 of the first and 5 of the other: 2, 1, 3, 4."""
    found = coverage(line(0, 1, 5, 9), line(2, 8), percentile=75)  # the 75th lies at 2.25
    assert found == pytest.approx(Coverage(7 / 4, 3, 1000))
    found = coverage(line(0, 1, 5, 9), line(2, 5), torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1]), 60)
    assert found == pytest.approx(Coverage(10 / 4, 3.5, (1000 + 10_000) / 2))


@pytest.mark.parametrize("percentile", [0, 37.5, 90, 99.9, 100])
def test_coverage_equals_its_plain_twin(percentile):
    found = coverage(ROWS[:50], KEPT, TARGETS[:50], LABELS, percentile)
    assert found == pytest.approx(coverage_plain(ROWS[:50], KEPT, TARGETS[:50].tolist(), LABELS.tolist(), percentile))
    assert (found.tail > found.mean) == (percentile > 0)
    one = torch.zeros(70, dtype=torch.long)
    assert coverage(ROWS[:50], KEPT) == coverage(ROWS[:50], KEPT, one[:50], one[50:])


def test_the_whole_tail_is_the_radius_of_k_center():
    kept = select(k_center(ROWS, None, 6), 6)
    radius = float(torch.cdist(ROWS, ROWS[kept]).amin(1).max())
    assert coverage(ROWS, ROWS[kept], percentile=100).tail == pytest.approx(radius)
    others = (torch.randperm(70, generator=generator(i, "x"))[:6] for i in range(20))
    assert all(coverage(ROWS, ROWS[one], percentile=100).tail >= radius / 2 for one in others)
    assert coverage(ROWS, ROWS) == (0, 0, 1)


@pytest.fixture
def experiment(tmp_path):
    images, network = blobs(per_class=10), ConvNet((1, 8, 8), 3, width=4)
    encoder = Encoder(network, pretrained.pretrain(network, images, 4, generator(0, "encoder"), batch=8))
    data = Splits(images, blobs(4, seed=1), blobs(6, seed=2))
    return Experiment(
        data, network, FineTuning(epochs=1, batch=8), Runs(tmp_path), scores=ScoreSettings(path={"steps": 2}), encoder=encoder
    )


def test_kept_sets_of_ways_are_covered_and_probed(experiment):
    """Coverage of validation images in features of unit length, accuracy on test images by a plain classifier of features as they are."""
    ways = {"random": partial(Prune, rule="random"), "k-center": partial(Prune, score="k-center")}
    found = of_ways(experiment, ways, [0.2, 0.5], range(2))
    assert [(one["way"], one["part"], one["seed"]) for one in found] == [(way, p, s) for p in (0.2, 0.5) for way in ways for s in (0, 1)]
    along, targets = many_splits.features(experiment)
    rows, unit = along[0], F.normalize(along[0])
    for one in found:
        kept = experiment.kept(Recipe("whole", 0, one["seed"], prune=ways[one["way"]](one["part"])))
        expected = coverage_plain(unit[30:42], unit[kept], targets[30:42].tolist(), targets[kept].tolist())
        assert [one[name] for name in Coverage._fields] == pytest.approx([*expected], rel=1e-4)
        weights, bias = fit_ridge_plain(rows[kept], targets[kept], RIDGE)
        assert one["accuracy"] == pytest.approx(float(((rows[42:].double() @ weights + bias).argmax(1) == targets[42:]).double().mean()))


def test_foretold_by_hand():
    """Of the first part nearer is better without exception, of the second the order is turned; a mean of one value foretells nothing."""
    rows = [(0.1, 0, 3.0, 0.2, 0.9), (0.1, 0, 1.0, 0.2, 0.95), (0.3, 0, 1.0, 0.2, 0.6), (0.3, 0, 2.0, 0.2, 0.7)]
    found = [dict(zip(("part", "seed", "mean", "tail", "accuracy"), one)) for one in rows]
    assert foretold(found) == pytest.approx([1, -1]) and foretold(found, "tail") == [0, 0]


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: coverage(ROWS[0], KEPT), ["held_out", "(4,)"]),
        (lambda: coverage(ROWS, KEPT.log()), ["kept"]),
        (lambda: coverage(ROWS, KEPT[:, :3]), ["kept", 3, 4]),
        (lambda: coverage(ROWS, KEPT, TARGETS, LABELS[:9]), ["kept", 20, 9]),
        (lambda: coverage(ROWS, KEPT, TARGETS), ["labels"]),
        (lambda: coverage(ROWS, KEPT, TARGETS, LABELS.clamp(max=1)), ["class 2"]),
        (lambda: coverage(ROWS, KEPT, percentile=101), ["percentile", 101]),
        (lambda: coverage(ROWS, KEPT, percentile=math.nan), ["percentile", "nan"]),
        (lambda: coverage(1000 * ROWS, KEPT), ["distances", 300]),
        (lambda: foretold([], "radius"), ["by", "radius"]),
    ],
)
def test_refused(call, words, refused):
    with refused(*words):
        call()
