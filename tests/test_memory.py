"""What a process may use: the pages of a step come back in the next, and memory does not follow the number of classes or of images."""

import subprocess
import sys
from pathlib import Path

import pytest

STEP = """
import resource, sys
sys.path.insert(0, {folder!r})
import torch
from made_up import most_memory
from distillery.data import ImageSet
from distillery.matching.distribution import DistributionMatching
from distillery.matching.gradient import GradientMatching
from distillery.measure.workloads import distribution_step, gradient_step
from distillery.networks import ConvNet

torch.set_num_threads(1)
DistributionMatching.map_limit, GradientMatching.map_limit = {limits}
n, width, make = {n}, {width}, {make}


def step(classes, of_each=n):
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8).expand(classes * of_each, -1, -1, -1)
    images = ImageSet.of(pixels, torch.arange(classes).repeat_interleave(of_each))
    return make(ConvNet((3, 32, 32), classes, width), "float32", False, images, 1, n)["fast"]


step(2)()  # what a first step imports
"""
FAULTS = """
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step(2)()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PEAK = """
large, before = step(1000), most_memory()
large()
print(most_memory() - before)
"""
MANY = """
step(10)()
large, before = step(10, 50_000), most_memory()
large()
print(most_memory() - before)
"""


def printed(code: str, limits: tuple[int, int] = (2**28, 2**26), **values) -> int:
    """What the code prints; limits: numbers in a map of a chunk of classes, the defaults unless told otherwise."""
    values |= {"limits": limits, "folder": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", STEP.format(**values) + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="an allocator of Linux")
def test_a_step_finds_the_pages_of_the_step_before():
    """Maps of 32 MiB, at the published width: 320,000 faults a step where each is mapped anew."""
    assert printed(FAULTS, n=256, width=128, make="distribution_step") < 20_000


@pytest.mark.skipif(sys.platform != "linux", reason="counts KiB of Linux")
@pytest.mark.parametrize("make", ["distribution_step", "gradient_step"])
def test_a_step_of_a_thousand_classes_holds_a_few_of_them(make):
    """All their images as floats are 188 MiB, and were held three times; a chunk of classes holds maps of 4 MiB here."""
    pixels = 1000 * 16 * 3 * 32 * 32 * 4 / 2**10  # KiB
    assert printed(PEAK, (2**20, 2**20), n=16, width=4, make=make) < pixels * 0.75


PIECES = """
import torch
from distillery.allocator import give_back


def held():
    return int(open("/proc/self/statm").read().split()[1]) * 4096


pairs = [(torch.ones(2**23), torch.ones(2**10)) for _ in range(40)]  # 32 MiB each, and what keeps them apart
pairs = [small for _, small in pairs]
before = held()
give_back()
print((before - held()) // 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="an allocator of Linux")
def test_memory_in_pieces_is_given_back_between_runs():
    done = subprocess.run([sys.executable, "-c", PIECES], capture_output=True, text=True)
    assert done.returncode == 0 and int(done.stdout) > 1000, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="counts KiB of Linux")
@pytest.mark.parametrize("make", ["distribution_step", "gradient_step"])
def test_a_step_does_not_hold_the_images_it_does_not_draw(make):
    """Half a million images are 1.4 GiB as bytes and 5.7 GiB as floats; their numbers are 4 MiB."""
    assert printed(MANY, n=16, width=4, make=make) < 32 * 2**10
