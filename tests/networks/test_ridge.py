"""The neural tangent kernel, the ridge solve and random features against plain twins, cases by hand and finite networks."""

import math
from functools import partial

import pytest
import torch

from distillery.checks import InputError, RunFailed
from distillery.methods.kip import ntk_matrix_plain
from distillery.networks import ConvNet
from distillery.networks.ridge import embeddings, gaussian, kernel_ridge_plain, ntk, ntk_plain, platt, regress
from distillery.seeds import generator
from made_up import normal

F64 = torch.float64


def empirical_ntk(points, depth, width, w, b, seed):
    """Gram matrix of the parameter gradients of one finite network with the same parameterisation."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [points.shape[1]] + [width] * depth + [1]
    params = []
    for fan_in, fan_out in zip(sizes[:-1], sizes[1:], strict=True):
        params.append(torch.randn(fan_out, fan_in, generator=generator))
        params.append(torch.randn(fan_out, generator=generator))

    def output(params, x):
        for layer in range(depth + 1):
            weight, bias = params[2 * layer], params[2 * layer + 1]
            x = w * weight @ x / weight.shape[1] ** 0.5 + b * bias
            x = x.relu() if layer < depth else x
        return x[0]

    params = [param.requires_grad_() for param in params]
    gradients = [torch.autograd.grad(output(params, x), params) for x in points]
    return torch.stack([torch.stack([sum((p * q).sum() for p, q in zip(g, h, strict=True)) for h in gradients]) for g in gradients])


# One draw of width 1024 and depth 2 is off by 8% (one standard deviation), width 16384 and depth 1 by 1.4%. The
# mean of the draws is then good to about 1%. A bias deviation near 1 makes a misplaced b^2 show.
@pytest.mark.parametrize(("depth", "width", "draws"), [(1, 16384, 20), (2, 1024, 50)])
@pytest.mark.parametrize(("w", "b"), [(2**0.5, 0.1), (1.2, 0.8)])
def test_ntk_is_the_limit_of_wide_networks(depth, width, draws, w, b):
    points = normal(4, 6, seed=4)
    points[1] = 0.9 * points[0] + 0.3 * points[1]  # a near pair
    points[2] = -points[0]  # an opposite pair
    expected = torch.stack([torch.stack([ntk_plain(x, y, depth, w, b) for y in points]) for x in points])
    found = sum(empirical_ntk(points.float(), depth, width, w, b, seed) for seed in range(draws)).double() / draws
    scale = expected.diagonal().sqrt()
    error = (found - expected) / torch.outer(scale, scale)
    assert error.abs().max() < 0.03


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_ntk_of_a_point_with_itself(depth):
    # w^2 = 2 keeps q up to the bias: q_l = q_0 + .01 l, and theta is the sum of q_0..q_L.
    x = torch.tensor([3.0, 4.0], dtype=F64)
    q0 = 2 * 25 / 2 + 0.01
    expected = (depth + 1) * q0 + 0.01 * depth * (depth + 1) / 2
    torch.testing.assert_close(ntk_plain(x, x, depth), torch.tensor(expected, dtype=F64), rtol=1e-14, atol=0)


def test_ntk_of_a_right_angle():
    # Without bias q_0 = 0, a = pi / 2, theta_1 = q_1 = 2 sqrt(q q') / (2 pi), with q = 9, q' = 4.
    x, y = torch.tensor([3.0, 0.0], dtype=F64), torch.tensor([0.0, 2.0], dtype=F64)
    torch.testing.assert_close(ntk_plain(x, y, bias=0.0), torch.tensor(6 / math.pi, dtype=F64))


def test_ntk_of_sixty_degrees():
    # w^2 = 2, d = 2: q_0 = x.y = 1/2, a = pi/3: kappa0 = 1/3, kappa1 = (sqrt(3)/2 + pi/3) / (2 pi).
    x, y = torch.tensor([1.0, 0.0], dtype=F64), torch.tensor([0.5, 3**0.5 / 2], dtype=F64)
    expected = (3**0.5 / 2 + math.pi / 3) / math.pi + 2 * 0.5 / 3
    torch.testing.assert_close(ntk_plain(x, y, bias=0.0), torch.tensor(expected, dtype=F64))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_ntk_gram_is_symmetric_and_positive_definite(depth):
    images = normal(9, 1, 2, 4, seed=5)
    gram = ntk_matrix_plain(images, images, depth)
    torch.testing.assert_close(gram, gram.T, rtol=1e-14, atol=0)
    assert torch.linalg.eigvalsh(gram).min() > 1e-3 * gram.diagonal().mean()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_ntk_is_continuous_at_the_diagonal(depth):
    x, step = normal(10, seed=6), normal(10, seed=7)
    at = ntk_plain(x, x, depth)
    for size in (1e-4, 1e-6, 1e-8, 1e-10, 1e-16):
        assert (ntk_plain(x, x + size * step, depth) - at).abs() <= 10 * at * max(size, 1e-7)


@pytest.mark.parametrize("depth", [1, 2])
def test_ntk_gradient_on_the_diagonal(depth):
    # theta_L(x, x) = (L + 1) 2 |x|^2 / d + const.
    x = normal(10, seed=8).requires_grad_()
    (gradient,) = torch.autograd.grad(ntk_plain(x, x, depth), x)
    torch.testing.assert_close(gradient, (depth + 1) * 4 * x.detach() / 10)
    # Two equal but separate tensors share that gradient evenly.
    y = x.detach().clone()
    (half,) = torch.autograd.grad(ntk_plain(x, y, depth), x)
    torch.testing.assert_close(half, gradient / 2)


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-7, 1e-8, 1e-9, 0.0])
def test_ntk_gradient_is_bounded_near_the_diagonal(size):
    x = normal(10, seed=8).requires_grad_()
    y = (x + size * normal(10, seed=9)).detach()
    (gradient,) = torch.autograd.grad(ntk_plain(x, y, 2), x)
    assert gradient.isfinite().all() and gradient.norm() < 20


def test_ntk_gradient_by_finite_differences():
    x, y = normal(5, seed=10).requires_grad_(), normal(5, seed=11).requires_grad_()
    assert torch.autograd.gradcheck(partial(ntk_plain, depth=2), (x, y))


def test_kernel_ridge_of_one_point():
    # 3 / (4 + 2) x (6, -1).
    found = kernel_ridge_plain(
        torch.tensor([[4.0]], dtype=F64), torch.tensor([[6.0, -1.0]], dtype=F64), torch.tensor([[3.0]], dtype=F64), 2.0
    )
    torch.testing.assert_close(found, torch.tensor([[3.0, -0.5]], dtype=F64))


@pytest.mark.parametrize(("m", "n", "width"), [(3, 5, 8), (8, 2, 3), (1, 1, 4)])
def test_kernel_ridge_is_primal_ridge(m, n, width):
    support, targets, labels = normal(m, width, seed=1), normal(n, width, seed=2), normal(m, 3, seed=3)
    primal = torch.linalg.solve(support.T @ support + 0.3 * torch.eye(width, dtype=F64), support.T @ labels)
    found = kernel_ridge_plain(support @ support.T, labels, targets @ support.T, 0.3)
    torch.testing.assert_close(found, targets @ primal)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("same", [True, False])
def test_ntk_is_its_twin(depth, same):
    x, y = (torch.randn(n, 1, 3, 4, generator=generator(0, "x", n), dtype=torch.float64) for n in (5, 4))
    y = x if same else torch.cat([y, x[:1]])  # one pair at an angle of 0
    found = ntk(x.flatten(1), None if same else y.flatten(1), depth)
    torch.testing.assert_close(found, ntk_matrix_plain(x, y, depth), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("depth", [1, 2])
def test_the_gradient_of_the_ntk_is_its_twins_on_the_diagonal_too(depth):
    grads = []
    for way in (lambda x: ntk(x.flatten(1), None, depth), lambda x: ntk_matrix_plain(x, x, depth)):
        x = torch.randn(4, 1, 2, 5, generator=generator(0, "x"), dtype=torch.float64).requires_grad_()
        weights = torch.randn(4, 4, generator=generator(0, "w"), dtype=torch.float64)
        grads.append(torch.autograd.grad((weights * way(x)).sum(), x)[0])
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("points", [1, 6])
def test_regress_is_its_twin_with_one_ridge_and_with_one_for_each_point(points):
    rows = torch.randn(points, 9, generator=generator(0, "x"), dtype=torch.float64)
    labels = torch.randn(points, 3, generator=generator(0, "y"), dtype=torch.float64)
    kernel = rows @ rows.T
    torch.testing.assert_close(kernel @ regress(kernel, labels, 0.3), kernel_ridge_plain(kernel, labels, kernel, 0.3))
    # weights w in the primal problem are a ridge lambda / w in the dual one
    w = torch.rand(points, generator=generator(0, "w"), dtype=torch.float64) + 0.1
    gram = rows.T @ (w[:, None] * rows) + 0.3 * torch.eye(9, dtype=torch.float64)
    primal = torch.linalg.solve(gram, rows.T @ (w[:, None] * labels))
    torch.testing.assert_close(rows.T @ regress(kernel, labels, 0.3 / w), primal, rtol=1e-9, atol=1e-10)


def test_a_solve_that_fails_says_its_conditioning(refused):
    bad = torch.diag(torch.tensor([1.0, -3.0], dtype=torch.float64))
    with refused("eigenvalues", "-3"):
        regress(bad, torch.eye(2, dtype=torch.float64), 1e-6)
    assert issubclass(RunFailed, InputError)
    with pytest.raises(RunFailed):
        regress(bad, torch.eye(2, dtype=torch.float64), 1e-6)
    with refused("penalty", "0.0"):
        regress(torch.eye(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64), 0.0)


def test_platt_finds_the_scale_of_probabilities():
    """Labels drawn from softmax(3 f): the fitted scale is 3, whatever f is multiplied by."""
    stream = generator(0, "platt")
    f = torch.randn(20_000, 3, generator=stream, dtype=torch.float64)
    targets = torch.multinomial((3 * f).softmax(1), 1, generator=stream)[:, 0]
    assert platt(f, targets) == pytest.approx(3, rel=0.05)
    assert platt(f / 100, targets) == pytest.approx(300, rel=0.05)


def test_random_networks_are_drawn_as_published():
    params = gaussian(ConvNet((3, 16, 16), 3, 64, normalization="none"), generator(0, "x"), 3, torch.device("cpu"))
    assert params["conv1.weight"].std() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.02)
    assert params["conv1.bias"].std() == pytest.approx(0.1, rel=0.2)


def test_features_of_several_networks_lie_side_by_side(tiny):
    network = ConvNet(tiny.shape, 3, 4, normalization="none")
    params = network.init(generator(0, "x"), 3)
    images = tiny.batch(torch.arange(5))
    one_by_one = [network.embed({n: v[i : i + 1] for n, v in params.items()}, images)[0] for i in range(3)]
    torch.testing.assert_close(embeddings(network, params, images), torch.cat(one_by_one, 1))
