r"""How much gradients and trajectories vary from run to run: why MKDT (arXiv 2410.02116) matches students, not teachers.

Two forms of its claim that training without labels varies more than supervised training or regression:

- Proposition D.1: the sum of all gradients of an epoch is the same for every partition into batches where the loss is a sum over
  samples, and is not where it compares the samples of a batch: `partition_variance`.
- Figure 1a, the variance of weights after so many epochs from one initialization: `trajectory_variance`.

$$\operatorname{Var}(g) = \mathbb{E}\,\|g - \mathbb{E}g\|^2$$

Its Theorem 4.1 speaks of a linear network and a spectral loss, with which nothing here is trained, and is left out.

A variance has the scale of its loss, a mean over outputs for one and over views for another: compare losses by its ratio to the squared
mean, or to the squared distance moved, at rates that move each as far, and with the same randomness: the order of the images alone.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from distillery.checks import InputError, RunFailed, check_finite, check_positive_int
from distillery.data import ImageSet, TensorSource
from distillery.encoders.teacher import TeacherTraining
from distillery.networks import Params, trainable
from distillery.networks.encoder import head_names
from distillery.seeds import generator as stream_of
from distillery.training import Loss, cross_entropy, squared_error, train
from distillery.training.optimizers import SGD
from distillery.training.views import TwoViews, Views

SELF_SUPERVISED = {"SSL, Barlow Twins": "barlow-twins", "SSL, SimCLR": "simclr"}
LOSSES = ("SL", "KD", *SELF_SUPERVISED)  # supervised with labels; knowledge distillation, as students learn


class Pairs(TensorSource):
    """Images (N, 2, C, H, W), two views of each that stay the same: a source where only the order of the images varies."""

    @property
    def shape(self) -> tuple[int, ...]:
        return super().shape[1:]

    def batch(self, indices: Tensor) -> Tensor:
        """All first views of the images at `indices` (K, B) before all second ones: (K, 2B, C, H, W)."""
        return self.images[indices].transpose(1, 2).flatten(1, 2)


def epoch_gradient(network, params: Params, images, loss: Loss, partition: Sequence[Tensor]) -> Tensor:
    """Sum of the gradients of all batches of one epoch at the same weights: (P,), all trained weights in a row.

    This is one update of synchronous data-parallel SGD. BatchNorm couples the samples of a batch too; in a mean over batches of unequal
    size samples have unequal weights.

    params     of one network, leading axis 1
    images     a source, `Pairs` for losses of two views
    loss       (K, B, D), targets -> (K, B), which is summed, or (K,)
    partition  batches of indices that together hold every sample once
    raises     InputError on a gradient that is not finite
    """
    assert torch.equal(torch.cat(partition).sort().values.cpu(), torch.arange(len(images)))
    learned = {name: value.detach().requires_grad_() for name, value in trainable(params).items()}
    total: Tensor | float = 0.0
    for indices in partition:
        at = indices[None].to(next(iter(params.values())).device)  # (1, B)
        output = network.apply(params | learned, images.batch(at), train=True).logits
        grads = torch.autograd.grad(loss(output, images.targets[at]).sum(), list(learned.values()))
        total = total + torch.cat([grad.flatten() for grad in grads])
    check_finite("gradient", total)
    return total


class Variance(NamedTuple):
    """Of random vectors g: total variance E|g - Eg|^2, and |Eg|^2, both in squared units of g."""

    variance: float
    squared_mean: float


def variance(gradients: Tensor) -> Variance:
    """Unbiased variance of R gradients (R, ...), and the squared length of their mean: |Eg|^2 + variance / R on average."""
    if len(gradients) < 2:
        raise InputError(f"gradients: {len(gradients)} of them; accepted: 2 or more")
    flat = gradients.flatten(1).double()  # (R, P)
    return Variance(float(flat.var(0).sum()), float(flat.mean(0).square().sum()))


def partition_variance(network, params: Params, images, loss: Loss, batch: int, stream: Generator, repeats: int = 10) -> Variance:
    """`variance` of `epoch_gradient` over random partitions into batches of `batch`, of which the last one may be smaller."""
    check_positive_int("batch", batch)
    parts = [torch.randperm(len(images), generator=stream).split(batch) for _ in range(repeats)]
    return variance(torch.stack([epoch_gradient(network, params, images, loss, part) for part in parts]))


class Spread(NamedTuple):
    """How far copies of one network lie apart, and how far from where they started, both squared and summed over their weights."""

    variance: float  # unbiased, over the copies
    distance: float  # from the initialization, mean over the copies

    @property
    def ratio(self) -> float:
        """Variance over distance: 0 where R copies move as one, R / (R - 1) where their mean stays; NaN where none moves."""
        return self.variance / self.distance if self.distance else math.nan


def trajectory_variance(
    network, params: Params, source, loss: Loss, optimizer: SGD, *, epochs: int, repeats: int, batch: int, generator: Generator,
    whole_batches: bool = False, without: Collection[str] = (),
) -> list[Spread]:  # fmt: skip
    """`Spread` of copies of one initialization after epochs 1, 2, .., trained alike but each in its own data order.

    params   of one network, leading axis 1; statistics of BatchNorm do not count
    source   of `training.train`. `TwoViews` gives every copy views of its own; `Pairs` gives all the same
    loss     of outputs (K, B, D) or, for two views, (K, 2B, D), as `TeacherTraining.objective`
    repeats  R copies, 2 or more
    without  names of weights that do not count, such as `head_names` for networks that differ in the output layer alone
    raises   InputError on fewer copies; RunFailed on weights that are not finite
    """
    if repeats < 2:
        raise InputError(f"repeats: {repeats} is not accepted; accepted: 2 or more copies")
    copies = {name: value.expand(repeats, *value.shape[1:]) for name, value in params.items()}
    numbers = range(1, epochs + 1)
    options = {"epochs": epochs, "batch": batch, "snapshots": numbers, "whole_batches": whole_batches}
    _, stats = train(network, copies, source, loss, optimizer, generator=generator, **options)
    start = {name: value for name, value in trainable(params).items() if name not in without}
    found = []
    for epoch in numbers:
        moved = [stats.snapshots[epoch][name].double() - value.double() for name, value in start.items()]  # (R, ...) each
        distance = sum(float(one.square().sum()) / repeats for one in moved)
        if not math.isfinite(distance):
            raise RunFailed(f"trajectories: weights that are not finite after epoch {epoch}; accepted: finite ones, by a lower rate")
        found.append(Spread(sum(float(one.var(0).sum()) for one in moved), distance))
    return found


def problems(images: ImageSet, targets: Tensor, supervised, student, views: Views, n: int, seed: int) -> dict[str, tuple]:
    """Each of LOSSES -> network, loss, a source in float64; on n images of the seed's own, whose views, drawn once, stay the same."""
    drawn = torch.randperm(len(images), generator=stream_of(seed, "variance"))[:n].sort().values
    few, all_of_them = images.subset(drawn), torch.arange(n, device=images.device)
    everything, wanted = few.batch(all_of_them), targets[drawn.to(images.device)]
    both = TwoViews(few, views, seed).batch(all_of_them[None])[0].chunk(2)  # of one draw
    pairs = Pairs(torch.stack(both, 1).double(), few.targets)
    found = {
        "SL": (supervised, cross_entropy, TensorSource(everything.double(), few.targets)),
        "KD": (student, squared_error, TensorSource(everything.double(), wanted.double())),
    }
    return found | {name: (student, TeacherTraining(loss).objective, pairs) for name, loss in SELF_SUPERVISED.items()}


def _first(network, seed: int, device) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in network.init(stream_of(seed, "variance"), 1).items()}


def over_partitions(problems: dict[str, tuple], batch: int, partitions: int, seed: int, device) -> dict[str, float]:
    """Variance over the squared mean of an epoch's gradient, over random partitions into batches, in float64."""
    found = {}
    for name, (network, loss, source) in problems.items():
        params = {key: value.double() for key, value in _first(network, seed, device).items()}
        one = partition_variance(network, params, source, loss, batch, stream_of(seed, "parts"), partitions)
        found[name] = one.variance / one.squared_mean
    return found


def factor(ours: list[list[Spread] | None], theirs: list[list[Spread] | None]) -> str:
    """How many times as large the last ratios of one loss are as those of another: geometric mean over seeds, and the range, in words."""
    found = [a[-1].ratio / b[-1].ratio for a, b in zip(ours, theirs) if a and b]
    return (
        f"{math.prod(found) ** (1 / len(found)):.0f} ({min(found):.0f} to {max(found):.0f} over seeds)" if found else "an unknown number of"
    )


def of_trajectories(
    problems: dict[str, tuple], rate: float, batch: int, copies: int, epochs: int, seed: int, device
) -> dict[str, tuple[float, list[Spread]] | None]:
    """Each loss -> its rate, and the spread of the weights after each epoch over copies of one initialization, without the output layer;
    None where one diverged.

    rate  of KD; that of each other loss is the one at which a network moves as far from its start in an epoch, see `rate_for`
    """
    first = {name: _first(network, seed, device) for name, (network, *_) in problems.items()}

    def spread(name: str, rate: float, epochs: int, copies: int) -> list[Spread]:
        network, loss, source = problems[name]
        single = source.targets.float() if source.targets.is_floating_point() else source.targets
        source, how = (
            replace(source, images=source.images.float(), targets=single),
            {"epochs": epochs, "repeats": copies, "batch": batch, "whole_batches": True},
        )
        how |= {"without": head_names(network), "generator": stream_of(seed, "copies")}
        return trajectory_variance(network, first[name], source, loss, SGD(rate, 0.9, 1e-4), **how)

    goal, found = spread("KD", rate, 1, 2)[0].distance, {}
    for name in problems:
        try:
            own = rate if name == "KD" else rate_for(goal, lambda rate, name=name: spread(name, rate, 1, 2)[0].distance, rate)
            found[name] = own, spread(name, own, epochs, copies)
        except RunFailed:
            found[name] = None
    return found


def rate_for(goal: float, distance: Callable[[float], float], rate: float, within: float = 0.1) -> float:
    """A rate whose `distance` is the goal within a share of it, by bisection of the logarithm, from a first guess.

    distance  rises with the rate; RunFailed = farther than any goal. Raises RunFailed where 40 tries do not reach it
    """
    low, high = 0.0, math.inf
    for _ in range(40):
        try:
            moved = distance(rate)
        except RunFailed:
            moved = math.inf
        if abs(moved / goal - 1) <= within:
            return rate
        low, high = (rate, high) if moved < goal else (low, rate)
        rate = 4 * rate if high == math.inf else rate / 4 if low == 0 else math.sqrt(low * high)
    raise RunFailed(f"rates: a squared distance of {goal:g} is not reached, the last one was {moved:g}; accepted: a loss that moves as far")
