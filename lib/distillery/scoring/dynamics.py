r"""Scores from training dynamics. One ensemble pass yields them all; high = hard.

Mean training loss (the criterion of BiLP, arXiv 2305.18381): over T networks and E epochs,

$$s(x) = \frac{1}{TE}\sum_{t=1}^{T}\sum_{e=1}^{E} \ell\big(f_{\theta_{t,e}}(x), y\big)$$

with the loss taken from the training pass itself, before the step that uses the sample. Early (5 epochs of 5 trials)
and converged (many epochs) differ only in E and T.
"""

from dataclasses import dataclass

from torch import Generator, Tensor

from distillery.data import ImageSet
from distillery.evaluation import embed
from distillery.networks import Params
from distillery.optimizers import SGD
from distillery.training import Stats, train


@dataclass(frozen=True)
class Dynamics:
    """What T networks trained for E epochs yielded: weights with leading axis T, and per-sample statistics (E, T, N)."""

    network: object
    params: Params
    stats: Stats


def dynamics(
    network,
    images: ImageSet,
    trials: int,
    epochs: int,
    generator: Generator,
    *,
    batch: int = 64,
    lr: float = 0.05,
    collect=("loss",),
) -> Dynamics:
    """Train `trials` networks on real images and collect per-sample statistics of every epoch."""
    params = {name: value.to(images.device) for name, value in network.init(generator, trials).items()}
    sgd = SGD(lr, momentum=0.9, weight_decay=5e-4)
    params, stats = train(
        network,
        params,
        images,
        optimizer=sgd,
        generator=generator,
        epochs=epochs,
        batch=batch,
        collect=collect,
    )
    return Dynamics(network, params, stats)


def mean_loss(pass_: Dynamics) -> Tensor:
    """Mean training loss in nats over epochs and trials, (N,). Source: BiLP, the equation above."""
    return pass_.stats.collected["loss"].nanmean((0, 1)).cpu()


def features(pass_: Dynamics, images: ImageSet) -> Tensor:
    """Embeddings of the images under the first trained network, (N, F) on the CPU."""
    first = {name: value[:1] for name, value in pass_.params.items()}
    return embed(pass_.network, first, images)[0].cpu()


def mean_loss_plain(losses: list[list[dict[int, float]]], n: int) -> list[float]:
    """The definition: losses[t][e][i] is the loss of sample i in epoch e of trial t."""
    return [
        sum(epoch[i] for trial in losses for epoch in trial) / sum(len(trial) for trial in losses)
        for i in range(n)
    ]
