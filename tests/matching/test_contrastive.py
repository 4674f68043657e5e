"""Trajectories of SimCLR: experts on views of their own, student steps on two views of the made images, what is refused."""

from dataclasses import replace

import pytest
import torch

from distillery import experts as ex
from distillery.data.synthetic import Synthetic
from distillery.matching.trajectory import StartEpochs, TrajectoryMatching, sweep, sweep_plain
from distillery.networks import ConvNet
from distillery.seeds import generator, split
from distillery.training.contrastive import simclr, two_views_apart
from distillery.training.optimizers import SGD, Adam
from distillery.training.views import Views
from made_up import blobs

VIEWS = Views(scale=(0.5, 1.0))
ADAM = ex.Training(2, Adam(1e-2, weight_decay=1e-6), 10, "", loss="simclr", views=VIEWS)
F64 = torch.float64


def network(shape=(1, 8, 8)):
    return ConvNet(shape, 6, width=4, depth=1, activation="swish")  # smooth, for differences


def made(folder, images, epochs=2, training=ADAM, net=None):
    ex.make(folder, net or network(), images, training, epochs)
    return ex.load(folder, net or network(), images, training, epochs)


def same(a, b):
    return all(torch.equal(value, b.weights[name]) for name, value in a.weights.items())


@pytest.mark.parametrize("chunk", [1, 2])
def test_an_expert_does_not_depend_on_those_beside_it(tiny, tmp_path, chunk):
    # Adam turns the rounding of small gradients into whole steps
    training = replace(ADAM, experts=3, chunk=chunk, optimizer=SGD(0.05))
    together = made(tmp_path / "3", tiny, training=training)
    alone = made(tmp_path / "1", tiny, training=replace(training, experts=1))
    assert all(torch.allclose(v[:1], alone.weights[name], atol=1e-6) for name, v in together.weights.items())
    weights = together.weights["conv0.weight"]
    assert (weights[0, -1] - weights[1, -1]).norm() > 1e-3


def test_training_goes_on_with_the_views_it_would_have_met(tiny, tmp_path):
    unbroken = made(tmp_path / "a", tiny, 4)
    made(tmp_path / "b", tiny, 1)
    made(tmp_path / "b", tiny, 3)
    assert same(unbroken, made(tmp_path / "b", tiny, 4))


def test_experts_read_no_labels_and_learn(tmp_path):
    images = blobs(per_class=16)
    trained = made(tmp_path / "a", images, 12)
    assert same(trained, made(tmp_path / "b", replace(images, targets=images.targets.flip(0)), 12))
    pairs = torch.cat([images.batch(torch.arange(0, 48, 2)), images.batch(torch.arange(1, 48, 2))])

    def loss(epoch):
        return float(two_views_apart(network().apply(trained.at(0, epoch), pairs[None]).logits, None))

    assert loss(12) < loss(0)  # neighbours are of one class


def test_cost_counts_whole_batches(tiny, tmp_path):
    """24 images in batches of 10 are two steps an epoch, and 20 images."""
    training = replace(ADAM, chunk=2)
    cost = ex.cost(tmp_path, network(), tiny, training, 3)
    assert cost["steps"] == 6
    ex.make(tmp_path, network(), tiny, training, 3, billed_to="us")
    assert ex.spent(tmp_path, network(), tiny, training, 3, "us")["samples"] == 3 * 2 * 20
    stored = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    assert 0.5 < cost["bytes"] / stored < 2


def problem(images, steps=2, dtype=F64, seed=0, shape=(1, 8, 8)):
    """A set, an objective and one of its student problems."""
    weights = {name: value.to(dtype) for name, value in network(shape).init(generator(seed, "weights"), 1).items()}
    bank = ex.Experts({name: torch.stack([v, v + 0.01 * torch.sin(v * 50 + 1)], 1) for name, v in weights.items()})
    objective = TrajectoryMatching(
        network(shape), bank, steps, 1, StartEpochs(0, 1), batch=3, loss=two_views_apart, views=VIEWS, transform=images.transform
    )
    set_ = Synthetic(
        {
            "images": images.batch(torch.arange(7)).to(dtype),
            "targets": torch.zeros(7, dtype=torch.int64),
            "step_size": torch.tensor(0.1, dtype=dtype),
        },
        None,
    )
    draws = objective.draws(set_, *split(generator(seed, "draws"), 2))
    loss = objective.step_loss(set_, {})
    tensors = {name: set_.tensors[name] for name in objective.learns}
    return objective, set_, loss, bank.at(0, 0), bank.at(0, 1), tensors, draws


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8)])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_sweep_is_the_unrolled_loop(steps, shape):
    _, _, *rest = problem(blobs(shape=shape), steps, shape=shape)
    value, grads = sweep(*rest)
    plain, expected = sweep_plain(*rest)
    assert torch.allclose(value, plain, rtol=1e-10)
    for name in expected:
        assert torch.allclose(grads[name], expected[name], rtol=1e-6, atol=1e-12), name
    assert grads["images"].abs().max() > 0


def test_gradients_are_central_differences():
    _, _, loss, start, end, tensors, draws = problem(blobs(), 2)
    _, grads = sweep(loss, start, end, tensors, draws)
    step = 1e-6
    for name, at in (("images", (0, 0, 3, 3)), ("images", (2, 0, 5, 1)), ("step_size", ())):
        values = []
        for sign in (1, -1):
            moved = tensors[name].clone()
            moved[at] += sign * step
            values.append(sweep(loss, start, end, tensors | {name: moved}, draws)[0])
        difference = (values[0] - values[1]) / (2 * step)
        assert float(difference) == pytest.approx(float(grads[name][at]), rel=1e-4, abs=1e-9), (name, at)


def test_batches_are_whole_and_views_two():
    """7 images in batches of 3: the last one of a permutation is left out; 6 views each."""
    *_, draws = problem(blobs(), 3)
    assert [len(here) for here, _ in draws] == [3, 3, 3] and {len(drawn.flipped) for _, drawn in draws} == {6}
    first = draws[0][1].boxes
    assert not torch.equal(first, draws[1][1].boxes)


def test_loss_of_a_step_is_simclr_of_two_views():
    from distillery.training.views import view

    images = blobs()
    _, set_, loss, start, _, tensors, draws = problem(images, 1, dtype=torch.float32)
    indices, drawn = draws[0]
    pixels = images.transform.inverse(set_.tensors["images"][indices])
    seen = images.transform(view(torch.cat([pixels, pixels]), drawn))
    output = network().apply(start, seen[None]).logits[0]
    assert torch.allclose(loss(start, tensors, draws[0]), simclr(output[:3], output[3:]))


def test_refusals(tiny, tmp_path, refused):
    for change in ({"views": None}, {"loss": "squared error"}, {"augmentation": "flip"}):
        with refused("views"):
            replace(ADAM, **change)
    for batch in (1, 25):
        with refused("batch", str(batch)):
            made(tmp_path, tiny, training=replace(ADAM, batch=batch))
    made(tmp_path / "a", tiny, 1)
    with refused("0 of 2 epochs"):
        ex.load(tmp_path / "a", network(), tiny, replace(ADAM, views=Views()), 1)
