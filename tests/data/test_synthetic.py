"""The synthetic set: decoding, stored numbers, grouping, export and import."""

import hashlib
import json
import math

import pytest
import torch
import torch.nn.functional as F

from distillery.data import Standardize
from distillery.data.synthetic import Synthetic, export, form, load, pack
from distillery.seeds import generator


def images(n=3, side=8):
    return torch.randn(n, 2, side, side, generator=generator(0, "images"))


def made(formation="identity", side=8, **tensors):
    given = {"images": images(side=side), "targets": torch.tensor([0, 1, 1])}
    return Synthetic(given | tensors, ("cat", "dog"), formation)


def test_identity_decodes_to_what_is_stored():
    pixels, targets = made().decode()
    assert torch.equal(pixels, images()) and targets.tolist() == [0, 1, 1]
    pixels, targets = made().decode(torch.tensor([2, 0]))
    assert torch.equal(pixels, images()[[2, 0]]) and targets.tolist() == [1, 0]


def test_partition2_decodes_to_four_enlarged_quarters():
    pixels, targets = made("partition2").decode()
    assert pixels.shape == (12, 2, 8, 8) and targets.tolist() == [0] * 4 + [1] * 8
    corners = [(slice(0, 4), slice(0, 4)), (slice(0, 4), slice(4, 8)), (slice(4, 8), slice(0, 4)), (slice(4, 8), slice(4, 8))]
    for m in range(3):
        for q, (top, left) in enumerate(corners):
            quarter = images()[m : m + 1, :, top, left]
            expected = F.interpolate(quarter, size=(8, 8), mode="bilinear", align_corners=False)
            assert torch.allclose(pixels[4 * m + q], expected[0])
    some, labels = made("partition2").decode(torch.tensor([1]))
    assert torch.equal(some, pixels[4:8]) and labels.tolist() == [1] * 4


def test_partition2_keeps_a_constant_image_and_a_gradient_in_its_quarter():
    constant = made("partition2", images=torch.full((3, 2, 8, 8), 0.3))
    assert torch.allclose(constant.decode()[0], torch.tensor(0.3))
    learned = images().requires_grad_()
    pixels, _ = made("partition2", images=learned).decode()
    (gradient,) = torch.autograd.grad(pixels[6].square().sum(), learned)  # third quarter of image 1
    touched = torch.zeros(3, 2, 8, 8, dtype=torch.bool)
    touched[1, :, 4:, :4] = True
    assert (gradient[touched] != 0).all() and (gradient[~touched] == 0).all()


@pytest.mark.parametrize("sides", [(8, 8), (6, 10), (7, 6)])
def test_decoding_is_a_mean_of_pixels_each_of_which_counts_four_times(sides):
    """Rows of the map from stored to used pixels sum to 1, its columns to 4 where sides are even; the middle line of an odd one is not read."""
    used = torch.func.vmap(lambda pixels: form(pixels[None], "partition2"))  # of every stored pixel alone
    mapped = used(torch.eye(math.prod(sides)).view(-1, 1, *sides)).flatten(1)  # (stored, used)
    assert mapped.shape[1] == 4 * len(mapped) and mapped.min() >= 0
    assert torch.allclose(mapped.sum(0), torch.tensor(1.0), atol=1e-5)
    columns = mapped.sum(1).view(sides)
    if sides[0] % 2:
        assert (columns[sides[0] // 2] == 0).all() and columns.sum() == pytest.approx(4 * len(mapped), rel=1e-5)
    else:
        assert torch.allclose(columns, torch.tensor(4.0), atol=1e-4)


def test_partition2_of_odd_sides():
    pixels, _ = made("partition2", side=7).decode()
    assert pixels.shape == (12, 2, 7, 7) and pixels.isfinite().all()


def test_each_image_of_a_stored_one_may_have_a_soft_label_of_its_own(tmp_path, refused):
    labels = torch.rand(2, 4, 3).softmax(-1)
    tensors = {"images": torch.rand(2, 1, 6, 6), "targets": labels}
    made = Synthetic(tensors, ("a", "b", "c"), "partition2")
    assert torch.equal(made.decode()[1], labels.flatten(0, 1)) and torch.equal(made.decode(torch.tensor([1]))[1], labels[1])
    again = load(export(made, tmp_path / "made", {}))
    assert torch.equal(again.decode()[1], labels.flatten(0, 1)) and again.stored_numbers() == 72 + 24
    with refused("4 labels", "identity"):
        Synthetic(tensors, ("a", "b", "c"))


@pytest.mark.parametrize("side", [8, 7])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_packed_constants_come_back(mode, side):
    """Four images fill one, in the order in which they are cut out again."""
    shades = torch.arange(8.0)[:, None, None, None].expand(8, 2, side, side)
    packed = pack(shades, "partition2", mode)
    assert packed.shape == (2, 2, side, side)
    assert torch.allclose(form(packed, "partition2"), shades, atol=1e-5)
    used = torch.ones_like(packed, dtype=torch.bool)
    if side % 2:
        used[:, :, side // 2] = used[..., side // 2] = False
    assert (packed[~used] == 0).all()


def test_packing_shrinks_to_half():
    given = images(4)
    small = pack(given, "partition2")
    assert torch.allclose(small[0, :, 4:, :4], F.avg_pool2d(given[2], 2), atol=1e-6)
    assert torch.equal(pack(given, "partition2", "nearest")[0, :, :4, 4:], given[1, :, ::2, ::2])
    assert pack(given, "identity") is given


def test_packing_refuses_what_fills_no_image(refused):
    with refused(3, "multiple of 4"):
        pack(images(3), "partition2")
    with refused("area", "nearest"):
        pack(images(4), "partition2", "area")


def test_source_carries_no_gradient():
    source = made(images=images().requires_grad_()).source()
    assert not source.images.requires_grad and len(source) == 3


def test_replace_leaves_the_original():
    first = made()
    second = first.replace(step_size=torch.tensor(0.1))
    assert set(second.tensors) - set(first.tensors) == {"step_size"}


def test_stored_numbers_count_everything_but_hard_labels():
    assert made().stored_numbers() == 3 * 2 * 64
    soft = made(targets=torch.zeros(3, 5), step_size=torch.tensor(0.1))
    assert soft.stored_numbers() == 3 * 2 * 64 + 15 + 1


def labelled(targets, **options):
    targets = torch.tensor(targets)
    return Synthetic({"images": torch.zeros(len(targets), 1, 4, 4), "targets": targets}, **options)


def test_members_of_classes_keep_their_order():
    labels, members = labelled([7, 2, 7, 2, 2, 7]).classes_present()
    assert labels.tolist() == [2, 7] and members.tolist() == [[1, 3, 4], [0, 2, 5]]
    _, members = labelled([1, 0], formation="partition2").classes_present()
    assert members.tolist() == [[4, 5, 6, 7], [0, 1, 2, 3]]


def test_classes_present_follow_the_targets():
    made = labelled([0, 1])
    before = made.classes_present()
    assert made.replace(images=torch.ones(2, 1, 4, 4)).classes_present()[1] is before[1]
    assert made.replace(targets=torch.tensor([1, 0])).classes_present()[1].tolist() == [[1], [0]]


def test_classes_present_refuses_unequal_counts(refused):
    with refused([1, 2]):
        labelled([0, 1, 1]).classes_present()


def test_export_and_import(tmp_path):
    given = made("partition2", targets=torch.rand(3, 2), step_size=torch.tensor(0.25))
    path = export(given, tmp_path / "set", {"method": "DM"})
    back = load(path)
    assert back.tensors.keys() == given.tensors.keys()
    assert all(torch.equal(back.tensors[name], value) for name, value in given.tensors.items())
    assert (back.classes, back.formation) == (given.classes, given.formation)
    assert back.card["method"] == "DM" and back.card["stored_numbers"] == given.stored_numbers()
    card = json.loads((tmp_path / "set.json").read_text())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert card["sha256"] == digest and card["shapes"]["images"] == [3, 2, 8, 8]
    assert (tmp_path / "set.safetensors.sha256").read_text() == f"{digest}  set.safetensors\n"


def test_an_export_is_read_without_this_package(tmp_path):
    transform = Standardize(torch.tensor([0.4, 0.6]), torch.tensor([0.2, 0.5]))
    path = export(made(), tmp_path / "set.safetensors", {}, transform)

    from safetensors.torch import load_file

    tensors = load_file(path)
    pixels, targets = tensors["images"], tensors["targets"]
    assert torch.equal(pixels, images()) and targets.tolist() == [0, 1, 1]
    mean, std = tensors["transform.mean"], tensors["transform.std"]
    assert torch.allclose(pixels * std[:, None, None] + mean[:, None, None], transform.inverse(images()))
    assert set(load(path).tensors) == {"images", "targets"}


def test_without_classes(tmp_path):
    given = Synthetic({"images": images(), "targets": torch.rand(3, 4)})
    assert load(export(given, tmp_path / "set", {})).classes is None


@pytest.mark.parametrize(
    "tensors",
    [
        {"images": images()},
        {"targets": torch.zeros(3)},
        {"images": images(), "targets": torch.zeros(2)},
        {"images": images()[0], "targets": torch.zeros(2)},
        {"images": images()[:0], "targets": torch.zeros(0)},
    ],
    ids=["no targets", "no images", "lengths", "axes", "empty"],
)
def test_impossible_sets_are_refused(tensors, refused):
    with refused("images"):
        Synthetic(tensors)


def test_an_unknown_formation_is_refused(refused):
    with refused("spiral", "partition2"):
        made("spiral")


def test_a_set_with_nan_is_not_exported(tmp_path, refused):
    with refused("images", 1):
        pixels = images()
        pixels[0, 0, 0, 0] = float("nan")
        export(made(images=pixels), tmp_path / "set", {})
    assert not list(tmp_path.iterdir())
