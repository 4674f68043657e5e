"""A method and a score of one file each: used with everything else, checkpointed, refused, listed; no other line is changed."""

import re
from pathlib import Path

import pytest
import torch

from distillery import distill, starts
from distillery.checks import InputError
from distillery.evaluation import Protocol
from distillery.experiment import Compute, Experiment
from distillery.methods import METHODS
from distillery.networks import ConvNet
from distillery.recipe import ByLoss, Evaluate, Prune, Recipe
from distillery.report.registered import compatibility
from distillery.runs import Runs
from distillery.scores import SCORES, register_score

GUIDE = Path(__file__).resolve().parents[2] / "CONTRIBUTING.md"


@pytest.fixture
def toy(monkeypatch):
    """The method of CONTRIBUTING.md, as it stands there."""
    monkeypatch.setattr("distillery.methods.base.METHODS", METHODS)
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.S) if "@register" in block]
    assert len(code.splitlines()) < 45
    exec(compile(code, str(GUIDE), "exec"), {"__name__": "toy"})
    yield "Mean"
    METHODS.pop("Mean")


@pytest.fixture
def toy_score():
    @register_score("brightness")
    def brightness(scores, seed, k):
        return scores.images.batch(torch.arange(len(scores.images))).flatten(1).mean(1)

    yield "brightness"
    SCORES.pop("brightness")


@pytest.fixture
def toy_start():
    @starts.start("first", general=True, selection=False, labels=True)
    def first(job, n):
        return torch.cat([torch.nonzero(job.kept_labels == c)[:n, 0] for c in job.kept_labels.unique()])

    yield "first"
    starts.STARTS.pop("first")


def experiment(splits, folder, **options):
    network = ConvNet(splits.train.shape, 10, width=8)
    return Experiment(splits, network, Protocol(2, 4), Runs(folder), **options)


def test_a_toy_method_runs_with_pruning_starts_and_another_network(toy, toy_score, toy_start, splits, tmp_path):
    here = experiment(splits, tmp_path)
    recipe = Recipe(toy, 2, 0, Prune(0.5, score=toy_score), toy_start, settings={"steps": 200, "lr": 0.5})
    result = here.run(recipe)
    made = here.synthetic(result)
    job = here.job(recipe)
    kept = job.kept
    for label in range(10):
        members = splits.train.of_class(label)
        scores = SCORES[toy_score].compute(here.scores, 0, 1)
        inside = kept[splits.train.targets[kept] == label]
        assert scores[inside].max() <= scores[members].sort().values[len(inside) - 1]
    means = torch.stack([splits.train.batch(kept[job.kept_labels == c]).mean(0) for c in range(10)])
    assert torch.allclose(made.tensors["images"].unflatten(0, (10, 2)), means[:, None], atol=1e-3)
    assert len(result["accuracies"]) == 2 and result["steps"] == 200
    other = here.run(Recipe(toy, 2, 0, recipe.prune, toy_start, settings=recipe.settings, evaluate=Evaluate(network="LeNet")))
    assert other["artifact"] == result["artifact"]


def test_a_killed_toy_goes_on_to_the_same_bits(toy, splits, tmp_path, monkeypatch):
    recipe = Recipe(toy, 1, 0, settings={"steps": 9})
    whole = experiment(splits, tmp_path / "whole")
    expected = whole.synthetic(whole.run(recipe)).tensors["images"]
    killed = experiment(splits, tmp_path / "killed", compute=Compute(checkpoint_seconds=0.0))
    update, seen = distill._update, []

    def dying(*args):
        seen.append(1)
        if len(seen) == 6:
            raise KeyboardInterrupt
        return update(*args)

    monkeypatch.setattr(distill, "_update", dying)
    with pytest.raises(KeyboardInterrupt):
        killed.run(recipe)
    assert list((tmp_path / "killed" / "artifacts").glob("*.checkpoint.safetensors"))
    monkeypatch.setattr(distill, "_update", lambda *args: seen.append(1) or update(*args))
    assert torch.equal(killed.synthetic(killed.run(recipe)).tensors["images"], expected)
    assert len(seen) < 6 + 9
    assert not list((tmp_path / "killed" / "artifacts").glob("*.checkpoint.safetensors"))


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"settings": {"stpes": 3}}, ("stpes", "steps")),
        ({"settings": {"lr": -1.0}}, ("lr", "-1.0")),
        ({"start": "correct"}, ("start of Mean", "correct")),
        ({"batches": ByLoss(0.5)}, ("Mean", "predict")),
        ({"evaluate": Evaluate(iterate="ema")}, ("iterate of Mean", "ema")),
        ({"size": 0}, ("size",)),
    ],
)
def test_a_toy_is_refused_where_it_should_be(toy, splits, tmp_path, wrong, words, refused):
    with refused(*words):
        experiment(splits, tmp_path).run(Recipe(**({"method": toy, "size": 1, "seed": 0} | wrong)))


def test_a_toy_is_in_the_table_that_the_help_names(toy, toy_score, toy_start, capsys):
    from distillery import cli

    table = compatibility()
    assert any(line.startswith("| Mean |") and "first" in line for line in table.splitlines())
    assert "brightness" in table
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "`distillery methods`" in capsys.readouterr().out
    assert cli.main(["methods"]) == 0 and "| Mean |" in capsys.readouterr().out


def test_a_name_is_taken_once(toy):
    from distillery.methods.base import register
    from distillery.methods.matched import Matched

    with pytest.raises(InputError, match="taken"):
        register(type("Other", (Matched,), {"name": "Mean"}))
