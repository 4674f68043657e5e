"""FRePo: its loss by hand, its network and pool, and its published settings."""

import pytest
import torch

from distillery.methods import METHODS
from distillery.methods.frepo import FeatureRegression, frepo_loss_plain, frepo_network
from distillery.networks import trainable
from distillery.sampling import RealBatches, Uniform
from distillery.seeds import generator
from made_up import first, flat, smooth_features

F64 = torch.float64


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


def test_frepo_flip_is_the_doubled_set(regression):
    images, labels, *rest = regression
    doubled = frepo_loss_plain(smooth_features(1), torch.cat([images, images.flip(-1)]), torch.cat([labels, labels]), *rest, flip=False)
    torch.testing.assert_close(frepo_loss_plain(smooth_features(1), images, labels, *rest, flip=True), doubled)


def test_frepo_flip_predicts_mirrored_targets_alike(regression):
    images, labels, real, truth, weights = regression
    args = (flat, images, labels)
    torch.testing.assert_close(
        frepo_loss_plain(*args, real, truth, weights, flip=True), frepo_loss_plain(*args, real.flip(-1), truth, weights, flip=True)
    )


@pytest.mark.parametrize("shape, sizes", [((3, 32, 32), [(4, 3), (8, 4), (16, 8)]), ((1, 28, 28), [(4, 1), (8, 4), (16, 8)])])
def test_the_network_of_frepo(shape, sizes):
    """Twice the channels in each block, BatchNorm before the second and third alone, with momentum .9."""
    network = frepo_network(shape, 10, 4)
    params = network.init(generator(0, "x"), 1)
    kernels = [tuple(v.shape[1:3]) for v in params.values() if v.ndim == 5]
    assert kernels == sizes
    norms = [m for m in network.skeleton.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert [m.num_features for m in norms] == [4, 8] and all(m.momentum == 0.9 for m in norms)
    assert network.embed(params, torch.zeros(2, *shape), False).shape == (1, 2, 16 * 16)
    assert len(trainable(params)) == 12


def test_the_pool_of_frepo_trains_one_network_a_step_and_renews_old_ones(tiny, net):
    objective = FeatureRegression(net, 12, width=4, pool=2, age=3)
    made = objective.prepare(first(tiny))
    state = objective.start(made, generator(0, "start"))
    assert state["age"].tolist() == [0, 1] and state["steps"].tolist() == [0, 0]
    renewed = 0
    for i in range(14):
        draw = RealBatches(tiny, Uniform(tiny.targets), generator(0, "real", i))
        _, new, _ = objective.step(made, state, draw, generator(0, "step", i))
        changed = [j for j in range(2) if not torch.equal(new["net.0.weight"][j], state["net.0.weight"][j])]
        assert len(changed) == 1
        (j,) = changed
        if new["age"][j] == 0:
            assert state["age"][j] == 3 and new["steps"][j] == 0 and not new["first.0.weight"][j].any()
            renewed += 1
        else:
            assert new["age"][j] == state["age"][j] + 1 and new["steps"][j] == state["steps"][j] + 1
        state = new
    assert renewed


@pytest.mark.parametrize("dataset, size, flip", [("cifar10", 10, True), ("cifar100", 1, True), ("cifar100", 10, False), ("mnist", 1, False), ("tiny-imagenet", 1, True), ("tiny-imagenet", 10, False)])  # fmt: skip
def test_published_settings(dataset, size, flip):
    settings = METHODS["FRePo"].settings(dataset, size)
    assert settings.flip == flip and settings.labels and settings.optimizer == "lamb"
    assert (settings.lr, settings.batch, settings.rho, settings.pool, settings.age) == (3e-4, 1024, 1e-6, 10, 100)
    assert settings.width == 128 and METHODS["FRePo"].updates(settings, size) == 500_000


def test_unpublished_sizes_are_refused(refused):
    with refused(20, "1, 10, 50"):
        METHODS["FRePo"].settings("cifar100", 20)
