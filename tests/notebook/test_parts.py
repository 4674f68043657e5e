"""Ways to keep a part: rows on each part, the best of several tries, means over parts, claims, what is drawn."""

import json
from functools import partial

import numpy as np
import pytest
from matplotlib.figure import Figure

from distillery import selection
from distillery.methods import published_part
from distillery.notebook.parts import Parts, choices_figure, choices_table
from distillery.notebook.parts import flexrand as nearest
from distillery.notebook.session import Session
from distillery.recipe import Prune
from made_up import namespace


@pytest.fixture
def parts(tmp_path):
    session = Session("91_parts", namespace(tmp_path))
    found = Parts(session, [0.5, 0.25])
    found.run("random", partial(Prune, rule="random"), 2)
    return found


def flexrand(i):
    return lambda part: Prune(part, "flexrand", "loss", selection.legal_gammas(part, 3)[i])


def test_values_of_gamma_come_in_the_order_of_their_distance_to_a_half():
    ways = [nearest(5, i)(0.2) for i in range(5)]
    assert all((way.rule, way.score, way.keep) == ("flexrand", "complexity", 0.2) for way in ways)
    assert [abs(way.gamma - 0.5) for way in ways] == pytest.approx([0, 0.2, 0.2, 0.4, 0.4])
    assert sorted(way.gamma for way in ways) == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])


def test_rows_of_instructions():
    """Differences are paired by seed, to the mean of all random draws, whose spread counts too; what has not run is said so."""
    rows = {
        "before": [2.0, 3.0, 4.0],
        "random": [[1.0, 1.2], [2.0, 2.2], [3.0, 3.2]],
        "easiest": [1.0, 2.1, 3.0],
        "hardest": [1.0, None, None],
    }
    rows = {
        name: [one and {"loss": one if isinstance(one, list) else [one], "answers": [0.25]} for one in row] for name, row in rows.items()
    }
    by_part = {0.1: rows, 0.3: rows | {"easiest": [None] * 3}}
    table = choices_table(by_part).data.split("\n")
    assert "| 10% | easiest | 2.033 ± 1.002 (3 x 1) | +0.067 [-0.182, +0.315] | 25.0 ± 0.0 |" in table and len(table) == 2 + 8
    assert "| 30% | easiest | not run | - | not run |" in table and "| 10% | before | 3.000 ± 1.000 (3 x 1) | - | 25.0 ± 0.0 |" in table
    [left, right] = choices_figure(by_part).axes
    assert [one.get_text() for one in left.get_yticklabels()] == ["easiest", "hardest"] and "nats a token" in right.get_xlabel()
    assert left.get_lines()[1].get_xdata() == pytest.approx(1 / 15)


def test_the_best_of_several_tries_is_a_row_and_tries_are_not_listed(parts, monkeypatch):
    S, values, run = parts.session, {"half": 0.4, "best, try 1": 0.6, "best, try 2": 0.6}, parts.run

    def judged(name, *more, **options):
        """Training from scratch says nothing of validation images."""
        run(name, *more, **options)
        for part in parts.keep:
            for one in S.results[parts.at(name, part)]:
                one["validation"] = [values[name]]

    monkeypatch.setattr(parts, "run", judged)
    parts.run("half", flexrand(1), 2)
    tries = ["half", *parts.tries("best", [flexrand(0), flexrand(2)], 2)]
    parts.best("best", tries)
    assert tries == ["half", "best, try 1", "best, try 2"]
    assert S.results["best, 50%"] == S.results["best, try 1, 50%"]  # the first of equals
    oracle = [np.mean(one["accuracies"]) for one in S.results["best, oracle on test, 25%"]]
    by_seed = zip(*(S.results[f"{one}, 25%"] for one in tries))
    assert oracle == [max(np.mean(one["accuracies"]) for one in results) for results in by_seed]
    axis = Figure().subplots()
    parts.draw_gammas(axis, tries, 0.5)
    assert axis.containers[0].lines[0].get_xdata().tolist() == [0.25, 0.5, 0.75]
    figure = parts.decomposition({"ours": ("best", "random"), "on test": ("best, oracle on test", "best")})
    assert [text.get_color() == "#c44e52" for text in figure.axes[0].get_yticklabels()] == [False, True]
    S.record()
    record = json.loads((S.here / "record.json").read_text())
    listed = {row["method"] for row in record["rows"]}
    assert listed == {parts.at(name, part) for name in ("random", "half", "best", "best, oracle on test") for part in parts.keep}
    assert "try 2" not in S.table().data


def judged(value, validation=0.5):
    return {
        "accuracies": [value],
        "validation": [validation],
        "seconds": 2.0,
        "samples": 8,
        "steps": 4,
        "stored_numbers": None,
        "artifact": None,
    }


def test_all_draws_of_a_seed_are_one_entry_of_the_row_that_others_are_compared_with(parts):
    """Three draws of two seeds: the row is their mean; the first draw again is compared with the other two alone."""
    S = parts.session
    values = {"one": (0.3, 0.5), "two": (0.4, 0.6), "three": (0.8, 1.0)}
    for part in parts.keep:
        for name, by_seed in values.items():
            S.add(parts.at(name, part), [judged(value) for value in by_seed], listed=False)
    parts.draws("drawn", list(values))
    assert S.accuracies("drawn, 50%") == [[0.3, 0.4, 0.8], [0.5, 0.6, 1.0]]
    assert S.results["drawn, 50%"][0]["seconds"] == 2 and S.rows["drawn, 50%"].view  # each draw is paid for by its own row
    assert S.summary("drawn, 50%")["measured"]["value"] == pytest.approx(0.6)
    again = S.summary("drawn, again, 50%")["difference"]
    assert again["mean"] == pytest.approx((0.3 - 0.6 + 0.5 - 0.8) / 2) and parts.gaps(["drawn, again"])["drawn, again"]["50%"] == again
    assert np.ravel(parts.mean("drawn")) == pytest.approx([0.5, 0.7])
    S.results["two, 50%"][0] = None
    parts.draws("drawn", list(values))
    assert S.accuracies("drawn, 50%")[0] == [0.3, 0.8]  # what has run


def test_whether_validation_tells_is_asked_within_seeds(parts):
    S, tries = parts.session, ["a", "b", "c"]
    for part in parts.keep:
        for i, name in enumerate(tries):
            sign = 1 if part == 0.5 else -1
            # the second seed is far better on both, which says nothing of draws
            S.add(parts.at(name, part), [judged(0.1 * i, 0.2 * sign * i), judged(5 + 0.1 * i, 7 + 0.2 * sign * i)])
    assert parts.told_by_validation(tries) == {0.5: pytest.approx(1), 0.25: pytest.approx(-1)}
    told = parts.notes(tries).data
    assert "+1.00 at 50%, -1.00 at 25%" in told and "no row has one beside it" in told


def test_published_numbers_stand_beside_their_parts(tmp_path):
    session = Session("91_parts", namespace(tmp_path))
    parts = Parts(session, [0.5, 0.25], published=partial(published_part, "DTD"))
    for name in ("random", "FlexRand"):
        parts.run(name, partial(Prune, rule="random"), 1)
    assert session.rows["FlexRand, 50%"].published == {"mean": pytest.approx(0.7178), "std": None}
    assert session.rows["FlexRand, 25%"].published is None
    assert "[71.8]" in parts.grid({}, ["FlexRand"]).data and "in brackets" in parts.notes([]).data
    parts.claim("gain", "FlexRand beats random at {part}", "FlexRand", "random")
    parts.claim_mean("mean", "FlexRand beats random", "FlexRand", "random")
    assert session.claims[0]["published"]["difference"] == pytest.approx(0.7178 - 0.7116)
    assert session.claims[2]["published"] is None  # a part of the mean has none


def test_means_claims_and_tables(parts):
    S = parts.session
    parts.run("easiest", Prune, 2)
    ours = [np.mean([np.mean(S.results[f"easiest, {part}"][i]["accuracies"]) for part in ("50%", "25%")]) for i in range(2)]
    assert np.ravel(parts.mean("easiest")) == pytest.approx(ours)
    parts.claim("low", "the easiest {part} beat random ones", "easiest", "random", source="nobody")
    parts.claim_mean("mean", "the easiest beat random ones", "easiest", "random")
    assert [one["id"] for one in S.claims] == ["low-50%", "low-25%", "mean"]
    assert S.claims[0]["statement"] == "the easiest 50% beat random ones" and S.claims[0]["against"] == "random, 50%"
    assert S.claims[2]["difference"]["mean"] == pytest.approx(parts.gap("easiest", "random")["mean"])
    assert "| the easiest 50% beat random ones |" in S.verdicts().data and not S.verdicts().data  # they are told once
    assert "| easiest |" in parts.grid({}, ["easiest"]).data and "25% kept" in parts.grid({}, ["easiest"]).data
    assert parts.names(name for name in ("a", "b")) == ["a, 50%", "b, 50%", "a, 25%", "b, 25%"]
    assert set(parts.gaps(["easiest"])["easiest"]) == {"50%", "25%"} and set(parts.curves(["easiest"])["easiest"]) == {0.5, 0.25}


def test_what_has_not_run_has_no_mean(parts):
    S = parts.session
    S.add("lost, 50%", [None, S.results["random, 50%"][1]])
    S.add("lost, 25%", S.results["random, 25%"])
    assert [one is None for one in parts.mean("lost")] == [True, False]
    assert parts.gap("lost", "random")["n_sets"] == [1, 2]
