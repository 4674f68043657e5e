r"""Sensitivities: the most that one sample can contribute to a loss, over everything the loss may be asked about.

$$s_i = \sup_q \frac{f_i(q)}{\sum_j f_j(q)}$$

Samples drawn with chances in proportion to upper bounds of $s_i$, and weighted by one over them, stand for all samples: for
every query at once where enough are drawn (`sample_size`). Construction after the abstract of arXiv 2307.08086, whose formulas
could not be read: kernel ridge regression for distillers that fit one, k-means (`kmeans_sensitivity.py`) for all others.

For a ridge regression, $f_i = \lVert W^\top\varphi_i - y_i\rVert^2 + \tfrac{\lambda}{n}\lVert W\rVert^2$, the bound $\tau_i + 1/n$ of
`Ridge` is tight to $1/n$, for any number of outputs: $\tau_i$ is the largest eigenvalue of what a point adds to the loss, in terms of the
whole loss. With features $\Phi$ (N, p), targets $Y$ (N, C) and $H = \Phi(\Phi^\top\Phi + \lambda I)^{-1}\Phi^\top$:

$$\tau_i = l_i + \frac{\lVert r_i \rVert^2}{\mathrm{OPT}}, \qquad l_i = H_{ii}, \quad r_i = ((I - H)\,Y)_i, \quad
\mathrm{OPT} = \mathrm{tr}\,G, \quad G = Y^\top (I - H)\,Y$$

With $r_i^\top G^+ r_i$ in place of the second term it is a bound for each output by itself too (`each`), and larger by up to that of C
outputs. All in float64. Slow references: `ridge_plain`, `ridge_exact`.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distillery.checks import InputError, check_finite, check_positive
from distillery.networks.ridge import factor
from distillery.scores.geometry import check_features
from distillery.scores.registry import register_score

if TYPE_CHECKING:
    from distillery.scores.cached import CachedScores

LARGEST = 10_000  # points whose kernel is held as one matrix, 800 MB
BLOCK = 1024  # rows in float64 at once
CUTOFF = 1e-10  # eigenvalues below this part of the greatest count as zero


@dataclass(frozen=True, eq=False)
class Ridge:
    r"""What a ridge regression says of its samples.

    leverage   (N,) $l_i = \varphi_i^\top(\Phi^\top\Phi + \lambda I)^{-1}\varphi_i$: how alone a sample is
    label      (N,) $\lVert r_i \rVert^2 / \mathrm{OPT}$, its share of what the full solution leaves unexplained, at most 1 in all; with `each`
               $r_i^\top G^+ r_i$, at most C in all
    optimum    the least loss, the trace of $G = Y^\top (I - H) Y$
    effective_dimension  the sum of the leverages
    penalty    lambda
    """

    leverage: Tensor
    label: Tensor
    optimum: float
    effective_dimension: float
    penalty: float

    @property
    def tau(self) -> Tensor:
        """The bounds where the penalty is kept and only points are drawn, (N,)."""
        return self.leverage + self.label

    @property
    def scores(self) -> Tensor:
        """Upper bounds of the sensitivities, (N,): those of the points and the shared penalty."""
        return self.tau + 1 / len(self.leverage)


def penalty_of(trace: float, n: int, rho: float = 5e-3) -> float:
    """Lambda as a part of the mean diagonal of a kernel. Raises InputError on a rho or a trace that is not above 0."""
    check_positive("rho", rho)
    if not 0 < trace < math.inf:
        raise InputError(f"kernel: its trace is {trace:g}; accepted: points of which at least one is not zero")
    return rho * trace / n


def ridge_features(features: Tensor, targets: Tensor, penalty: float, each: bool = False) -> Ridge:
    """Sensitivities of a linear ridge regression on features of any number of points: by BLOCK rows, beside three matrices (p, p).

    features  (N, p) floats
    targets   (N, C) floats, or (N,) for one output
    penalty   lambda
    each      bound the share that a point has in the loss of each output (and any mix of them) too, not of their sum alone
    raises    InputError on a penalty not above 0, values that are not finite, and other lengths; RunFailed as `factor`
    Source: see the module. Slow reference: `ridge_plain`.
    """
    targets = _checked(features, targets, penalty)
    p, c = features.shape[1], targets.shape[1]
    gram, cross = (torch.zeros(p, width, dtype=torch.float64, device=features.device) for width in (p, c))
    for rows, labels in zip(features.split(BLOCK), targets.split(BLOCK)):
        rows = rows.double()
        gram.addmm_(rows.T, rows)
        cross.addmm_(rows.T, labels)
    gram.diagonal().add_(penalty)
    lower = factor(gram, "Gram matrix + ridge")
    del gram
    weights = torch.cholesky_solve(cross, lower)  # (p, C)
    leverage, residuals = [], []
    for rows, labels in zip(features.split(BLOCK), targets.split(BLOCK)):
        rows = rows.double()
        residuals.append(labels - rows @ weights)
        leverage.append(torch.linalg.solve_triangular(lower, rows.T, upper=False).square().sum(0))
    residuals = torch.cat(residuals)  # (N, C)
    # Y^T R is the same, but where the penalty is small it is lost in rounding
    unexplained = residuals.T @ residuals + penalty * weights.T @ weights  # (C, C)
    return _ridge(torch.cat(leverage), residuals, unexplained, penalty, each)


def ridge_kernel(kernel: Tensor, targets: Tensor, penalty: float, each: bool = False) -> Ridge:
    """The same from a kernel (N, N) of all points: leverages 1 - lambda A_ii and residuals lambda A Y with A = (K + lambda I)^-1.

    kernel  symmetric
    raises  InputError as `ridge_features`
    """
    targets = _checked(kernel, targets, penalty, "kernel")
    shifted = kernel.to(torch.float64, copy=True)
    shifted.diagonal().add_(penalty)
    inverse = torch.cholesky_inverse(factor(shifted, "kernel + ridge"))
    del shifted
    leverage = 1 - penalty * inverse.diagonal()
    if float(leverage.min()) < -1e-3:  # more than rounding, unless the ridge is as small as that
        raise InputError(f"kernel: leverages down to {float(leverage.min()):.1e}; accepted: a kernel without negative eigenvalues")
    residuals = penalty * (inverse @ targets)
    return _ridge(leverage.clamp_min(0), residuals, targets.T @ residuals, penalty, each)


def _checked(rows: Tensor, targets: Tensor, penalty: float, name: str = "features") -> Tensor:
    """Targets as (N, C) float64 where everything fits."""
    check_positive("penalty", penalty)
    check_features(rows, name=name)
    if targets.ndim not in (1, 2) or len(targets) != len(rows) or not targets.is_floating_point():
        raise InputError(f"targets: {tuple(targets.shape)} {targets.dtype} for {len(rows)} points; accepted: floats (N,) or (N, C)")
    check_finite("targets", targets)
    return (targets[:, None] if targets.ndim == 1 else targets).double()


def _ridge(leverage: Tensor, residuals: Tensor, unexplained: Tensor, penalty: float, each: bool) -> Ridge:
    optimum = float(unexplained.trace())
    if not optimum > 0:
        raise InputError("targets: all are zero; accepted: labels of which at least one is not")
    scaled = residuals @ _half_inverse((unexplained + unexplained.T) / 2) if each else residuals / optimum**0.5
    return Ridge(leverage, scaled.square().sum(1), optimum, float(leverage.sum()), float(penalty))


def ridge_plain(features: Tensor, targets: Tensor, penalty: float, each: bool = False) -> Ridge:
    """By the definitions: a dense inverse, one point after another."""
    rows = features.double()
    labels = (targets[:, None] if targets.ndim == 1 else targets).double()
    inverse = torch.linalg.inv(rows.T @ rows + penalty * torch.eye(rows.shape[1], dtype=torch.float64))
    weights = inverse @ rows.T @ labels
    hat = rows @ inverse @ rows.T
    unexplained = labels.T @ (torch.eye(len(rows), dtype=torch.float64) - hat) @ labels
    outputs = torch.eye(labels.shape[1], dtype=torch.float64)
    share = torch.linalg.pinv(unexplained, rtol=CUTOFF, hermitian=True) if each else outputs / unexplained.trace()
    leverage, label = [], []
    for phi, y in zip(rows, labels):
        residual = y - weights.T @ phi
        leverage.append(phi @ inverse @ phi)
        label.append(residual @ share @ residual)
    return Ridge(torch.stack(leverage), torch.stack(label), float(unexplained.trace()), float(hat.trace()), penalty)


def ridge_exact(features: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """The sensitivities themselves (N,), of targets (N,) or (N, C): each the greatest of all ratios of two quadratic forms.

    With z = [vec W; -1] every f_i is z^T A_i z and their sum z^T M z, so the supremum is the largest eigenvalue of M^-1/2 A_i M^-1/2.
    """
    labels = (targets[:, None] if targets.ndim == 1 else targets).double()
    (n, p), c = features.shape, labels.shape[1]
    # a point has a row [0 .. phi .. 0; y] of each output
    rows = torch.cat([torch.kron(torch.eye(c, dtype=torch.float64), features.double()), labels.T.reshape(-1, 1)], 1)
    points = rows.view(c, n, -1).transpose(0, 1)  # (N, C, p C + 1)
    ridge = torch.diag(torch.tensor([float(penalty)] * (p * c) + [0.0], dtype=torch.float64))
    half = _half_inverse(rows.T @ rows + ridge)
    return torch.stack([torch.linalg.eigvalsh(half.T @ (one.T @ one + ridge / n) @ half)[-1] for one in points])


def _half_inverse(matrix: Tensor) -> Tensor:
    """(D, rank): V with V^T M V = I on the range of M."""
    values, vectors = torch.linalg.eigh(matrix)
    kept = values > CUTOFF * values[-1]
    return vectors[:, kept] / values[kept].sqrt()


# Scores by name; the space they are measured in is an experiment's


@register_score("ridge sensitivity", seeded=False, labels=True, version=2, spec=lambda scores: scores.space("ridge"))
def ridge_sensitivity(scores: "CachedScores", seed: int, k: int) -> Tensor:
    """The bounds `Ridge.scores` of a ridge regression on the labels."""
    tau = scores.ridge()["tau"]
    return tau + 1 / len(tau)


@register_score("leverage", seeded=False, labels=True, spec=lambda scores: scores.space("ridge"))
def ridge_leverage(scores: "CachedScores", seed: int, k: int) -> Tensor:
    """The leverages of a ridge regression, its sensitivities without labels."""
    return scores.ridge()["leverage"]
