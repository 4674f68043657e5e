"""What MKDT's students cost: 16 at once beside one by one, targets read beside computed, memory of matching in the steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from published_shapes import DEVICE, SHAPE

from distillery import evaluation
from distillery.data import TensorSource
from distillery.encoders import quality
from distillery.encoders.regression_set import RegressionSet
from distillery.encoders.teacher import resnet18
from distillery.networks import ConvNet
from distillery.networks.encoder import Encoder
from distillery.seeds import generator
from distillery.training import squared_error, train
from distillery.training.optimizers import SGD

PATHS = ("plain", "fast")
CPU = DEVICE.type == "cpu"
K = 16
SMALL = ((1, 8, 8), 16, 64)  # shape, width of the student, outputs
LARGE = (SHAPE, 32, 512)


def students(shape, width, outputs, batch, chunk):
    """K students through two batches, `chunk` of them at once."""
    network, stream = ConvNet(shape, outputs, width), generator(0, "students")
    images = torch.randn(2 * batch, *shape, generator=stream).to(DEVICE)
    source = TensorSource(images, torch.randn(2 * batch, outputs, generator=stream).to(DEVICE))
    params = {name: value.to(DEVICE) for name, value in network.init(stream, K).items()}

    def work():
        train(network, params, source, squared_error, SGD(0.1, 0.9, 1e-4), generator=generator(0, "x"), epochs=1, batch=batch, chunk=chunk)

    return work


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("size", "batch", "least"), [(SMALL, 32, 1.7), (SMALL, 256, 0.95), (LARGE, 32, 0.95)], ids=["8x8-32", "8x8-256", "32x32-32"]
)
def test_students_beside_one_by_one(measure, size, batch, least, path):
    """As many at once as training chooses."""
    name = f"{K} students, {size[0][1]} x {size[0][2]}, width {size[1]}, step of {batch}, beside one by one"
    measure(name, path, students(*size, batch, {"plain": 1, "fast": 0}[path]), least, per=2, rounds=15)


@pytest.mark.skipif(not CPU, reason="on a GPU students are always stacked")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("size", "batch"), [(SMALL, 256), (LARGE, 32)], ids=["8x8-256", "32x32-32"])
def test_students_beside_a_stack(measure, size, batch, path):
    """Where training chooses one by one, a stack is slower."""
    name = f"{K} students, {size[0][1]} x {size[0][2]}, width {size[1]}, step of {batch}, beside one stack"
    measure(name, path, students(*size, batch, {"plain": K, "fast": 0}[path]), 0.95, per=2, rounds=15)


@pytest.mark.parametrize("path", PATHS)
def test_targets_are_computed_once(measure, photographs, tmp_path, monkeypatch, path):
    """512 images through a ResNet-18 of an eighth of the width; the second time the encoder is not called."""
    network = resnet18(SHAPE, 1 / 8)
    params = network.init(generator(0, "teacher"), 1)
    weights = {name: value.to(DEVICE) for name, value in params.items() if not name.startswith("head")}
    teacher, images = Encoder(network, weights), photographs.subset(torch.arange(512))
    calls, embed = [], evaluation.embed
    monkeypatch.setattr(quality, "embed", lambda *given: calls.append(1) or embed(*given))
    file = tmp_path / "targets.safetensors"
    first = RegressionSet.of(teacher, images, file)
    assert len(calls) == 1
    if path == "fast":
        assert torch.equal(RegressionSet.of(teacher, images, file).targets, first.targets) and len(calls) == 1

    def work():
        if path == "plain":
            file.unlink()
        RegressionSet.of(teacher, images, file)

    measure("targets of 512 images, read beside computed", path, work, 10.0)
    assert (len(calls) > 1) == (path == "plain")


# VmHWM, not ru_maxrss: that of a child starts at the memory of the process which started it
PEAKS = """
import json, re, sys
sys.path.insert(0, {folder!r})
from test_students_cost import matching
from functools import partial
from distillery.matching import trajectory
trajectory.sweep = partial(trajectory.sweep, keep=0)
def status(key):
    return 1024 * int(re.search(key + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])
before, peaks = status("VmRSS"), []
for steps in (5, 40):
    trajectory.{way}(*matching(steps))
    peaks.append(status("VmHWM") - before)
print(json.dumps(peaks))
"""


def matching(steps):
    """What `sweep` takes: MKDT's student of 32 x 32, width 16, that regresses 40 images in batches of 20."""
    network, stream = ConvNet(SHAPE, 64, 16), generator(0, "matching")
    start = network.init(stream, 1)
    goal = {name: value + 0.01 for name, value in start.items()}
    targets = torch.randn(40, 64, generator=stream)
    learned = {"images": torch.randn(40, *SHAPE, generator=stream), "step_size": torch.tensor(0.1)}

    def loss(params, tensors, indices):
        output = network.apply(params, tensors["images"][indices][None]).logits
        return squared_error(output, targets[indices][None]).mean()

    return loss, start, goal, learned, [torch.randperm(40, generator=stream)[:20] for _ in range(steps)]


def peaks(folder, way):
    """Bytes that matching 5 steps, and then 40, adds to a process which holds torch, at most.

    What is freed goes back at once (malloc's threshold): else a peak depends on where holes happen to be.
    """
    program = [sys.executable, "-c", PEAKS.format(folder=folder, way=way)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "DISTILLERY_MALLOC": "system"}
    done = subprocess.run(program, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout)


@pytest.mark.skipif(not CPU or not Path("/proc/self/status").exists(), reason="memory of a process of Linux")
def test_memory_of_matching_does_not_grow(request):
    """40 steps take at most 1.2 times the memory of 5 by the sweep; by the unrolled loop more than 4 times."""
    folder = str(request.path.parent)
    (few, many), (few_plain, many_plain) = peaks(folder, "sweep"), peaks(folder, "sweep_plain")
    assert many <= 1.2 * few and many_plain > 4 * few_plain, (few, many, few_plain, many_plain)
