"""Named data sets and image folders: splits, subsets, standardization, ZCA."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from distillery.data import ImageSet, Splits, fit_standardize, fit_zca, flip_labels, load, split_per_class, subset_per_class
from distillery.seeds import generator


def numbered(counts=(10, 7, 23)):
    """Images whose pixels spell their number."""
    n = sum(counts)
    pixels = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 1, 2, 2).clone()
    return ImageSet.of(pixels, torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)))


def numbers(images):
    return set(images.pixels[:, 0, 0, 0].tolist())


def rows(images):
    return {bytes(image.flatten().tolist()) for image in images.pixels}


def test_split_per_class_is_disjoint_and_complete():
    images = numbered()
    rest, part = split_per_class(images, 0.3, generator(1, "split"))
    assert not numbers(rest) & numbers(part)
    assert numbers(rest) | numbers(part) == numbers(images)
    assert part.counts() == [3, 2, 7] and rest.counts() == [7, 5, 16]
    assert all(images.targets[i] == label for i, label in zip(sorted(numbers(part)), part.targets))


def test_split_follows_the_seed():
    images = numbered()
    first, again, other = (numbers(split_per_class(images, 0.3, generator(s, "x"))[1]) for s in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_split_leaves_an_image_on_both_sides(fraction):
    rest, part = split_per_class(numbered((2, 3)), fraction, generator(0, "x"))
    assert min(rest.counts()) >= 1 and min(part.counts()) >= 1


def test_subset_per_class():
    images = numbered()
    subset = subset_per_class(images, 8, generator(3, "x"))
    assert subset.counts() == [8, 7, 8]
    assert numbers(subset) == numbers(subset_per_class(images, 8, generator(3, "x")))
    assert numbers(subset) != numbers(subset_per_class(images, 8, generator(4, "x")))


def test_digits(digits):
    parts = (digits.train, digits.validation, digits.test)
    assert sum(map(len, parts)) == 1797
    assert all(part.shape == (1, 8, 8) and part.pixels.dtype == torch.uint8 for part in parts)
    assert digits.train.classes == tuple("0123456789")
    assert all(part.transform is digits.train.transform for part in parts)
    assert digits.digest == load("digits").digest != load("digits", seed=1).digest


def test_digits_keep_their_labels(digits):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    known = {(np.round(image * 255 / 16).astype(np.uint8).tobytes(), int(label)) for image, label in zip(bunch.images, bunch.target)}
    for part in (digits.train, digits.validation, digits.test):
        here = {(image.numpy().tobytes(), int(label)) for image, label in zip(part.pixels[:, 0], part.targets)}
        assert here <= known


def test_standardized_training_images_have_mean_0_and_deviation_1(digits):
    values = digits.train.batch(torch.arange(len(digits.train)))
    assert values.mean().abs() < 1e-4 and (values.std(unbiased=False) - 1).abs() < 1e-4
    test = digits.test.batch(torch.arange(len(digits.test)))
    own = fit_standardize(digits.test)
    assert not torch.allclose(own.mean, digits.train.transform.mean, atol=1e-6)
    assert torch.allclose(test, digits.train.transform(digits.test.pixels.float() / 255))


def test_standardize_by_channel_and_back(monkeypatch):
    pixels = torch.randint(0, 256, (50, 3, 5, 4), generator=generator(0, "p"), dtype=torch.uint8)
    pixels[:, 2] = 77  # a constant channel keeps deviation 1
    images = ImageSet.of(pixels, torch.zeros(50, dtype=torch.long))
    monkeypatch.setattr("distillery.data.images._CHUNK", 7 * 60)  # 7 images at a time
    fitted = fit_standardize(images)
    values = pixels.double() / 255
    assert torch.allclose(fitted.mean.double(), values.mean((0, 2, 3)))
    assert torch.allclose(fitted.std[:2].double(), values.std((0, 2, 3), unbiased=False)[:2])
    assert fitted.std[2] == 1
    batch = replace(images, transform=fitted).batch(torch.arange(50))
    assert torch.allclose(fitted.inverse(batch).double(), values, atol=1e-6)


def test_zca_identities():
    """T symmetric, T T^-1 = I, whitened covariance U diag(s / (s + .1)) U^T, float32 close to float64."""
    stream = generator(0, "zca")
    base = torch.rand(200, 1, 3, 4, generator=stream)
    pixels = (base * torch.rand(200, 2, 1, 1, generator=stream) * 255).to(torch.uint8)  # correlated
    images = ImageSet.of(pixels, torch.zeros(200, dtype=torch.long))
    zca = fit_zca(images)
    assert torch.allclose(zca.matrix, zca.matrix.T, atol=1e-6)
    assert torch.allclose(zca.matrix @ zca.inverse_matrix, torch.eye(24), atol=1e-5)

    flat = pixels.flatten(1).numpy().astype(np.float64) / 255
    u, s, _ = np.linalg.svd(np.cov(flat.T))
    white = zca(pixels.float() / 255)
    assert white.shape == pixels.shape
    covariance = np.cov(white.flatten(1).double().numpy().T)
    assert np.allclose(covariance, u @ np.diag(s / (s + 0.1)) @ u.T, atol=1e-5)
    exact = (flat - flat.mean(0)) @ (u @ np.diag((s + 0.1) ** -0.5) @ u.T)
    assert np.allclose(white.flatten(1).numpy(), exact, atol=1e-5)
    assert torch.allclose(zca.inverse(white), pixels.float() / 255, atol=1e-5)


def test_zca_of_the_training_images_serves_the_test_images():
    splits = load("digits", normalization="zca")
    assert splits.test.transform is splits.train.transform
    expected = fit_zca(splits.train)(splits.test.pixels[:5].float() / 255)
    assert torch.allclose(splits.test.batch(torch.arange(5)), expected, atol=1e-6)
    assert splits.digest == load("digits").digest  # the transform is not part of the data


def test_batch_takes_indices_of_any_shape(tiny):
    indices = torch.tensor([[0, 5, 1], [2, 2, 23]])
    assert tiny.batch(indices).shape == (2, 3, 1, 8, 8)
    assert torch.equal(tiny.batch(indices)[1, 2], tiny.batch(torch.tensor([23]))[0])


def test_digest_sees_pixels_labels_and_names():
    images = numbered()
    pixels, targets = images.pixels.clone(), images.targets.clone()
    pixels[3, 0, 1, 1] += 1
    targets[0] = 1
    others = [
        replace(images, pixels=pixels),
        replace(images, targets=targets),
        replace(images, classes=("a", "b", "c")),
        images.subset(torch.arange(39)),
    ]
    assert len({image_set.digest for image_set in [images, *others]}) == 5
    assert images.subset(torch.arange(40)).digest == images.digest


def test_digest_of_splits_sees_every_part():
    images, other = numbered(), numbered((10, 8, 22))
    parts = {"train": images, "validation": images, "test": images}
    assert len({Splits(**parts).digest, *(Splits(**parts | {name: other}).digest for name in parts)}) == 4


def test_validation_images_follow_the_seed(class_folder):
    """Also where the test images are given."""
    class_folder("images/train", n=30)
    root = class_folder("images/test").parent
    splits = [load("folder", root, seed=seed) for seed in (0, 0, 1)]
    assert len({one.test.digest for one in splits}) == 1
    assert splits[0].validation.digest == splits[1].validation.digest != splits[2].validation.digest


def test_folder_split_by_the_seed(class_folder):
    root = class_folder(n=20)
    splits = load("folder", root)
    parts = (splits.train, splits.validation, splits.test)
    assert [part.counts() for part in parts] == [[14, 14], [2, 2], [4, 4]]
    assert len(rows(splits.train) | rows(splits.validation) | rows(splits.test)) == 40
    assert splits.train.classes == ("cat", "dog")
    assert splits.train.pixels[splits.train.of_class(0)].max() < 128  # the cats
    assert splits.train.pixels[splits.train.of_class(1)].min() >= 100  # the dogs
    assert any("20%" in note for note in splits.notes)


def test_folder_with_train_and_test(class_folder):
    class_folder("set/train", n=10)
    class_folder("set/test", n=4)
    root = class_folder("set/test_extra", n=2).parent
    splits = load("folder", root)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [18, 2, 8]
    files = sorted((root / "test").glob("*/*.png"))
    assert rows(splits.test) == {np.asarray(Image.open(file)).tobytes() for file in files}
    assert load("folder", root, seed=5).test.digest == splits.test.digest


def test_per_class_limits(class_folder):
    root = class_folder(n=20)
    splits = load("folder", root, per_class=10, test_per_class=2)
    assert [part.counts() for part in (splits.train, splits.validation, splits.test)] == [[9, 9], [1, 1], [2, 2]]
    assert rows(splits.train) < rows(load("folder", root).train) | rows(load("folder", root).validation)


@pytest.mark.parametrize("size, mode, shape", [((28, 28), "L", (1, 28, 28)), ((48, 40), "RGB", (3, 40, 48))])
def test_folders_nobody_tuned_for(class_folder, size, mode, shape):
    splits = load("folder", class_folder(size=size, mode=mode))
    assert splits.train.shape == shape
    assert splits.train.batch(torch.arange(2)).shape == (2, *shape)


def test_max_side_shrinks_larger_images_and_says_so(class_folder):
    root = class_folder(size=(48, 40), mode="RGB")
    splits = load("folder", root, max_side=16)
    assert splits.train.shape == (3, 13, 16)
    assert any("48x40 to 16x13" in note for note in splits.notes)
    whole = load("folder", root)
    assert load("folder", root, max_side=48).digest == whole.digest
    means = (splits.train.pixels.float().mean(), whole.train.pixels.float().mean())
    assert abs(means[0] - means[1]) < 1  # shrinking averages


def test_resize_makes_squares_of_unequal_images(class_folder):
    class_folder("set/a", classes=("x",), size=(9, 7))
    root = class_folder("set/b", classes=("x",), size=(5, 12)).parent
    for name in "ab":
        for file in (root / name / "x").iterdir():
            file.rename(root / name / file.name)
        (root / name / "x").rmdir()
    assert load("folder", root, resize=6).train.shape == (1, 6, 6)


def test_one_color_image_makes_the_set_color(class_folder):
    root = class_folder()
    Image.new("RGB", (8, 8), (200, 10, 30)).save(root / "cat" / "red.jpg")
    (root / "cat" / ".hidden").write_text("passed over")
    splits = load("folder", root)
    assert splits.train.shape == (3, 8, 8)
    gray = splits.train.pixels[splits.train.of_class(1)]
    assert torch.equal(gray[:, 0], gray[:, 2])


# Flipped labels


@pytest.mark.parametrize("share", [0.1, 0.29, 0.5, 1.0])
def test_flip_labels_of_an_exact_share_of_every_class(share):
    images = numbered((100, 10, 40))
    flipped, mask = flip_labels(images, share, generator(0, "flips"))
    assert torch.equal(mask, flipped.targets != images.targets)
    counts = torch.bincount(images.targets[mask], minlength=3).tolist()
    assert counts == [round(100 * share) * n // 100 for n in (100, 10, 40)]
    assert torch.equal(flipped.pixels, images.pixels) and flipped.classes == images.classes
    assert flipped.digest != images.digest and images.digest == numbered((100, 10, 40)).digest
    again, other = (flip_labels(images, share, generator(s, "flips"))[0] for s in (0, 1))
    assert torch.equal(again.targets, flipped.targets) and not torch.equal(other.targets, flipped.targets)


def test_flip_labels_uniformly_among_the_other_classes():
    pixels = torch.zeros(4000, 1, 1, 1, dtype=torch.uint8)
    images = ImageSet.of(pixels, torch.ones(4000, dtype=torch.int64), ["a", "b", "c", "d", "e"])
    flipped, mask = flip_labels(images, 1.0, generator(0, "flips"))
    counts = torch.bincount(flipped.targets, minlength=5).double()
    assert mask.all() and counts[1] == 0
    others = counts[[0, 2, 3, 4]]
    assert ((others - 1000).square() / 1000).sum() < 16.3  # chi-squared with 3 degrees of freedom, p = 0.001


def test_flip_labels_refused(refused):
    images = numbered((9, 8))
    for share in (0, -0.1, 1.1, float("nan"), True):
        with refused("share", share):
            flip_labels(images, share, generator(0, "x"))
    with refused("share", 0.1, 9):
        flip_labels(images, 0.1, generator(0, "x"))
    with refused("share", "1 class"):
        flip_labels(numbered((9,)), 0.5, generator(0, "x"))
