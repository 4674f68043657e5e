"""What happens along expert paths: errors of a student that runs on its own, and the sharpness of the loss (FTD, arXiv 2211.11004)."""

from collections.abc import Sequence

import numpy as np
import torch

from distillery.checks import InputError
from distillery.data import ImageSet
from distillery.data.synthetic import Synthetic
from distillery.experts import Experts
from distillery.matching import flatness
from distillery.matching.trajectory import Flat, TrajectoryMatching
from distillery.networks import trainable
from distillery.seeds import generator, split

SEGMENTS = 10  # fewest along which errors are said to pile up; in the first one no student is off the path
CONTRAST = 0.1  # least distance of two kinds of experts, as a share of the way they went


def segments(epochs: int, span: int) -> int:
    """How many segments of `span` epochs the path of an expert has. Raises InputError on fewer than `SEGMENTS`."""
    if epochs // span < SEGMENTS:
        found = f"{epochs // span} segments of {span} in {epochs} epochs of an expert"
        raise InputError(f"{found}; accepted: {SEGMENTS} segments or more, which are {SEGMENTS * span} epochs")
    return epochs // span


def accumulated(objective: TrajectoryMatching, made: Synthetic, expert: int, seed: int) -> dict[str, list[float]]:
    """Squared errors of a student that runs through the segments of an expert's path on its own.

    returns  after each segment: 'accumulated', 'initialization' and 'matching' as in `flatness.trajectory_errors`, and 'way', the squared
             distance of the expert from its start
    raises   InputError as `segments` does
    """
    bank, span = objective.experts, objective.expert_epochs
    n = segments(bank.epochs, span)
    path = [trainable(bank.at(expert, epoch)) for epoch in range(0, n * span + 1, span)]
    streams = split(generator(seed, "segments", expert), 2 * len(path))
    draws = [objective.draws(made, *streams[2 * k : 2 * k + 2]) for k in range(n)]
    tensors = {name: made.tensors[name] for name in objective.learns}
    errors = flatness.trajectory_errors(objective.step_loss(made, {}), path, tensors, draws).squared()
    way = [float(sum((p[n] - path[0][n]).square().sum() for n in p)) for p in path[1:]]
    return errors | {"accumulated": errors["accumulated"][1:], "way": way}


def less(flat: np.ndarray, plain: np.ndarray) -> np.ndarray:
    """By what share a number of flat experts lies below that of plain ones: (sets, experts, ..) -> (experts, ..), the mean over sets.

    Sets are averaged within an expert, because they share it: experts alone are independent.
    """
    return (1 - flat / plain).mean(0)


def contrast(banks: dict[str, Experts]) -> np.ndarray:
    """How far two kinds of experts have parted: (experts, epochs) of |second - first| over |first - start|, epochs 1 to the last stored."""
    first, second = banks.values()

    def at(bank: Experts, expert: int, epoch: int) -> torch.Tensor:
        weights = trainable(bank.at(expert, epoch))
        return Flat(weights).vector(weights)

    def share(expert: int, epoch: int) -> float:
        here = at(first, expert, epoch)
        return float((at(second, expert, epoch) - here).norm() / (here - at(first, expert, 0)).norm())

    return np.array([[share(e, t) for t in range(1, first.epochs + 1)] for e in range(len(first))])


def too_alike(shares: np.ndarray) -> str:
    """Why two kinds of experts are too alike for a comparison, by their `contrast` at the last epoch; '' = they are not."""
    last = float(shares[:, -1].mean())
    asked = f"a difference of {CONTRAST:.0%} was asked for beforehand"
    return "" if last >= CONTRAST else f"both kinds of experts end within {last:.1%} of the way they went; {asked}"


def sharpness(
    network, images: ImageSet, banks: dict[str, Experts], n: int, iterations: int, seed: int
) -> tuple[dict[str, list[list[float]]], Sequence[int]]:
    """Top Hessian eigenvalues of the loss on n images: kind -> [expert][epoch], and the epochs: first, middle, last of the first bank."""
    chosen = torch.randperm(len(images), generator=generator(seed, "hessian"))[:n].to(images.device)
    parts, last = flatness.loss_parts(network, images, chosen), next(iter(banks.values())).epochs
    epochs = sorted({0, last // 2, last})

    def top(bank: Experts, expert: int, epoch: int) -> float:
        weights = trainable(bank.at(expert, epoch))
        return flatness.top_eigenvalue(parts, weights, generator(seed, "power", expert), 0.01, iterations)[0]

    return {kind: [[top(bank, e, t) for t in epochs] for e in range(len(bank))] for kind, bank in banks.items()}, epochs
