"""What treatment effects cost: against their definition, and as a share of the steps they steer."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from published_shapes import DEVICE
from scipy.stats import spearmanr

from distillery.data import ImageSet, fit_standardize
from distillery.data.synthetic import Synthetic
from distillery.matching.distribution import DistributionMatching
from distillery.matching.effects import treatment_effects, treatment_effects_plain
from distillery.matching.gradient import GradientMatching
from distillery.matching.step import StepContext
from distillery.measure.workloads import first_of_class
from distillery.networks import ConvNet
from distillery.sampling import RealBatches, TreatmentEffect, Uniform
from distillery.seeds import generator
from distillery.training.dsa import draw

PATHS = ("plain", "fast")
FILES = sorted((Path(__file__).resolve().parents[2] / "notebooks" / "params").glob("01_bilp.*.yaml"))
# (steps between two looks, real images a class) of the runs of notebook 01
PERIODS = sorted({(one["effect_every"], one["real_batch"] or 256) for one in (yaml.safe_load(file.read_text()) for file in FILES)})


OBJECTIVES = {"distribution": DistributionMatching, "gradient": GradientMatching}


def treatment(network, matching, images, n, augmentation=""):
    """The effects of n real images of the first class on one stored image, at a fresh network."""
    objective, device = OBJECTIVES[matching](network, augmentation=augmentation), images.device
    params = {name: value.to(device) for name, value in network.init(generator(0, "effects"), 1).items()}
    label = torch.zeros(1, dtype=torch.int64)
    drawn = draw(augmentation, 1, 1, generator(1, "effects"), siamese=True)
    members = images.of_class(0)
    made = Synthetic({"images": images.batch(members[:1]), "targets": label.to(device)})
    real, weights = RealBatches(images, Uniform(images.targets), generator(0, "real")).classes(label, n)
    given = objective, StepContext(params, label.to(device), drawn), made, real[:], weights
    return {"plain": lambda: treatment_effects_plain(*given), "fast": lambda: treatment_effects(*given)}


def level_two(network, matching, images, batch, every):
    """`every` steps at one stored image a class: without treatment effects ('plain'), and with one look at them ('fast')."""
    made = first_of_class(images, 1)
    objective = OBJECTIVES[matching](network, batch=batch)

    def steps(sampler) -> None:
        state = objective.start(made, generator(0, "start"))
        for i in range(every):
            sampler.refresh(i, objective, state, made)
            drawn = RealBatches(images, sampler, generator(0, "real", i))
            _, state, _ = objective.step(made, state, drawn, generator(0, "step", i))

    return {"plain": lambda: steps(Uniform(images.targets)), "fast": lambda: steps(TreatmentEffect(images.targets, 0.2, every))}


@pytest.fixture(scope="module")
def small():
    """(network, images): 8 x 8, width 32, 300 images of each of 4 classes; the published shape takes minutes an image."""
    stream = generator(0, "effects")
    pixels = torch.randint(256, (1200, 1, 8, 8), generator=stream, dtype=torch.uint8)
    images = ImageSet.of(pixels, torch.arange(4).repeat_interleave(300))
    return ConvNet((1, 8, 8), 4, 32), replace(images, transform=fit_standardize(images)).to(DEVICE)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("matching", OBJECTIVES)
def test_effects_of_256_images(measure, small, matching, path):
    paths = treatment(small[0], matching, small[1], 256)
    if path == "fast":
        ours, plain = (paths[one]()[0].cpu() for one in PATHS)
        assert spearmanr(ours, plain)[0] > 0.99
    measure(f"treatment effects in {matching}, 256 images, ipc 1, 8 x 8", path, paths[path], 10.0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("every, batch", PERIODS)
@pytest.mark.parametrize("matching", OBJECTIVES)
def test_level_two_adds_little(measure, small, matching, every, batch, path):
    paths = level_two(*small[:1], matching, small[1], batch, every)
    name = f"{matching} step with effects every {every} steps, {batch} images, 8 x 8"
    measure(name, path, paths[path], {"distribution": 1 / 1.15, "gradient": 1 / 1.35}[matching], per=every, rounds=5)
