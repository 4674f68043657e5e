"""Nesterov momentum against torch's own optimizer."""

import pytest
import torch

from distillery.networks import ConvNet
from distillery.seeds import generator
from distillery.training import train
from distillery.training.optimizers import SGD, Adam, Nesterov, Scheduled

STEPS = 7


def problem():
    """Weights of two layers for two stacked networks, and a gradient of each for every step, float64."""
    stream = generator(0, "problem")
    shapes = [(2, 4, 3), (2, 4)]
    draw = lambda shape: torch.randn(shape, generator=stream, dtype=torch.float64)  # noqa: E731
    return [draw(shape) for shape in shapes], [[draw(shape) for shape in shapes] for _ in range(STEPS)]


@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("drops", [(), (4,), (2, 5)], ids=["constant", "drop", "drops"])
@pytest.mark.parametrize("kind, factor", [(Nesterov, 0.1), (Scheduled, 0.2)])
def test_equals_torch_at_every_step(kind, factor, drops, decay):
    """At a drop the rate of torch's optimizer falls, and its momentum goes on."""
    start, gradients = problem()
    ours, wanted = ([weight.clone() for weight in start] for _ in range(2))
    optimizer, state = kind(0.1, 0.9, decay, drops), []
    theirs = torch.optim.SGD(wanted, 0.1, momentum=0.9, weight_decay=decay, nesterov=kind is Nesterov)
    for step, grads in enumerate(gradients):
        if step in drops:
            theirs.param_groups[0]["lr"] *= factor
        for weight, gradient in zip(wanted, grads, strict=True):
            weight.grad = gradient.clone()
        theirs.step()
        kept = [gradient.clone() for gradient in grads]
        state = optimizer.update(ours, grads, state, step, 1.0)
        assert all(torch.equal(gradient, old) for gradient, old in zip(grads, kept, strict=True))
        for weight, expected in zip(ours, wanted, strict=True):
            assert torch.allclose(weight, expected, rtol=1e-12, atol=1e-14)


def test_two_steps_by_hand():
    """Gradients 1, then 3, at rate 1 and momentum .5: steps 1 + .5, then 3 + .5 (.5 + 3)."""
    weight, optimizer = [torch.zeros(1)], Nesterov(1.0, 0.5, 0.0)
    state = optimizer.update(weight, [torch.tensor([1.0])], [], 0, 1.0)
    assert weight[0].item() == -1.5
    state = optimizer.update(weight, [torch.tensor([3.0])], state, 1, 1.0)
    assert weight[0].item() == -1.5 - 4.75 and state[0].item() == 3.5


@pytest.mark.parametrize("drops", [(), (0,), (4,), (2, 3, 6)])
def test_steps_that_are_alike_update_alike(drops):
    """Same rate, same momentum, and no earlier step has both; Adam's steps are all different."""
    sgd, seen = SGD(drops=drops), {}
    for step in range(9):
        seen.setdefault((sgd.rate(step), step in drops), step)
        assert sgd.like(step) == seen[sgd.rate(step), step in drops]
    assert [Adam(drops=drops).like(step) for step in range(9)] == list(range(9))


def test_the_scale_is_a_factor_of_the_rate():
    start, gradients = problem()
    scaled, wanted = ([weight.clone() for weight in start] for _ in range(2))
    Nesterov(0.1).update(scaled, gradients[0], [], 0, 2.0)
    Nesterov(0.2).update(wanted, gradients[0], [], 0, 1.0)
    assert all(torch.allclose(a, b, rtol=1e-14) for a, b in zip(scaled, wanted, strict=True))


def test_trains_a_network_in_its_own_way(tiny):
    """Two epochs in the one loop learn, and end elsewhere than plain momentum."""
    net = ConvNet((1, 8, 8), 3, width=4, depth=2)

    def run(optimizer):
        params = net.init(generator(0, "init"), 2)
        return train(net, params, tiny, optimizer=optimizer, generator=generator(1, "x"), epochs=2, batch=8, collect=("loss",))

    params, stats = run(Nesterov(0.05))
    plain, _ = run(SGD(0.05))
    losses = stats.collected["loss"].mean(2)  # (epochs, K)
    assert (losses[1] < losses[0]).all()
    assert not all(torch.allclose(params[name], plain[name], atol=1e-4) for name in params)


@pytest.mark.parametrize("momentum", [0.0, -0.9, float("nan")])
def test_refuses_to_go_without_momentum(momentum, refused):
    with refused(momentum, "momentum"):
        Nesterov(momentum=momentum)
