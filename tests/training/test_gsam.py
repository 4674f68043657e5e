"""GSAM for K stacked networks: the identities of FTD's Eq. 13 and the plain loop."""

import math

import pytest
import torch

from distillery.networks import ConvNet
from distillery.seeds import generator, split
from distillery.training import cross_entropy, train, train_plain
from distillery.training.dsa import DSA
from distillery.training.optimizers import GSAM, SGD

K = 3


def network(**options):
    return ConvNet((1, 8, 8), 3, width=4, depth=2, **options)


class Problem:
    """Weights of K networks in float64 and the gradient of one batch at any of them."""

    def __init__(self, images):
        self.net = network(activation="swish")
        params = {name: value.double() for name, value in self.net.init(generator(0, "init"), K).items()}
        self.names = list(params)
        self.weights = [value.requires_grad_() for value in params.values()]
        self.images, self.targets = images.batch(torch.arange(24)).double(), images.targets.expand(K, -1)

    def gradients(self):
        logits = self.net.apply(dict(zip(self.names, self.weights, strict=True)), self.images).logits
        return list(torch.autograd.grad(cross_entropy(logits, self.targets).mean(1).sum(), self.weights))


def vectors(tensors, i):
    """All weights of network i as one vector."""
    return torch.cat([value[i].detach().flatten() for value in tensors])


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_direction_by_its_definition(tiny, adaptive, alpha):
    """g_p at the perturbed weights, g_o orthogonal to it, norms of each network on its own."""
    problem, rho = Problem(tiny), 0.05
    optimizer = GSAM(rho=rho, alpha=alpha, adaptive=adaptive)
    before = [weight.detach().clone() for weight in problem.weights]
    g = problem.gradients()
    ascent = optimizer.ascent([weight.detach() for weight in problem.weights], g)
    seen = []

    def again():
        seen.append([weight.detach().clone() for weight in problem.weights])
        return problem.gradients()

    direction = optimizer.direction(problem.weights, g, again)
    (perturbed,) = seen
    assert all(torch.equal(weight, old) for weight, old in zip(problem.weights, before))  # restored
    with torch.no_grad():
        for weight, value in zip(problem.weights, perturbed, strict=True):
            weight.copy_(value)
    g_p = problem.gradients()
    for i in range(K):
        theta, epsilon, gi, gpi = (vectors(t, i) for t in (before, ascent, g, g_p))
        assert torch.allclose(vectors(perturbed, i), theta + epsilon, rtol=1e-12)
        if adaptive:
            touched = theta != 0
            assert (epsilon[touched] / theta[touched]).norm() == pytest.approx(rho, rel=1e-10)
            assert epsilon @ gi == pytest.approx(float(rho * (theta.abs() * gi).norm()), rel=1e-10)
        else:
            assert epsilon.norm() == pytest.approx(rho, rel=1e-10)
            assert epsilon @ gi == pytest.approx(float(rho * gi.norm()), rel=1e-10)
        g_o = (gi @ gpi) / (gpi @ gpi) * -gpi + gi
        assert abs(g_o @ gpi) < 1e-12 * gi.norm() * gpi.norm()
        assert torch.allclose(vectors(direction, i), gpi - alpha * g_o, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("adaptive", [True, False])
def test_rho_zero_is_plain_descent(tiny, adaptive):
    problem = Problem(tiny)
    g = problem.gradients()
    direction = GSAM(rho=0.0, alpha=0.7, adaptive=adaptive).direction(problem.weights, g, problem.gradients)
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-14) for a, b in zip(direction, g, strict=True))


def test_a_network_without_gradient_stays():
    """0 / 0 in the ascent of one network does not reach the others."""
    weights = [torch.tensor([[1.0, 2.0], [1.0, 2.0]]), torch.tensor([3.0, 3.0])]
    grads = [torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([0.0, 2.0])]
    direction = GSAM().direction(weights, grads, lambda: [g.clone() for g in grads])
    assert all(value.isfinite().all() for value in direction)
    assert (direction[0][0] == 0).all() and direction[1].tolist() == pytest.approx([0.0, 2.0])


@pytest.mark.parametrize("augmentation", ["", DSA], ids=["plain", "augmented"])
@pytest.mark.parametrize(
    "optimizer",
    [
        GSAM(0.1, 0.0, 0.0, rho=0.05, alpha=0.5),
        GSAM(0.1, 0.0, 0.0, rho=0.1, alpha=0.5, adaptive=False),
        GSAM(0.05, 0.9, 1e-3, drops=(4,), rho=0.05, alpha=0.0),
    ],
    ids=["adaptive", "plain norm", "momentum, decay and a drop"],
)
def test_equals_the_plain_loop(tiny, as_module, optimizer, augmentation):
    """Both gradients of a step come from the same augmented batch; the last batch of an epoch is smaller."""
    net = network()
    params = net.init(generator(0, "init"), K)
    trained, stats = train(
        net, params, tiny, optimizer=optimizer, generator=generator(1, "train"), epochs=3, batch=10, augmentation=augmentation, chunk=K
    )
    for i, stream in enumerate(split(generator(1, "train"), K)):
        module = as_module(net, params, i)
        train_plain(module, tiny, optimizer, stream=stream, epochs=3, batch=10, augmentation=augmentation)
        state = module.state_dict()
        assert all(torch.allclose(trained[name][i], state[name], atol=1e-4) for name in trained)
    sgd = SGD(optimizer.lr, optimizer.momentum, optimizer.weight_decay, optimizer.drops)
    other, _ = train(
        net, params, tiny, optimizer=sgd, generator=generator(1, "train"), epochs=3, batch=10, augmentation=augmentation, chunk=K
    )
    assert not all(torch.allclose(trained[name], other[name], atol=1e-4) for name in trained)


def test_the_chunk_does_not_matter(tiny):
    net = network()

    def run(chunk):
        return train(
            net,
            net.init(generator(0, "init"), K),
            tiny,
            optimizer=GSAM(0.1, 0.0, 0.0),
            chunk=chunk,
            generator=generator(1, "train"),
            epochs=2,
            batch=7,
            augmentation=DSA,
        )[0]

    first, second = run(1), run(K)
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)


# Training that goes on


@pytest.mark.parametrize("optimizer", [GSAM(0.1, 0.0, 0.0), SGD(0.05, 0.9, 1e-3, drops=(7,))], ids=["GSAM", "SGD"])
def test_training_goes_on_with_the_same_bits(tiny, optimizer):
    net, kept = network(normalization="batch"), {}
    params = net.init(generator(0, "init"), 2)

    def run(params, epochs, done=(0, [])):
        return train(
            net,
            params,
            tiny,
            optimizer=optimizer,
            generator=generator(1, "x"),
            epochs=epochs,
            batch=10,
            done=done,
            augmentation=DSA,
            after_epoch=lambda epoch, weights, state: kept.update({epoch: (weights, state)}),
        )

    whole, stats = run(params, 4)
    for epoch, (weights, state) in dict(kept).items():
        parts, again = run(weights, 4, (epoch, state))
        assert all(torch.equal(parts[name], whole[name]) for name in whole), epoch
        assert again.steps == stats.steps


def test_going_on_with_a_plan_is_refused(tiny, refused):
    with refused(2, "epochs alone"):
        train(network(), network().init(generator(0, "x")), tiny, generator=generator(0, "x"), steps=3, done=(2, []))


def test_flat_training_lowers_sharpness(tiny):
    """At equal steps the loss at a random point within rho of the end is lower than after plain descent."""
    net = network()
    params = net.init(generator(0, "init"), K)
    ends = [
        train(net, params, tiny, optimizer=o, generator=generator(1, "x"), epochs=60, batch=24)[0]
        for o in (SGD(0.2, 0.0, 0.0), GSAM(0.2, 0.0, 0.0, rho=1.0, alpha=0.3))
    ]

    def rise(weights):
        """By one adaptive ascent of size .5 along the gradient."""
        values = [value.clone().requires_grad_() for value in weights.values()]

        def loss():
            logits = net.apply(dict(zip(weights, values)), tiny.batch(torch.arange(24))).logits
            return cross_entropy(logits, tiny.targets.expand(K, -1)).mean(1)

        first = loss()
        ascent = GSAM(rho=0.5).ascent([v.detach() for v in values], list(torch.autograd.grad(first.sum(), values)))
        with torch.no_grad():
            for value, step in zip(values, ascent):
                value += step
            return (loss() - first).mean()

    plain, flat = (float(rise(end)) for end in ends)
    assert math.isfinite(flat) and flat < plain
