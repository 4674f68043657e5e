"""Targets of KDEP: by hand, number by number, turned back; its spectra; the weight of its loss; a set in an experiment."""

import pytest
import torch

from distillery.data import Splits
from distillery.encoders.regression_set import RegressionSet
from distillery.evaluation import Probing
from distillery.experiment import Experiment
from distillery.methods import METHODS
from distillery.methods.kdep import aligned, scaled, spectra, targets_plain
from distillery.networks import ConvNet
from distillery.recipe import Prune, Recipe
from distillery.runs import Runs
from distillery.seeds import generator
from distillery.training import squared_error
from made_up import blobs, normal


def test_four_points_by_hand():
    """Centred at (1, 1); the second axis varies more. (2, 1) / .125 = (16, 8), whose cube roots are 2.52 and 2."""
    features = torch.tensor([[1.0, 3.0], [1.0, -1.0], [2.0, 1.0], [0.0, 1.0]])
    found = aligned(features, 2)
    assert torch.allclose(found, torch.tensor([[2.0, 0], [-2, 0], [0, 1], [0, -1]]).double())
    assert torch.allclose(scaled(found, 0.125, 3.0)[1:3], torch.tensor([[-(16 ** (1 / 3)), 0], [0, 2.0]]).double())
    assert torch.allclose(aligned(features, 1), found[:, :1])


@pytest.mark.parametrize("n, width, d, temperature, power", [(12, 5, 5, 0.1, 3.0), (30, 6, 2, 0.2, 2.0), (9, 4, 3, 1.0, 1.0)])
def test_targets_are_those_of_the_definition(n, width, d, temperature, power):
    features = normal(n, width, seed=n) * torch.arange(1, width + 1) + 3
    expected = targets_plain(features.tolist(), d, temperature, power)
    assert torch.allclose(scaled(aligned(features, d), temperature, power), torch.tensor(expected, dtype=torch.float64), atol=1e-9)


def test_scaling_can_be_undone():
    x = normal(20, 3)
    z = scaled(x, 0.1, 3.0)
    assert torch.allclose(z.sign() * z.abs() ** 3 * 0.1, x)


def test_without_scaling_the_loss_is_that_of_the_features_turned():
    features, outputs = normal(20, 4, seed=1), normal(20, 4, seed=2)
    turned = aligned(features, 4)
    rotation = torch.linalg.lstsq(features - features.mean(0), turned).solution
    assert torch.allclose(rotation @ rotation.T, torch.eye(4, dtype=torch.float64))
    back = squared_error(outputs @ rotation.T, features - features.mean(0))
    assert torch.allclose(squared_error(outputs, turned), back)


def test_the_spectrum_is_evened_out():
    """Alignment gathers variance, the root spreads it; of normal components to the third part of its range in logarithms."""
    features = (normal(4000, 6) * torch.tensor([32.0, 16, 8, 4, 2, 1])) @ torch.linalg.qr(normal(6, 6, seed=1)).Q
    found = spectra(features, 6)
    assert all(one.sum() == pytest.approx(1) for one in found.values())
    assert found["features"][0] < found["aligned"][0] and found["scaled"][0] < found["aligned"][0]
    before, after = (float((found[name][0] / found[name][-1]).log()) for name in ("aligned", "scaled"))
    assert after == pytest.approx(before / 3, rel=0.05)
    assert spectra(features, 2)["aligned"].shape == (2,)


@pytest.mark.parametrize("d, broken, words", [(0, False, ("d", 0, "1 to 3")), (4, False, ("d", 4)), (2, True, ("features", "NaN"))])
def test_features_without_components_are_refused(d, broken, words, refused):
    features = normal(5, 3)
    if broken:
        features[0, 0] = torch.nan
    with refused(*words):
        aligned(features, d)


WIDTH = 6
PROTOCOL = Probing(2, 3, 0.05, weight_decay=0.01, batch=4, labels=(0.5,))


def experiment(folder):
    images = blobs(per_class=8)
    real = RegressionSet(images, torch.randn(len(images), WIDTH, generator=generator(0, "targets")), images.digest)
    tasks = {"own": Splits(images, images, blobs(4, seed=0))}
    return Experiment(real, ConvNet(images.shape, WIDTH, width=4, depth=1), PROTOCOL, Runs(folder), tasks=tasks)


@pytest.mark.parametrize("prune", [None, Prune(0.5, "random")], ids=["all", "pruned"])
def test_a_set_is_real_images_with_these_targets(tmp_path, prune):
    """Of mean and vectors of what is kept; temperature 1 and power 1 give the teacher's, turned."""
    here = experiment(tmp_path)
    random, made = (here.synthetic(here.run(Recipe(name, 5, 0, prune))) for name in ("random", "KDEP"))
    assert torch.equal(made.tensors["images"], random.tensors["images"])
    kept = here.real.targets[here.kept(Recipe("KDEP", 5, 0, prune))]
    components = aligned(random.tensors["targets"], WIDTH, kept)
    assert torch.allclose(made.tensors["targets"], scaled(components, 0.1, 3.0).float())
    plain = here.synthetic(here.run(Recipe("KDEP", 5, 0, prune, settings={"temperature": 1.0, "power": 1.0})))
    assert torch.allclose(plain.tensors["targets"], components.float(), atol=1e-6)
    assert METHODS["KDEP"].starts == ("random", "k-means", "high loss")


def test_the_weight_of_the_loss_is_in_rate_and_decay(tmp_path):
    """Steps of SGD with momentum on w L at rate .05 and decay .01 are those on L at .15 and a third of the decay."""
    how, job = PROTOCOL, experiment(tmp_path).job(Recipe("KDEP", 5, 0))
    changed, _ = job.method.protocol(job, how, None)
    theta, target = (normal(4, seed=i) for i in (1, 2))
    ends = []
    for w, rate, decay in ((3.0, how.lr, how.weight_decay), (1.0, changed.lr, changed.weight_decay)):
        one = theta.clone().requires_grad_()
        sgd = torch.optim.SGD([one], rate, how.momentum, weight_decay=decay)
        for _ in range(5):
            sgd.zero_grad()
            (w * (one - target).square().mean()).backward()
            sgd.step()
        ends.append(one.detach())
    assert torch.allclose(*ends) and not torch.allclose(ends[0], theta)


@pytest.mark.parametrize(
    "settings, words", [({"power": 0.0}, ("power", 0.0)), ({"temperature": -1.0}, ("temperature",)), ({"weight": 0}, ("weight",))]
)
def test_settings_that_are_none_are_refused(tmp_path, refused, settings, words):
    with refused(*words):
        experiment(tmp_path).run(Recipe("KDEP", 5, 0, settings=settings))


def test_fewer_images_than_vectors_are_refused(tmp_path, refused):
    with refused("5", "6 singular vectors"):
        experiment(tmp_path).run(Recipe("KDEP", 3, 0, Prune(0.17, "random")))
