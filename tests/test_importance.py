"""Real batches by loss: chances, unbiased weights, what is looked at, and for whom it is refused."""

import math

import pytest
import torch

from distillery.data import ImageSet
from distillery.data.synthetic import Synthetic
from distillery.distill import Optimizer, distill
from distillery.evaluation import Protocol
from distillery.experiment import Experiment
from distillery.matching.distribution import DistributionMatching
from distillery.matching.gradient import GradientMatching
from distillery.methods.idc import MultiFormation
from distillery.methods.idm import QueueMatching
from distillery.networks import ConvNet
from distillery.recipe import ByLoss, Effect, Recipe
from distillery.runs import Runs
from distillery.sampling import Batch, Importance, RealBatches
from distillery.seeds import generator


class Known:
    """An objective that predicts logits with given losses, and counts how often it is asked."""

    def __init__(self, losses):
        self.losses, self.asked = losses, []

    def predict(self, synthetic, state, images, generator):
        """Cross-entropy -log p of the true class for p = exp(-loss), of three classes."""
        self.asked.append(len(images))
        p = torch.exp(-self.losses[: len(images)])
        logits = ((1 - p) / 2).log()[:, None].expand(-1, 3).clone()
        logits[torch.arange(len(images)), images.targets] = p.log()
        return logits


def looked(tiny, losses, **options):
    sampler = Importance(tiny, generator=generator(0, "look"), **options)
    sampler.refresh(0, Known(losses), {}, None)
    return sampler


def many(sampler, n):
    """At least n draws from all images, in batches of as many as there are."""
    batches = [sampler.draw(None, 24, generator(0, "draw", i)) for i in range(-(-n // 24))]
    return Batch(*(torch.cat(parts) for parts in zip(*batches)))


@pytest.fixture
def losses(tiny):
    return 0.05 + torch.rand(len(tiny), generator=generator(0, "losses"))


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("label", [None, 1])
def test_chances_are_the_mixture_by_hand(share, label, tiny, losses):
    members, chance = looked(tiny, losses, share=share).chances(label)
    own = losses if label is None else losses[tiny.targets == label]
    wanted = share * own / own.sum() + (1 - share) / len(own)
    torch.testing.assert_close(chance, wanted.double(), rtol=1e-5, atol=1e-8)
    assert chance.sum().item() == pytest.approx(1) and len(members) == len(own)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_weights_are_bounded_and_unbiased_by_enumeration(share, tiny, losses):
    """Sum over all draws of chance x weight x value is the plain mean, and no weight exceeds 1 / eta."""
    sampler = looked(tiny, losses, share=share, reweight=True)
    members, chance = sampler.chances(None)
    values = torch.randn(len(tiny), generator=generator(0, "values"), dtype=torch.float64)
    batch = many(sampler, 4000)
    where = {int(i): float(w) for i, w in zip(batch.indices, batch.weights)}
    assert max(where.values()) <= 1 / (1 - share) + 1e-5
    expected = sum(float(chance[i]) * where[i] * float(values[i]) for i in where)
    assert len(where) == len(tiny)
    assert expected == pytest.approx(float(values.mean()), abs=1e-6)


def test_the_loss_itself_is_estimated_without_noise(tiny, losses):
    """Where all of the batch goes by the loss, (1 / B) sum of loss / (n q) is the mean loss, whatever is drawn."""
    sampler = looked(tiny, losses, share=1.0, reweight=True)
    real = RealBatches(tiny, sampler, generator(0, "draw"))
    _, _, weights = real(None, 5)
    again, _ = sampler.draw(None, 5, generator(0, "draw"))
    assert float((weights * losses[again]).sum()) == pytest.approx(float(losses.mean()), rel=1e-5)


def test_without_weights_hard_images_count_more(tiny, losses):
    sampler = looked(tiny, losses, share=1.0)
    drawn, weights = many(sampler, 20_000)
    assert (weights == 1).all()
    wanted = float(losses.square().sum() / losses.sum())  # the expected loss of a batch, above the mean
    assert float(losses[drawn].mean()) == pytest.approx(wanted, rel=0.02) and wanted > float(losses.mean())


def test_batches_of_classes_are_unbiased_too(tiny, losses):
    sampler = looked(tiny, losses, share=0.5, reweight=True)
    labels = torch.arange(3)
    total = torch.zeros(3, *tiny.shape)
    n = 600
    for i in range(n):
        images, weights = RealBatches(tiny, sampler, generator(0, "draw", i)).classes(labels, 4)
        total += (images[:] * weights[:, :, None, None, None]).sum(1) / n
    wanted = torch.stack([tiny.batch(tiny.of_class(c)).mean(0) for c in range(3)])
    assert (total - wanted).abs().max() < 0.2


@pytest.mark.parametrize("reweight", [False, True])
def test_small_classes_keep_their_mean(reweight):
    """Images that are all 1, of 20, 60 and 200 in a class: every class mean over a batch of 64 is about 1."""
    sizes = torch.tensor([20, 60, 200])
    images = ImageSet.of(torch.full((280, 1, 2, 2), 255, dtype=torch.uint8), torch.arange(3).repeat_interleave(sizes))
    sampler = looked(images, torch.rand(280, generator=generator(0, "losses")) + 0.5, share=0.5, reweight=reweight)
    batches = [RealBatches(images, sampler, generator(0, "draw", i)).classes(torch.arange(3), 64) for i in range(50)]
    means = torch.stack([(drawn[:][:, :, 0, 0, 0] * weights).sum(1) for drawn, weights in batches]).mean(0)
    assert means == pytest.approx(torch.ones(3), abs=0.02)


def test_a_batch_is_no_larger_than_a_uniform_one(tiny, losses):
    sampler = looked(tiny, losses, share=0.5)
    assert [len(sampler.draw(label, 99, generator(0, "draw")).indices) for label in (None, 1)] == [24, 8]


def test_looks_come_at_their_period_and_are_averaged(tiny, losses):
    sampler = Importance(tiny, 0.5, every=3, generator=generator(0, "look"))
    known = Known(losses)
    assert [sampler.refresh(step, known, {}, None) for step in range(7)] == [24, 0, 0, 24, 0, 0, 24]
    known.losses = torch.full_like(losses, 1.0)
    sampler.refresh(9, known, {}, None)
    torch.testing.assert_close(sampler.state["loss"], 0.5 * losses + 0.5, rtol=1e-4, atol=1e-5)


def test_draws_follow_the_last_look(tiny, losses):
    sampler = looked(tiny, losses, share=1.0, every=2)
    _, before = sampler.chances(None)
    assert torch.allclose(before, (losses / losses.sum()).double(), atol=1e-5)
    sampler.refresh(2, Known(losses.flip(0)), {}, None)
    _, after = sampler.chances(None)
    both = losses + losses.flip(0)
    assert torch.allclose(after, (both / both.sum()).double(), atol=1e-5)


def test_every_look_is_at_other_images(tiny, losses, monkeypatch):
    monkeypatch.setattr("distillery.sampling.LOOKED", 6)
    sampler = Importance(tiny, 1.0, every=2, generator=generator(0, "look"))
    known = []
    for step in (0, 2, 4):
        sampler.refresh(step, Known(losses), {}, None)
        known.append(int((~sampler.state["loss"].isnan()).sum()))
    assert known[0] == 6 < known[1] < known[2]


def test_a_part_is_looked_at_and_the_rest_counts_as_its_mean(tiny, monkeypatch):
    monkeypatch.setattr("distillery.sampling.LOOKED", 10)
    sampler = Importance(tiny, 1.0, generator=generator(0, "look"))
    assert sampler.refresh(0, Known(torch.full((24,), 2.0)), {}, None) == 10
    assert int(sampler.state["loss"].isnan().sum()) == 14
    _, chance = sampler.chances(None)
    torch.testing.assert_close(chance, torch.full((24,), 1 / 24, dtype=torch.float64))


def test_losses_of_zero_are_uniform(tiny):
    _, chance = looked(tiny, torch.zeros(24), share=1.0).chances(2)
    torch.testing.assert_close(chance, torch.full((8,), 1 / 8, dtype=torch.float64))


def test_a_share_of_nothing_is_uniform_with_replacement_and_looks_at_nothing(tiny, losses):
    sampler, known = ByLoss(0.0, 2).sampler(tiny, generator(0, "look")), Known(losses)
    assert [sampler.refresh(step, known, {}, None) for step in range(4)] == [0] * 4 and not known.asked
    _, chance = sampler.chances(1)
    torch.testing.assert_close(chance, torch.full((8,), 1 / 8, dtype=torch.float64))
    drawn = sampler.draw(1, 8, generator(0, "draw"))
    assert len(drawn.indices.unique()) < 8 and (drawn.weights == 1).all()


OBJECTIVES = {
    "DM": lambda net: DistributionMatching(net, 6),
    "DC": lambda net: GradientMatching(net, updates=2, inner_epochs=1, batch=6),
    "IDM": lambda net: QueueMatching(net, 6, train_steps=1, train_batch=6, capacity=3),
    "IDC": lambda net: MultiFormation(net, 6, formation="identity", inner=2, n_data=12, train_batch=6),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("reweight", [False, True])
def test_goes_with_every_objective_that_has_a_real_batch(name, reweight, tiny):
    objective = OBJECTIVES[name](ConvNet(tiny.shape, 3, width=4))
    chosen = torch.cat([torch.nonzero(tiny.targets == c)[:1, 0] for c in range(3)])
    start = Synthetic({"images": tiny.batch(chosen), "targets": tiny.targets[chosen]}, tiny.classes)
    sampler = Importance(tiny, 0.5, every=2, reweight=reweight, generator=generator(0, "look"))
    done = distill(start, objective, tiny, sampler, {"images": Optimizer(0.1)}, 4, generator(0, "go"))
    assert bool(done.last.tensors["images"].isfinite().all())
    assert not bool(sampler.state["loss"].isnan().any())
    batches = done.cost["samples"] - 2 * len(tiny)
    assert batches >= 4 * 3 * 6  # what was drawn, and two looks


def test_a_trained_predictor_knows_what_it_was_trained_on(tiny):
    """Trained on all images of the set, its losses fall below those of a network that has seen nothing."""
    net = ConvNet(tiny.shape, 3, width=8)
    made = Synthetic({"images": tiny.batch(torch.arange(24)), "targets": tiny.targets}, tiny.classes)
    logits = DistributionMatching(net, 6).predict(made, {}, tiny, generator(0, "look"))
    loss = torch.nn.functional.cross_entropy(logits, tiny.targets)
    assert logits.shape == (24, 3) and float(loss) < 0.5 * math.log(3)


@pytest.mark.parametrize("bad", [{"share": -0.1}, {"share": 1.5}, {"every": 0}])
def test_bad_options_are_refused(bad, refused):
    with refused(*map(str, bad)):
        ByLoss(**{"share": 0.5} | bad)


def test_refused_where_there_is_no_real_batch_or_another_statistic(refused):
    for method in ("MTT", "FTD", "TESLA", "DATM", "random", "whole"):
        with refused("batches", method):
            Recipe(method, 1, 0, batches=ByLoss(0.5))
    with refused("batches", "KIP"):
        Recipe("KIP", 1, 0, batches=Effect(0.2))


def test_what_identifies_it_is_what_is_set():
    assert ByLoss(0.5).spec() == {"share": 0.5}
    assert ByLoss(0.5, 7, True).spec() == {"share": 0.5, "every": 7, "reweight": True}


def test_an_experiment_runs_it_and_the_cost_of_looks_is_counted(splits, tmp_path):
    here = Experiment(splits, ConvNet(splits.train.shape, 10, width=4), Protocol(1, 1), Runs(tmp_path))
    short = {"steps": 4, "batch": 8}
    plain = here.run(Recipe("DM", 1, 0, settings=short))
    by_loss = here.run(Recipe("DM", 1, 0, batches=ByLoss(0.5, every=2), settings=short))
    assert by_loss["samples"] == plain["samples"] + 2 * len(splits.train)
    assert not torch.equal(*(here.synthetic(one).tensors["images"] for one in (plain, by_loss)))
