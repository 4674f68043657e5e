"""One upload: what is packed comes back with its bits, and once onto the device."""

import pytest
import torch

from distillery.upload import ALIGNED, pack, to_device, unpack

VALUES = [
    torch.rand(2, 3, 5), torch.arange(7), torch.tensor([True, False, True]), torch.tensor(0.5, dtype=torch.float64),
    torch.zeros(0, 4), torch.rand(4, 6).T, torch.arange(3).expand(2, 3), torch.tensor(float("nan")), torch.rand(3).bfloat16(),
]  # fmt: skip


def test_what_is_packed_comes_back_with_its_bits():
    for value, found in zip(VALUES, unpack(pack(VALUES), VALUES), strict=True):
        assert found.dtype == value.dtype and torch.equal(found.nan_to_num(7), value.nan_to_num(7))
        assert found.storage_offset() * found.element_size() % ALIGNED == 0


def test_trees_keep_their_form_and_what_is_there_already_stays():
    there = torch.zeros(3, device="meta")
    tree = {"weights": VALUES[:2], "none": None, "pair": (VALUES[2], there)}
    moved = to_device(tree, "meta")
    assert moved["pair"][1] is there and moved["none"] is None
    assert moved["weights"][0].device.type == "meta" and moved["weights"][0].shape == (2, 3, 5) and moved["pair"][0].dtype == torch.bool
    assert to_device(tree, "cpu") is tree


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_values_arrive_on_a_gpu_while_the_next_ones_are_packed():
    """Pinned memory that is let go at once is not written before its copy is done."""
    busy, arrived = torch.rand(4096, 4096, device="cuda"), []
    for i in range(50):
        busy = busy @ busy.clamp(0, 1e-3)  # the copies wait behind it
        arrived.append(to_device([torch.full((1000,), i), torch.full((3,), i / 2)], "cuda"))
    for i, (whole, half) in enumerate(arrived):
        assert bool((whole == i).all()) and bool((half == i / 2).all())
