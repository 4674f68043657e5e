"""Norm, ReLU and pooling in one pass: against torch's own, and by gradcheck, twice."""

import os
import subprocess
import sys

import pytest
import torch

from distillery.networks import ConvNet, block
from distillery.seeds import generator

SHAPES = [(2, 3, 8, 8), (3, 5, 9, 7), (1, 4, 2, 3), (2, 6, 32, 32)]

needs_compiler = pytest.mark.skipif(block.library() is None, reason="no C++ compiler here")


def made(shape, dtype=torch.float32):
    stream, c = generator(0, "block"), shape[1]
    x = torch.randn(shape, generator=stream, dtype=dtype) * 3 + 1
    return [
        one.requires_grad_()
        for one in (x, torch.rand(c, generator=stream, dtype=dtype) + 0.5, torch.randn(c, generator=stream, dtype=dtype))
    ]


def derivatives(function, inputs):
    """Value, gradients, and gradients of a mixture of the gradients."""
    y, stream = function(*inputs), generator(1, "cotangents")
    like = lambda one: torch.randn(one.shape, generator=stream, dtype=one.dtype)  # noqa: E731
    first = torch.autograd.grad((y * like(y)).sum() + y.square().sum(), inputs, create_graph=True)
    return [y, *first, *torch.autograd.grad(sum((one * like(one)).sum() for one in first), inputs)]


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES)
def test_one_pass_agrees_with_torch(shape):
    for ours, theirs in zip(derivatives(block.block, made(shape)), derivatives(block.plain, made(shape)), strict=True):
        assert (ours - theirs).abs().max() <= 3e-6 * theirs.abs().max()


@needs_compiler
def test_derivatives_by_differences():
    """In float64, at an odd size; no pixel lies so near a kink of ReLU that a difference would step over it."""
    inputs = made((2, 2, 5, 4), torch.float64)
    assert torch.autograd.gradcheck(block.block, inputs)
    assert torch.autograd.gradgradcheck(block.block, inputs)


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES)
def test_a_third_derivative_agrees_with_torch(shape):
    """Of a distance of gradients on the pixels, on what the distance is to: the first-order effects of single images."""
    found = []
    for function in (block.block, block.plain):
        inputs = made(shape, torch.float64)
        goals = [torch.randn(one.shape, generator=generator(2, "goal"), dtype=one.dtype).requires_grad_() for one in inputs]
        first = torch.autograd.grad(function(*inputs).pow(3).sum(), inputs, create_graph=True)
        distance = sum((one - goal).square().sum() for one, goal in zip(first, goals))
        second = torch.autograd.grad(distance, inputs, create_graph=True)
        third = torch.autograd.grad(sum(one.square().sum() for one in second), [*goals, *inputs])
        found.append([*second, *third])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * float(theirs.detach().abs().max()))


@needs_compiler
def test_threads_change_no_bit_and_what_is_no_number_stays_so():
    before = torch.get_num_threads()
    try:
        found = []
        for n in (1, 3):
            torch.set_num_threads(n)
            found.append(derivatives(block.block, made((2, 6, 32, 32))))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(*pair) for pair in zip(*found))
    x, weight, bias = made((1, 2, 4, 4))
    with torch.no_grad():
        x[0, 0, 0, 0] = float("nan")
    y = block.block(x, weight, bias)
    assert y[0, 0].isnan().all() and not y[0, 1].isnan().any()


def test_stacks_and_other_views_are_read_rightly():
    network = ConvNet((3, 8, 8), 4, width=6)
    params, images = network.init(generator(0, "init"), 3), torch.randn(3, 5, 3, 8, 8, generator=generator(0, "x"))
    together = network.embed(params, images)
    for i in range(3):
        alone = network.embed({name: value[i : i + 1] for name, value in params.items()}, images[i : i + 1])
        torch.testing.assert_close(together[i], alone[0], atol=1e-6, rtol=1e-5)
    x, weight, bias = made((2, 4, 8, 8))
    turned = x.detach().to(memory_format=torch.channels_last)
    torch.testing.assert_close(block.block(turned, weight, bias), block.block(x, weight, bias), atol=1e-6, rtol=1e-5)


def test_without_a_compiler_torch_does_it():
    code = "from distillery.networks import block; assert block.library() is None"
    for changed in ({"DISTILLERY_PLAIN": "1"}, {"PATH": "/nowhere", "CXX": ""}):
        subprocess.run([sys.executable, "-c", code], env=os.environ | changed, check=True)


def test_what_cannot_be_built_or_loaded_is_said_in_a_line(tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("DISTILLERY_PLAIN", raising=False)
    monkeypatch.setenv("DISTILLERY_CACHE", str(tmp_path))
    for content in ("no C++", None):  # a source that does not compile, and none
        source = tmp_path / "block.cpp"
        source.write_text(content) if content else source.unlink()
        monkeypatch.setattr(block, "SOURCE", source)
        assert block.library.__wrapped__() is None
        assert capfd.readouterr().err.count("\n") == 1 and not list(tmp_path.glob("*.so"))
