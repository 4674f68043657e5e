"""Ways to keep a part: rows on each part, the best of several tries, means over parts, claims, what is drawn."""

import json
from functools import partial

import numpy as np
import pytest
from matplotlib.figure import Figure

from distillery import selection
from distillery.notebook.parts import Parts
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


def test_the_best_of_several_tries_is_a_row_and_tries_are_not_listed(parts, monkeypatch):
    S, values, run = parts.session, {"half": 0.4, "best, try 2": 0.6, "best, try 3": 0.6}, parts.run

    def judged(name, *more, **options):
        """Training from scratch says nothing of validation images."""
        run(name, *more, **options)
        for part in parts.keep:
            for one in S.results[parts.at(name, part)]:
                one["validation"] = [values[name]]

    monkeypatch.setattr(parts, "run", judged)
    parts.run("half", flexrand(1), 2)
    tries = parts.search("best", "half", [flexrand(0), flexrand(2)], 2)
    assert tries == ["half", "best, try 2", "best, try 3"]
    assert S.results["best, 50%"] == S.results["best, try 2, 50%"]  # the first of equals
    oracle = [np.mean(one["accuracies"]) for one in S.results["best, oracle on test, 25%"]]
    by_seed = zip(*(S.results[f"{one}, 25%"] for one in tries))
    assert oracle == [max(np.mean(one["accuracies"]) for one in results) for results in by_seed]
    axis = Figure().subplots()
    parts.draw_gammas(axis, tries, 0.5)
    assert axis.containers[0].lines[0].get_xdata().tolist() == [0.25, 0.5, 0.75]
    S.record()
    record = json.loads((S.here / "record.json").read_text())
    listed = {row["method"] for row in record["rows"]}
    assert listed == {parts.at(name, part) for name in ("random", "half", "best", "best, oracle on test") for part in parts.keep}
    assert "try 2" not in S.table().data


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
    assert "| the easiest 50% beat random ones |" in S.verdicts().data and S.verdicts().data.count("\n") == 1  # a head alone
    assert "| easiest |" in parts.grid({}, ["easiest"]).data and "25% kept" in parts.grid({}, ["easiest"]).data
    assert parts.names(name for name in ("a", "b")) == ["a, 50%", "b, 50%", "a, 25%", "b, 25%"]
    assert set(parts.gaps(["easiest"])["easiest"]) == {"50%", "25%"} and set(parts.curves(["easiest"])["easiest"]) == {0.5, 0.25}


def test_what_has_not_run_has_no_mean(parts):
    S = parts.session
    S.add("lost, 50%", [None, S.results["random, 50%"][1]])
    S.add("lost, 25%", S.results["random, 25%"])
    assert [one is None for one in parts.mean("lost")] == [True, False]
    assert parts.gap("lost", "random")["n_sets"] == [1, 2]
