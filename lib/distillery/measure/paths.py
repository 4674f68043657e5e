"""What happens along expert paths: errors of a student that runs on its own, and the sharpness of the loss (FTD, arXiv 2211.11004)."""

from collections.abc import Sequence

import torch

from distillery.data import ImageSet
from distillery.data.synthetic import Synthetic
from distillery.experts import Experts
from distillery.matching import flatness
from distillery.matching.trajectory import TrajectoryMatching
from distillery.networks import trainable
from distillery.seeds import generator, split


def accumulated(objective: TrajectoryMatching, made: Synthetic, expert: int, seed: int) -> tuple[list, list]:
    """Squared accumulated error after each segment of an expert's path, and the expert's squared way from its start."""
    bank = objective.experts
    path = [trainable(bank.at(expert, epoch)) for epoch in range(0, bank.epochs + 1, objective.expert_epochs)]
    streams = split(generator(seed, "segments", expert), 2 * len(path))
    draws = [objective.draws(made, *streams[2 * k : 2 * k + 2]) for k in range(len(path) - 1)]
    tensors = {name: made.tensors[name] for name in objective.learns}
    errors = flatness.trajectory_errors(objective.step_loss(made, {}), path, tensors, draws)
    way = [float(sum((p[n] - path[0][n]).square().sum() for n in p)) for p in path[1:]]
    return errors.squared()["accumulated"][1:], way


def sharpness(
    network, images: ImageSet, banks: dict[str, Experts], experts: int, n: int, iterations: int, seed: int
) -> tuple[dict[str, list[list[float]]], Sequence[int]]:
    """Top Hessian eigenvalues of the loss on n images: kind -> [expert][epoch], and the epochs: first, middle, last stored.

    Banks may be stored to other epochs; the middle and the last are those of the first bank.
    """
    chosen = torch.randperm(len(images), generator=generator(seed, "hessian"))[:n].to(images.device)
    parts, last = flatness.loss_parts(network, images, chosen), next(iter(banks.values())).epochs
    epochs = sorted({0, last // 2, last})

    def top(bank: Experts, expert: int, epoch: int) -> float:
        weights = trainable(bank.at(expert, epoch))
        return flatness.top_eigenvalue(parts, weights, generator(seed, "power", expert), 0.01, iterations)[0]

    measured = range(min(experts, len(next(iter(banks.values())))))
    return {kind: [[top(bank, e, t) for t in epochs] for e in measured] for kind, bank in banks.items()}, epochs
