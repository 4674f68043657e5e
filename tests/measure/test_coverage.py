"""Coverage of held-out samples by a kept set: by hand, against the plain twin, as the radius of k-center, and beside accuracies."""

import math

import pytest
import torch
import torch.nn.functional as F

from distillery.data import Splits
from distillery.encoders import pretrained
from distillery.evaluation import FineTuning
from distillery.evaluation.probe import RIDGE, fit_ridge_plain
from distillery.experiment import Experiment, ScoreSettings
from distillery.measure import many_splits
from distillery.measure.coverage import WAYS, Coverage, coverage, coverage_plain, dots, foretold, one_split, run
from distillery.networks import ConvNet
from distillery.networks.encoder import Encoder
from distillery.runs import Runs
from distillery.scores.clip_selection import clip_selection
from distillery.scores.geometry import k_center
from distillery.seeds import generator, split
from distillery.selection import BASELINES, prune, select
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


def test_splits_are_covered_probed_and_stored(experiment):
    """Of validation images in features of unit length; accuracy on test images by a plain classifier of features as they are."""
    found = run(experiment, [0.2, 0.5], 2, 0)
    done = experiment.runs.computed
    assert run(experiment, [0.2, 0.5], 2, 0) == found and experiment.runs.computed == done
    assert [*found[0]] == ["0.2", "0.5"] and {*found[1]["0.5"]} == {"random", *WAYS}
    along, targets = many_splits.features(experiment)
    cut, _ = split(generator(0, "many splits", 1), 2)
    train, validation, test = many_splits.drawn(targets, [[10] * 3, [4] * 3, [6] * 3], cut)
    rows, unit, labels = along[0], F.normalize(along[0]), targets[train]
    for name, score in (("k-center", k_center(rows[train], labels, 30)), ("alignment + spread", clip_selection(rows[train], labels))):
        kept = train[select(score, 5, labels)]
        *far, right = found[1]["0.5"][name]
        expected = coverage_plain(unit[validation], unit[kept], targets[validation].tolist(), targets[kept].tolist())
        assert far == pytest.approx([*expected], rel=1e-4)
        weights, bias = fit_ridge_plain(rows[kept], targets[kept], RIDGE)
        hits = (rows[test].double() @ weights + bias).argmax(1) == targets[test]
        assert right == pytest.approx(float(hits.double().mean()), abs=1e-6)


def test_every_way_is_its_registered_baseline(experiment):
    """On the training images of the experiment itself, at a half."""
    along, targets = many_splits.features(experiment)
    parts = torch.arange(60).split([30, 12, 18])
    ours = one_split(along, targets, parts, [0.5], generator(0, "x"))["0.5"]
    unit, validation = F.normalize(along[0]), parts[1]
    for name in [*many_splits.FREE, "alignment + spread", "DBP", "SSP"]:
        score, rule = BASELINES[name]
        kept = prune(experiment.scores.get(score, 0), 0.5, targets[:30], rule, generator(1, "x"))
        if rule != "coverage":  # drawn
            assert ours[name][0] == pytest.approx(
                coverage(unit[validation], unit[kept], targets[validation], targets[kept]).mean, abs=1e-5
            ), name


def test_foretold_by_hand():
    """Nearer is better without exception at the first part, the order is turned at the second: 0 in the mean; a tail of one value foretells nothing."""
    first, second = {"a": [3.0, 0.2, 1, 0.9], "b": [1.0, 0.2, 1, 0.95]}, {"a": [1.0, 0.2, 1, 0.6], "b": [2.0, 0.2, 1, 0.7]}
    found = [{"0.1": first}, None, {"0.1": second}, {"0.1": first, "0.3": second}]
    assert foretold(found) == [[pytest.approx(1)], None, [pytest.approx(-1)], [pytest.approx(0)]] and foretold(found, "tail")[0] == [0]
    assert dots(found[:3], 0.1) == {"a": pytest.approx((2, 75)), "b": pytest.approx((1.5, 82.5))} and dots([None], 0.1) == {}


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
