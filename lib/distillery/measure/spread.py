"""Whose gradients and trajectories vary: labels, a teacher's targets, or two self-supervised losses, on the same images (MKDT, arXiv 2410.02116)."""

import torch
from torch import Tensor

from distillery.checks import RunFailed
from distillery.data import ImageSet, TensorSource
from distillery.encoders import variance
from distillery.encoders.teacher import TeacherTraining
from distillery.networks.encoder import head_names
from distillery.seeds import generator
from distillery.training import cross_entropy, squared_error
from distillery.training.optimizers import SGD
from distillery.training.views import TwoViews, Views

SELF_SUPERVISED = {"SSL, Barlow Twins": "barlow-twins", "SSL, SimCLR": "simclr"}
LOSSES = ("SL", "KD", *SELF_SUPERVISED)  # supervised with labels; knowledge distillation, as students learn


def problems(images: ImageSet, targets: Tensor, supervised, student, views: Views, n: int, seed: int) -> dict[str, tuple]:
    """Each of LOSSES -> network, loss, a source in float64 whose views are fixed, a source in float32; on n images of the seed's own."""
    drawn = torch.randperm(len(images), generator=generator(seed, "variance"))[:n].sort().values
    few, device = images.subset(drawn), images.device
    everything, wanted = few.batch(torch.arange(n, device=device)), targets[drawn.to(device)]
    pairs = variance.Pairs.of(few, views, seed)
    pairs = variance.Pairs(pairs.images.double(), pairs.targets)
    found = {
        "SL": (supervised, cross_entropy, TensorSource(everything.double(), few.targets), few),
        "KD": (student, squared_error, TensorSource(everything.double(), wanted.double()), TensorSource(everything, wanted)),
    }
    for name, loss in SELF_SUPERVISED.items():
        found[name] = (student, TeacherTraining(loss).objective, pairs, TwoViews(few, views, seed))
    return found


def _first(network, seed: int, device) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in network.init(generator(seed, "variance"), 1).items()}


def over_partitions(problems: dict[str, tuple], batch: int, partitions: int, seed: int, device) -> dict[str, float]:
    """Variance over the squared mean of an epoch's gradient, over random partitions into batches, in float64."""
    found = {}
    for name, (network, loss, source, _) in problems.items():
        params = {key: value.double() for key, value in _first(network, seed, device).items()}
        one = variance.partition_variance(network, params, source, loss, batch, generator(seed, "parts"), partitions)
        found[name] = one.variance / one.squared_mean
    return found


def of_trajectories(
    problems: dict[str, tuple], rate: float, batch: int, copies: int, epochs: int, seed: int, device
) -> dict[str, list | None]:
    """Spread of the weights after each epoch over copies of one initialization, without the output layer; None where one diverged."""
    found, how = {}, {"epochs": epochs, "repeats": copies, "batch": batch, "whole_batches": True}
    for name, (network, loss, _, source) in problems.items():
        first, stream = _first(network, seed, device), generator(seed, "copies")
        try:
            without = head_names(network)
            found[name] = variance.trajectory_variance(
                network, first, source, loss, SGD(rate, 0.9, 1e-4), generator=stream, without=without, **how
            )
        except RunFailed:
            found[name] = None
    return found
