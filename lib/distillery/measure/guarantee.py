"""Sensitivities by brute force, and how far weighted samples stray from a full loss, held against the error that is proved."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from distillery.networks.ridge import ntk
from distillery.scores import sensitivity
from distillery.scores.importance_sampling import deviation, error_bound, sample
from distillery.seeds import generator
from distillery.selection import select
from distillery.training.losses import centred


def toy(points: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features (points,) and labels (points,) near a line, float64: one label is wrong, and the last point is alone."""
    feature = torch.linspace(-1, 1, points, dtype=torch.float64)
    label = 0.8 * feature + 0.15 * torch.randn(points, generator=generator(seed, "toy"), dtype=torch.float64)
    label[points // 4] += 1.5
    feature[-1] = 2.2
    return feature, label


def searched_ridge(feature: Tensor, label: Tensor, penalty: float, directions: int = 20_001) -> Tensor:
    """The largest share of a ridge regression's loss that each point has among many weights; one feature, one label (N,)."""
    angle = torch.linspace(0, torch.pi, directions, dtype=torch.float64)
    z = torch.stack([angle.cos(), -angle.sin()])  # (2, directions): [w; -c], whose scale cancels
    each = (torch.stack([feature, label], 1) @ z).square() + penalty / len(feature) * z[0].square()  # (N, directions)
    return (each / each.sum(0)).max(1).values


def searched_mean(points: Tensor, stream: Generator, centres: int = 20_000) -> Tensor:
    """The largest share of the squared distances to a centre that each point (N, 2) has among many centres, near and far."""
    far = 10 ** torch.linspace(-1, 2, centres)[:, None]
    drawn = points.mean(0) + far * torch.randn(centres, 2, generator=stream, dtype=torch.float64)
    distance = torch.cdist(points, drawn).square()  # (N, centres)
    return (distance / distance.sum(0)).max(1).values


def cloud(points: int, far: int, seed: int, width: int = 10, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Made-up points: normal features (points, width) and centred one-hot labels (points, classes), float64.

    far  of them are stretched up to thirtyfold
    """
    stream = generator(seed, "points")
    rows = torch.randn(points, width, generator=stream, dtype=torch.float64)
    if far:
        chosen = torch.randperm(points, generator=stream)[:far]
        rows[chosen] *= 30 * torch.rand(len(chosen), 1, generator=stream, dtype=torch.float64)
    noise = torch.randn(points, classes, generator=stream, dtype=torch.float64)
    return rows, centred((rows[:, :classes] + noise).argmax(1), classes)


def kernel_of(images, points: int, seed: int) -> tuple[Tensor, Tensor]:
    """KIP's kernel (n, n) of at most `points` images, as many of each class at random, and their labels (n, C), float64."""
    classes = len(images.classes)
    each = min(points // classes, min(images.counts()))
    picked = select(None, each, images.targets.cpu(), "random", generator(seed, "spectrum")).to(images.device)
    return ntk(images.batch(picked).flatten(1).double()), centred(images.targets[picked], classes)


@dataclass(frozen=True)
class Sampling:
    """errors (sizes, trials): the largest relative error over all weights of each sample; proved (sizes,): the bounds of them."""

    errors: np.ndarray
    proved: np.ndarray

    @property
    def within(self) -> np.ndarray:
        """The share of the samples of each size that stay within the bound, (sizes,)."""
        return (self.errors <= self.proved[:, None]).mean(1)


def sampling(
    rows: Tensor, labels: Tensor, penalty: float, tau: Tensor, chances: Tensor, sizes: Iterable[int], trials: int, failure: float, seed: int
) -> Sampling:
    """Draw samples of each size again and again, and measure their deviation.

    rows, labels, penalty  of the ridge regression: features (N, p), targets (N, C), lambda
    tau      bounds of the sensitivities, `Ridge.tau`
    chances  (N,) what is drawn in proportion to: tau, or ones for uniform draws, whose bound has N max(tau) in place of sum(tau)
    failure  probability with which the bound may fail
    """
    total = float((tau / chances).max() * chances.sum())
    errors, proved = [], []
    for m in sizes:
        proved.append(error_bound(total, m, failure, rows.shape[1] * labels.shape[1] + 1))
        drawn = (sample(chances, m, generator(seed, "trial", m, i)) for i in range(trials))
        errors.append([deviation(rows, labels, penalty, *one) for one in drawn])
    return Sampling(np.array(errors), np.array(proved))


def compared(points: int, far: int, rho: float, **numbers) -> dict[str, Sampling]:
    """Samples by sensitivity and uniform ones, of a made-up cloud of which some points are far out; numbers as in `sampling`."""
    rows, labels = cloud(points, far, numbers["seed"])
    penalty = sensitivity.penalty_of(float(rows.square().sum()), points, rho)
    tau = sensitivity.ridge_features(rows, labels, penalty).tau
    chances = {"by sensitivity": tau, "random": torch.ones_like(tau)}
    return {name: sampling(rows, labels, penalty, tau, p, **numbers) for name, p in chances.items()}
