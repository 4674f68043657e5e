"""Ranks of effects under several networks: the same ones agree, others less, and each class is compared with itself."""

import pytest
import torch

from distillery.data.synthetic import Synthetic
from distillery.matching.distribution import DistributionMatching
from distillery.matching.gradient import GradientMatching
from distillery.measure import effects
from distillery.networks import ConvNet
from distillery.seeds import generator


@pytest.fixture
def problem():
    """(set, (real, weights), classes): two classes of 30 images."""
    stream = generator(0, "ranks")
    made = Synthetic({"images": torch.randn(2, 1, 8, 8, generator=stream), "targets": torch.arange(2)})
    real = torch.randn(2, 30, 1, 8, 8, generator=stream) * torch.linspace(0.2, 3, 30)[:, None, None, None]
    return made, (real, torch.full((2, 30), 1 / 30)), torch.arange(2)


@pytest.mark.parametrize("matching", [DistributionMatching, GradientMatching])
def test_every_pair_of_networks_is_compared_class_by_class(problem, matching):
    objective = matching(ConvNet((1, 8, 8), 2, width=4, depth=1))
    found = effects.across_networks(objective, *problem, 3, 0, "x")
    assert len(found) == 2 * 3 and all(-1 <= one < 1 for one in found)
    assert found == effects.across_networks(objective, *problem, 3, 0, "x") != effects.across_networks(objective, *problem, 3, 1, "x")


def test_the_same_network_agrees_with_itself(problem, monkeypatch):
    drawn = effects.generator
    monkeypatch.setattr(effects, "generator", lambda seed, *name: drawn(seed, *name[:2]))  # whichever network it is
    objective = DistributionMatching(ConvNet((1, 8, 8), 2, width=4, depth=1))
    assert effects.across_networks(objective, *problem, 2, 0, "x") == pytest.approx([1, 1])
