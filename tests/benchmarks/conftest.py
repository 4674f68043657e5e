"""What the benchmarks share: the published shapes, made-up images, and one way to measure three paths.

Every piece of work is measured in one run as `bare` (the loop anyone would write with nn.Module), `plain` (the twin the tests hold the fast path
to) and `fast`, on a CPU in one thread and in processor time. The bare loops run in a process of their own, whose memory the system gives out as it does
by itself. `table.py` turns the JSON of both processes into the committed table and checks the gates.
"""

from dataclasses import replace

import pytest
import torch
from published_shapes import CLASSES, DEVICE, SHAPE, WIDTH
from torch.utils.flop_counter import FlopCounterMode

from distillery.data import ImageSet, fit_standardize
from distillery.networks import ConvNet
from distillery.seeds import generator


@pytest.fixture(scope="session")
def network():
    return ConvNet(SHAPE, CLASSES, WIDTH)


@pytest.fixture(scope="session")
def photographs():
    """5,120 images of noise in the published shape: what a step costs does not depend on what they show."""
    stream = generator(0, "benchmark images")
    pixels = torch.randint(256, (512 * CLASSES, *SHAPE), generator=stream, dtype=torch.uint8)
    images = ImageSet.of(pixels, torch.arange(CLASSES).repeat_interleave(512))
    return replace(images, transform=fit_standardize(images)).to(DEVICE)


@pytest.fixture
def measure(benchmark):
    """measure(work, path, function, least=, rounds=, per=, warmup=): time `function`, keep the least of the rounds.

    least  how many times faster than the bare loop the path must be, than its plain twin where there is no such loop
    """

    def run(work, path, function, least=None, rounds=3, per=1, warmup=1):
        benchmark.group = work
        benchmark.extra_info |= {"work": work, "path": path, "per": per, "device": DEVICE.type}
        if path in ("bare", "peak"):  # what the work needs at least is what the bare loop multiplies
            with FlopCounterMode(display=False) as counted:
                function()
            benchmark.extra_info |= {"flops": counted.get_total_flops()}
        if least is not None:
            benchmark.extra_info |= {"least": least}

        def waited():
            function()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()

        benchmark.pedantic(waited, rounds=rounds, warmup_rounds=warmup)

    return run
