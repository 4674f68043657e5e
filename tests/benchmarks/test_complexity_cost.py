"""What the learning complexity costs: in forward passes of the pool, and beside the fine-tuning it does without."""

import pytest
import torch
from published_shapes import DEVICE, SHAPE

from distillery.evaluation import FineTuning, embed, fit
from distillery.networks import ConvNet
from distillery.networks.encoder import Encoder
from distillery.scores.complexity import prototype_path
from distillery.seeds import generator

MASKS, PASSES = 5, 6.5
PATHS = ("plain", "fast")


@pytest.fixture(scope="module")
def encoder():
    """ConvNet-3 of width 32: 50 epochs of the published width take many minutes on a small machine."""
    network = ConvNet(SHAPE, 10, 32)
    params = network.init(generator(0, "encoder"), 1)
    return Encoder(network, {k: v.to(DEVICE) for k, v in params.items() if not k.startswith("head")})


@pytest.fixture(scope="module")
def pool(photographs):
    return photographs.subset(torch.arange(0, len(photographs), 10))  # 512 images of 10 classes


@pytest.mark.parametrize("path", PATHS)
def test_complexity_in_forward_passes(measure, encoder, photographs, path):
    """T masks are T passes; sorting, masking and distances may take 1.5 more."""
    params = encoder.params
    work = {
        "plain": lambda: embed(encoder.network, params, photographs),
        "fast": lambda: prototype_path(encoder.network, params, photographs, MASKS),
    }
    measure(f"complexity, {MASKS} masks, beside one forward pass", path, work[path], 1 / PASSES)


@pytest.mark.parametrize("path", PATHS)
def test_complexity_beside_fine_tuning(measure, encoder, pool, path):
    """50 epochs of fine-tuning on the same images."""
    work = {
        "plain": lambda: fit(encoder.network, pool, FineTuning(), generator(0, "x"), encoder=encoder, device=DEVICE),
        "fast": lambda: prototype_path(encoder.network, encoder.params, pool, MASKS),
    }
    name = f"complexity, {MASKS} masks, beside 50 epochs of fine-tuning"
    measure(name, path, work[path], 20.0, rounds=1 if path == "plain" else 3)
