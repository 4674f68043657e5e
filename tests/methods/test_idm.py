"""IDM: the queue of networks, the cross-entropy that follows their accuracy, and what is left of DM without them."""

import pytest
import torch

from distillery.data.synthetic import Synthetic, pack
from distillery.distill import Optimizer, distill
from distillery.matching.distribution import DistributionMatching
from distillery.methods import METHODS
from distillery.methods.idm import FIRST, QueueContext, QueueMatching, queue_loss_plain
from distillery.networks import ConvNet
from distillery.sampling import RealBatches, Uniform
from distillery.seeds import generator
from distillery.training import dsa
from distillery.training.dsa import DSA

CLASSES, N, M = 3, 5, 2
LABELS = torch.arange(CLASSES)


def network(**options):
    return ConvNet((1, 8, 8), CLASSES, width=4, depth=1, **options)


def problem(**options):
    """A network, real and synthetic images by class, and unequal weights with zeros among them."""
    stream = generator(0, "problem")
    net = network(**options)
    params = net.init(stream, 1)
    real = torch.randn(CLASSES, N, 1, 8, 8, generator=stream)
    synthetic = torch.randn(CLASSES, M, 1, 8, 8, generator=stream)
    weights = torch.rand(CLASSES, N, generator=stream)
    weights[0, 2] = weights[1, 0] = 0
    return net, params, real, weights / weights.sum(1, keepdim=True), synthetic.requires_grad_()


def siamese(strategy=DSA):
    return dsa.draw(strategy, CLASSES, 1, generator(1, "draw"), siamese=True)


def packed(tiny):
    chosen = torch.cat([tiny.of_class(c)[:4] for c in range(CLASSES)])
    images = pack(tiny.batch(chosen), "partition2")
    return Synthetic({"images": images, "targets": LABELS}, tiny.classes, "partition2")


def objective(**options):
    small = {"batch": 4, "train_steps": 2, "train_batch": 5, "interval": 1, "capacity": 5}
    return QueueMatching(network(), **small | options)


def run(tiny, made, steps=4, **options):
    return distill(
        packed(tiny), made, tiny, Uniform(tiny.targets), {"images": Optimizer(0.2)}, steps,
        generator(0, "run"), **options,
    )  # fmt: skip


@pytest.mark.parametrize("normalization", ["instance", "batch"])
@pytest.mark.parametrize("drawn", [None, siamese()], ids=["plain", "augmented"])
def test_loss_equals_its_plain_twin(drawn, normalization):
    """All classes in one pass = class after class, also for BatchNorm, whose images do not couple in evaluation mode."""
    net, params, real, weights, synthetic = problem(normalization=normalization)
    fast = QueueMatching(net).loss(QueueContext(params, LABELS, drawn, False, 7.0), real, weights, synthetic, slice(None))
    plain = queue_loss_plain(net, params, real, weights, synthetic, LABELS, 7.0, drawn)
    assert fast.item() == pytest.approx(plain.item(), rel=1e-5)
    ours, expected = (torch.autograd.grad(loss, synthetic)[0] for loss in (fast, plain))
    assert torch.allclose(ours, expected, atol=1e-5)


def test_without_cross_entropy_the_loss_is_that_of_dm():
    net, params, real, weights, synthetic = problem()
    given = (QueueContext(params, LABELS, siamese(), False, 0.0), real, weights, synthetic, slice(None))
    ours, theirs = QueueMatching(net).loss(*given), DistributionMatching(net).loss(*given)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_a_network_that_has_learned_nothing_teaches_nothing(tiny):
    """Accuracy 0 gives the cross-entropy weight 0: the first step is that of DM on a fresh network."""
    first, pushed = (run(tiny, objective(ce_weight=weight), 1) for weight in (0.0, 100.0))
    assert pushed.log["accuracy"].tolist() == [0]
    assert torch.equal(first.last.tensors["images"], pushed.last.tensors["images"])
    later, pushed = (run(tiny, objective(ce_weight=weight), 8) for weight in (0.0, 100.0))
    assert pushed.log["accuracy"].max() > 0 and pushed.log["accuracy"].max() <= 100
    assert not torch.equal(later.last.tensors["images"], pushed.last.tensors["images"])


def test_cross_entropy_counts_by_accuracy_in_percent(tiny, monkeypatch):
    """3 of 12 right are 25 percent, times the weight."""
    pushed, loss = [], QueueMatching.loss
    monkeypatch.setattr(QueueMatching, "loss", lambda self, context, *more: pushed.append(context.push) or loss(self, context, *more))
    made, start = objective(ce_weight=0.2), packed(tiny)
    state = made.start(start, generator(0, "start"))
    state |= {"correct": torch.full_like(state["correct"], 3), "seen": torch.full_like(state["seen"], 12)}
    _, _, log = made.step(start, state, RealBatches(tiny, Uniform(tiny.targets), generator(0, "real")), generator(0, "step"))
    assert float(log["accuracy"]) == 25 and float(pushed[0]) == pytest.approx(5)


def test_the_queue_grows_up_to_its_capacity_and_the_oldest_leaves(tiny, monkeypatch):
    monkeypatch.setattr(QueueMatching, "_train", lambda self, queue, *_: queue)
    made, start = objective(interval=2, capacity=4), packed(tiny)
    draw = RealBatches(tiny, Uniform(tiny.targets), generator(0, "real"))
    state = made.start(start, generator(0, "start"))
    lengths, queues = [], []
    for step in range(8):
        _, state, _ = made.step(start, state, draw, generator(0, "step", step))
        lengths.append(len(state["seen"]))
        queues.append(state["queue.conv0.weight"])
        assert all(len(value) == lengths[-1] for name, value in state.items() if name != "updates")
    assert lengths == [FIRST, FIRST, 4, 4, 4, 4, 4, 4]
    for before, after in ((3, 4), (5, 6)):  # full: all move up by one
        assert torch.equal(queues[after][:-1], queues[before][1:])
        assert not torch.equal(queues[after][-1], queues[before][-1])
    assert torch.equal(queues[2][:-1], queues[1])


def test_every_update_trains_a_few_networks_and_counts_what_they_see(tiny):
    made, start = objective(interval=100, trained=2), packed(tiny)
    draw = RealBatches(tiny, Uniform(tiny.targets), generator(0, "real"))
    before = made.start(start, generator(0, "start"))
    _, after, _ = made.step(start, before, draw, generator(0, "step"))
    moved = (after["queue.conv0.weight"] != before["queue.conv0.weight"]).flatten(1).any(1)
    assert moved.sum() == 2 and before["seen"].tolist() == [0] * FIRST  # the old state is as it was
    assert after["seen"].tolist() == [10 * m for m in moved.tolist()]
    assert (after["correct"] <= after["seen"]).all()
    assert draw.samples == 3 * 4 + 2 * 10


def test_a_killed_run_goes_on_with_its_queue(tiny, tmp_path, monkeypatch):
    whole = run(tiny, objective(augmentation=DSA), 6)
    path, calls, step = tmp_path / "checkpoint.safetensors", [], QueueMatching.step

    def dies(self, *args):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(QueueMatching, "step", dies)
    options = {"checkpoint": path, "checkpoint_seconds": 0}
    with pytest.raises(KeyboardInterrupt):
        run(tiny, objective(augmentation=DSA), 6, **options)
    again = run(tiny, objective(augmentation=DSA), 6, **options)
    assert torch.equal(whole.last.tensors["images"], again.last.tensors["images"])
    for name in ("loss", "accuracy"):
        assert torch.equal(whole.log[name], again.log[name])
    assert whole.cost["samples"] == again.cost["samples"] == 6 * (3 * 4 + 2 * 10)


def test_four_images_of_each_stored_one_are_matched(tiny, monkeypatch):
    shapes = []
    real = QueueMatching.loss
    monkeypatch.setattr(QueueMatching, "loss", lambda self, *given: shapes.append(given[3].shape) or real(self, *given))
    run(tiny, objective(), 1)
    assert shapes == [(CLASSES, 4, 1, 8, 8)]


@pytest.mark.parametrize("wrong", [{"capacity": 0}, {"interval": 0}, {"trained": 0}, {"train_steps": 1.5}, {"ce_weight": -1.0}])  # fmt: skip
def test_bad_settings_are_refused(wrong, refused):
    with refused(next(iter(wrong)), next(iter(wrong.values()))):
        objective(**wrong)


def test_contexts_of_the_queue_are_contexts():
    context = QueueContext({}, LABELS)
    assert context.push == 0 and context.train_mode


# Published settings


@pytest.mark.parametrize(
    "dataset, size, expected",
    [
        ("cifar10", 1, {"ce_weight": 0.5, "batch": 5000, "interval": 5, "lr": 0.2, "capacity": 100}),
        ("cifar100", 10, {"ce_weight": 0.1, "train_steps": 50, "interval": 30, "batch": 256}),
        ("tiny-imagenet", 50, {"ce_weight": 0.8, "train_steps": 50, "interpolation": "bilinear"}),
        ("imagenet-100", 10, {"ce_weight": 3.0, "batch": 128, "interval": 50, "capacity": 50}),
    ],
)  # fmt: skip
def test_some_cells_by_hand(dataset, size, expected):
    settings = METHODS["IDM"].settings(dataset, size)
    assert {name: getattr(settings, name) for name in expected} == expected
    assert settings.formation == "partition2" and settings.augmented and METHODS["IDM"].updates(settings, size) == 20_000
    assert METHODS["IDM"].cell("tiny-imagenet", 50, 0)["depth"] == 4


def test_unpublished_cells_are_refused(refused):
    with refused("svhn", "tiny-imagenet"):
        METHODS["IDM"].settings("svhn", 1)
    with refused(20, "1, 10, 50"):
        METHODS["IDM"].settings("cifar10", 20)
    with refused("interpolation", "cubic", "nearest"):
        METHODS["IDM"].settings("cifar10", 1, own={"interpolation": "cubic"})
