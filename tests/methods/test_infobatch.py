"""What is learned and left out: by hand, sample by sample, without bias, over a whole training."""

import pytest
import torch

from distillery.evaluation import FineTuning, Protocol
from distillery.experiment import Experiment
from distillery.methods.infobatch import LeavingOut, drawn, plan_plain
from distillery.networks import ConvNet
from distillery.networks.encoder import Encoder, head_names
from distillery.recipe import Recipe
from distillery.runs import Runs
from distillery.seeds import generator
from distillery.training import Stats, train
from distillery.training.optimizers import SGD


def network():
    return ConvNet((1, 8, 8), 3, width=8, depth=1)


def test_by_hand():
    """The mean is 1: of 0, 2, 3 and 5 the half is left out, and the other weighs 2."""
    visited, weights = drawn(torch.tensor([0.2, 3.0, 0.5, 0.3, 1.5, 0.5]), 0.5, generator(0, "x"))
    assert {1, 4} < set(visited.tolist()) and len(visited) == 4 and weights.tolist() == [1.0 if i in (1, 4) else 2.0 for i in visited]


@pytest.mark.parametrize("n, part", [(50, 0.5), (31, 0.3), (10, 0.9), (7, 0.1), (4, 0.5)])
def test_what_is_drawn_is_that_of_the_definition(n, part):
    losses = torch.rand(n, generator=generator(n, "losses"))
    visited, weights = drawn(losses, part, generator(1, "x"))
    expected = plan_plain(losses.tolist(), part, generator(1, "x"))
    assert dict(zip(visited.tolist(), weights.tolist(), strict=True)) == pytest.approx(expected)


def test_the_expected_gradient_is_that_of_all():
    """Over many draws the weighted sum of anything is its sum, where the part is of whole samples."""
    losses, values = torch.tensor([0.1] * 10 + [5.0] * 4), torch.randn(14, generator=generator(0, "values"))
    stream, total = generator(1, "draws"), 0.0
    for _ in range(4000):
        visited, weights = drawn(losses, 0.3, stream)
        total += float((weights * values[visited]).sum()) / 4000
    assert total == pytest.approx(float(values.sum()), abs=0.05)


def test_first_and_last_epochs_visit_all_and_what_is_left_out_keeps_its_loss():
    plan, n = LeavingOut(6, 8, 0.5, 0.75, generator(0, "x")), 6
    losses = torch.tensor([0.1, 0.2, 0.3, 0.4, 3.0, 2.0])
    history = []
    for epoch in range(8):
        found = plan.plan(epoch, Stats({"loss": torch.stack(history)} if history else {}))
        row = torch.full((1, n), torch.nan)
        row[0, found.indices] = losses[found.indices]
        history.append(row)
        assert torch.equal(plan.last, losses) or epoch == 0
    assert plan.left_out == [0, 2, 2, 2, 2, 2, 0, 0]  # epochs 1 to 6 of 8, counted from 1
    assert (found.weights == 1).all()


def test_with_nothing_left_out_training_is_as_it_is(tiny):
    plan = LeavingOut(len(tiny), 4, 0.0, 1.0, generator(0, "x"))
    how = {"optimizer": SGD(0.05), "epochs": 4, "batch": 5}
    start, net = network().init(generator(0, "init"), 1), network()
    planned, stats = train(net, start, tiny, generator=generator(1, "order"), plan=plan.plan, collect=plan.collect, **how)
    plain, _ = train(net, start, tiny, generator=generator(1, "order"), **how)
    assert all(torch.allclose(value, plain[name], atol=1e-6) for name, value in planned.items()) and stats.samples == 4 * len(tiny)


def test_in_an_experiment(splits, tmp_path, refused):
    net = ConvNet(splits.train.shape, 10, width=4)
    params = net.init(generator(0, "encoder"), 1)
    encoder = Encoder(net, {name: value for name, value in params.items() if name not in head_names(net)})
    here = Experiment(splits, net, FineTuning(epochs=8), Runs(tmp_path), encoder=encoder)
    found, n = here.run(Recipe("InfoBatch", 0, 0)), len(splits.train)
    assert found["hidden"][0] == found["hidden"][7] == 0 and all(0 < out < n / 2 for out in found["hidden"][1:7])
    for settings, words in (({"part": 1.0}, ("part", 1.0)), ({"delta": 0.0}, ("delta", 0.0))):
        with refused(*words):
            here.run(Recipe("InfoBatch", 0, 0, settings=settings))
    with refused("InfoBatch", "fine-tune"):
        Experiment(splits, net, Protocol(1, 4), Runs(tmp_path)).run(Recipe("InfoBatch", 0, 0))
