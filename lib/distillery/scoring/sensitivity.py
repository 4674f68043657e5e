r"""Sensitivities: the most that one sample can contribute to a loss, over everything the loss may be asked about.

$$s_i = \sup_q \frac{f_i(q)}{\sum_j f_j(q)}$$

Samples drawn with chances in proportion to upper bounds of $s_i$, and weighted by one over them, stand for all samples: for
every query at once where enough are drawn (`sample_size`). Construction after the abstract of arXiv 2307.08086, whose formulas
could not be read: kernel ridge regression for distillers that fit one, k-means for all others.

| loss | bound | source |
|---|---|---|
| ridge regression, $f_i = \lVert W^\top\varphi_i - y_i\rVert^2 + \tfrac{\lambda}{n}\lVert W\rVert^2$ | $\tau_i + 1/n$, tight to $1/n$ for one output | block inverse of the joint Gram matrix |
| k-means with k centres | seeding by squared distance, then two triangle inequalities | Bachem, arXiv 1703.06476 |
| one mean | exact | the same |

All in float64 but for distances to centres, which are in the precision of the rows. Slow references: `ridge_plain`, `ridge_exact`,
`kmeans_plain`, `deviation_plain`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from distillery.checks import InputError, check_choice, check_finite, check_positive_int
from distillery.scoring.geometry import check_features

LARGEST = 10_000  # points whose kernel is held as one matrix, 800 MB
BLOCK = 1024  # rows in float64 at once
FACTORS = ("bounded", "measured")
CUTOFF = 1e-10  # eigenvalues below this part of the greatest count as zero


@dataclass(frozen=True, eq=False)
class Ridge:
    r"""What a ridge regression says of its samples.

    leverage   (N,) $l_i = \varphi_i^\top(\Phi^\top\Phi + \lambda I)^{-1}\varphi_i$: how alone a sample is
    label      (N,) $r_i^\top G^+ r_i$: its share of what the full solution leaves unexplained; for one output $r_i^2 / \mathrm{OPT}$
               (of several outputs a bound, sound for each output by itself; of their sum $\lVert r_i \rVert^2 / \mathrm{OPT}$ is exact)
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

    @property
    def total(self) -> float:
        return float(self.scores.sum())


def centred(targets: Tensor, classes: int) -> Tensor:
    """Classes (N,) as centred one-hot labels (N, classes) float64: 1 - 1 / classes on the class, -1 / classes elsewhere."""
    hot = targets[:, None] == torch.arange(classes, device=targets.device)
    return hot.double() - 1 / classes


def penalty_of(trace: float, n: int, rho: float = 5e-3) -> float:
    """Lambda as a part of the mean diagonal of a kernel. Raises InputError on a rho or a trace that is not above 0."""
    if not 0 < rho < math.inf:
        raise InputError(f"rho: {rho} is not accepted; accepted: a ridge above 0")
    if not 0 < trace < math.inf:
        raise InputError(
            f"kernel: its trace is {trace:g}; accepted: points of which at least one is not zero"
        )
    return rho * trace / n


def check_points(n: int) -> None:
    """Raise InputError where a kernel is too large to hold."""
    if n > LARGEST:
        raise InputError(
            f"kernel: {n} points; accepted: at most {LARGEST}, or `ridge_features` of any number of points"
        )


def factor(matrix: Tensor, name: str) -> Tensor:
    """The lower Cholesky factor of a symmetric matrix. Raises InputError with its conditioning where there is none."""
    lower, info = torch.linalg.cholesky_ex(matrix)
    if int(info) or not bool(lower.diagonal().isfinite().all()):
        if not bool(matrix.isfinite().all()):
            raise InputError(f"{name}: values that are not finite; accepted: finite numbers")
        values = torch.linalg.eigvalsh(matrix.detach())
        low, high = float(values[0]), float(values[-1])
        condition = f"condition {high / low:.1e}" if low > 0 else "not positive"
        raise InputError(
            f"{name}: no Cholesky factor of {len(matrix)} rows, eigenvalues from {low:.2e} to {high:.2e} ({condition}); "
            "accepted: a positive definite matrix, such as by a larger ridge"
        )
    return lower


def ridge_features(features: Tensor, targets: Tensor, penalty: float, block: int = BLOCK) -> Ridge:
    """Sensitivities of a linear ridge regression on features, in blocks of rows: any number of points.

    features  (N, p) floats
    targets   (N, C) floats, or (N,) for one output
    penalty   lambda
    block     rows at once in float64, beside which three matrices (p, p) are held
    raises    InputError on a penalty not above 0, values that are not finite, other lengths, and a matrix without a factor
    Source: see the module. Slow reference: `ridge_plain`.
    """
    check_positive_int("block", block)
    targets = _checked(features, targets, penalty)
    p, c = features.shape[1], targets.shape[1]
    gram = torch.zeros(p, p, dtype=torch.float64, device=features.device)
    cross = torch.zeros(p, c, dtype=torch.float64, device=features.device)
    for rows, labels in zip(features.split(block), targets.split(block)):
        rows = rows.double()
        gram.addmm_(rows.T, rows)
        cross.addmm_(rows.T, labels)
    gram.diagonal().add_(penalty)
    lower = factor(gram, "Gram matrix + ridge")
    del gram
    weights = torch.cholesky_solve(cross, lower)  # (p, C)
    leverage, residuals = [], []
    for rows, labels in zip(features.split(block), targets.split(block)):
        rows = rows.double()
        residuals.append(labels - rows @ weights)
        leverage.append(torch.linalg.solve_triangular(lower, rows.T, upper=False).square().sum(0))
    residuals = torch.cat(residuals)  # (N, C)
    # Y^T R is the same, but where the penalty is small it is lost in rounding
    unexplained = residuals.T @ residuals + penalty * weights.T @ weights  # (C, C)
    return _ridge(torch.cat(leverage), residuals, unexplained, penalty)


def ridge_kernel(kernel: Tensor, targets: Tensor, penalty: float) -> Ridge:
    """The same from a kernel (N, N) of all points: leverages 1 - lambda A_ii and residuals lambda A Y with A = (K + lambda I)^-1.

    raises  InputError as `ridge_features`, on a kernel that is not square and symmetric, and above LARGEST points
    """
    if kernel.ndim != 2 or len(kernel) != kernel.shape[1]:
        raise InputError(f"kernel: {tuple(kernel.shape)}; accepted: a square matrix (N, N)")
    check_points(len(kernel))
    targets = _checked(kernel, targets, penalty, "kernel")
    gap = max(float((a - b).abs().max()) for a, b in zip(kernel.split(BLOCK), kernel.T.split(BLOCK)))
    if gap > 1e-6 * float(kernel.abs().max()):
        raise InputError(f"kernel: not symmetric, entries differ by up to {gap:.1e}; accepted: K = K^T")
    shifted = kernel.to(torch.float64, copy=True)
    shifted.diagonal().add_(penalty)
    inverse = torch.cholesky_inverse(factor(shifted, "kernel + ridge"))
    del shifted
    leverage = 1 - penalty * inverse.diagonal()
    if float(leverage.min()) < -1e-3:  # more than rounding, unless the ridge is as small as that
        raise InputError(
            f"kernel: leverages down to {float(leverage.min()):.1e}; accepted: a kernel without negative eigenvalues"
        )
    residuals = penalty * (inverse @ targets)
    return _ridge(leverage.clamp_min(0), residuals, targets.T @ residuals, penalty)


def _checked(rows: Tensor, targets: Tensor, penalty: float, name: str = "features") -> Tensor:
    """Targets as (N, C) float64 where everything fits."""
    if not isinstance(penalty, int | float) or not 0 < penalty < math.inf:
        raise InputError(f"penalty: {penalty!r} is not accepted; accepted: a ridge above 0")
    check_features(rows, name=name)
    if targets.ndim not in (1, 2) or len(targets) != len(rows) or not targets.is_floating_point():
        raise InputError(
            f"targets: {tuple(targets.shape)} {targets.dtype} for {len(rows)} points; accepted: floats (N,) or (N, C)"
        )
    check_finite("targets", targets)
    return (targets[:, None] if targets.ndim == 1 else targets).double()


def _ridge(leverage: Tensor, residuals: Tensor, unexplained: Tensor, penalty: float) -> Ridge:
    unexplained = (unexplained + unexplained.T) / 2
    values, vectors = torch.linalg.eigh(unexplained)
    kept = values > CUTOFF * values[-1]
    if not bool(kept.any()):
        raise InputError("targets: all are zero; accepted: labels of which at least one is not")
    whitened = residuals @ (vectors[:, kept] / values[kept].sqrt())  # (N, rank)
    label = whitened.square().sum(1)
    return Ridge(leverage, label, float(unexplained.trace()), float(leverage.sum()), float(penalty))


def ridge_plain(features: Tensor, targets: Tensor, penalty: float) -> Ridge:
    """By the definitions: a dense inverse, one point after another."""
    rows = features.double()
    labels = (targets[:, None] if targets.ndim == 1 else targets).double()
    inverse = torch.linalg.inv(rows.T @ rows + penalty * torch.eye(rows.shape[1], dtype=torch.float64))
    weights = inverse @ rows.T @ labels
    hat = rows @ inverse @ rows.T
    unexplained = labels.T @ (torch.eye(len(rows), dtype=torch.float64) - hat) @ labels
    share = torch.linalg.pinv(unexplained, rtol=CUTOFF, hermitian=True)
    leverage, label = [], []
    for phi, y in zip(rows, labels):
        residual = y - weights.T @ phi
        leverage.append(phi @ inverse @ phi)
        label.append(residual @ share @ residual)
    return Ridge(
        torch.stack(leverage), torch.stack(label), float(unexplained.trace()), float(hat.trace()), penalty
    )


def ridge_exact(features: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """The sensitivities themselves (N,), for one output (N,): each the greatest of all ratios of two quadratic forms.

    With z = [w; -1] every f_i is z^T A_i z and their sum z^T M z, so the supremum is the largest eigenvalue of M^-1/2 A_i M^-1/2.
    """
    a = torch.cat([features.double(), targets.double()[:, None]], 1)  # (N, p + 1)
    n, p = features.shape
    ridge = torch.diag(torch.tensor([float(penalty)] * p + [0.0], dtype=torch.float64))
    half = _half_inverse(a.T @ a + ridge)
    return torch.stack(
        [torch.linalg.eigvalsh(half.T @ (torch.outer(x, x) + ridge / n) @ half)[-1] for x in a]
    )


def one_means(rows: Tensor) -> Tensor:
    """Exact sensitivities of k-means with one centre (N,): 1 / n + squared distance to the mean over the sum of all; total 2."""
    check_features(rows, name="rows")
    rows = rows.double() - rows[0].double()  # copies are exactly zero, which those of a rounded mean are not
    distance = (rows - rows.mean(0)).square().sum(1)  # (N,)
    if not float(distance.sum()) > 0:
        raise InputError(f"rows: all {len(rows)} are the same; accepted: rows of which at least two differ")
    return 1 / len(rows) + distance / distance.sum()


def seeding(rows: Tensor, k: int, generator: Generator) -> Tensor:
    """k distinct indices: the first uniform, each next with chances in proportion to its squared distance to those before.

    raises  InputError as `check_features`, and where fewer than k rows differ
    Source: k-means++, Arthur & Vassilvitskii 2007. Slow reference: scikit-learn's `kmeans_plusplus` with one trial.
    """
    return _seeded(rows, k, generator)[0]


def _seeded(rows: Tensor, k: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """The centres (k,), and each row's squared distance to the nearest (N,) and which that is (N,)."""
    check_positive_int("k", k)
    check_features(rows, name="rows")
    if k > len(rows):
        raise InputError(f"k: {k} centres of {len(rows)} rows; accepted: at most {len(rows)}")
    if rows.dtype != torch.float64:
        rows = rows.float()
    own = torch.einsum("nf,nf->n", rows, rows)
    noise = (
        1e-3 if rows.dtype == torch.float32 else 1e-6
    )  # below this part of the norms a product is too coarse
    nearest = torch.full((len(rows),), torch.inf, dtype=rows.dtype, device=rows.device)
    which = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    chosen = [int(torch.randint(len(rows), (), generator=generator))]
    while True:
        at = chosen[-1]
        distance = own + own[at] - 2 * (rows @ rows[at])
        close = torch.nonzero(distance <= noise * (own + own[at]))[:, 0]
        distance[close] = (rows[close] - rows[at]).square().sum(1)
        closer = distance < nearest
        nearest = torch.where(closer, distance, nearest)
        which = torch.where(closer, len(chosen) - 1, which)
        if len(chosen) == k:
            return torch.tensor(chosen, device=rows.device), nearest.double(), which
        total = nearest.double().cpu().cumsum(0)
        if not float(total[-1]) > 0:
            raise InputError(
                f"k: {k} centres of {len(rows)} rows, of which {len(chosen)} differ; accepted: at most {len(chosen)}"
            )
        point = torch.rand((), generator=generator, dtype=torch.float64) * total[-1]
        chosen.append(min(int(torch.searchsorted(total, point, right=True)), len(rows) - 1))


@dataclass(frozen=True, eq=False)
class KMeans:
    """scores (N,) bounds of the sensitivities; centres (k,) indices; factor alpha; cost of the centres."""

    scores: Tensor
    centres: Tensor
    factor: float
    cost: float

    @property
    def total(self) -> float:
        """6 alpha + 4 k."""
        return float(self.scores.sum())


def kmeans(rows: Tensor, k: int, generator: Generator, factor: str = "bounded") -> KMeans:
    r"""Bounds of the sensitivities of k-means with k centres, from centres $B$ by `seeding`.

    $$\sigma(x) = \frac{2\alpha\, d(x)}{\mathrm{cost}(B)} + \frac{4\alpha\,\mathrm{cost}(B_x)}{|B_x|\,\mathrm{cost}(B)} + \frac{4}{|B_x|}$$

    with $d$ the squared distance to the nearest centre, $B_x$ its cluster and $\alpha \ge \mathrm{cost}(B) / \mathrm{OPT}$.

    rows    (N, F)
    factor  'bounded': 16 (ln k + 2), which holds with probability 1/2 (Markov); 'measured': over the best of five runs of Lloyd's
            iteration, whose cost is at least the optimum, so that it may be too small
    raises  InputError as `seeding`, and where the centres leave no distance
    Slow reference: `kmeans_plain`.
    """
    check_choice("factor", factor, FACTORS)
    centres, distance, which = _seeded(rows, k, generator)
    cost = float(distance.sum())
    if not cost > 0:
        raise InputError(f"rows: {k} centres leave no distance; accepted: fewer centres than different rows")
    if factor == "measured":
        from sklearn.cluster import KMeans as Lloyd

        seed = int(torch.randint(2**31 - 1, (), generator=generator))
        given = rows.cpu().double().numpy()
        starts = [
            Lloyd(k, init=given[centres.cpu().numpy()], n_init=1),
            Lloyd(k, n_init=4, random_state=seed),
        ]
        alpha = max(1.0, cost / min(one.fit(given).inertia_ for one in starts))
    else:
        alpha = 16 * (math.log(k) + 2)
    sizes = torch.bincount(which, minlength=k).double()
    costs = torch.zeros_like(sizes).index_add_(0, which, distance)
    scores = 2 * alpha * distance / cost + (4 * alpha * costs / (sizes * cost) + 4 / sizes)[which]
    return KMeans(scores, centres, alpha, cost)


def kmeans_plain(rows: Tensor, centres: list[int], factor: float) -> list[float]:
    """The bound of every row, one after another."""
    rows = rows.double()
    distance, cluster = [], []
    for x in rows:
        gaps = [float((x - rows[c]).square().sum()) for c in centres]
        distance.append(min(gaps))
        cluster.append(gaps.index(min(gaps)))
    cost, found = sum(distance), []
    for d, b in zip(distance, cluster):
        members = [other for other, c in zip(distance, cluster) if c == b]
        found.append(
            2 * factor * d / cost + 4 * factor * sum(members) / (len(members) * cost) + 4 / len(members)
        )
    return found


def sample(scores: Tensor, m: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """m independent draws with chances p = scores / sum: indices (m,), with repeats, and weights 1 / (m p) (m,) float64.

    Sums with these weights are unbiased.

    raises  InputError on scores that are not (N,), negative, not finite or all zero
    """
    check_positive_int("m", m)
    if scores.ndim != 1:
        raise InputError(f"scores: {tuple(scores.shape)}; accepted: one score a sample, (N,)")
    check_finite("scores", scores)
    total = float(scores.double().sum())
    if (scores < 0).any() or not total > 0:
        raise InputError(
            f"scores: {int((scores < 0).sum())} of {len(scores)} below 0, total {total:g}; accepted: none below 0, a total above 0"
        )
    chance = scores.double().cpu() / total
    drawn = torch.multinomial(chance, m, replacement=True, generator=generator)
    return drawn.to(scores.device), (1 / (m * chance[drawn])).to(scores.device)


def sample_size(total: float, error: float, failure: float, dimension: int) -> int:
    r"""Draws after which every loss is within `error` of its estimate, but with probability `failure`.

    $m = \lceil (2t/\varepsilon^2)(1 + \varepsilon/3) \ln(2D/\delta) \rceil$: matrix Bernstein with $D$ the rank of the features plus the
    outputs holds for all weights of a ridge regression, scalar Bernstein for $D$ given queries of any loss.

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
        raise InputError(
            f"total {total}, failure {failure}, dimension {dimension}; accepted: above 0, in (0, 1), above 0"
        )


def deviation(features: Tensor, targets: Tensor, penalty: float, indices: Tensor, weights: Tensor) -> float:
    r"""The greatest |F_S(W) / F(W) - 1| over all weights W of a ridge regression, exactly.

    With $\Phi^\top\Phi + \lambda I = L L^\top$, $W = W^* + L^{-\top} U$ and $v_i = L^{-1} \varphi_i$ the loss is
    $F = \lVert U \rVert^2 + \mathrm{OPT}$ and its error $\sum_i (w_i - 1) \lVert r_i - U^\top v_i \rVert^2$: a quadratic form of U and 1. In
    the eigenvectors of $\sum_i (w_i - 1) v_i v_i^\top$ all outputs meet in one more row and column.

    indices, weights  (m,) of a sample, whose penalty is that of the full loss
    raises            InputError as `ridge_features`
    Slow reference: `deviation_plain`.
    """
    targets = _checked(features, targets, penalty)
    rows = features.double()
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


def deviation_plain(
    features: Tensor, targets: Tensor, penalty: float, indices: Tensor, weights: Tensor
) -> float:
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


def _half_inverse(matrix: Tensor) -> Tensor:
    """(D, rank): V with V^T M V = I on the range of M."""
    values, vectors = torch.linalg.eigh(matrix)
    kept = values > CUTOFF * values[-1]
    return vectors[:, kept] / values[kept].sqrt()
