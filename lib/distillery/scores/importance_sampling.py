"""Samples in proportion to sensitivities: weights, sizes with a guarantee, and the deviation of a sample. Slow reference: `deviation_plain`."""

import math

import torch
from torch import Generator, Tensor

from distillery.checks import InputError, check_finite, check_positive_int
from distillery.networks.ridge import factor
from distillery.scores.sensitivity import _checked, _half_inverse


def sample(scores: Tensor, m: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """m independent draws with chances p = scores / sum: indices (m,), with repeats, and weights 1 / (m p) (m,) float64.

    Sums with these weights are unbiased. Raises InputError on scores (N,) of which one is negative or not finite, or all are zero.
    """
    check_positive_int("m", m)
    check_finite("scores", scores)
    total, below = float(scores.double().sum()), int((scores < 0).sum())
    if below or not total > 0:
        raise InputError(f"scores: {below} of {len(scores)} below 0, total {total:g}; accepted: none below 0, a total above 0")
    chance = scores.double().cpu() / total
    drawn = torch.multinomial(chance, m, replacement=True, generator=generator)
    return drawn.to(scores.device), (1 / (m * chance[drawn])).to(scores.device)


def sample_size(total: float, error: float, failure: float, dimension: int) -> int:
    r"""Draws after which every loss is within `error` of its estimate, but with probability `failure`.

    $m = \lceil (2t/\varepsilon^2)(1 + \varepsilon/3) \ln(2D/\delta) \rceil$: matrix Bernstein with $D$ the rank of the features times the
    outputs, plus 1, holds for all weights of a ridge regression, scalar Bernstein for $D$ given queries of any loss.

    total    t, the sum of the bounds that are drawn by (`Ridge.tau` for a ridge regression whose penalty is kept)
    raises   InputError on an error or failure outside of (0, 1), or a total or dimension that is not above 0
    """
    _check_bound(total, failure, dimension)
    if not 0 < error < 1:
        raise InputError(f"error: {error} is not accepted; accepted: a number in (0, 1)")
    return math.ceil(2 * total / error**2 * (1 + error / 3) * math.log(2 * dimension / failure))


def error_bound(total: float, m: int, failure: float, dimension: int) -> float:
    """The error that m draws are proved to stay within, the inverse of `sample_size`; at 1 or more it says nothing."""
    _check_bound(total, failure, dimension)
    check_positive_int("m", m)
    size = 2 * total * math.log(2 * dimension / failure) / m
    return size / 6 + math.sqrt((size / 6) ** 2 + size)


def _check_bound(total: float, failure: float, dimension: int) -> None:
    if not 0 < total < math.inf or not 0 < failure < 1 or not dimension > 0:
        raise InputError(f"total {total}, failure {failure}, dimension {dimension}; accepted: above 0, in (0, 1), above 0")


def deviation(features: Tensor, targets: Tensor, penalty: float, indices: Tensor, weights: Tensor) -> float:
    r"""The greatest |F_S(W) / F(W) - 1| over all weights W of a ridge regression, exactly. Slow reference: `deviation_plain`.

    With $\Phi^\top\Phi + \lambda I = L L^\top$, $W = W^* + L^{-\top} U$ and $v_i = L^{-1} \varphi_i$ the loss is
    $F = \lVert U \rVert^2 + \mathrm{OPT}$ and its error $\sum_i (w_i - 1) \lVert r_i - U^\top v_i \rVert^2$: a quadratic form of U and 1. In
    the eigenvectors of $\sum_i (w_i - 1) v_i v_i^\top$ all outputs meet in one more row and column.

    indices, weights  (m,) of a sample, whose penalty is that of the full loss
    raises            InputError as `ridge_features`
    """
    targets, rows = _checked(features, targets, penalty), features.double()
    eye = torch.eye(rows.shape[1], dtype=torch.float64, device=rows.device)
    lower = factor(rows.T @ rows + penalty * eye, "Gram matrix + ridge")
    best = torch.cholesky_solve(rows.T @ targets, lower)  # (p, C)
    residuals = targets - rows @ best
    optimum = residuals.square().sum() + penalty * best.square().sum()  # ()
    if not float(optimum) > 0:
        raise InputError("targets: all are zero; accepted: labels of which at least one is not")
    residuals = residuals / optimum.sqrt()
    v = torch.linalg.solve_triangular(lower, rows.T, upper=False)  # (p, N)
    excess = torch.full((len(rows),), -1.0, dtype=torch.float64, device=rows.device)
    excess.index_add_(0, indices, weights.double())
    values, vectors = torch.linalg.eigh((v * excess) @ v.T)
    both = (vectors.T @ ((v * excess) @ residuals)).norm(dim=1)  # (p,)
    arrow = torch.diag(torch.cat([values, (excess @ residuals.square()).sum()[None]]))  # (p + 1, p + 1)
    arrow[-1, :-1] = arrow[:-1, -1] = both
    return float(torch.linalg.eigvalsh(arrow).abs().max())


def deviation_plain(features: Tensor, targets: Tensor, penalty: float, indices: Tensor, weights: Tensor) -> float:
    """By its definition: the two losses as quadratic forms of [vec W; -1], and the eigenvalues of one in terms of the other."""
    n, p = features.shape
    targets = (targets[:, None] if targets.ndim == 1 else targets).double()
    c = targets.shape[1]
    ridge = torch.diag(torch.tensor([float(penalty)] * (p * c) + [0.0], dtype=torch.float64))
    full, drawn = ridge.clone(), ridge.clone()

    def form(i: int) -> Tensor:
        """What point i contributes: the outer products of [0 .. phi .. 0; y] of all outputs."""
        found = torch.zeros_like(ridge)
        for j in range(c):
            one = torch.zeros(p * c + 1, dtype=torch.float64)
            one[j * p : (j + 1) * p] = features[i].double()
            one[-1] = targets[i, j]
            found += torch.outer(one, one)
        return found

    for i in range(n):
        full += form(i)
    for i, weight in zip(indices.tolist(), weights.tolist()):
        drawn += weight * form(i)
    half = _half_inverse(full)
    return float((torch.linalg.eigvalsh(half.T @ drawn @ half) - 1).abs().max())
