"""K networks trained at once against one module in a plain loop; plans, collectors, snapshots, losses."""

import math

import pytest
import torch
import torch.nn.functional as F

from distillery.data import TensorSource
from distillery.networks import ConvNet
from distillery.networks.precision import networks_at_once
from distillery.seeds import generator, split
from distillery.training import Plan, cross_entropy, loop, squared_error, train, train_plain
from distillery.training.dsa import DSA
from distillery.training.loop import _Stack
from distillery.training.optimizers import SGD


def network(**options):
    return ConvNet((1, 8, 8), 3, width=4, depth=2, **options)


def fresh(k=3, **options):
    return network(**options).init(generator(0, "init"), k)


def recorded(log):
    """Cross-entropy that keeps the mean loss of every step and network."""

    def loss(output, target):
        values = cross_entropy(output, target)
        log.append(values.detach().mean(1))
        return values

    return loss


def same(first, second, **tolerance):
    return all(torch.allclose(first[name], second[name], **tolerance) for name in first | second)


@pytest.mark.parametrize("augmentation", ["", DSA, "color+crop_scale"], ids=["plain", "augmented", "one after another"])
@pytest.mark.parametrize("normalization", ["instance", "batch"])
@pytest.mark.parametrize("drops", [(), (5,)], ids=["constant", "drop"])
def test_equals_the_plain_loop_at_every_step(tiny, as_module, drops, normalization, augmentation):
    """Losses of every step and final weights; the last batch of an epoch is smaller; momentum restarts at the drop."""
    net, params = network(normalization=normalization), fresh(normalization=normalization)
    sgd = SGD(0.05, 0.9, 5e-4, drops)
    log = []
    trained, stats = train(
        net, params, tiny, recorded(log), sgd, generator=generator(1, "train"), epochs=3, batch=10, augmentation=augmentation, chunk=3
    )
    assert stats.steps == 9 and stats.samples == 72
    for i, stream in enumerate(split(generator(1, "train"), 3)):
        module = as_module(net, params, i)
        expected = train_plain(module, tiny, sgd, stream=stream, epochs=3, batch=10, augmentation=augmentation)
        assert torch.stack(log)[:, i].tolist() == pytest.approx(expected, rel=1e-4)
        state = module.state_dict()
        assert same({name: value[i] for name, value in trained.items()}, {n: state[n] for n in trained}, atol=1e-4)
    assert not same(trained, params, atol=1e-2)


@pytest.mark.parametrize("normalization", ["instance", "batch"])
@pytest.mark.parametrize("chunk", [1, 3])
def test_cutmix_equals_the_plain_loop(tiny, as_module, chunk, normalization):
    """Every network mixes in its own steps and boxes, however many are stacked."""
    net, params = network(normalization=normalization), fresh(normalization=normalization)
    options = {"epochs": 3, "batch": 10, "augmentation": "color+crop", "cutmix": 0.5}
    trained, _ = train(net, params, tiny, generator=generator(1, "train"), chunk=chunk, **options)
    for i, stream in enumerate(split(generator(1, "train"), 3)):
        module = as_module(net, params, i)
        train_plain(module, tiny, SGD(), stream=stream, **options)
        state = module.state_dict()
        assert same({name: value[i] for name, value in trained.items()}, {n: state[n] for n in trained}, atol=1e-4)


def test_without_cutmix_nothing_is_drawn(tiny):
    """The bits are those of training that does not know it."""
    streams = [generator(1, "stream") for _ in range(2)]
    for stream, cutmix in zip(streams, (0.0, 0.5)):
        stack = _Stack(network(), fresh(1), tiny, cross_entropy, SGD(), [stream], 10, "", cutmix)
        boxes = stack._draw_epoch(Plan(torch.arange(24)))[-1]
        assert (boxes is None) == (cutmix == 0)
    plain = generator(1, "stream")
    torch.randperm(24, generator=plain)
    after = [torch.rand(1, generator=stream) for stream in (plain, *streams)]
    assert after[0] == after[1] != after[2]


def test_cutmix_keeps_the_weights_of_what_it_pastes(tiny, monkeypatch):
    """A whole image pasted over another of weight zero counts as itself."""
    whole = lambda p, n, h, w, g: (torch.tensor([[0, h, 0, w]]).repeat(n, 1), torch.zeros(n))  # noqa: E731
    monkeypatch.setattr(loop, "draw_boxes", whole)
    half = Plan(torch.arange(24), (torch.arange(24) % 2).float())
    options = {"steps": 1, "batch": 24, "plan": lambda *_: half}
    mixed, _ = train(network(), fresh(), tiny, generator=generator(0, "x"), cutmix=1.0, **options)
    plain, _ = train(network(), fresh(), tiny, generator=generator(0, "x"), **options)
    assert same(mixed, plain, atol=1e-6)


@pytest.mark.parametrize("options, word", [({"cutmix": 1.5}, 1.5), ({"cutmix": 0.5, "collect": ("correct",)}, "correct")])
def test_cutmix_refuses(tiny, options, word, refused):
    with refused(word, "cutmix"):
        train(network(), fresh(), tiny, generator=generator(0, "x"), epochs=1, **options)


def test_a_drop_changes_rate_and_momentum(tiny):
    """After the drop the first step is that of a new optimizer with a tenth of the rate."""
    sgd = SGD(0.5, 0.9, 0.0, drops=(1,))
    assert [sgd.rate(step) for step in (0, 1, 2)] == pytest.approx([0.5, 0.05, 0.05])
    weight, state = [torch.zeros(2)], []
    for step, gradient in enumerate(([1.0, 2.0], [3.0, 5.0], [1.0, 1.0])):
        state = sgd.update(weight, [torch.tensor(gradient)], state, step, 1.0)
    # -.5 (1, 2), then -.05 (3, 5), then -.05 (.9 (3, 5) + (1, 1))
    assert torch.allclose(weight[0], torch.tensor([-0.835, -1.525]))


@pytest.mark.parametrize("chunk", [0, 1, 2])
def test_the_chunk_does_not_matter(tiny, chunk):
    def run(chunk):
        return train(
            network(),
            fresh(),
            tiny,
            generator=generator(1, "train"),
            epochs=2,
            batch=7,
            augmentation=DSA,
            collect=("loss", "correct"),
            snapshots=(0, 2),
            chunk=chunk,
        )

    (params, stats), (expected, wanted) = run(chunk), run(3)
    assert same(params, expected, atol=1e-5)
    assert same(stats.collected, wanted.collected, atol=1e-4)
    assert same(stats.snapshots[2], wanted.snapshots[2], atol=1e-5)
    assert (stats.steps, stats.samples) == (wanted.steps, wanted.samples)


def test_two_runs_give_the_same_bits(tiny):
    first, again = (train(network(), fresh(), tiny, generator=generator(1, "train"), epochs=2, augmentation=DSA)[0] for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_every_network_has_its_own_data_order(tiny):
    one = fresh(1)
    twins = {name: value.expand(2, *value.shape[1:]) for name, value in one.items()}
    trained, _ = train(network(), twins, tiny, generator=generator(1, "x"), epochs=1, batch=5)
    assert not torch.allclose(trained["head.weight"][0], trained["head.weight"][1])


def test_given_weights_are_not_modified(tiny):
    params = fresh(normalization="batch")
    before = {name: value.clone() for name, value in params.items()}
    train(network(normalization="batch"), params, tiny, generator=generator(1, "x"), epochs=1)
    assert all(torch.equal(params[name], before[name]) for name in params)
    assert not any(value.requires_grad for value in params.values())


def test_steps_end_in_the_middle_of_an_epoch(tiny):
    _, stats = train(network(), fresh(), tiny, generator=generator(1, "x"), steps=4, batch=10, collect=("loss",))
    assert stats.steps == 4 and stats.samples == 10 + 10 + 4 + 10
    visited = ~stats.collected["loss"].isnan()  # (epochs, K, N)
    assert visited.sum(2).tolist() == [[24] * 3, [10] * 3]


def test_networks_stack_where_it_pays():
    cpu = torch.device("cpu")
    assert networks_at_once(5, 64, (1, 8, 8), cpu) == 5 and networks_at_once(5, 256, (1, 8, 8), cpu) == 1
    assert networks_at_once(5, 10, (3, 32, 32), cpu) == 1
    cuda = torch.device("cuda")
    assert networks_at_once(5, 100, (3, 32, 32), cuda) == 5 and networks_at_once(5, 256, (3, 32, 32), cuda) == 1


# Plans


def test_plan_is_asked_for_every_epoch_and_visits_what_it_says(tiny):
    asked = []

    def plan(epoch, stats):
        asked.append((epoch, tuple(stats.collected.get("loss", torch.empty(0)).shape)))
        return Plan(torch.tensor([2, 3, 5, 7, 11]) + epoch)

    _, stats = train(network(), fresh(), tiny, generator=generator(1, "x"), epochs=2, batch=3, plan=plan, collect=("loss",))
    assert asked == [(0, (0,)), (1, (1, 3, 24))]
    seen = ~stats.collected["loss"].isnan()
    assert torch.nonzero(seen[0, 1])[:, 0].tolist() == [2, 3, 5, 7, 11]
    assert torch.nonzero(seen[1, 2])[:, 0].tolist() == [3, 4, 6, 8, 12]
    assert stats.steps == 4 and stats.samples == 10


@pytest.mark.parametrize("batch, chunk", [(5, 0), (200, 0), (5, 1)])
def test_plan_may_differ_between_networks(tiny, batch, chunk):
    """Also where networks would otherwise be trained one by one."""
    source = tiny.subset(torch.arange(24).repeat(10))
    own = torch.stack([torch.arange(3), torch.arange(3) + 3, torch.arange(3) + 6]).repeat(1, 50)
    _, stats = train(
        network(),
        fresh(),
        source,
        generator=generator(1, "x"),
        epochs=1,
        batch=batch,
        plan=lambda epoch, stats: Plan(own),
        collect=("loss",),
        chunk=chunk,
    )
    visited = ~stats.collected["loss"][0].isnan()
    assert [torch.nonzero(row)[:, 0].tolist() for row in visited] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_plan_weights_are_factors_of_the_loss(tiny):
    """Weights (2, 0) on the halves of one full batch train on the first half alone; collected losses stay unweighted."""
    sgd = SGD(0.1, 0.0, 0.0)

    def run(plan):
        return train(network(), fresh(), tiny, optimizer=sgd, generator=generator(1, "x"), epochs=1, batch=24, plan=plan, collect=("loss",))

    everything, half = torch.arange(24), torch.arange(12)
    weighted, stats = run(lambda epoch, stats: Plan(everything, torch.cat([torch.full((12,), 2.0), torch.zeros(12)])))
    alone, wanted = run(lambda epoch, stats: Plan(half))
    assert same(weighted, alone, atol=1e-6)
    losses = stats.collected["loss"]
    assert torch.allclose(losses[..., :12], wanted.collected["loss"][..., :12], atol=1e-5)
    assert (losses[..., 12:] > 0).all()


def test_plan_scale_is_a_factor_of_the_rate(tiny):
    def run(lr, scale):
        plan = lambda epoch, stats: Plan(torch.arange(24), scale=scale)  # noqa: E731
        return train(network(), fresh(), tiny, optimizer=SGD(lr), generator=generator(1, "x"), epochs=2, plan=plan)[0]

    assert same(run(0.1, 0.5), run(0.05, 1.0), atol=1e-6)
    assert not same(run(0.1, 1.0), run(0.05, 1.0), atol=1e-4)


# Collectors and snapshots


def test_collectors_by_their_definitions(tiny):
    """One epoch at rate zero: everything collected follows from the logits of the first weights."""
    params = fresh()
    _, stats = train(
        network(),
        params,
        tiny,
        optimizer=SGD(0.0, 0.0, 0.0),
        generator=generator(1, "x"),
        epochs=1,
        batch=7,
        collect=("loss", "margin", "correct"),
    )
    logits = network().apply(params, tiny.batch(torch.arange(24))).logits.double()
    for k in range(3):
        for i, label in enumerate(tiny.targets.tolist()):
            row = logits[k, i].tolist()
            total = sum(map(math.exp, row))
            p = [math.exp(value) / total for value in row]
            expected = {
                "loss": -math.log(p[label]),
                "margin": row[label] - max(row[c] for c in range(3) if c != label),
                "correct": float(max(row) == row[label]),
            }
            for name, value in expected.items():
                assert stats.collected[name][0, k, i] == pytest.approx(value, abs=1e-5), name


@pytest.mark.parametrize("options", [{"epochs": 3}, {"steps": 10}], ids=["epochs", "part of an epoch"])
@pytest.mark.parametrize("chunk", [1, 3])
def test_the_running_mean_is_that_of_all_epochs(tiny, options, chunk):
    """10 steps of 9 end within the fourth epoch: what it did not visit has the mean of the other three."""
    given = dict(batch=9, collect=("loss", "margin"), chunk=chunk, **options)
    wanted, every = train(network(), fresh(), tiny, generator=generator(1, "x"), **given)
    params, mean = train(network(), fresh(), tiny, generator=generator(1, "x"), collect_mean=True, **given)
    assert all(torch.equal(params[name], wanted[name]) for name in wanted)
    for name, values in every.collected.items():
        assert mean.collected[name].shape == (1, 3, 24) and mean.collected[name].dtype == torch.float32
        assert torch.allclose(mean.collected[name][0], values.nanmean(0), rtol=1e-6)


def test_the_running_mean_of_samples_that_no_epoch_visits(tiny):
    shapes = []

    def plan(epoch, stats):
        shapes.extend(values.shape for values in stats.collected.values())
        return Plan(torch.arange(epoch, 12))  # 0 in the first epoch, 1 in two, 12 and more in none

    _, stats = train(
        network(), fresh(), tiny, generator=generator(1, "x"), epochs=3, batch=5, plan=plan, collect=("loss",), collect_mean=True
    )
    assert shapes == [(1, 3, 24)] * 2
    assert torch.equal(stats.collected["loss"].isnan()[0, 0], torch.arange(24) >= 12)


def test_snapshots(tiny):
    params = fresh()

    def run(epochs, snapshots=()):
        return train(network(), params, tiny, generator=generator(1, "x"), epochs=epochs, batch=9, snapshots=snapshots)

    final, stats = run(3, (0, 2, 3))
    assert sorted(stats.snapshots) == [0, 2, 3]
    assert same(stats.snapshots[0], params, atol=0)
    assert same(stats.snapshots[2], run(2)[0], atol=1e-6)
    assert same(stats.snapshots[3], final, atol=0)


# Losses


def test_cross_entropy_with_hard_and_soft_labels():
    output = torch.randn(2, 5, 4, generator=generator(0, "x"))
    target = torch.randint(4, (2, 5), generator=generator(1, "x"))
    hard = cross_entropy(output, target)
    assert hard.shape == (2, 5)
    assert torch.allclose(hard[1], F.cross_entropy(output[1], target[1], reduction="none"))
    assert torch.allclose(cross_entropy(output, F.one_hot(target, 4).float()), hard, atol=1e-6)
    soft = torch.rand(2, 5, 4, generator=generator(2, "x")).softmax(-1)
    expected = F.cross_entropy(output[0], soft[0], reduction="none")
    assert torch.allclose(cross_entropy(output, soft)[0], expected, atol=1e-6)


def test_squared_error():
    output, target = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[0.0, 5.0]]])
    assert squared_error(output, target).tolist() == [[5.0]]


def test_training_on_soft_labels_and_on_real_values(tiny):
    images = tiny.batch(torch.arange(24))
    one_hot = F.one_hot(tiny.targets, 3).float()
    hard, _ = train(network(), fresh(), TensorSource(images, tiny.targets), generator=generator(1, "x"), epochs=2)
    soft, _ = train(network(), fresh(), TensorSource(images, one_hot), generator=generator(1, "x"), epochs=2)
    assert same(hard, soft, atol=1e-5)

    real = TensorSource(images, torch.randn(24, 3, generator=generator(2, "x")))
    _, stats = train(
        network(), fresh(), real, squared_error, SGD(0.05, weight_decay=0.0), generator=generator(1, "x"), epochs=60, collect=("loss",)
    )
    losses = stats.collected["loss"].mean(2)  # (epochs, K)
    assert (losses[-1] < 0.5 * losses[0]).all()


def test_batch_coupled_loss_trains_every_network_on_its_own(tiny):
    """A loss (K,) that couples the samples of a batch: network i of three is the same as alone."""

    def decorrelate(output, target):
        centred = output - output.mean(1, keepdim=True)
        covariance = centred.mT @ centred / output.shape[1]  # (K, D, D)
        return (covariance - torch.eye(output.shape[2])).square().sum((1, 2))

    def run(chunk):
        return train(network(), fresh(), tiny, decorrelate, SGD(0.01), generator=generator(1, "x"), epochs=3, batch=12, chunk=chunk)[0]

    assert same(run(3), run(1), atol=1e-5)
    assert not same(run(3), fresh(), atol=1e-3)


# Errors


@pytest.mark.parametrize(
    "options, word",
    [({}, 0), ({"epochs": 2, "steps": 3}, 3), ({"epochs": 1, "batch": 0}, 0), ({"epochs": 1, "collect": ("entropy",)}, "entropy")],
)
def test_refused(tiny, options, word, refused):
    with refused(word):
        train(network(), fresh(), tiny, generator=generator(0, "x"), **options)


def test_refused_sources(refused):
    with refused("no images"):
        empty = TensorSource(torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.long))
        train(network(), fresh(), empty, generator=generator(0, "x"), epochs=1)
    with refused("margin"):
        soft = TensorSource(torch.zeros(4, 1, 8, 8), torch.zeros(4, 3))
        train(network(), fresh(), soft, generator=generator(0, "x"), epochs=1, collect=("margin",))


def test_weights_and_losses_by_sample_need_samples_apart(tiny, refused):
    """A batch-coupled loss has no per-sample part to weigh or to collect."""

    def coupled(output, target):
        return output.square().mean((1, 2))

    weights = Plan(torch.arange(24), torch.ones(24))
    with refused("weights"):
        train(network(), fresh(), tiny, coupled, generator=generator(0, "x"), epochs=1, plan=lambda *_: weights)
    with refused("loss"):
        train(network(), fresh(), tiny, coupled, generator=generator(0, "x"), epochs=1, collect=("loss",))
