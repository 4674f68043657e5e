"""MTT-SSL: published settings, and encoders that learn by SimCLR on the set."""

import pytest
import torch

from distillery.encoders.regression_set import RegressionSet
from distillery.evaluation import Probing
from distillery.experiment import Experiment, Presets
from distillery.experts import Training
from distillery.methods import METHODS
from distillery.methods.mtt_ssl import Pixels
from distillery.networks import ConvNet
from distillery.recipe import Recipe
from distillery.runs import Runs
from distillery.seeds import generator, split
from distillery.training import train
from distillery.training.contrastive import two_views_apart
from distillery.training.optimizers import Adam
from distillery.training.views import TwoViews, Views

SMALL = {
    "experts": 2, "expert_batch": 8, "student_steps": 2, "expert_epochs": 1, "student_batch": 4, "lr_images": 0.1, "lr_step_size": 1e-7,
    "steps": 2,
}  # fmt: skip


@pytest.mark.parametrize("dataset, images", [("cifar10", 1000), ("cifar100", 2500), ("tiny-imagenet", 2000)])
def test_published_settings(dataset, images):
    settings = METHODS["MTT-SSL"].settings(dataset, images, 50_000)
    assert (settings.student_steps, settings.expert_epochs, settings.max_start_epoch, settings.lr_images) == (10, 2, 1, 1000)
    assert settings.expert_optimizer == Adam(1e-3, weight_decay=1e-6) and settings.expert_batch == 1024


def experiment(tiny, folder, **changes):
    real = RegressionSet(tiny, torch.randn(24, 6, generator=generator(0, "targets")), tiny.digest)
    network, protocol = ConvNet(tiny.shape, 6, width=4, depth=1), Probing(2, 3, 0.05, batch=4, labels=(0.5,))
    return Experiment(real, network, protocol, Runs(folder), presets=Presets("cifar10", SMALL | changes))


def test_experts_and_students_meet_the_views_of_the_settings(tiny, tmp_path):
    views = Views(flip=0.0)
    here = experiment(tiny, tmp_path, views=views)
    job = here.job(Recipe("MTT-SSL", 5, 0))
    how = Training(2, Adam(1e-3, weight_decay=1e-6), 8, "", loss="simclr", views=views)
    assert job.method.bank(job) == (how, 1)
    made = job.method.matching(job)
    assert made.views == views and made.loss is two_views_apart and made.transform is tiny.transform
    other = experiment(tiny, tmp_path)
    assert here.set_id(job.recipe) != other.set_id(job.recipe)


def test_encoders_learn_by_simclr_on_the_set(tiny, tmp_path):
    """The network's output is what views are compared by; its rate is the learned step size."""
    here = experiment(tiny, tmp_path)
    result = here.run(Recipe("MTT-SSL", 5, 0))
    made = here.synthetic(result)
    protocol = here.protocol.fitting(made)
    source = made.source()
    job = here.job(Recipe("MTT-SSL", 5, 0))
    found, stats, _ = job.method.train(job, here.network, source, protocol, generator(0, "x"), 0)
    assert result["pretraining_steps"] == stats.steps == 3 * 2
    first, order = split(generator(0, "x"), 2)
    pixels = Pixels(tiny.transform.inverse(source.images), torch.zeros(len(source), dtype=torch.int64), tiny.transform)
    views = TwoViews(pixels, Views(), 0)
    start, optimizer = here.network.init(first, 2), protocol.optimizer(5)[0]
    assert optimizer.lr == pytest.approx(result["step_size"])
    expected, _ = train(
        here.network, start, views, two_views_apart, optimizer, generator=order, steps=6, batch=4, whole_batches=True, chunk=2
    )  # fmt: skip
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert any(not torch.equal(value, start[name]) for name, value in found.items())
