"""What trajectory matching costs: the sweep beside TESLA's and the unrolled loop, experts at once beside one by one.

8 x 8 images and width 16, where the unrolled graph fits a small machine.
"""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from published_shapes import DEVICE

from distillery.data import TensorSource
from distillery.data.synthetic import Synthetic
from distillery.experts import Experts
from distillery.matching.trajectory import GRADIENTS, StartEpochs, TrajectoryMatching
from distillery.networks import ConvNet
from distillery.seeds import generator, split
from distillery.training import train
from distillery.training.dsa import DSA
from distillery.training.optimizers import SGD

CPU = DEVICE.type == "cpu"


def problem(steps, ipc):
    """A start, a target near it, noise for images: what `sweep` takes."""
    stream, network = generator(0, "problem"), ConvNet((1, 8, 8), 10, 16)
    first = {name: value.to(DEVICE) for name, value in network.init(stream, 1).items()}
    bank = Experts({name: torch.stack([value, value + 0.01], 1) for name, value in first.items()})
    tensors = {
        "images": torch.randn(10 * ipc, 1, 8, 8, generator=stream),
        "targets": torch.arange(10).repeat_interleave(ipc),
        "step_size": torch.tensor(0.01),
    }
    made = Synthetic(tensors).to(DEVICE)
    objective = TrajectoryMatching(network, bank, steps, 1, StartEpochs(0, 1), augmentation=DSA)
    learned = {name: made.tensors[name] for name in objective.learns}
    draws = objective.draws(made, *split(stream, 2))
    return objective.step_loss(made, {}), bank.at(0, 0), bank.at(0, 1), learned, draws


@pytest.mark.parametrize("path", ["plain", "fast"])
@pytest.mark.parametrize(("other", "least"), [("unrolled", 1 / 1.5), ("frozen", 1 / 1.1)])
def test_sweep(measure, other, least, path):
    """The sweep may take 1.5 times the unrolled loop and 1.1 times TESLA's."""
    way = GRADIENTS["exact" if path == "fast" else other]
    names = {"unrolled": "the unrolled loop", "frozen": "TESLA's sweep"}
    measure(f"sweep of 30 steps beside {names[other]}", path, partial(way, *problem(30, 1)), least)


@pytest.mark.parametrize("path", ["plain", "fast"])
@pytest.mark.parametrize(("batch", "least"), [(32, 1.7), (256, 0.9)])
def test_experts_at_once(measure, batch, least, path):
    """16 experts at once, and one by one; a tie at 256 leaves room for the clock."""
    network, stream = ConvNet((1, 8, 8), 10, 16), generator(0, "experts")
    images = torch.randn(2 * batch, 1, 8, 8, generator=stream).to(DEVICE)
    source = TensorSource(images, torch.randint(10, (2 * batch,), generator=stream).to(DEVICE))
    params = {name: value.to(DEVICE) for name, value in network.init(stream, 16).items()}

    def work():
        train(
            network,
            params,
            source,
            optimizer=SGD(0.01, 0.0, 0.0),
            generator=generator(0, "x"),
            epochs=1,
            batch=batch,
            augmentation=DSA,
            chunk=1 if path == "plain" else 16,
        )

    measure(f"16 experts, 8 x 8, step of {batch}", path, work, least, per=2)


PEAK = """
import json, sys
sys.path[:0] = {folders!r}
from test_matching_trajectories import problem
from distillery.measure.gradients import WAYS
from made_up import most_memory
WAYS[{way!r}](*problem(2, 10))
before = most_memory()
WAYS[{way!r}](*problem(100, 10))
print(json.dumps(most_memory() - before))
"""


@pytest.mark.skipif(not CPU or not Path("/proc/self/status").exists(), reason="memory of a process of Linux")
def test_memory_of_100_steps(request):
    """At N = 100, ipc 10 and width 16 the sweep needs less than an eighth of the unrolled loop's memory."""
    peaks = {}
    for way in ("exact", "unrolled"):
        program = PEAK.format(folders=[str(request.path.parent), str(request.path.parents[1])], way=way)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        peaks[way] = json.loads(done.stdout.splitlines()[-1])
    assert peaks["exact"] < peaks["unrolled"] / 8, peaks
