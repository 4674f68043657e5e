"""The board: what it runs, what is judged alike, and every axis by hand from its rows."""

from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure

from distillery.evaluation import Protocol
from distillery.notebook import board
from distillery.notebook.board import REAL, Board
from distillery.notebook.session import Session
from distillery.recipe import Recipe
from distillery.report import standing
from distillery.report.robustness import normalized
from made_up import namespace

KERNEL = {"steps": 2, "batch": 20, "width": 4, "pool": 2, "flip": False}
TEACHER = {"teacher_epochs": 1, "candidates": 8, "factor": 2}


@pytest.fixture
def made(tmp_path):
    session = Session("92_board", namespace(tmp_path))
    session.experiment(
        presets={"DM": {"steps": 2, "batch": 4}, "FRePo": KERNEL, "RDED": TEACHER}, protocol=Protocol(2, 3, augmentation="crop")
    )
    one = Board(session, {1: ["random", "herding", "DM", "FRePo", "RDED"], 2: ["random", "DM"]}, {1: 2, 2: 1}, [1, 4], ["MLP"], [0.1])
    one.run(2, 64, [0.5])
    return one


def mean(board, name, i):
    return float(np.mean(board.session.accuracies(name)[i]))


def test_every_axis_by_hand(made):
    values, real = made.values(1), mean(made, REAL, 0)
    assert list(values) == list(board.AXES) and list(values["accuracy"]) == ["random", "herding", "DM", "FRePo", "RDED"]
    for i in range(2):
        own, random, plain = mean(made, "DM 1", i), mean(made, "random 1", i), mean(made, "DM 1, not augmented", i)
        gap, gap_plain = own - random, plain - mean(made, "random 1, not augmented", i)
        assert values["accuracy"]["DM"][i] == own and values["other networks"]["DM"][i] == mean(made, "DM 1, on MLP", i)
        assert values["LRS"]["DM"][i] == pytest.approx(normalized((gap - (real - own)) / 2))  # labels are hard: one accuracy for both
        assert values["ARS"]["DM"][i] == pytest.approx(normalized((gap + gap_plain) / 2))
        several = max(mean(made, f"random {n}", i) for n in (1, 4))  # four bytes a pixel
        assert values["equal bytes"]["DM"][i] == pytest.approx(own - several)
        assert values["equal bytes"]["herding"][i] == pytest.approx(mean(made, "herding 1", i) - random)  # one byte a pixel
    scores = made.scores("DM", 1)
    assert np.mean(values["LRS"]["DM"]) == pytest.approx(scores["lrs"]["value"], abs=0.01)  # of means, and the mean of scores


def test_gains_are_differences_to_random_images_at_equal_cost(made):
    gaps, values = made.gaps(1), made.values(1)
    assert list(gaps) == ["images", "bytes", "seconds"] and set(gaps["bytes"]) == set(values["accuracy"])
    by_hand = np.subtract(values["accuracy"]["DM"], values["accuracy"]["random"])
    assert gaps["images"]["DM"]["mean"] == pytest.approx(by_hand.mean()) and gaps["images"]["DM"]["ci95"]
    assert gaps["bytes"]["DM"]["mean"] == pytest.approx(np.mean(values["equal bytes"]["DM"]))
    assert gaps["images"]["random"]["mean"] == 0


def test_learned_labels_are_judged_beside_random_images_of_the_same_loss(made):
    rows = made._rows("FRePo", 1)
    assert rows["random"] == "random 1, half squared error" and rows["hard"] == "FRePo 1, hard labels"
    assert made._rows("DM", 1)["random"] == "random 1" and made._rows("DM", 1)["hard"] == "DM 1"
    losses = {name: made.session.rows[row].experiment.protocol.loss for name, row in rows.items()}
    assert losses == dict.fromkeys(rows, "half squared error")  # the hard labels of it: by the recipe
    assert made.session.accuracies(rows["hard"]) != made.session.accuracies(rows["own"])
    assert made._rows("RDED", 1)["hard"] == "RDED 1, hard labels" and made._rows("RDED", 1)["random"] == "random 1"
    assert [made.distilled(one) for one in ("random", "herding", "DM", "FRePo", "RDED", "RDED, hard labels")] == [False] * 2 + [
        True
    ] * 3 + [False]


def test_costs_count_what_a_set_stands_on(made, monkeypatch):
    assert made.worth("DM 1") == 4 and made.worth("herding 1") == 1 and made.worth("FRePo 1") == pytest.approx(4 * (1 + 10 / 64))
    assert made.worth("RDED 1") == pytest.approx(1 + 4 * 4 * 10 / 64)  # the labels of four patches
    [teacher] = {one["experts"]["seconds"] for one in made.session.results["RDED 1"][:1]}
    assert made.seconds("RDED 1") > teacher > 0
    made.session.results["DM 1"] = [{"seconds": 9.0, "seconds_evaluation": 4.0, "accuracies": [0.5, 0.5], "experts": {"seconds": 30.0}}] * 2
    assert made.seconds("DM 1") == 5 + 4 / 2 + 30  # one of two networks
    monkeypatch.setattr(made.session.bench.scores, "costs", {("loss", 0): {"seconds": 100.0}})
    assert 100 < made.seconds("herding 1") < 200
    made.session.results["DM 1"] = [None, None]
    assert made.seconds("DM 1") is None and made.worth("DM 1") is None


def test_a_rate_is_chosen_by_validation_images_for_sets_and_random_images_alike(made, monkeypatch):
    tried = []

    def found(recipe, rates):
        tried.append((recipe.method, recipe.size, recipe.evaluate.network, rates))
        return {"rate": 0.1}

    monkeypatch.setattr(made.session.bench, "under", lambda protocol: SimpleNamespace(best_rate=found))
    assert made.rate(Recipe("random", 1, 0), "cross-entropy") == 0.1 and tried == [("random", 1, "", [0.1])]
    made.rates = []
    assert made.rate(Recipe("random", 1, 0), "cross-entropy") == 0.0 and len(tried) == 1
    monkeypatch.undo()
    for name, row in made.session.rows.items():
        kept = row.recipes[0].evaluate
        chosen = made.session.rows[name.replace(", not augmented", "")].recipes[0].evaluate
        assert kept.lr in (0.0, 0.1) and kept.lr == chosen.lr, name  # another protocol takes the same


def test_rows_of_further_protocols_and_what_choosing_on_test_adds(made):
    tried = made.protocols(1, ["random", "DM"], [2, 6], 2, 2)
    assert tried["DM"]["augmented", 6] == "DM 1, 6 epochs, augmented"
    for rows in tried.values():
        for row in rows.values():
            assert all(np.mean(best) >= np.mean(last) for best, last in zip(*map(made.session.accuracies, (f"{row}, best on test", row))))
    lines = made.protocol_table(1, tried).data.splitlines()
    assert len(lines) == 2 + 2 + 1 and lines[2].startswith("| random | -")
    by_hand = [100 * np.mean(made.by_seed(row)) for row in tried["DM"].values()]
    assert lines[3].endswith(f" {max(by_hand) - min(by_hand):.1f} |") and "*apart by method" in lines[4]


def test_what_has_not_run_is_said_so_and_drawn_without_it(made, monkeypatch):
    made.session.results["DM 1"] = [None, made.session.results["DM 1"][1]]
    assert made.values(1)["LRS"]["DM"][0] is None and made.values(1)["accuracy"]["DM"][1] is not None
    made.session.results["DM 1"] = [None, None]
    assert "| DM | not run |" in made.table(1).data and "| DM | not run |" in made.gains(1).data
    figure = Figure()
    one, two = figure.subplots(1, 2)
    made.draw_frontier(one, 1)
    made.draw_weights(two, "LRS", 1)
    axes = figure.subplots(1, 3)
    made.draw_gains(axes, 1)
    assert [one.get_text() for one in axes[0].get_yticklabels()] == [
        one for one in standing.places(made.values(1)["accuracy"]) if one != "random"
    ]
    assert "herding" in [text.get_text() for text in one.texts] and "DM" not in [text.get_text() for text in one.texts + two.texts]


def test_it_reads_what_other_notebooks_have_stored(made, tmp_path):
    S = made.session
    other = Session("93_other", namespace(tmp_path), reads=["92_board"])
    other.experiment(presets={"DM": {"steps": 2, "batch": 4}}, protocol=S.bench.protocol)
    other.row("DM", "DM", 1, 2, evaluate=S.rows["DM 1"].recipes[0].evaluate)
    assert other.runs.computed == 0 and other.results["DM"] == S.results["DM 1"] and other.set_of("DM")
    other.row("DM", "DM", 1, 3)
    assert other.runs.computed and not (S.folder / "runs").samefile(other.folder / "runs")
