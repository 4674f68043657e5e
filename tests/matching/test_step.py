"""What objectives share: networks that train on real images along the way, and one step in place of one a class."""

import pytest
import torch

from distillery.data import TensorSource
from distillery.matching.step import effective_rate, train_on_real
from distillery.networks import ConvNet
from distillery.sampling import RealBatches, Uniform
from distillery.seeds import generator
from distillery.training import train
from distillery.training.optimizers import SGD


def network():
    return ConvNet((1, 8, 8), 3, width=4, depth=1)


def test_small_sets_are_visited_again(tiny):
    """10 steps of 5 images on 24: the last batch of a pass is smaller."""
    draw = RealBatches(tiny, Uniform(tiny.targets), generator(0, "real"))
    params = network().init(generator(0, "init"))
    _, stats = train_on_real(network(), params, draw, 10, 5, SGD(), generator(0, "train"))
    assert stats.steps == 10 and stats.samples == 48 and draw.samples == 24


def test_weights_of_the_sampler_stay_in_the_mean(tiny):
    """A sampler that drops half of its draw trains on the other half, twice as heavy."""

    class Half(Uniform):
        def draw(self, label, n, generator):
            batch = super().draw(label, n, generator)
            return batch._replace(weights=(torch.arange(len(batch.indices)) % 2).float())

    params = network().init(generator(0, "init"))
    draw = RealBatches(tiny, Half(tiny.targets), generator(0, "real"))
    ours, _ = train_on_real(network(), params, draw, 1, 24, SGD(), generator(0, "train"))
    images, targets, weights = RealBatches(tiny, Half(tiny.targets), generator(0, "real"))(None, 24)
    kept = TensorSource(images[weights > 0], targets[weights > 0])
    alone, _ = train(network(), params, kept, optimizer=SGD(), generator=generator(0, "train"), steps=1)
    assert all(torch.allclose(ours[name], alone[name], atol=1e-6) for name in ours)


@pytest.mark.parametrize("momentum, classes", [(0.5, 10), (0.5, 3), (0.9, 100), (0.0, 4)])
def test_one_step_a_class_is_plain_sgd_at_another_rate(momentum, classes):
    """SGD with momentum on all pixels, one class after another, moves each like plain SGD, up to momentum ** classes."""
    lr, rounds = 0.1, 5
    slopes = torch.rand(classes, 4, generator=generator(0, "slopes"), dtype=torch.float64) * 0.5

    def descend(turns, optimizer_of):
        pixels = torch.ones(classes, 4, dtype=torch.float64, requires_grad=True)
        optimizer = optimizer_of([pixels])
        for turn in range(rounds * len(turns)):
            here = turns[turn % len(turns)]
            pixels.grad = torch.zeros_like(pixels)
            pixels.grad[here] = (slopes * pixels.detach())[here]
            optimizer.step()
        return pixels.detach()

    one = [torch.tensor([c]) for c in range(classes)]
    published = descend(one, lambda p: torch.optim.SGD(p, lr, momentum))
    rate = effective_rate(lr, momentum, classes)
    ours = descend([torch.arange(classes)], lambda p: torch.optim.SGD(p, rate))
    # the run ends before the last classes have coasted: the first class has gone all its way
    assert torch.allclose(ours[0], published[0], rtol=4 * momentum**classes + 1e-12)
    assert rate == pytest.approx(lr * sum(momentum**k for k in range(classes)))
