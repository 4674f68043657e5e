"""The plain kernel distillers against cases worked out by hand, finite networks and finite differences."""

import math
from functools import partial

import pytest
import torch

from distillery.matching.kernel import (
    frepo_loss_plain,
    kip_loss_plain,
    label_loss_plain,
    ntk_matrix_plain,
    rfad_kernel_plain,
    rfad_loss_plain,
)
from distillery.networks.ridge import kernel_ridge_plain, ntk_plain

F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def centred(classes, number):
    return torch.eye(number, dtype=F64)[torch.tensor(classes)] - 1 / number


@pytest.fixture
def problem():
    """4 synthetic and 5 real images of 2 x 3 x 4, 3 classes, unequal weights. One real image is also synthetic."""
    images, real = draw(4, 2, 3, 4, seed=1), draw(5, 2, 3, 4, seed=2)
    real[0] = images[0]
    labels = centred([0, 1, 2, 0], 3) + 0.1 * draw(4, 3, seed=3)
    weights = torch.tensor([0.1, 0.4, 0.2, 0.3, 0.0], dtype=F64)
    return images, labels, real, centred([0, 1, 2, 1, 0], 3), weights


def network(seed, features=12):
    """A smooth random feature map, so that finite differences are exact enough."""
    matrix = draw(24, features, seed=seed)
    return lambda images: torch.tanh(images.flatten(1) @ matrix / 24**0.5)


def flat(images):
    return images.flatten(1)


# --- the infinite-width kernel ---


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
    return torch.stack(
        [torch.stack([sum((p * q).sum() for p, q in zip(g, h, strict=True)) for h in gradients]) for g in gradients]
    )


# One draw of width 1024 and depth 2 is off by 8% (one standard deviation), width 16384 and depth 1 by 1.4%. The
# mean of the draws is then good to about 1%. A bias deviation near 1 makes a misplaced b^2 show.
@pytest.mark.parametrize(("depth", "width", "draws"), [(1, 16384, 20), (2, 1024, 50)])
@pytest.mark.parametrize(("w", "b"), [(2**0.5, 0.1), (1.2, 0.8)])
def test_ntk_is_the_limit_of_wide_networks(depth, width, draws, w, b):
    points = draw(4, 6, seed=4)
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
    images = draw(9, 1, 2, 4, seed=5)
    gram = ntk_matrix_plain(images, images, depth)
    torch.testing.assert_close(gram, gram.T, rtol=1e-14, atol=0)
    assert torch.linalg.eigvalsh(gram).min() > 1e-3 * gram.diagonal().mean()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_ntk_is_continuous_at_the_diagonal(depth):
    x, step = draw(10, seed=6), draw(10, seed=7)
    at = ntk_plain(x, x, depth)
    for size in (1e-4, 1e-6, 1e-8, 1e-10, 1e-16):
        assert (ntk_plain(x, x + size * step, depth) - at).abs() <= 10 * at * max(size, 1e-7)


@pytest.mark.parametrize("depth", [1, 2])
def test_ntk_gradient_on_the_diagonal(depth):
    # theta_L(x, x) = (L + 1) 2 |x|^2 / d + const.
    x = draw(10, seed=8).requires_grad_()
    (gradient,) = torch.autograd.grad(ntk_plain(x, x, depth), x)
    torch.testing.assert_close(gradient, (depth + 1) * 4 * x.detach() / 10)
    # Two equal but separate tensors share that gradient evenly.
    y = x.detach().clone()
    (half,) = torch.autograd.grad(ntk_plain(x, y, depth), x)
    torch.testing.assert_close(half, gradient / 2)


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-7, 1e-8, 1e-9, 0.0])
def test_ntk_gradient_is_bounded_near_the_diagonal(size):
    x = draw(10, seed=8).requires_grad_()
    y = (x + size * draw(10, seed=9)).detach()
    (gradient,) = torch.autograd.grad(ntk_plain(x, y, 2), x)
    assert gradient.isfinite().all() and gradient.norm() < 20


def test_ntk_gradient_by_finite_differences():
    x, y = draw(5, seed=10).requires_grad_(), draw(5, seed=11).requires_grad_()
    assert torch.autograd.gradcheck(partial(ntk_plain, depth=2), (x, y))


# --- ridge regression ---


def test_kernel_ridge_of_one_point():
    # 3 / (4 + 2) x (6, -1).
    found = kernel_ridge_plain(
        torch.tensor([[4.0]], dtype=F64), torch.tensor([[6.0, -1.0]], dtype=F64), torch.tensor([[3.0]], dtype=F64), 2.0
    )
    torch.testing.assert_close(found, torch.tensor([[3.0, -0.5]], dtype=F64))


@pytest.mark.parametrize(("m", "n", "width"), [(3, 5, 8), (8, 2, 3), (1, 1, 4)])
def test_kernel_ridge_is_primal_ridge(m, n, width):
    support, targets, labels = draw(m, width, seed=1), draw(n, width, seed=2), draw(m, 3, seed=3)
    primal = torch.linalg.solve(support.T @ support + 0.3 * torch.eye(width, dtype=F64), support.T @ labels)
    found = kernel_ridge_plain(support @ support.T, labels, targets @ support.T, 0.3)
    torch.testing.assert_close(found, targets @ primal)


# --- KIP ---


def test_kip_loss_of_one_image_on_itself():
    # K_TS = K_SS = t, penalty 1e-6 t: the prediction is y / (1 + 1e-6), whatever the image.
    image, label = draw(1, 1, 2, 2), torch.tensor([[0.5, -0.5]], dtype=F64)
    truth = torch.tensor([[1.5, 0.5]], dtype=F64)
    found = kip_loss_plain(image, label, image, truth, torch.ones(1, dtype=F64), 1)
    shrunk = 0.5 / (1 + 1e-6)
    expected = ((1.5 - shrunk) ** 2 + (0.5 + shrunk) ** 2) / 4
    torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("depth", [1, 2])
def test_kip_loss_with_equal_weights_is_half_the_mean_square(problem, depth):
    images, labels, real, truth, _ = problem
    kernel = ntk_matrix_plain(images, images, depth)
    ridge = kernel + 1e-6 * kernel.diagonal().mean() * torch.eye(4, dtype=F64)
    predictions = ntk_matrix_plain(real, images, depth) @ torch.linalg.solve(ridge, labels)
    found = kip_loss_plain(images, labels, real, truth, torch.full((5,), 0.2, dtype=F64), depth)
    torch.testing.assert_close(found, 0.5 * (predictions - truth).square().mean())


# --- FRePo ---


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([[0.75, -0.25, -0.25, -0.25]], -0.25),  # a full gap is cut at 1 / C
        ([[0.2, 0.1, 0.0, -0.3]], -0.1),
        ([[0.0, 0.0, -1.0, 0.0]], 0.0),  # a tie at the top
        ([[-0.3, -0.1, -0.2, -0.4]], -0.1),  # the sign of the entries does not matter
        ([[0.75, -0.25, -0.25, -0.25], [0.2, 0.1, 0.0, -0.3]], -0.175),
        ([[1.0, 0.8]], -0.2),
        ([[1.0, 0.0]], -0.5),
    ],
)
def test_label_loss_by_hand(labels, expected):
    found = label_loss_plain(torch.tensor(labels, dtype=F64))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=F64))


def test_label_loss_gradient_by_hand():
    # Two images: the first is short of 1 / C = 1/3 and is pulled apart, the second is past it and left alone.
    labels = torch.tensor([[0.0, 0.2, 0.1], [1.0, 0.0, 0.0]], dtype=F64, requires_grad=True)
    (gradient,) = torch.autograd.grad(label_loss_plain(labels), labels)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, -0.5, 0.5], [0.0, 0.0, 0.0]], dtype=F64))


def test_frepo_loss_by_hand():
    # One image of one row (2, 0), pixels as features, target (1, 3): K_SS = 4, K_TS = 2, penalty 4e-6.
    image, real = torch.tensor([[[[2.0, 0.0]]]], dtype=F64), torch.tensor([[[[1.0, 3.0]]]], dtype=F64)
    label, truth = torch.tensor([[0.5, -0.5]], dtype=F64), torch.tensor([[-0.5, 0.5]], dtype=F64)
    one = torch.ones(1, dtype=F64)
    p = 0.5 * 2 / (4 + 4e-6)
    found = frepo_loss_plain(flat, image, label, real, truth, one, flip=False)
    torch.testing.assert_close(found, torch.tensor((p + 0.5) ** 2 - 0.5, dtype=F64), rtol=1e-12, atol=0)
    # The mirrored copy (0, 2) is orthogonal: K_SS = 4 I, K_TS = (2, 6), trace / 2 = 4 as before.
    p = 0.5 * (2 + 6) / (4 + 4e-6)
    found = frepo_loss_plain(flat, image, label, real, truth, one, flip=True)
    torch.testing.assert_close(found, torch.tensor((p + 0.5) ** 2 - 0.5, dtype=F64), rtol=1e-12, atol=0)


def test_frepo_flip_is_the_doubled_set(problem):
    images, labels, *rest = problem
    doubled = frepo_loss_plain(
        network(1), torch.cat([images, images.flip(-1)]), torch.cat([labels, labels]), *rest, flip=False
    )
    torch.testing.assert_close(frepo_loss_plain(network(1), images, labels, *rest, flip=True), doubled)


def test_frepo_flip_predicts_mirrored_targets_alike(problem):
    images, labels, real, truth, weights = problem
    args = (flat, images, labels)
    torch.testing.assert_close(
        frepo_loss_plain(*args, real, truth, weights, flip=True),
        frepo_loss_plain(*args, real.flip(-1), truth, weights, flip=True),
    )


# --- RFAD ---


def test_rfad_kernel_by_hand():
    # psi = (1, 2 | 3, 6) / sqrt(2 x 2) on one point, (0, 1 | 0, 3) / 2 on another: psi.psi' = 20 / 4.
    a, b = torch.tensor([[[[1.0, 2.0]]]], dtype=F64), torch.tensor([[[[0.0, 1.0]]]], dtype=F64)
    networks = [flat, lambda images: 3 * images.flatten(1)]
    torch.testing.assert_close(rfad_kernel_plain(networks, a, b), torch.tensor([[10.01]], dtype=F64))


def test_rfad_kernel_is_of_the_concatenated_features(problem):
    images, _, real, _, _ = problem
    networks = [network(seed) for seed in range(3)]
    psi_a, psi_b = (torch.cat([f(x) for f in networks], dim=1) / (3 * 12) ** 0.5 for x in (real, images))
    torch.testing.assert_close(rfad_kernel_plain(networks, real, images), 2 * psi_a @ psi_b.T + 0.01)


def test_rfad_kernel_does_not_change_with_repeated_networks(problem):
    images = problem[0]
    torch.testing.assert_close(
        rfad_kernel_plain([flat], images, images), rfad_kernel_plain([flat, flat, flat], images, images)
    )


def test_rfad_losses_by_hand():
    # Predicting the one support image shrinks its label by 1.005: (.5, -.5) / 1.005.
    image, label = draw(1, 1, 1, 2), torch.tensor([[0.5, -0.5]], dtype=F64)
    truth, one = torch.tensor([[-0.5, 0.5]], dtype=F64), torch.ones(1, dtype=F64)
    p = 0.5 / 1.005
    found = rfad_loss_plain([flat], image, label, image, truth, one)
    torch.testing.assert_close(found, torch.tensor((p + 0.5) ** 2 / 2, dtype=F64))
    # Platt at k = ln 3: logits (3 p, -3 p), true class 1.
    found = rfad_loss_plain([flat], image, label, image, truth, one, torch.tensor(math.log(3), dtype=F64))
    torch.testing.assert_close(found, torch.tensor(math.log(1 + math.exp(6 * p)), dtype=F64))


def test_rfad_losses_with_equal_weights_are_means(problem):
    images, labels, real, truth, _ = problem
    networks = [network(1), network(2)]
    kernel = rfad_kernel_plain(networks, images, images)
    ridge = kernel + 5e-3 * kernel.diagonal().mean() * torch.eye(4, dtype=F64)
    predictions = rfad_kernel_plain(networks, real, images) @ torch.linalg.solve(ridge, labels)
    args = (networks, images, labels, real, truth, torch.full((5,), 0.2, dtype=F64))
    torch.testing.assert_close(rfad_loss_plain(*args), 0.5 * (predictions - truth).square().mean())
    scale = torch.tensor(0.5, dtype=F64)
    expected = torch.nn.functional.cross_entropy(predictions * math.exp(0.5), truth.argmax(1))
    torch.testing.assert_close(rfad_loss_plain(*args, log_scale=scale), expected)


def test_rfad_platt_of_a_tiny_scale_is_chance(problem):
    found = rfad_loss_plain([flat], *problem, log_scale=torch.tensor(-40.0, dtype=F64))
    torch.testing.assert_close(found, torch.tensor(math.log(3), dtype=F64))


# --- all losses ---


def rfad_platt(images, labels, real, truth, weights):
    return rfad_loss_plain([network(1), network(2)], images, labels, real, truth, weights, torch.tensor(0.5, dtype=F64))


LOSSES = {
    "kip 1": partial(kip_loss_plain, depth=1),
    "kip 2": partial(kip_loss_plain, depth=2),
    "frepo": partial(frepo_loss_plain, network(1), flip=False),
    "frepo flip": partial(frepo_loss_plain, network(1), flip=True),
    "rfad": partial(rfad_loss_plain, [network(1), network(2)]),
    "rfad platt": rfad_platt,
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_by_finite_differences(problem, name):
    images, labels, real, truth, weights = problem
    # Off the kink of the NTK, where the first target is the first image.
    real = real + 0.5
    loss = lambda images, labels: LOSSES[name](images, labels, real, truth, weights)  # noqa: E731
    assert torch.autograd.gradcheck(loss, (images.requires_grad_(), labels.requires_grad_()), atol=1e-7, fast_mode=True)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_finite_where_a_target_is_a_synthetic_image(problem, name):
    images, labels, *rest = problem
    loss = LOSSES[name](images.requires_grad_(), labels.requires_grad_(), *rest)
    for gradient in torch.autograd.grad(loss, (images, labels)):
        assert gradient.isfinite().all() and gradient.abs().max() > 0


@pytest.mark.parametrize("name", LOSSES)
def test_a_weight_is_a_count(problem, name):
    # Weights (.1, .4, .2, .3, 0) are a uniform mean over ten targets with repeats.
    images, labels, real, truth, weights = problem
    repeated = torch.tensor([0] + [1] * 4 + [2] * 2 + [3] * 3)
    found = LOSSES[name](images, labels, real[repeated], truth[repeated], torch.full((10,), 0.1, dtype=F64))
    torch.testing.assert_close(found, LOSSES[name](images, labels, real, truth, weights))


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "frepo flip"])
def test_the_ridge_follows_the_trace(name):
    # One image predicting itself: the loss depends on its label alone. A detached ridge would leave a slope.
    image = draw(1, 2, 3, 4).requires_grad_()
    label, truth = torch.tensor([[0.7, -0.3, -0.4]], dtype=F64), centred([1], 3)
    loss = LOSSES[name](image, label, image, truth, torch.ones(1, dtype=F64))
    (slope,) = torch.autograd.grad(loss, image)
    assert slope.abs().max() < 1e-12
