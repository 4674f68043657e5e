"""The one protocol: steps, the drop of the rate, fresh networks, the linear probe."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from distillery.data import TensorSource
from distillery.evaluation import FineTuning, Mixing, Probing, Protocol, accuracy, best, embed, evaluate, fit, linear_probe
from distillery.evaluation import protocol as evaluation_protocol
from distillery.evaluation.protocol import accuracy_within, logits
from distillery.networks import ConvNet
from distillery.seeds import generator, split
from distillery.training import train
from distillery.training.optimizers import SGD, Scheduled
from made_up import blobs


def network():
    return ConvNet((1, 8, 8), 3, width=4, depth=1)


@pytest.mark.parametrize(
    "epochs, n, batch, steps, drop", [(1000, 10, 256, 1001, 502), (300, 100, 256, 301, 152), (10, 500, 256, 22, 14), (0, 5, 256, 1, 2)]
)
def test_steps_and_drop(epochs, n, batch, steps, drop):
    """E + 1 passes; the rate falls after epoch E // 2 + 1: 502 high and 499 low at E = 1000, as in the public code of DC."""
    assert Protocol(epochs=epochs, batch=batch).optimizer(n) == (SGD(drops=(drop,)), steps)


def test_steps_and_drops_of_mixing():
    """IDC: 666, 167 and 167 epochs at lr, a fifth and a twenty-fifth of it; seven batches of 64 of 400 images."""
    made, steps = Mixing(epochs=1000).optimizer(400)
    assert steps == 7000 and made == Scheduled(drops=(666 * 7, 833 * 7))
    assert [made.rate(step) for step in (4661, 4662, 5831)] == pytest.approx([0.01, 0.002, 0.0004])
    assert Mixing(epochs=1).optimizer(5)[0].drops == ()


def test_mixing_trains_as_its_parts_say(tiny):
    source = tiny.subset(torch.arange(0, 24, 2))
    protocol = Mixing(2, 6, batch=8, augmentation="flip+color+crop_scale")
    params, _ = fit(network(), source, protocol, generator(0, "e"))
    init, stream = split(generator(0, "e"), 2)
    options = {"epochs": 6, "batch": 8, "augmentation": protocol.augmentation, "generator": stream, "cutmix": 0.5}
    expected, _ = train(network(), network().init(init, 2), source, optimizer=Scheduled(drops=(8, 10)), **options)
    assert all(torch.equal(params[name], value) for name, value in expected.items())
    unmixed, _ = fit(network(), source, replace(protocol, cutmix=0.0), generator(0, "e"))
    assert any(not torch.equal(params[name], value) for name, value in unmixed.items())


def test_evaluate_is_training_fresh_networks_and_testing_the_last_weights(tiny):
    source = TensorSource(tiny.batch(torch.arange(0, 24, 2)), tiny.targets[::2])
    protocol = Protocol(networks=3, epochs=9, lr=0.02, batch=8, augmentation="crop")
    accuracies = evaluate(network(), source, protocol, tiny, generator(0, "e"))
    init, stream = split(generator(0, "e"), 2)
    sgd = SGD(0.02, 0.9, 5e-4, drops=(12,))  # two steps an epoch, 9 // 2 + 2 epochs at the full rate
    params, stats = train(
        network(), network().init(init, 3), source, optimizer=sgd, generator=stream, epochs=10, batch=8, augmentation="crop"
    )
    assert stats.steps == 20
    assert torch.equal(accuracies, accuracy(network(), params, tiny))


def test_the_same_seed_gives_the_same_accuracies(tiny):
    hard = tiny.subset(torch.arange(0, 24, 5))
    protocol = Protocol(networks=4, epochs=3, lr=0.003)
    first, again, other = (evaluate(network(), hard, protocol, tiny, generator(seed, "e")) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (4,) and len(first.unique()) > 1


def test_evaluation_learns(tiny):
    accuracies = evaluate(network(), tiny, Protocol(networks=2, epochs=60), tiny, generator(0, "e"))
    assert (accuracies == 1).all()


def test_whole_data_with_the_steps_of_a_small_set(tiny, monkeypatch):
    asked = []
    real = train
    monkeypatch.setattr(evaluation_protocol, "train", lambda *a, **o: asked.append((a[4], o)) or real(*a, **o))
    evaluate(network(), tiny, Protocol(networks=1, epochs=4, batch=8), tiny, generator(0, "e"), steps_of=3)
    evaluate(network(), tiny, Protocol(networks=1, epochs=4, batch=8), tiny, generator(0, "e"))
    assert [options["steps"] for _, options in asked] == [5, 15]
    assert [sgd.drops for sgd, _ in asked] == [(4,), (12,)]


def test_accuracy_by_hand(tiny):
    net = network()
    params = net.init(generator(3, "x"), 3)
    logits = net.apply(params, tiny.batch(torch.arange(24)), train=False).logits
    expected = [float((logits[k].argmax(1) == tiny.targets).double().mean()) for k in range(3)]
    assert accuracy(net, params, tiny, batch=7).tolist() == pytest.approx(expected)
    assert torch.allclose(embed(net, params, tiny, batch=5), net.embed(params, tiny.batch(torch.arange(24))), atol=1e-5)


def test_linear_probe_separates_what_is_separable(tiny):
    net = network()
    params = net.init(generator(3, "x"), 2)
    assert (linear_probe(net, params, tiny, tiny) == 1).all()
    few = tiny.subset(torch.tensor([0, 8, 16]))
    swapped = type(few)(few.pixels, torch.tensor([1, 2, 0]), few.classes, few.transform)
    assert (linear_probe(net, params, swapped, tiny) < 0.5).all()  # labels come from the labelled images


@pytest.mark.parametrize("protocol", [Protocol(2, 9, lr=0.05, batch=8, looks=3), Mixing(2, 10, lr=0.05, batch=8, looks=3)])
def test_looks_change_nothing_and_tell_the_best_on_the_way(tiny, protocol):
    """Two steps an epoch: ten epochs, of which the third, seventh and last are looked at."""
    source, net = tiny.subset(torch.arange(0, 24, 2)), network()
    params, stats = fit(net, source, protocol, generator(0, "e"))
    expected, _ = fit(net, source, replace(protocol, looks=0), generator(0, "e"))
    assert all(torch.equal(params[name], value) for name, value in expected.items())
    assert sorted(stats.snapshots) == [3, 7, 10]
    by_hand = [accuracy(net, weights, tiny) for weights in stats.snapshots.values()]
    assert torch.equal(by_hand[-1], accuracy(net, params, tiny))
    assert best(net, stats, tiny).tolist() == [max(float(one[k]) for one in by_hand) for k in range(2)]
    less, _ = fit(net, source, protocol, generator(0, "e"), steps_of=3)  # as many steps as three images get, in fewer epochs
    assert len(less) == len(params)


@pytest.mark.parametrize(
    "options, word",
    [
        ({"networks": 0}, 0),
        ({"looks": -1}, -1),
        ({"looks": 0.5}, 0.5),
        ({"batch": -1}, -1),
        ({"epochs": 1.5}, 1.5),
        ({"epochs": -1}, -1),
        ({"loss": "squared error"}, "half squared error"),
        ({"augmentation": "color_blur"}, "'blur'"),
        ({"lr": float("nan")}, "lr: nan"),
        ({"momentum": -0.9}, "momentum: -0.9"),
        ({"weight_decay": float("inf")}, "weight_decay: inf"),
    ],
)
def test_refused_protocols(options, word, refused):
    with refused(word):
        Protocol(**options)


def test_fine_tuning_has_momentum(refused):
    with refused("momentum: 0.0"):
        FineTuning(momentum=0.0)


@pytest.mark.parametrize("cutmix", [-0.1, 1.5, float("nan")])
def test_mixing_has_a_probability(cutmix, refused):
    with refused(f"cutmix: {cutmix}"):
        Mixing(cutmix=cutmix)


def test_a_probe_is_no_test_of_classifiers(tiny, refused):
    with refused("'probe'"):
        evaluate(network(), tiny, Probing(), tiny, generator(0, "e"))


def test_what_identifies_a_protocol_stays():
    """As in the ids of stored runs."""
    scratch = {
        "networks": 5,
        "epochs": 1000,
        "lr": 0.01,
        "momentum": 0.9,
        "weight_decay": 0.0005,
        "batch": 256,
        "augmentation": "",
        "kind": "scratch",
    }
    assert Protocol().spec() == scratch
    assert Protocol(loss="half squared error").spec() == scratch | {"loss": "half squared error"}
    assert Protocol(looks=0).spec() == scratch and Protocol(looks=3).spec() == scratch | {"looks": 3}
    assert Mixing().spec() == scratch | {"batch": 64, "kind": "scratch, mixing", "cutmix": 0.5}
    assert FineTuning().spec() == {
        "networks": 1,
        "epochs": 50,
        "lr": 0.001,
        "momentum": 0.9,
        "weight_decay": 1e-05,
        "batch": 128,
        "augmentation": "",
        "kind": "fine-tune",
        "equal": "epochs",
    }


def test_what_identifies_probing_stays():
    assert Probing().spec() == {
        "networks": 3,
        "epochs": 20,
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 0.0001,
        "batch": 256,
        "augmentation": "",
        "kind": "probe",
        "labels": (0.01, 0.05),
        "penalty": 0.001,
        "stratified": False,
    }


@pytest.mark.parametrize(
    "protocol", [Protocol(epochs=7, batch=8), Mixing(epochs=7, batch=8), FineTuning(epochs=7, batch=8), Probing(epochs=7, batch=8)]
)
def test_so_many_passes_over_a_set(protocol):
    assert protocol.passes(3).optimizer(20)[1] == 3 * 3


def test_whose_steps_an_evaluation_takes():
    """Those of a set of the size from scratch, or its own; of all real images where parts get equal steps."""
    assert Protocol().steps_of(2, 10, 500) == 20 and Protocol().steps_of(0, 10, 500) == 0
    assert FineTuning().steps_of(2, 10, 500) == 0 and FineTuning(equal="steps").steps_of(2, 10, 500) == 500
    assert Probing().steps_of(20, 0, 500) == 0


def test_a_protocol_of_ones_own(tiny):
    """One subclass: another start and another loss."""

    class Frozen(Protocol):
        kind = "first weights of zero"

        def start(self, network, encoder, stream, k):
            return {name: torch.zeros_like(value) for name, value in super().start(network, encoder, stream, k).items()}

    found = evaluate(network(), tiny, Frozen(2, 0, lr=0.0), tiny, generator(0, "e"))
    assert found.tolist() == [1 / 3, 1 / 3] and Frozen().spec()["kind"] == Frozen.kind


def test_of_many_classes_the_top_five_count_too(monkeypatch):
    """By hand: the class is among the five largest logits where fewer than five others are larger."""
    images = blobs(per_class=4, classes=7)
    network = ConvNet(images.shape, 7, width=4, depth=1)
    params = network.init(generator(0, "net"), 3)
    scores = logits(network, params, images)  # (K, N, classes)
    own = scores.gather(2, images.targets.expand(3, -1)[..., None])
    wanted = [((scores > own).sum(2) < top).double().mean(1) for top in (1, 5)]
    assert torch.equal(accuracy_within(network, params, images, (1, 5), batch=10), torch.stack(wanted))
    assert torch.equal(accuracy_within(network, params, images, (9,))[0], torch.ones(3).double())
    experiment = SimpleNamespace(data=SimpleNamespace(test=images))
    assert "top5" not in Protocol(3).judge(experiment, network, params, None, 0)
    monkeypatch.setattr(evaluation_protocol, "MANY", 7)
    found = Protocol(3).judge(experiment, network, params, None, 0)
    assert found == {"accuracies": wanted[0].tolist(), "top5": wanted[1].tolist()}
