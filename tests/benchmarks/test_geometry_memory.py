"""What greedy selection costs: memory at 50,000 samples of 512 features, time beside the definition at a size it can do."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from distillery.scores import geometry
from distillery.seeds import generator

PATHS = ("plain", "fast")
MOST = 2**30  # bytes, features (100 MB) included

# VmHWM, not ru_maxrss: that of a child starts at the memory of the process which started it
PEAK = """
import re, torch
from distillery.scores.geometry import {name}
def status(key):
    return 1024 * int(re.search(key + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])
before = status("VmRSS")
{name}(torch.randn(50_000, 512), None, 200)
print(status("VmHWM") - before)
"""


def peak(name):
    """Bytes that a selection of 200 of 50,000 x 512 features adds to a process which holds torch, at most."""
    program = [sys.executable, "-c", PEAK.format(name=name)]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["herding", "k_center"])
def test_greedy_selection(measure, name, path):
    """The bound on memory is checked with the fast path."""
    if path == "fast" and Path("/proc/self/status").exists():
        assert peak(name) < MOST
    rows = torch.randn(500, 64, generator=generator(0, "rows"))
    ways = {
        "plain": partial(getattr(geometry, f"{name}_plain"), rows.double(), 10),
        "fast": partial(getattr(geometry, name), rows, None, 10),
    }
    measure(f"{name.replace('_', '-')} of 10 of 500 samples, 64 features", path, ways[path], 10.0)
