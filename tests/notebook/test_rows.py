"""Single rows without the notebook: what they leave is what the notebook finds."""

import json
from pathlib import Path

import pytest

from distillery.checks import InputError
from distillery.cli import main
from distillery.evaluation import Protocol
from distillery.methods import METHODS
from distillery.notebook import rows
from distillery.recipe import Prune

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "01_bilp.ipynb"
TINY = {"per_class": 12, "width": 4, "networks": 2, "evaluation_epochs": 2, "score_trials": 1, "score_epochs": 1}


def test_a_notebook_finds_the_row_that_was_run_alone(tmp_path, capsys):
    given = TINY | {"results_dir": str(tmp_path)}
    options = [word for name, value in given.items() for word in ("-p", name, str(value))]
    asked = ["row", str(NOTEBOOK), "DM", "1", "--seeds", "2", "--keep", "lowest 0.5", "--set", "steps", "3"]
    assert main([*asked, *options]) == 0
    told = capsys.readouterr().out
    assert "DM at 1, seed 0: " in told and "DM at 1, seed 1: " in told and "(1 x 2)" in told
    assert "2 of 2 sets to do, each of 3 updates of " in told and "; scores: " in told and "; about " in told
    assert main([*asked, *options]) == 0 and " to do" not in capsys.readouterr().out  # all is stored
    session = rows.session(NOTEBOOK, given)
    session.experiment(presets={"DM": {"steps": 3}})
    found = session.row("DM, level 1", "DM", 1, 2, prune=Prune(0.5))
    assert session.runs.computed == 0 and all(found)


def test_a_row_on_another_network_by_the_methods_own_protocol(tmp_path, monkeypatch):
    given = TINY | {"results_dir": str(tmp_path), "published_protocols": True}
    monkeypatch.setattr(METHODS["DM"], "judged", Protocol(epochs=3), raising=False)
    ((recipe, result),) = rows.asked(NOTEBOOK, given, "DM", 1, [0], network="MLP", changes={"steps": 1}).run()
    assert recipe.evaluate.network == "MLP" and len(result["accuracies"]) == 2
    (stored,) = (one["inputs"] for one in map(json.loads, map(Path.read_text, tmp_path.rglob("*.json"))) if "protocol" in one["inputs"])
    assert stored["protocol"]["epochs"] == 3 and stored["network"]["network"] == "MLP"


@pytest.mark.parametrize(
    "wrong",
    [{"keep": "lowest a"}, {"keep": "lowest"}, {"keep": "nearest 0.1"}, {"changes": {"stepz": 1}}, {"network": "LeNets"}, {"seeds": []}],
)
def test_refused_before_anything_runs(tmp_path, wrong):
    with pytest.raises(InputError):
        rows.asked(NOTEBOOK, TINY | {"results_dir": str(tmp_path)}, "DM", 1, **{"seeds": [0]} | wrong)
    assert not list(tmp_path.rglob("*.json"))
