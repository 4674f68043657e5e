"""What treatment effects cost: against their definition, and as a share of the steps they steer."""

from dataclasses import replace

import pytest
import torch
from published_shapes import DEVICE
from scipy.stats import spearmanr

from distillery.data import ImageSet, fit_standardize
from distillery.measure import workloads
from distillery.networks import ConvNet
from distillery.seeds import generator

PERIOD = {"DM": 100, "DC": 100}  # steps between two looks, at which level two adds at most a tenth
PATHS = ("plain", "fast")


@pytest.fixture(scope="module")
def small():
    """(network, images): 8 x 8, width 32, 300 images of each of 4 classes; the published shape takes minutes an image."""
    stream = generator(0, "effects")
    pixels = torch.randint(256, (1200, 1, 8, 8), generator=stream, dtype=torch.uint8)
    images = ImageSet.of(pixels, torch.arange(4).repeat_interleave(300))
    return ConvNet((1, 8, 8), 4, 32), replace(images, transform=fit_standardize(images)).to(DEVICE)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("matching", workloads.OBJECTIVES)
def test_effects_of_256_images(measure, small, matching, path):
    paths = workloads.treatment(small[0], matching, small[1], 256)
    if path == "fast":
        ours, plain = (paths[one]()[0].cpu() for one in PATHS)
        assert spearmanr(ours, plain)[0] > 0.99
    measure(f"treatment effects in {matching}, 256 images, ipc 1, 8 x 8", path, paths[path], 10.0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("matching", workloads.OBJECTIVES)
def test_level_two_adds_a_tenth(measure, small, matching, path):
    every = PERIOD[matching]
    paths = workloads.level_two(*small[:1], matching, small[1], 256, every)
    name = f"{matching} step with effects every {every} steps, 256 images, 8 x 8"
    measure(name, path, paths[path], 1 / 1.1, per=every, rounds=5)
