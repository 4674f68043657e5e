"""Rows that are probed on several tasks: what stands beside them, at which rate they are compared, what is claimed of them."""

import pytest
import torch

from distillery.data import Splits
from distillery.encoders.regression_set import RegressionSet
from distillery.evaluation import Probing
from distillery.methods import published_probe
from distillery.networks import ConvNet
from distillery.networks.encoder import Encoder, head_names
from distillery.notebook.probed import Probed
from distillery.notebook.session import Session
from distillery.recipe import Evaluate, Recipe
from distillery.seeds import generator
from made_up import blobs, namespace

CHANGES = {
    "experts": 2, "expert_lr": 0.05, "expert_batch": 8, "student_steps": 2, "expert_epochs": 1, "max_start_epoch": 2, "student_batch": 4,
    "lr_images": 10.0, "lr_step_size": 1e-4, "step_size": 0.05, "iterations": 6,
}  # fmt: skip


@pytest.fixture
def rows(tmp_path, request):
    scale = getattr(request, "param", "small")
    session = Session("90_tiny", namespace(tmp_path, scale=scale), against="none")
    images = blobs(per_class=20)  # 60 images
    real = RegressionSet(images, torch.randn(60, 6, generator=generator(0, "targets")), images.digest)
    session.data = Splits(images, images, blobs(4, seed=0))
    network, protocol = ConvNet(images.shape, 6, width=4, depth=1), Probing(2, 2, 0.1, batch=4, labels=(0.05, 0.5))
    session.experiment(data=real, network=network, protocol=protocol, presets=CHANGES, tasks={"own": session.data})
    found = Probed(
        session, {"own": "cifar10"}, "cifar10", published_probe, "closed" if scale != "small" or "gate" in request.node.name else ""
    )
    found.row("none", "none", 0, 2, published="no pre-training")
    return found


def test_published_numbers_stand_beside_rows_of_the_paper_alone(rows):
    """Of the same part of the images, network and rate; ResNet18 without pre-training is not the ConvNet without it."""
    rows.row("none, ResNet18", "none", 0, 1, evaluate=Evaluate("ResNet18"))
    rows.row("random, 3 images", "random", 3, 2, published="random")  # 5% of 60
    rows.row("MKDT, 3 images", "MKDT", 3, 2, published="MKDT")
    rows.at_rate_of("MKDT, 3 images", "random, 3 images", ", at MKDT's rate")
    numbers = {name: rows.session.rows[rows.key(name, "own", 0.05)].published for name in rows.raw}
    assert numbers["none"]["mean"] == pytest.approx(0.4623) and numbers["none, ResNet18"] is None
    assert numbers["random, 3 images"]["mean"] == pytest.approx(0.4813) and numbers["random, 3 images, at MKDT's rate"] is None
    assert "58.4" in rows.table(list(rows.raw)).data
    rows.better("mkdt", "MKDT, 3 images", "random, 3 images, at MKDT's rate", "own", 0.05)  # what the paper found is known
    assert rows.session.claims[0]["published"]["difference"] == pytest.approx(0.5837 - 0.4813)


def test_rivals_are_trained_at_the_rates_of_the_sets(rows):
    made = rows.row("MKDT", "MKDT", 3, 2)
    rates = [one["step_size"] for one in made]
    assert rates[0] != rates[1] and 0.05 not in rates
    rows.row("random", "random", 3, 2)
    other = rows.at_rate_of("MKDT", "random", ", at its rate")
    assert [one.evaluate.lr for one in rows.recipes["random, at its rate"]] == pytest.approx(rates, rel=1e-4)
    wanted = rows.session.bench.run(Recipe("random", 3, 1, evaluate=Evaluate(lr=round(rates[1], 6))))
    assert other[1] == wanted
    rows.raw["MKDT"][0] = None  # a set that has not run has brought no rate
    assert rows.at_rate_of("MKDT", "random", ", again") == [None, wanted]  # the second keeps its place


def test_a_row_again_has_other_seeds(rows):
    first = rows.row("random", "random", 3, 2)
    again = rows.again("random")
    assert [one.seed for one in rows.recipes["random, again"]] == [1000, 1001] and len(again) == 2
    assert rows.session.rows[rows.key("random, again", "own", 0.05)].against == rows.key("random", "own", 0.05)
    assert first[0]["artifact"] != again[0]["artifact"]


def test_a_frozen_encoder_is_a_row_and_is_stored(rows):
    network = ConvNet((1, 8, 8), 5, width=3, depth=1)
    weights = {name: value for name, value in network.init(generator(1, "t"), 1).items() if name not in head_names(network)}
    found = rows.encoder("teacher", Encoder(network, weights), 2)
    computed = rows.session.runs.computed
    assert rows.encoder("teacher", Encoder(network, weights), 2) == found and rows.session.runs.computed == computed
    assert rows.session.summary(rows.key("teacher", "own", 0.5))["measured"]["n_sets"] == 2
    probes = [one["probes"] for one in (found[0], rows.raw["none"][0])]
    assert probes[0]["own"]["labels"] == probes[1]["own"]["labels"] and "teacher" in rows.table(["teacher"]).data


def test_matching_losses_are_of_one_start_epoch_at_their_updates(rows):
    """By hand: of every update the mean over the sets that started it from the epoch."""
    rows.row("MKDT", "MKDT", 3, 2)
    wanted = {0: {}, 1: {}}
    for one in rows.raw["MKDT"]:
        for at, (start, loss) in enumerate(zip(one["starts"], one["loss"], strict=True), 1):
            wanted[start].setdefault(at, []).append(loss)
    for epoch, of in wanted.items():
        places, losses = rows.matching("MKDT", epoch, 6, 12)
        assert places == sorted(of) and losses == pytest.approx([sum(of[at]) / len(of[at]) for at in sorted(of)])
        assert max(rows.matching("MKDT", epoch, 3, 12)[0], default=0) <= 3
        places, losses = rows.matching("MKDT", epoch, 6, 1)
        assert places == pytest.approx([sum(of) / len(of)]) and len(losses) == 1
    assert rows.matching("MKDT", 7, 6) == ([], [])


def test_a_closed_gate_leaves_claims_untested(rows):
    rows.row("random", "random", 3, 2)
    assert rows.raw["random"] == [None, None]
    rows.better("random", "random", "none", "own", 0.05)
    assert rows.session.claims[0]["verdict"] == "not testable at this scale" and rows.session.claims[0]["why"] == "closed"


@pytest.mark.parametrize("rows", ["smoke"], indirect=True)
def test_smoke_scale_runs_whatever_the_gate(rows):
    rows.row("random", "random", 3, 2)
    rows.better("random", "random", "none", "own", 0.05)
    assert all(rows.raw["random"]) and rows.session.claims[0]["verdict"] == "not testable at this scale"


def test_a_gate_of_one_method_closes_its_claims_alone(rows):
    rows.untestable = ""
    rows.row("random", "random", 3, 2)
    rows.better("a", "random", "none", "own", 0.05, untestable="moved nothing", family="order")
    rows.better("b", "random", "none", "own", 0.05, family="order", further=True)
    first, second = rows.session.claims
    assert first["why"] == "moved nothing" and second["verdict"] in ("", "not run") and second["further"] and first["family"] == "order"
