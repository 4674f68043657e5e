"""Differentiable Siamese augmentation: the batched families against one image at a time, and their identities."""

import pytest
import torch

from distillery.seeds import generator
from distillery.training.dsa import (
    DSA,
    DSA_NO_FLIP,
    FAMILIES,
    Draw,
    augment,
    augment_plain,
    cutmix,
    cutmix_plain,
    draw,
    draw_boxes,
    without_flip,
)

SHAPES = [(1, 8, 8), (3, 7, 10), (3, 13, 6), (2, 16, 16)]


def images(groups, n, shape, dtype=torch.float32):
    return torch.randn(groups, n, *shape, generator=generator(0, "images"), dtype=dtype)


def family_draw(family, uniforms):
    """All groups under one family; uniforms (G, B, 3)."""
    return Draw(torch.full((len(uniforms),), FAMILIES.index(family)), uniforms)


def test_strategies_name_families():
    assert DSA.split("_") == list(FAMILIES)
    assert set(FAMILIES) - set(DSA_NO_FLIP.split("_")) == {"flip"}
    assert without_flip(DSA) == DSA_NO_FLIP and without_flip("flip+color+crop_flip_scale") == "color+crop_scale" and without_flip("") == ""


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_batched_equals_one_by_one(family, shape):
    """Batched = a loop over single samples with the same parameters."""
    x = images(2, 5, shape)
    drawn = draw(family, 2, 5, generator(1, family))
    expected = torch.stack([torch.stack([augment_plain(x[g, b], family, drawn.uniforms[g, b]) for b in range(5)]) for g in (0, 1)])
    out = augment(x, drawn)
    assert torch.allclose(out, expected, atol=2e-5)
    assert not torch.allclose(out, x)


@pytest.mark.parametrize("family", ["crop", "cutout"])
def test_extreme_draws_stay_in_range(family):
    x = images(1, 4, (1, 7, 10))
    top = 1 - 2**-24
    uniforms = torch.tensor([[[0, 0, 0], [top, top, 0], [0, top, 0], [top, 0, 0]]])
    expected = [augment_plain(x[0, b], family, uniforms[0, b]) for b in range(4)]
    assert torch.equal(augment(x, family_draw(family, uniforms))[0], torch.stack(expected))


def test_groups_under_different_families_stay_in_order():
    x = images(6, 3, (3, 8, 8))
    families = torch.tensor([4, 0, 5, 0, 3, 2])
    drawn = Draw(families, torch.rand(6, 3, 3, generator=generator(2, "u")))
    for g, family in enumerate(families):
        one = augment_plain(x[g, 1], FAMILIES[family], drawn.uniforms[g, 1])
        assert torch.allclose(augment(x, drawn)[g, 1], one, atol=2e-5)


@pytest.mark.parametrize("siamese", [False, True])
def test_families_joined_by_plus_are_all_applied_in_order(siamese):
    """Batched = one family after another on single images, each with its own three numbers."""
    strategy = "color+crop+cutout"
    x = images(3, 4, (3, 8, 9))
    drawn = draw(strategy, 3, 4, generator(1, "all"), siamese)
    assert drawn.families.tolist() == [[0, 1, 2]] * 3
    assert drawn.uniforms.shape == (3, 1 if siamese else 4, 9)
    out = augment(x, drawn)
    for g in range(3):
        for b in range(4):
            one, uniforms = x[g, b], drawn.uniforms[g, 0 if siamese else b]
            for i, family in enumerate(strategy.split("+")):
                one = augment_plain(one, family, uniforms[3 * i : 3 * i + 3])
            assert torch.allclose(out[g, b], one, atol=2e-5)
    assert torch.equal(augment(x[1:2], drawn[1:2]), out[1:2])


def test_one_of_several_families_is_drawn_within_a_turn():
    """As IDC evaluates: mirrored and coloured always, then cropped, scaled or rotated."""
    x, drawn = images(9, 2, (3, 8, 8)), draw("flip+color+crop_scale_rotate", 9, 2, generator(1, "one of"))
    assert drawn.families[:, :2].tolist() == [[3, 0]] * 9 and set(drawn.families[:, 2].tolist()) == {1, 4, 5}
    out = augment(x, drawn)
    for g, families in enumerate(drawn.families.tolist()):
        one = x[g, 1]
        for i, family in enumerate(families):
            one = augment_plain(one, FAMILIES[family], drawn.uniforms[g, 1, 3 * i : 3 * i + 3])
        assert torch.allclose(out[g, 1], one, atol=2e-5)


def test_one_family_is_the_same_alone_or_in_turn():
    x = images(2, 3, (2, 8, 8))
    both = draw("crop+flip", 2, 3, generator(2, "x"))
    crop, flip = (Draw(both.families[:, i], both.uniforms[..., 3 * i : 3 * i + 3]) for i in range(2))
    assert torch.equal(augment(x, both), augment(augment(x, crop), flip))
    assert not torch.equal(augment(x, both), augment(augment(x, flip), crop))  # the order matters


@pytest.mark.parametrize("family", FAMILIES)
def test_siamese_draw_treats_equal_images_equally(family):
    one = images(2, 1, (3, 8, 9))
    drawn = draw(family, 2, 7, generator(3, family), siamese=True)
    many = augment(one.expand(2, 7, 3, 8, 9), drawn)
    assert torch.equal(many, many[:, :1].expand_as(many))
    assert torch.allclose(many[:, :1], augment(one, drawn), atol=1e-6)


def test_without_siamese_images_differ():
    one = images(1, 1, (3, 8, 9)).expand(1, 7, 3, 8, 9)
    out = augment(one, draw("rotate", 1, 7, generator(4, "x")))
    assert len(torch.unique(out[0], dim=0)) == 7


NEUTRAL = {
    "color": (0.5, 0.5, 0.5),
    "crop": (0.5, 0.5, 0),
    "flip": (0.5, 0, 0),
    "scale": ((1 - 1 / 1.2) / (1.2 - 1 / 1.2),) * 3,
    "rotate": (0.5, 0, 0),
}


@pytest.mark.parametrize("family", NEUTRAL)
def test_neutral_parameters_give_the_identity(family):
    x = images(1, 3, (3, 9, 8))
    drawn = family_draw(family, torch.tensor(NEUTRAL[family]).expand(1, 3, 3))
    assert torch.allclose(augment(x, drawn), x, atol=1e-5)


def test_flip_twice_is_the_identity():
    x = images(1, 3, (3, 9, 8))
    flip = family_draw("flip", torch.zeros(1, 3, 3))
    assert torch.equal(augment(augment(x, flip), flip), x)
    assert torch.equal(augment(x, flip), x.flip(-1))


def test_contrast_keeps_the_image_mean_and_saturation_the_pixel_mean():
    x = images(1, 2, (3, 6, 5))
    contrast = augment(x, family_draw("color", torch.tensor([0.5, 0.5, 0.9]).expand(1, 2, 3)))
    assert torch.allclose(contrast.mean((2, 3, 4)), x.mean((2, 3, 4)), atol=1e-6)
    saturation = augment(x, family_draw("color", torch.tensor([0.5, 0.1, 0.5]).expand(1, 2, 3)))
    assert torch.allclose(saturation.mean(2), x.mean(2), atol=1e-6)
    brightness = augment(x, family_draw("color", torch.tensor([0.9, 0.5, 0.5]).expand(1, 2, 3)))
    assert torch.allclose(brightness, x + 0.4, atol=1e-6)


def test_saturation_leaves_gray_images_as_they_are():
    """A single channel is its own mean; of three it is not."""
    for channels in (1, 3):
        x = images(1, 2, (channels, 6, 5))
        for strength in (0.0, 0.3, 0.99):
            out = augment(x, family_draw("color", torch.tensor([0.5, strength, 0.5]).expand(1, 2, 3)))
            assert torch.allclose(out, x, atol=1e-6) == (channels == 1)


def test_cutout_area_is_clipped_at_the_border():
    x = torch.ones(1, 3, 1, 8, 8)
    uniforms = torch.tensor([[[0.5, 0.5, 0], [0, 0, 0], [0, 0.5, 0]]])
    holes = (augment(x, family_draw("cutout", uniforms)) == 0).sum((2, 3, 4))
    assert holes.tolist() == [[16, 4, 8]]


def test_each_family_is_drawn_a_sixth_of_the_time():
    families = draw(DSA, 12000, 1, generator(5, "families")).families
    counts = torch.bincount(families, minlength=6) / 12000
    assert (counts - 1 / 6).abs().max() < 5 * (5 / 36 / 12000) ** 0.5  # five standard deviations


def test_restricted_strategy_draws_only_its_families():
    drawn = draw("cutout_rotate", 50, 1, generator(6, "x")).families.unique().tolist()
    assert drawn == [FAMILIES.index("cutout"), FAMILIES.index("rotate")]


def test_the_same_generator_gives_the_same_draw():
    first, again = (draw(DSA, 4, 3, generator(7, "x")) for _ in range(2))
    assert torch.equal(first.families, again.families) and torch.equal(first.uniforms, again.uniforms)
    assert not torch.equal(first.uniforms, draw(DSA, 4, 3, generator(8, "x")).uniforms)


def test_nothing_to_do():
    x = images(1, 2, (1, 4, 4))
    assert draw("", 1, 2, generator(0, "x")) is None and draw("none", 1, 2, generator(0, "x")) is None
    assert augment(x, None) is x


def test_unknown_family_is_refused(refused):
    for strategy, name in (("color_blur", "blur"), ("color+blur", "blur"), ("color+crop_blur", "blur")):
        with refused(name, "color"):
            draw(strategy, 1, 1, generator(0, "x"))


@pytest.mark.parametrize("family", FAMILIES)
def test_pixel_gradients_equal_finite_differences(family):
    x = images(1, 2, (2, 4, 5), torch.float64).requires_grad_()
    drawn = family_draw(family, torch.tensor([[[0.21, 0.83, 0.4], [0.66, 0.35, 0.9]]]))
    assert torch.autograd.gradcheck(lambda pixels: augment(pixels, drawn), [x], atol=1e-6)


# CutMix


def test_cutmix_equals_its_plain_twin():
    x, stream = images(4, 5, (2, 7, 10)), generator(1, "cutmix")
    labels = torch.rand(4, 5, 3, generator=stream)
    boxes, kept = draw_boxes(0.7, 4, 7, 10, stream)
    mixed, soft = cutmix(x, labels, boxes, kept)
    for g in range(4):
        expected, wanted = cutmix_plain(x[g], labels[g], boxes[g])
        assert torch.equal(mixed[g], expected)
        assert torch.allclose(soft[g], wanted)


def test_labels_are_mixed_by_pixel_share():
    """White images beside black ones: the mean brightness is the share of the label of white."""
    x = torch.tensor([1.0, 0.0]).repeat(50, 3)[..., None, None, None].expand(50, 6, 1, 8, 6)
    boxes, kept = draw_boxes(1.0, 50, 8, 6, generator(0, "boxes"))
    mixed, soft = cutmix(x, x[..., 0, 0], boxes, kept)
    assert torch.allclose(mixed.mean((-1, -2)), soft, atol=1e-6)
    assert kept.min() <= 0.5 and kept.max() > 0.9


@pytest.mark.parametrize("side, area", [(32, 0.299), (28, 0.296), (224, 0.318)])
def test_mean_mixed_area(side, area):
    """Simulated values."""
    _, kept = draw_boxes(1.0, 100_000, side, side, generator(0, "area"))
    assert float(1 - kept.mean()) == pytest.approx(area, abs=0.003)
    _, kept = draw_boxes(0.5, 100_000, side, side, generator(0, "area"))
    assert float(1 - kept.mean()) == pytest.approx(area / 2, abs=0.003)
