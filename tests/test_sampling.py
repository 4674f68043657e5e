"""Real batches: who is drawn, with what weight, and how classes are put together."""

import pytest
import torch

from distillery.sampling import Batch, RealBatches, Uniform
from distillery.seeds import generator


class Fixed:
    """A made-up sampler: given indices and weights for each class, some of them zero."""

    state: dict = {}
    needs = ()
    relative = True
    batches = {
        0: Batch(torch.tensor([0, 1, 2]), torch.tensor([1.0, 0.0, 3.0])),
        1: Batch(torch.tensor([9]), torch.tensor([5.0])),
        2: Batch(torch.tensor([20, 23]), torch.tensor([1.0, 1.0])),
    }

    def draw(self, label, n, generator):
        return self.batches[label]

    def weigh(self, labels, indices, weights, effects):
        return weights

    def refresh(self, step, objective, state, synthetic):
        pass


def test_uniform_draws_distinct_members_of_the_class(tiny):
    sampler = Uniform(tiny.targets)
    drawn = [sampler.draw(1, 5, generator(seed, "x")) for seed in range(60)]
    for batch in drawn:
        assert len(batch.indices.unique()) == 5 and (tiny.targets[batch.indices] == 1).all()
        assert (batch.weights == 1).all()
    counts = torch.bincount(torch.cat([batch.indices for batch in drawn]), minlength=24)[8:16]
    assert counts.min() > 20 and counts.sum() == 300  # 37.5 each on average


def test_uniform_is_given_by_its_generator(tiny):
    sampler = Uniform(tiny.targets)
    first, again, other = (sampler.draw(0, 4, generator(seed, "x")).indices for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_uniform_gives_a_small_class_whole(tiny):
    assert sorted(Uniform(tiny.targets).draw(2, 256, generator(0, "x")).indices.tolist()) == list(range(16, 24))


@pytest.mark.parametrize("sampler", [lambda t: Uniform(t), lambda t: Uniform(None, 24)])
def test_uniform_over_all_images(tiny, sampler):
    batch = sampler(tiny.targets).draw(None, 24, generator(0, "x"))
    assert sorted(batch.indices.tolist()) == list(range(24))


def test_one_class_with_weights_that_sum_to_one(tiny):
    draw = RealBatches(tiny, Fixed(), generator(0, "x"))
    images, targets, weights = draw(0, 3)
    assert torch.equal(images, tiny.batch(torch.tensor([0, 1, 2]))) and targets.tolist() == [0, 0, 0]
    assert torch.allclose(weights, torch.tensor([0.25, 0, 0.75]))
    assert draw.samples == 3


def test_classes_of_unequal_size_are_filled_with_weight_zero(tiny):
    draw = RealBatches(tiny, Fixed(), generator(0, "x"))
    drawn, weights = draw.classes(torch.tensor([0, 1, 2]), 3)
    images = drawn[:]
    assert images.shape == (3, 3, 1, 8, 8)
    assert torch.allclose(weights, torch.tensor([[0.25, 0, 0.75], [1, 0, 0], [0.5, 0.5, 0]]))
    assert torch.equal(images[2, :2], tiny.batch(torch.tensor([20, 23])))
    assert draw.samples == 6


def test_all_classes_at_once_are_the_classes_in_turn(tiny):
    together = RealBatches(tiny, Uniform(tiny.targets), generator(0, "x"))
    in_turn = RealBatches(tiny, Uniform(tiny.targets), generator(0, "x"))
    drawn, weights = together.classes(torch.tensor([2, 0]), 5)
    images = drawn[:]
    for row, label in enumerate((2, 0)):
        expected, targets, weight = in_turn(label, 5)
        assert torch.equal(images[row], expected) and (targets == label).all()
        assert torch.allclose(weights[row], weight)
    assert together.samples == in_turn.samples == 10
