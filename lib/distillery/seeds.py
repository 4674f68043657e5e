"""Random numbers: one root seed, split into generators by purpose. Nothing global is ever seeded.

Generators are keyed by purpose and not by method, so that two methods under one seed meet the same fresh networks and the same data order:
their difference is paired. All draws are made on the CPU, so they are the same on every device.
"""

import hashlib

import torch
from torch import Generator


def generator(seed: int, *purpose: str | int) -> Generator:
    """A fresh CPU generator for `purpose` under the root `seed`; equal arguments give equal streams."""
    key = "/".join([str(int(seed)), *map(str, purpose)])
    return Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1)


def split(parent: Generator, k: int) -> list[Generator]:
    """Draw `k` independent generators from `parent`, which advances. Stream i does not depend on k."""
    return [Generator().manual_seed(int(torch.randint(2**62, (), generator=parent))) for _ in range(k)]
