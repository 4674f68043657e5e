"""Scores on disk belong to the images they were made of."""

import math
from dataclasses import replace

import pytest
import torch

from distillery import store
from distillery.data import flip_labels
from distillery.networks import ConvNet
from distillery.scores.files import load, save
from distillery.seeds import generator

MADE = {"score": "mean loss", "network": ConvNet((1, 8, 8), 3, width=4).spec(), "epochs": 5, "trials": 5, "seed": 0}
SCORES = torch.rand(24, generator=generator(0, "scores"))


@pytest.fixture
def path(tmp_path, tiny):
    save(tmp_path / "scores.safetensors", SCORES, tiny, MADE)
    return tmp_path / "scores.safetensors"


def test_what_is_saved_is_loaded(path, tiny):
    scores, card = load(path, tiny)
    assert torch.equal(scores, SCORES)
    assert card == MADE | {"kind": "scores", "data": tiny.digest, "n": 24}
    load(path, replace(tiny, transform=None))  # the same images, however they are standardized


def test_other_images(path, tiny, refused):
    flipped, _ = flip_labels(tiny, 0.2, generator(0, "flips"))
    for other in (flipped, tiny.subset(torch.arange(24).flip(0))):
        with refused(path, tiny.digest[:12], other.digest[:12]):
            load(path, other)


def test_another_number_of_images(path, tiny, refused):
    with refused(path, 24, 23):
        load(path, tiny.subset(torch.arange(23)))


def test_files_that_are_no_scores(path, tiny, refused):
    with refused(path.with_name("none"), "cannot read"):
        load(path.with_name("none"), tiny)
    for card in ({"kind": "set"}, {}, {"kind": "scores"}):
        names = {"pixels": SCORES} if card == {"kind": "scores"} else {"scores": SCORES}
        store.save_tensors(path, names, card)
        with refused(path, "no scores"):
            load(path, tiny)
    path.write_bytes(path.read_bytes()[:-9])
    with refused(path, "cannot read"):
        load(path, tiny)
    path.write_text("0.5 0.25")
    with refused(path, "cannot read"):
        load(path, tiny)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_not_finite(path, tiny, value, refused):
    scores = SCORES.clone()
    scores[5] = value
    with refused("scores", "1 of 24"):
        save(path, scores, tiny, MADE)
    store.save_tensors(path, {"scores": scores}, MADE | {"kind": "scores", "data": tiny.digest, "n": 24})
    with refused(path, "1 of 24"):
        load(path, tiny)


def test_scores_that_do_not_fit_are_not_saved(tmp_path, tiny, refused):
    for scores in (SCORES[:23], SCORES[None], torch.arange(24)):
        with refused("scores", tuple(scores.shape), 24):
            save(tmp_path / "scores", scores, tiny, MADE)
    assert not list(tmp_path.iterdir())
