"""KIP: its loss by hand, and its published settings."""

import pytest
import torch

from distillery.methods import METHODS
from distillery.methods.kip import kip_loss_plain, ntk_matrix_plain
from made_up import normal

F64 = torch.float64


def test_kip_loss_of_one_image_on_itself():
    # K_TS = K_SS = t, penalty 1e-6 t: the prediction is y / (1 + 1e-6), whatever the image.
    image, label = normal(1, 1, 2, 2), torch.tensor([[0.5, -0.5]], dtype=F64)
    truth = torch.tensor([[1.5, 0.5]], dtype=F64)
    found = kip_loss_plain(image, label, image, truth, torch.ones(1, dtype=F64), 1)
    shrunk = 0.5 / (1 + 1e-6)
    expected = ((1.5 - shrunk) ** 2 + (0.5 + shrunk) ** 2) / 4
    torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("depth", [1, 2])
def test_kip_loss_with_equal_weights_is_half_the_mean_square(depth):
    images, real = normal(4, 2, 3, 4, seed=1), normal(5, 2, 3, 4, seed=2)
    labels, truth = normal(4, 3, seed=3), normal(5, 3, seed=4)
    kernel = ntk_matrix_plain(images, images, depth)
    ridge = kernel + 1e-6 * kernel.diagonal().mean() * torch.eye(4, dtype=F64)
    predictions = ntk_matrix_plain(real, images, depth) @ torch.linalg.solve(ridge, labels)
    found = kip_loss_plain(images, labels, real, truth, torch.full((5,), 0.2, dtype=F64), depth)
    torch.testing.assert_close(found, 0.5 * (predictions - truth).square().mean())


def test_published_settings(refused):
    settings = METHODS["KIP"].settings("cifar10", 10)
    assert (settings.lr, settings.batch, settings.rho, settings.layers) == (0.04, 500, 1e-6, 1)
    assert settings.optimizer == "adam" and not settings.labels and METHODS["KIP"].updates(settings, 10) == 300
    with refused("KIP", "tiny-imagenet", "svhn"):
        METHODS["KIP"].settings("tiny-imagenet", 1)
