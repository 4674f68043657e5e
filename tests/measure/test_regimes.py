"""Damaged images, and regressions on weighted samples of them."""

from dataclasses import replace

import pytest
import torch

from distillery.checks import InputError
from distillery.data import LazyImages
from distillery.measure import regimes
from made_up import blobs

IMAGES = blobs(per_class=40)


def test_outliers_are_black_or_white_and_others_stay():
    found = regimes.damaged(IMAGES, "outliers", 0.1, 3)
    changed = (found.pixels != IMAGES.pixels).flatten(1).any(1)
    assert 0 < changed.sum() <= round(0.1 * len(IMAGES)) and set(found.pixels[changed].unique().tolist()) <= {0, 255}
    assert torch.equal(found.targets, IMAGES.targets)
    assert torch.equal(found.pixels, regimes.damaged(IMAGES, "outliers", 0.1, 3).pixels)
    assert not torch.equal(found.pixels, regimes.damaged(IMAGES, "outliers", 0.1, 4).pixels)


def test_outliers_of_images_on_disk_are_those_in_memory():
    images = blobs(10)
    lazy = replace(images, pixels=LazyImages(images.pixels.flip(0), torch.arange(len(images)).flip(0)))
    expected, found = (regimes.damaged(one, "outliers", 0.3, 0) for one in (images, lazy))
    assert torch.equal(found.pixels[:], expected.pixels) and not torch.equal(expected.pixels, images.pixels)


def test_every_wrong_label_is_wrong():
    found = regimes.damaged(IMAGES, "wrong labels", 0.25, 0)
    assert int((found.targets != IMAGES.targets).sum()) == round(0.25 * len(IMAGES))
    assert torch.equal(found.pixels, IMAGES.pixels) and int(found.targets.max()) < len(IMAGES.classes)


def test_every_second_class_is_rare():
    counts = regimes.damaged(IMAGES, "rare classes", 0.6, 0).counts()
    assert counts == [24 if c % 2 else 40 for c in range(len(counts))]
    assert min(regimes.damaged(IMAGES, "rare classes", 0.01, 0).counts()) == 20
    assert regimes.damaged(IMAGES, "as they are", 0.6, 0) is IMAGES


@pytest.mark.parametrize("regime, share, named", [("sunny", 0.1, "regime"), ("outliers", 0.0, "share"), ("outliers", 1.5, "share")])
def test_bad_regimes_are_named(regime, share, named):
    with pytest.raises(InputError, match=named):
        regimes.damaged(IMAGES, regime, share, 0)


def test_a_weighted_regression_is_that_of_repeated_points():
    """By its definition: a point of weight 3 is three points."""
    stream = torch.Generator().manual_seed(0)
    rows, labels = torch.randn(12, 4, generator=stream).double(), torch.randn(12, 2, generator=stream).double()
    weights = torch.arange(1, 6).double()
    found = regimes.regression(rows, labels, 0.3, torch.arange(5), weights)
    x, y = (one[:5].repeat_interleave(weights.long(), 0) for one in (rows, labels))
    plain = torch.linalg.solve(x.T @ x + 0.3 * torch.eye(4).double(), x.T @ y)
    assert torch.allclose(found, plain, atol=1e-12)


def test_features_are_principal_components():
    test = blobs(per_class=5, seed=2)
    rows, asked = regimes.features(IMAGES, test, 6)
    assert rows.shape == (len(IMAGES), 7) and asked.shape == (len(test), 7) and torch.all(rows[:, -1] == 1)
    gram = rows[:, :-1].T @ rows[:, :-1] / rows[:, :-1].numel()
    assert torch.allclose(gram, torch.diag(gram.diagonal()), atol=1e-9) and float(gram.trace()) == pytest.approx(1)
    pixels = IMAGES.batch(torch.arange(len(IMAGES))).flatten(1).double()
    values = torch.linalg.svdvals(pixels - pixels.mean(0)).square()[:6]
    assert torch.allclose(gram.diagonal(), values / values.sum(), atol=1e-6)
    with pytest.raises(InputError, match="components: 0"):
        regimes.features(IMAGES, test, 0)


def test_samples_of_all_images_stand_for_them():
    found = regimes.sample_quality(IMAGES, blobs(per_class=5, seed=2), 4, 0.1, sizes=[20, 4000], trials=3, failure=0.1, seed=0)
    assert set(found) == {"by sensitivity", "random"} and found["random"].whole == found["by sensitivity"].whole
    for one in found.values():
        assert one.sampling.errors.shape == (2, 3) and 0 < one.dimension < 5
        assert one.sampling.errors[1].max() < one.sampling.errors[0].min()  # large samples stand better
        assert all(abs(x - one.whole) < 0.1 for x in one.accuracies[1])
