"""Hiding of learned samples: candidates and move-back by hand, the plain twin, the log of whole trainings."""

import math
from types import SimpleNamespace

import pytest
import torch

from distillery.data import TensorSource
from distillery.evaluation import FineTuning, fit
from distillery.methods.kakurenbo import CHUNK, Hiding, plan_plain, visible
from distillery.networks import ConvNet, Output
from distillery.networks.encoder import Encoder
from distillery.seeds import generator
from distillery.training import Plan, Stats, train
from distillery.training.optimizers import SGD

EPOCHS = 6


def network(**options):
    return ConvNet((1, 8, 8), 3, width=8, depth=2, **options)


def run(images, seed=1, epochs=EPOCHS, net=None, **options):
    """A whole training under hiding; returns the object, its weights and Stats."""
    net = net or network()
    hiding = Hiding(net, images, **options)
    params, stats = train(
        net,
        net.init(generator(0, "init"), 1),
        images,
        optimizer=SGD(0.05),
        generator=generator(seed, "order"),
        epochs=epochs,
        batch=5,
        plan=hiding.plan,
        collect=hiding.collect,
        after_epoch=hiding.after_epoch,
    )
    return hiding, params, stats


# Images whose pixels are logits, under a "network" whose weights are added to them.


class Given:
    """Logits are the pixels times the temperature that is the weight."""

    def apply(self, params, images, train):
        assert not train and not torch.is_grad_enabled()
        logits = (images.flatten(1) * params["temperature"][:, None, None]).reshape(1, len(images), -1)
        return Output(logits, logits, {})


def given(logits, targets):
    logits = torch.tensor(logits)
    return TensorSource(logits.view(*logits.shape, 1, 1), torch.tensor(targets))


def after(epochs, n, **values):
    """Stats in which every epoch recorded the same of n samples, NaN where it did not visit one."""
    return Stats({name: torch.tensor(row).expand(epochs, 1, n) for name, row in values.items()})


SIX = {"loss": [0.1, 0.9, 0.2, 0.05, 0.3, 2.0], "correct": [1.0, 1.0, 0.0, 1.0, 1.0, 1.0], "confidence": [0.9, 0.9, 0.9, 0.75, 0.5, 0.9]}


@pytest.mark.parametrize(
    "fraction, threshold, hidden",
    [
        (0.0, 0.0, []),
        (1 / 6, 0.0, [3]),
        (0.49, 0.0, [0, 3]),  # of 0, 2, 3 the prediction of 2 is wrong
        (0.5, 0.75, [0, 3]),  # as sure as the threshold
        (0.5, 0.76, [0]),
        (0.7, 0.7, [0, 3]),  # 4 is unsure
        (0.7, 0.5, [0, 3, 4]),
        (0.99, 0.5, [0, 1, 3, 4]),
        (0.99, 1.0, []),
    ],
)
def test_six_samples_by_hand(fraction, threshold, hidden):
    """Candidates in order: 3, 0, 2, 4, 1, 5."""
    expected = [i for i in range(6) if i not in hidden]
    assert plan_plain(*SIX.values(), fraction, threshold) == expected
    tensors = [torch.tensor(values) for values in SIX.values()]
    assert visible(*tensors, fraction, threshold).tolist() == expected


@pytest.mark.parametrize("n", [1, 2, 7, 100, 531])
@pytest.mark.parametrize("fraction", [0.0, 0.29, 0.5, 1 - 1e-12])
@pytest.mark.parametrize("threshold", [0.0, 0.6, 1.0])
def test_equals_the_plain_twin(n, fraction, threshold):
    """Also where losses are equal: rounded, many are."""
    stream = generator(n, "values")
    losses = (torch.rand(n, generator=stream) * 10).round()
    correct = (torch.rand(n, generator=stream) < 0.7).float()
    confidence = torch.rand(n, generator=stream)
    seen = visible(losses, correct, confidence, fraction, threshold)
    assert seen.tolist() == plan_plain(losses.tolist(), correct.tolist(), confidence.tolist(), fraction, threshold)
    assert len(seen) >= max(1, n - round(fraction * n, 6))


def test_a_fraction_is_not_rounded_down_by_its_binary_digits():
    """.29 * 100 is a little less than 29."""
    values = torch.arange(100.0), torch.ones(100), torch.ones(100)
    assert visible(*values, 0.29, 0.7).tolist() == list(range(29, 100))


def test_the_schedule():
    """Nothing in the first epoch; a factor for each part between milestones."""
    hiding = Hiding(None, given([[0.0]] * 4, [0] * 4), 0.5, milestones=(4, 6, 7))
    assert [hiding.scheduled(epoch) for epoch in range(9)] == pytest.approx([0, 0.5, 0.5, 0.5, 0.4, 0.4, 0.3, 0.2, 0.2])


def test_the_rate_follows_the_schedule_and_not_what_is_hidden():
    """One of three candidates moves back: 2 of 6 are hidden, the rate is that of 3 of 6."""
    hiding = Hiding(Given(), given([[0.0, 1.0]] * 6, [1] * 6), 0.5)
    first = hiding.plan(0, Stats())
    assert first.indices.tolist() == list(range(6)) and first.scale == 1 and first.weights is None
    second = hiding.plan(1, after(1, 6, **SIX))
    assert second.indices.tolist() == [1, 2, 4, 5] and second.scale == pytest.approx(2)
    assert hiding.hidden == [0, 2]


def test_a_fine_tuning_goes_at_the_rates_of_the_plan(tiny):
    """Its own drops at the milestones, times what the plan says: as the same training at twice the rate."""
    net = network()
    weights = {name: value for name, value in net.init(generator(0, "encoder"), 1).items() if not name.startswith("head")}

    def tuned(scale, lr):
        everything = SimpleNamespace(plan=lambda *_: Plan(torch.arange(24), scale=scale), collect=(), after_epoch=None)
        options = {"encoder": Encoder(net, weights), "hiding": everything}
        return fit(net, tiny, FineTuning(epochs=4, lr=lr, batch=8, weight_decay=0.0), generator(0, "tune"), **options)[0]

    twice, plain, once = tuned(2.0, 0.01), tuned(1.0, 0.02), tuned(1.0, 0.01)
    assert all(torch.allclose(twice[name], plain[name], atol=1e-6) for name in plain)
    assert not torch.allclose(twice["head.weight"], once["head.weight"], atol=1e-3)


def test_hidden_samples_are_refreshed_and_can_come_back():
    """Of four samples 0 and 1 are hidden; 1 is found wrong and comes back, then 0 is found unsure and comes back."""
    logits = [[8.0, 0.0, 0.0], [0.0, 8.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    hiding = Hiding(Given(), given(logits, [0, 2, 2, 0]), 0.5)
    hiding.plan(0, Stats())
    hiding.after_epoch(1, {"temperature": torch.ones(1)}, [])  # nothing is hidden, nothing is passed
    assert hiding.refreshed == 0
    recorded = {"loss": [0.1, 0.2, 0.3, 0.4], "correct": [1.0] * 4, "confidence": [0.9] * 4}
    assert hiding.plan(1, after(1, 4, **recorded)).indices.tolist() == [2, 3]
    hiding.after_epoch(2, {"temperature": torch.ones(1)}, [])
    assert hiding.refreshed == 2
    # 0 is right, with a loss of log(1 + 2 e^-8); 1 is wrong by 8 logits: the losses sort 0, 2, 3, 1
    nan = math.nan
    recorded = {"loss": [nan, nan, 0.3, 0.4], "correct": [nan, nan, 1.0, 1.0], "confidence": [nan, nan, 0.6, 0.9]}
    third = hiding.plan(2, after(2, 4, **recorded))
    assert third.indices.tolist() == [1, 2, 3]  # 2 is a candidate, but unsure
    loss, correct, confidence = (hiding._last[name].tolist() for name in hiding.collect)
    sure = 1 / (1 + 2 * math.exp(-8))
    assert loss == pytest.approx([-math.log(sure), 8 - math.log(sure), 0.3, 0.4], abs=1e-6)
    assert correct == [1, 0, 1, 1]
    assert confidence == pytest.approx([sure, sure, 0.6, 0.9])  # over a batch of these two: 1 / (1 + e^-8)
    assert hiding.hidden == [0, 2, 1]
    # now 0 is as likely of any class, its loss log 3
    hiding.after_epoch(3, {"temperature": torch.zeros(1)}, [])
    assert hiding.refreshed == 3
    assert hiding.plan(3, after(3, 4, **recorded)).indices.tolist() == [0, 1, 2]


def test_refreshing_in_parts_is_that_of_one_network_at_a_time(tiny):
    """More hidden samples than one forward pass holds; values are those of the collectors, in evaluation mode."""
    images = tiny.subset(torch.arange(24).repeat(50))
    net = network(normalization="batch")
    params = net.init(generator(0, "init"), 1)
    hiding = Hiding(net, images, 0.9, threshold=0.0)
    hiding.plan(0, Stats())
    hiding.plan(1, after(1, 1200, loss=0.5, correct=1.0, confidence=0.5))
    assert hiding.hidden[-1] == 1080 > 2 * CHUNK
    hiding.after_epoch(2, params, [])
    logits = net.apply(params, images.batch(torch.arange(1080)), train=False).logits[0].double()
    p = logits.softmax(1)  # (1080, 3)
    right = p.gather(1, images.targets[:1080, None])[:, 0]
    last = {name: values[:1080].double() for name, values in hiding._last.items()}
    assert torch.allclose(last["loss"], -right.log(), atol=1e-5)
    assert torch.allclose(last["confidence"], p.amax(1), atol=1e-5)
    assert torch.equal(last["correct"] == 1, right == p.amax(1))
    assert all((values[1080:] == (1 if name == "correct" else 0.5)).all() for name, values in hiding._last.items())


@pytest.mark.parametrize("normalization", ["instance", "batch"])
def test_a_whole_training(tiny, normalization):
    """Fewer visits, as the log says; never more hidden than scheduled; the same bits again."""
    options = {"fraction": 0.5, "threshold": 0.4, "milestones": (4,), "net": network(normalization=normalization)}
    hiding, params, stats = run(tiny, **options)
    assert len(hiding.hidden) == EPOCHS and hiding.hidden[0] == 0 and sum(hiding.hidden) > 0
    assert stats.samples == 24 * EPOCHS - sum(hiding.hidden) < 24 * EPOCHS
    assert sum(hiding.hidden) == 24 * EPOCHS - stats.samples
    assert hiding.refreshed == sum(hiding.hidden)
    assert all(n <= hiding.scheduled(epoch) * 24 + 1e-9 for epoch, n in enumerate(hiding.hidden))
    missed = stats.collected["loss"].isnan().sum(2)[:, 0]  # (epochs,)
    assert missed.tolist() == hiding.hidden
    other, again, _ = run(tiny, **options)
    assert other.hidden == hiding.hidden
    assert all(torch.equal(params[name], again[name]) for name in params)


def test_every_epoch_is_that_of_the_plain_rule(tiny):
    """From what a training recorded and the weights at each epoch's end alone, the plain twin finds who was hidden."""
    net, ends = network(), []
    hiding = Hiding(net, tiny, 0.5, threshold=0.4)

    def after_epoch(epoch, weights, momentum):
        ends.append(weights)
        hiding.after_epoch(epoch, weights, momentum)

    _, stats = train(
        net,
        net.init(generator(0, "init"), 1),
        tiny,
        optimizer=SGD(0.05),
        generator=generator(1, "order"),
        epochs=EPOCHS,
        batch=5,
        plan=hiding.plan,
        collect=hiding.collect,
        after_epoch=after_epoch,
    )
    last = {}
    for epoch in range(EPOCHS):
        visited = torch.nonzero(~stats.collected["loss"][epoch, 0].isnan())[:, 0].tolist()
        if epoch:
            rows = [[last[i][name] for i in range(24)] for name in hiding.collect]
            assert visited == plan_plain(*rows, 0.5, 0.4)
        for i in range(24):
            if i in visited:
                last[i] = {name: stats.collected[name][epoch, 0, i].item() for name in hiding.collect}
                continue
            p = net.apply(ends[epoch], tiny.batch(torch.tensor([i])), train=False).logits[0, 0].softmax(0)
            label = int(tiny.targets[i])
            last[i] = {"loss": -p[label].log().item(), "correct": float(p.argmax() == label), "confidence": p.max().item()}


def test_nothing_hidden_is_training_as_ever(tiny):
    hiding, params, stats = run(tiny, fraction=0.0)
    assert hiding.hidden == [0] * EPOCHS and hiding.refreshed == 0
    net = network()
    plain, _ = train(
        net, net.init(generator(0, "init"), 1), tiny, optimizer=SGD(0.05), generator=generator(1, "order"), epochs=EPOCHS, batch=5
    )
    assert all(torch.equal(params[name], plain[name]) for name in params)
