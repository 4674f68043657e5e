"""DATM: published settings, first images that an expert classifies right, first labels, and what it learns."""

from math import inf
from types import SimpleNamespace

import pytest
import torch

from distillery import experts as ex
from distillery.evaluation import Protocol
from distillery.experiment import Experiment, Presets
from distillery.matching.trajectory import StartEpochs
from distillery.methods import METHODS
from distillery.methods.datm import correct, first_logits
from distillery.networks import ConvNet
from distillery.recipe import Prune, Recipe
from distillery.runs import Runs
from distillery.seeds import generator
from distillery.training.optimizers import GSAM


def choose_correct(net, bank, source, n, stream):
    """The start under given experts and images."""
    method = SimpleNamespace(experts=lambda job: bank)
    return correct(SimpleNamespace(network=net, source=source, method=method, stream=lambda purpose: stream), n)


SMALL = {
    "experts": 2, "expert_lr": 0.1, "expert_batch": 16, "expert_training_epochs": 20, "student_steps": 2, "expert_epochs": 1,
    "max_start_epoch": 4, "lr_images": 10.0, "lr_step_size": 1e-4, "step_size": 0.05, "steps": 4, "threshold": 0.0,
}  # fmt: skip


@pytest.mark.parametrize(
    "dataset, size, expected",
    [
        ("cifar10", 1, {"threshold": 1.1, "student_batch": 10, "lr_labels": 5, "initial_max_start_epoch": 0}),
        ("cifar100", 50, {"min_start_epoch": 20, "max_start_epoch": 70, "threshold": 1.0}),
        ("tiny-imagenet", 1, {"initial_max_start_epoch": 15, "expansion_steps": 2000, "threshold": 1.0, "lr_step_size": 1e-4}),
    ],
)
def test_some_cells_by_hand(dataset, size, expected):
    settings = METHODS["DATM"].settings(dataset, size)
    assert {name: getattr(settings, name) for name in expected} == expected
    assert settings.expert_optimizer == GSAM(0.01, 0.0, 0.0, rho=0.01, alpha=0.3)


def test_first_images_as_published():
    """Some that an expert classifies right, but random ones for 50 images a class of CIFAR-100."""
    method = METHODS["DATM"]
    starts = {(d, n): cell.get("start", method.start) for d, c in method.published.items() for n, cell in c.items()}
    assert starts.pop(("cifar100", 50)) == "random" and set(starts.values()) == {"correct"}


def test_experts_are_trained_as_long_as_labels_need():
    settings = METHODS["DATM"].settings("cifar10", 1)
    assert settings.last_epoch == 100
    assert METHODS["DATM"].settings("cifar10", 1, own={"labels": False}).last_epoch == 3 + 2


def test_a_changed_range_does_not_grow_unless_told_so():
    method, changes = METHODS["DATM"], {"max_start_epoch": 6}
    assert method.settings("cifar10", 10).start_epochs == StartEpochs(0, 20, 10, 1000)
    assert method.settings("cifar10", 10, changes=changes).start_epochs == StartEpochs(0, 6)
    grown = changes | {"initial_max_start_epoch": 2, "expansion_steps": 9}
    assert method.settings("cifar10", 10, changes=grown).start_epochs == StartEpochs(0, 6, 2, 9)


@pytest.fixture(scope="module")
def here(splits, tmp_path_factory):
    network, presets = ConvNet(splits.train.shape, 10, width=8), Presets("cifar10", SMALL)
    return Experiment(splits, network, Protocol(2, 2), Runs(tmp_path_factory.mktemp("runs")), presets=presets)


def test_settings_become_an_objective(here):
    for settings, names, threshold in (
        ({"threshold": 1.1}, ("images", "step_size", "label_logits"), 1.1),
        ({"labels": False}, ("images", "step_size"), inf),
    ):
        job = here.job(Recipe("DATM", 1, 0, settings=settings))
        made = job.method.matching(job)
        assert made.learns == tuple(job.method.optimizers(job)) == names and made.threshold == threshold
        assert made.augmentation == here.augmentation and made.start_epochs == StartEpochs(0, 4)


@pytest.mark.parametrize("keep", [None, Prune(0.8, "random")], ids=["all", "pruned"])
def test_first_images_and_labels_in_an_experiment(here, keep):
    job = here.job(Recipe("DATM", 1, 0, keep))
    bank, real = job.method.experts(job), here.real
    chosen = job.kept[choose_correct(here.network, bank, real.subset(job.kept), 1, generator(0, "correct images"))]
    first = job.method.first(job)
    assert torch.equal(first.tensors["images"], real.batch(chosen))
    assert torch.equal(first.tensors["label_logits"], first_logits(here.network, bank, real, chosen))
    made = here.synthetic(here.run(job.recipe))
    assert torch.equal(made.card["start"], first.tensors["images"])
    assert not torch.equal(made.tensors["label_logits"], first.tensors["label_logits"])


def test_labels_of_random_images_are_one_experts(here):
    job = here.job(Recipe("DATM", 1, 0, start="random"))
    found, chosen = job.method.first(job), job.chosen("random")
    expected = first_logits(here.network, job.method.experts(job), here.real, chosen, 0)
    assert torch.equal(found.tensors["label_logits"], expected)


def test_too_few_right_images_are_listed_as_missing(here):
    """Other runs go on."""
    assert here.run(Recipe("DATM", 1, 0, settings={"expert_lr": 1e-9})) is None
    assert "class" in here.runs.missing[-1]["stopped"]


# First images and labels by hand


def network():
    return ConvNet((1, 8, 8), 3, width=4, depth=1)


def made(folder, images, epochs):
    how = ex.Training(3, GSAM(0.05, 0.0, 0.0, rho=0.02, alpha=0.3), 10)
    ex.make(folder, network(), images, how, epochs)
    return ex.load(folder, network(), images, how, epochs)


def test_images_that_an_expert_classifies_right(tiny, tmp_path, refused):
    experts = made(tmp_path, tiny, 12)
    chosen = choose_correct(network(), experts, tiny, 2, generator(0, "x"))
    assert tiny.targets[chosen].tolist() == [0, 0, 1, 1, 2, 2] and len(set(chosen.tolist())) == 6
    one = int(torch.randint(3, (), generator=generator(0, "x")))
    logits = network().apply(experts.at(one, 12), tiny.batch(chosen), train=False).logits[0]
    assert torch.equal(logits.argmax(1), tiny.targets[chosen])
    with refused("right", 9):
        choose_correct(network(), experts, tiny, 9, generator(0, "x"))


def test_first_logits_are_the_mean_over_experts_that_are_right(tiny, tmp_path):
    """Of experts that have learned and agree, and of fresh ones that do not."""
    fresh = ex.Experts({name: value[:, None] for name, value in network().init(generator(0, "fresh"), 3).items()})
    found = [first_logits_by_hand(experts, tiny) for experts in (made(tmp_path, tiny, 6), fresh)]
    assert {1, 2} <= found[1] <= {0, 1, 2, 3}


def first_logits_by_hand(experts, tiny):
    """Compare them; how many experts are right about an image."""
    indices, counts = torch.arange(24), set()
    last = {name: value[:, -1] for name, value in experts.weights.items()}
    logits = network().apply(last, tiny.batch(indices), train=False).logits  # (E, M, classes)
    first = first_logits(network(), experts, tiny, indices)
    for i in range(24):
        right = [e for e in range(3) if logits[e, i].argmax() == tiny.targets[i]]
        counts.add(len(right))
        right = right or [0, 1, 2]
        assert torch.allclose(first[i], logits[right, i].mean(0), atol=1e-5)
    assert torch.allclose(first_logits(network(), experts, tiny, indices, one=2), logits[2], atol=1e-5)
    return counts


def test_one_update_at_rates_of_zero_is_the_start_undistilled(here):
    """The control of a set: its first images, with their first labels."""
    still = here.run(Recipe("DATM", 1, 0, settings={"steps": 1, "lr_images": 0.0, "lr_step_size": 0.0, "lr_labels": 0.0}))
    unmoved, made = here.synthetic(still), here.synthetic(here.run(Recipe("DATM", 1, 0)))
    assert torch.equal(unmoved.tensors["images"], made.card["start"]) and not torch.equal(made.tensors["images"], made.card["start"])
    assert not torch.equal(unmoved.tensors["label_logits"], made.tensors["label_logits"])
    assert float(unmoved.tensors["step_size"]) == pytest.approx(0.05)
