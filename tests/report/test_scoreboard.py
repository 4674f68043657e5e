"""A row of the scoreboard: rates by validation images, labels of three kinds for sets and random images alike, twins, and what is kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from distillery.data import TensorSource
from distillery.data.synthetic import Synthetic
from distillery.evaluation import Protocol, accuracy, fit
from distillery.networks import ConvNet
from distillery.report.external import random_images
from distillery.report.robustness import normalized
from distillery.report.scoreboard import Entry, Settings, table
from distillery.runs import Runs
from distillery.seeds import generator

PROTOCOL = Protocol(2, 4, augmentation="crop", looks=2)
SETTINGS = Settings(PROTOCOL, 2, (0.01, 0.1), seeds=2)


@pytest.fixture
def entry(splits, tmp_path):
    """Make an entry of so many images of every class, in no order, of which some classes have one more."""
    network = ConvNet(splits.train.shape, 10, width=4)

    def make(settings=SETTINGS, soft=False, n=1, more=0, **card):
        rows = torch.cat([splits.train.of_class(c)[: n + (c < more)] for c in range(10)]).flip(0)
        targets = splits.train.targets[rows]
        targets = 0.8 * torch.nn.functional.one_hot(targets, 10) + 0.02 if soft else targets
        made = Synthetic({"images": splits.train.batch(rows), "targets": targets}, splits.train.classes, card=card)
        return Entry("a set", [made], splits, network, settings, Runs(tmp_path))

    return make


def test_a_row_by_hand(entry, splits):
    """Every number of a hard-labelled set: all by `fit` with the rate that validation images choose, and the scores by their formulas."""
    one = entry()
    row, network = one.row(), one.network

    def judged(source, seed, protocol, images=splits.test):
        return accuracy(network, fit(network, source, protocol, generator(seed, "evaluation"))[0], images).tolist()

    def by_hand(of, protocol):
        tried = [replace(protocol, lr=rate) for rate in SETTINGS.rates]
        best = max(tried, key=lambda how: np.mean(judged(of(0), 0, how, splits.validation)))
        return best.lr, [judged(of(i), i, best) for i in range(2)]

    plain, kept = replace(PROTOCOL, augmentation=""), lambda i: one.sources[0]
    drawn = lambda i: random_images(splits, [1] * 10, i)  # noqa: E731
    expected = {"hard": (kept, PROTOCOL), "own": (kept, PROTOCOL), "random": (drawn, PROTOCOL), "own, not augmented": (kept, plain)}
    expected |= {"random, not augmented": (drawn, plain), "random, as many bytes": (lambda i: random_images(splits, [4] * 10, i), PROTOCOL)}
    for name, how in expected.items():
        assert (row["trained"][name]["rate"], row["trained"][name]["accuracies"]) == by_hand(*how), name
    real = judged(splits.train, 0, replace(PROTOCOL, epochs=2))
    assert row["real"] == real and row["real protocol"]["epochs"] == 2  # not the epochs of the set
    own, random, hard = (np.mean(row["trained"][name]["accuracies"]) for name in ("own", "random", "hard"))
    assert row["scores"]["lrs"]["value"] == pytest.approx(normalized(0.5 * (own - random) - 0.5 * (np.mean(real) - hard)))
    assert row["bytes"] == {"images": 4 * 10 * 64, "labels": 0} and row["a class"] == {"random, as many bytes": 4}
    best = row["trained"]["own"]["best"]
    assert np.all(np.array(best) <= 1) and np.mean(best[0]) >= np.mean(row["trained"]["own"]["accuracies"][0])
    assert "| a set | 10 | 2.5 + 0.0 | hard | 4 |" in table([row])


def test_rates_are_never_chosen_on_test_images(entry):
    """A rate that test images favour is what 'best' takes, and nothing else."""
    one, asked = entry(), []

    def judge(source, protocol, seed, teacher):
        asked.append((protocol.lr, seed))
        good = protocol.lr == 0.01
        return {"validation": [0.5 if good else 0.4], "accuracies": [0.3 if good else 0.6], "best": [0.35 if good else 0.7], "seconds": 1.0}

    one.judge = judge
    found = one.trained(lambda i: one.sources[0], PROTOCOL, "hard", SETTINGS.rates)
    assert found["rate"] == 0.01 and found["accuracies"] == [[0.3], [0.3]] and found["best"] == [[0.7], [0.7]]
    assert (0.1, 0) in asked and (0.01, 1) in asked
    asked.clear()
    one.trained(lambda i: one.sources[0], replace(PROTOCOL, looks=0), "hard", SETTINGS.rates)
    assert (0.1, 1) not in asked


@pytest.mark.parametrize(
    "labels, soft, kind, size",
    [
        ("own", False, "hard", 0),
        ("own", True, "stored", 4 * 10 * 12),
        ("hard", True, "hard", 0),
        ("stored", False, "stored", 4 * 10 * 12),
        ("teacher", False, "teacher", None),
        ("teacher", True, "teacher", None),
    ],
)
def test_labels_of_three_kinds_for_sets_and_random_images_alike(entry, splits, labels, soft, kind, size):
    """DATM's mode and random tensors crash in the public package. The classes have one image or two and stand in no order."""
    one = entry(replace(SETTINGS, labels=labels, rates=(0.01,), seeds=1), soft, more=2)
    assert one.cost(1.0) > 0 and one.runs.computed == 0
    seen, judge = [], one.judge

    def watched(source, protocol, seed, teacher=None):
        seen.append((len(source), source.targets.is_floating_point(), teacher is not None))
        return judge(source, protocol, seed, teacher)

    watched.teacher = judge.teacher
    one.judge = watched
    row = one.row()
    assert row["labels"] == kind and row["bytes"]["labels"] == (one.teacher.bytes if size is None else size)
    assert one.counts == ([1] * 10 if soft else [2, 2, *[1] * 8])
    several, sizes = one.several() * 10, (12, sum(one.counts))
    labelled = {(n, kind == "stored", kind == "teacher") for n in (*sizes, several)}
    assert set(seen) == {(len(splits.train), False, False), *((n, False, False) for n in sizes), *labelled}
    twin = several * (64 + 40 if kind == "stored" else 64)
    total = row["bytes"]["images"] + (row["bytes"]["labels"] if kind == "stored" else 0)
    assert twin <= total < twin + 10 * (64 + 40 if kind == "stored" else 64)


def test_stored_labels_of_random_images_are_those_of_the_teacher(entry, splits):
    one = entry(replace(SETTINGS, labels="stored", temperature=5.0))
    real = replace(PROTOCOL, epochs=2)
    weights = {name: value[:1] for name, value in fit(one.network, splits.train, real, generator(0, "evaluation"))[0].items()}
    assert all(torch.equal(one.teacher.weights[name], value) for name, value in weights.items())
    drawn = random_images(splits, [1] * 10, 3)
    made = one.labelled(drawn, "stored")
    assert torch.allclose(made.targets, one.network.apply(weights, drawn.images, train=False).logits[0].softmax(-1), atol=1e-6)
    own = TensorSource(drawn.images, made.targets)
    assert one.labelled(own, "stored") is own and torch.equal(one.labelled(own, "hard").targets, made.targets.argmax(1))


def test_what_is_finished_is_found_again_and_equal_seeds_give_equal_numbers(entry, tmp_path):
    first = entry()
    row, again = first.row(), entry()
    assert again.row() == row and again.runs.computed == 0 < first.runs.computed
    other = replace(entry(), runs=Runs(tmp_path / "other")).row()  # the public package seeds from the clock
    assert {name: one["accuracies"] for name, one in other["trained"].items()} == {
        name: one["accuracies"] for name, one in row["trained"].items()
    }
    for path in (tmp_path / "artifacts").iterdir():
        path.unlink()
    assert entry().teacher.bytes > 0  # results travel without their weights


def test_random_images_of_as_many_seconds(entry):
    """A set that took 3 s to make and trains in 1 s a network is worth random images that train in 4 s: four of each class."""
    one = entry(replace(SETTINGS, equal_seconds=True), seconds=3.0)
    judge = one.judge

    def timed(source, protocol, seed, teacher=None):
        return judge(source, protocol, seed, teacher) | {"seconds": 2.0 * len(source) / 10}

    one.judge = timed
    assert one.row()["a class"] == {"random, as many bytes": 4, "random, as many seconds": 4}
    assert "seconds" in table([one.row()]) and one.cost(0.0) == 2 * 2 * 3.0
    assert entry(replace(SETTINGS, equal_seconds=True)).row()["a class"] == {"random, as many bytes": 4}  # its file does not say


def test_a_learned_rate_is_one_to_choose(entry):
    """For the set and for its random images: three evaluations of it, then four of theirs."""
    one, tried = entry(), []
    one.sets[0].tensors["step_size"] = torch.tensor(0.03)
    trained = one.trained
    one.trained = lambda of, how, labels, rates: tried.append(rates) or trained(of, how, labels, rates)
    one.row()
    learned = [0.01, pytest.approx(0.03), 0.1]
    assert tried == [learned] * 7


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"labels": "soft"}, ("labels", "'soft'")),
        ({"rates": (0.1, -1)}, ("rates", -1)),
        ({"rates": ()}, ("rates",)),
        ({"seeds": 0}, ("seeds", 0)),
        ({"temperature": 0.0}, ("temperature", 0.0)),
    ],
)
def test_settings_that_are_refused(changes, words, refused):
    with refused(*words):
        replace(SETTINGS, **changes)


def test_labels_that_are_no_distributions_are_refused_before_anything_is_trained(entry, refused):
    one = entry(soft=True)
    one.sets[0].tensors["targets"] -= 0.1
    with refused("no distributions"):
        replace(one)
    assert replace(one, settings=replace(SETTINGS, labels="hard")).labels == "hard"
