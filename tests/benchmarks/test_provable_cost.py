"""What sensitivities, a step of KIP and batches by loss cost, beside the work that no way around them saves."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from published_shapes import DEVICE, SHAPE

from distillery.data.synthetic import Synthetic
from distillery.distill import Optimizer, distill
from distillery.matching.distribution import DistributionMatching
from distillery.methods.kip import KernelInducingPoints
from distillery.networks import ConvNet
from distillery.sampling import Importance, RealBatches, Uniform
from distillery.scores import sensitivity
from distillery.scores.kmeans_sensitivity import kmeans
from distillery.seeds import generator
from distillery.training.losses import centred

PATHS = ("plain", "fast")
POINTS, FEATURES, MOST = 50_000, 4096, 4 * 2**30  # bytes, features (819 MB) included
EVERY = 100  # steps between two looks at the losses

# VmHWM, not ru_maxrss: that of a child starts at the memory of the process which started it
PEAK = f"""
import re, torch
from distillery.scores.sensitivity import ridge_features
from distillery.training.losses import centred
def status(key):
    return 1024 * int(re.search(key + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])
before = status("VmRSS")
ridge_features(torch.randn({POINTS}, {FEATURES}), centred(torch.arange({POINTS}) % 10, 10), 25.0)
print(status("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def features():
    rows = torch.randn(POINTS, FEATURES, generator=generator(0, "features"))
    return rows.to(DEVICE), centred(torch.arange(POINTS) % 10, 10).to(DEVICE)


def unavoidable(rows, block=1024):
    """The Gram matrix, its Cholesky factor and one triangular solve, float64 in blocks."""
    gram = torch.zeros(FEATURES, FEATURES, dtype=torch.float64, device=rows.device)
    for part in rows.split(block):
        part = part.double()
        gram.addmm_(part.T, part)
    gram.diagonal().add_(25.0)
    lower = torch.linalg.cholesky(gram)
    for part in rows.split(block):
        torch.linalg.solve_triangular(lower, part.double().T, upper=False)


@pytest.mark.parametrize("path", PATHS)
def test_ridge_sensitivities(measure, features, path):
    if path == "fast" and Path("/proc/self/status").exists():
        done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
        assert int(done.stdout) < MOST, done.stdout
    work = {"plain": lambda: unavoidable(features[0]), "fast": lambda: sensitivity.ridge_features(*features, 25.0)}
    name = "ridge sensitivities of 50,000 x 4,096, beside Gram matrix, factor and one triangular solve"
    measure(name, path, work[path], 1 / 1.5, rounds=1, warmup=0)


@pytest.mark.parametrize("path", PATHS)
def test_k_means_sensitivities(measure, path):
    from sklearn.cluster import kmeans_plusplus

    rows = torch.randn(5000, 3072, generator=generator(0, "rows"))
    work = {"plain": lambda: kmeans_plusplus(rows.numpy(), 50, random_state=0), "fast": lambda: kmeans(rows, 50, generator(0, "x"))}
    name = "k-means sensitivities of 5,000 x 3,072, k = 50, beside scikit-learn's kmeans_plusplus"
    measure(name, path, work[path], 1 / 2)


@pytest.mark.parametrize("path", PATHS)
def test_a_step_of_kip(measure, photographs, path):
    """100 support points and 5,000 targets; plain is its forward pass alone: kernels and solve."""
    objective = KernelInducingPoints(ConvNet(SHAPE, 10, 8), 500)
    chosen = torch.cat([photographs.of_class(c)[:10] for c in range(10)])
    made = Synthetic({"images": photographs.batch(chosen), "targets": photographs.targets[chosen]})
    sampler = Uniform(photographs.targets)

    def forward():
        real, _, _ = objective.draw_batch(RealBatches(photographs, sampler, generator(0, "real")))
        with torch.no_grad():
            objective._outputs(made, {}, [real])

    def step():
        objective.step(made, {}, RealBatches(photographs, sampler, generator(0, "real")), generator(0, "step"))

    name = "KIP step, 100 support and 5,000 target points, beside its forward kernels and solve"
    measure(name, path, {"plain": forward, "fast": step}[path], 1 / 3.5)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("host", ["DM", "KIP"])
def test_batches_by_loss_add_a_tenth(measure, photographs, host, path):
    """A run of one period: one look at 5,120 images, then the steps; published batches, DM of width 32."""
    network = ConvNet(SHAPE, 10, 32)
    objective = KernelInducingPoints(network, 500) if host == "KIP" else DistributionMatching(network, 256)
    chosen = torch.cat([photographs.of_class(c)[: 10 if host == "KIP" else 1] for c in range(10)])
    made = Synthetic({"images": photographs.batch(chosen), "targets": photographs.targets[chosen]}, photographs.classes)

    def run():
        sampler = Uniform(photographs.targets)
        if path == "fast":
            sampler = Importance(photographs, 0.5, EVERY, generator=generator(0, "look"))
        distill(made, objective, photographs, sampler, {"images": Optimizer(0.01)}, EVERY, generator(0, "go"))

    name = f"{host} with batches by loss, looked at every {EVERY} steps, beside uniform ones"
    measure(name, path, run, 1 / 1.1, rounds=1, warmup=0, per=EVERY)
