"""RFAD: its kernel and losses by hand, and its published settings."""

import math

import torch

from distillery.methods import METHODS
from distillery.methods.rfad import RandomFeatures, rfad_kernel_plain, rfad_loss_plain
from distillery.networks import ConvNet
from distillery.seeds import generator
from made_up import first, flat, normal, smooth_features

F64 = torch.float64


def test_rfad_kernel_by_hand():
    # psi = (1, 2 | 3, 6) / sqrt(2 x 2) on one point, (0, 1 | 0, 3) / 2 on another: psi.psi' = 20 / 4.
    a, b = torch.tensor([[[[1.0, 2.0]]]], dtype=F64), torch.tensor([[[[0.0, 1.0]]]], dtype=F64)
    networks = [flat, lambda images: 3 * images.flatten(1)]
    torch.testing.assert_close(rfad_kernel_plain(networks, a, b), torch.tensor([[10.01]], dtype=F64))


def test_rfad_kernel_is_of_the_concatenated_features(regression):
    images, _, real, _, _ = regression
    networks = [smooth_features(seed) for seed in range(3)]
    psi_a, psi_b = (torch.cat([f(x) for f in networks], dim=1) / (3 * 12) ** 0.5 for x in (real, images))
    torch.testing.assert_close(rfad_kernel_plain(networks, real, images), 2 * psi_a @ psi_b.T + 0.01)


def test_rfad_kernel_does_not_change_with_repeated_networks(regression):
    images = regression[0]
    torch.testing.assert_close(rfad_kernel_plain([flat], images, images), rfad_kernel_plain([flat, flat, flat], images, images))


def test_rfad_losses_by_hand():
    # Predicting the one support image shrinks its label by 1.005: (.5, -.5) / 1.005.
    image, label = normal(1, 1, 1, 2), torch.tensor([[0.5, -0.5]], dtype=F64)
    truth, one = torch.tensor([[-0.5, 0.5]], dtype=F64), torch.ones(1, dtype=F64)
    p = 0.5 / 1.005
    found = rfad_loss_plain([flat], image, label, image, truth, one)
    torch.testing.assert_close(found, torch.tensor((p + 0.5) ** 2 / 2, dtype=F64))
    # Platt at k = ln 3: logits (3 p, -3 p), true class 1.
    found = rfad_loss_plain([flat], image, label, image, truth, one, torch.tensor(math.log(3), dtype=F64))
    torch.testing.assert_close(found, torch.tensor(math.log(1 + math.exp(6 * p)), dtype=F64))


def test_rfad_losses_with_equal_weights_are_means(regression):
    images, labels, real, truth, _ = regression
    networks = [smooth_features(1), smooth_features(2)]
    kernel = rfad_kernel_plain(networks, images, images)
    ridge = kernel + 5e-3 * kernel.diagonal().mean() * torch.eye(4, dtype=F64)
    predictions = rfad_kernel_plain(networks, real, images) @ torch.linalg.solve(ridge, labels)
    args = (networks, images, labels, real, truth, torch.full((5,), 0.2, dtype=F64))
    torch.testing.assert_close(rfad_loss_plain(*args), 0.5 * (predictions - truth).square().mean())
    scale = torch.tensor(0.5, dtype=F64)
    expected = torch.nn.functional.cross_entropy(predictions * math.exp(0.5), truth.argmax(1))
    torch.testing.assert_close(rfad_loss_plain(*args, log_scale=scale), expected)


def test_rfad_platt_of_a_tiny_scale_is_chance(regression):
    found = rfad_loss_plain([flat], *regression, log_scale=torch.tensor(-40.0, dtype=F64))
    torch.testing.assert_close(found, torch.tensor(math.log(3), dtype=F64))


def test_the_kernel_of_rfad_is_its_twin(tiny):
    objective = RandomFeatures(ConvNet(tiny.shape, 3, width=4), 12, width=4, networks=2, eval_networks=8)
    params = objective.networks_of_step(tiny, {}, generator(0, "x"))
    rows = tiny.batch(torch.arange(6))
    networks = [lambda x, i=i: objective.own.embed({n: v[i : i + 1] for n, v in params.items()}, x, False)[0] for i in range(2)]
    a, b = (objective.features(params, one, False) for one in (rows[:4], rows[3:]))
    torch.testing.assert_close(objective.kernel(a, b), rfad_kernel_plain(networks, rows[:4], rows[3:]).double(), rtol=1e-5, atol=1e-6)


def test_published_settings():
    settings = METHODS["RFAD"].settings("cifar10", 1)
    assert (settings.lr, settings.lr_scale, settings.batch, settings.rho) == (1e-3, 1e-2, 5120, 5e-3)
    assert (settings.networks, settings.eval_networks, settings.width) == (8, 16, 256)
    assert settings.optimizer == "adabelief" and settings.platt
    assert METHODS["RFAD"].cell("mnist", 1, 0)["normalization"] == "published"


def test_logits_are_at_the_learned_scale(tiny):
    """What batches by loss go by is the cross-entropy that RFAD descends, at its own scale."""
    objective = RandomFeatures(ConvNet(tiny.shape, 3, width=4), 12, width=4, networks=2, eval_networks=8)
    made = objective.prepare(first(tiny)).replace(log_scale=torch.tensor(1.5))
    logits = objective.predict(made, {}, tiny, generator(0, "x"))
    outputs = objective.outputs(made, objective.networks_of_step(made, {}, generator(0, "x")), tiny)
    torch.testing.assert_close(logits, math.exp(1.5) * outputs)
