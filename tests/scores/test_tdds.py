"""TDDS: by hand, against its definition, and as a score of an experiment that is made once."""

import pytest
import torch

from distillery.evaluation import Protocol
from distillery.experiment import Experiment
from distillery.networks import ConvNet
from distillery.recipe import Prune, Recipe
from distillery.runs import Runs
from distillery.scores import tdds
from distillery.scores.tdds import change
from distillery.seeds import generator


def test_by_hand():
    """Two windows of two changes: deviations of (1, 3) and (3, 3) are sqrt 2 and 0; the earlier one counts a tenth."""
    assert tdds.tdds(torch.tensor([[1.0], [3.0], [3.0]]), 3, 0.9)[0] == pytest.approx(0.9 * 0.1 * 2**0.5)
    assert tdds.tdds(torch.tensor([[3.0], [3.0], [1.0]]), 3, 0.9)[0] == pytest.approx(0.9 * 2**0.5)
    halves, sure = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
    expected = 0.25 * torch.tensor(2.0).log() + 0.75 * torch.tensor(1.5).log()  # both terms count as positive
    assert change(halves, sure)[0] == pytest.approx(float(expected), abs=1e-6) and change(sure, sure)[0] == 0


@pytest.mark.parametrize("epochs, window, decay", [(12, 10, 0.9), (6, 2, 0.5), (5, 5, 0.9), (9, 4, 1.0)])
def test_scores_are_those_of_the_definition(epochs, window, decay):
    p = (3 * torch.randn(epochs, 7, 4, generator=generator(0, "logits"), dtype=torch.float64)).softmax(-1)
    found = tdds.tdds(torch.stack([change(a, b) for a, b in zip(p[:-1], p[1:], strict=True)]), window, decay)
    assert found.tolist() == pytest.approx(tdds.tdds_plain(p.tolist(), window, decay))


@pytest.mark.parametrize("window, decay, words", [(1, 0.9, ("window", 1, "2 to 5")), (6, 0.9, ("window", 6)), (3, 0.0, ("decay", 0.0))])
def test_windows_that_are_none_are_refused(window, decay, words, refused):
    with refused(*words):
        tdds.tdds(torch.zeros(4, 3), window, decay)


def test_a_wrong_label_is_scored_once_and_pruned_by(splits, tmp_path, monkeypatch):
    """Stored under its seed; who keeps the highest keeps what changes most unevenly."""
    monkeypatch.setattr(tdds, "EPOCHS", 12)
    here = Experiment(splits, ConvNet(splits.train.shape, 10, width=4), Protocol(1, 1), Runs(tmp_path))
    scores = here.scores.get("TDDS", 0)
    assert scores.shape == (len(splits.train),) and (scores > 0).all() and here.scores.costs["TDDS", 0]["samples"] == 24 * len(scores)
    kept, labels = here.kept(Recipe("random", 1, 0, Prune(0.5, "highest", "TDDS"))), splits.train.targets
    for label in range(10):
        members = splits.train.of_class(label)
        inside = kept[labels[kept] == label]
        assert scores[inside].min() >= scores[members].sort(descending=True).values[len(inside) - 1]
    again = Experiment(splits, here.network, Protocol(1, 1), Runs(tmp_path))
    assert torch.equal(again.scores.get("TDDS", 0), scores) and not torch.equal(again.scores.get("TDDS", 1), scores)
