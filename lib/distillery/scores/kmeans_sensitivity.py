"""Sensitivities of points for k-means, D^2 seeding, and the exact form for one cluster. Slow reference: `kmeans_plain`."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from distillery.checks import InputError, check_positive_int
from distillery.scores.geometry import check_features
from distillery.scores.registry import ORDERS, register_score

if TYPE_CHECKING:
    from distillery.scores.cached import CachedScores


def one_means(rows: Tensor) -> Tensor:
    """Exact sensitivities of k-means with one centre (N,): 1 / n + squared distance to the mean over the sum of all; total 2."""
    check_features(rows, name="rows")
    rows = rows.double() - rows[0].double()  # copies are exactly zero, which those of a rounded mean are not
    distance = (rows - rows.mean(0)).square().sum(1)  # (N,)
    if not float(distance.sum()) > 0:
        raise InputError(f"rows: all {len(rows)} are the same; accepted: rows of which at least two differ")
    return 1 / len(rows) + distance / distance.sum()


def seeding(rows: Tensor, k: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """k distinct indices: the first uniform, each next with chances in proportion to its squared distance to those before.

    returns  these centres (k,), each row's squared distance to the nearest (N,), and which that is (N,)
    raises   InputError as `check_features`, and where fewer than k rows differ
    Source: k-means++, Arthur & Vassilvitskii 2007. Slow reference: scikit-learn's `kmeans_plusplus` with one trial.
    """
    check_positive_int("k", k)
    check_features(rows, name="rows")
    rows = rows if rows.dtype == torch.float64 else rows.float()
    own = torch.einsum("nf,nf->n", rows, rows)
    noise = 1e-3 if rows.dtype == torch.float32 else 1e-6  # below this part of the norms a product is too coarse
    nearest, which = torch.full_like(own, torch.inf), torch.zeros_like(own, dtype=torch.int64)
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
            raise InputError(f"k: {k} centres of {len(rows)} rows, of which {len(chosen)} differ; accepted: at most {len(chosen)}")
        point = torch.rand((), generator=generator, dtype=torch.float64) * total[-1]
        chosen.append(min(int(torch.searchsorted(total, point, right=True)), len(rows) - 1))


def kmeans(rows: Tensor, k: int, generator: Generator) -> tuple[Tensor, Tensor]:
    r"""Bounds (N,) of the sensitivities of k-means with k centres, and the centres $B$ (k,) by `seeding` that they are of.

    $$\sigma(x) = \frac{2\alpha\, d(x)}{\mathrm{cost}(B)} + \frac{4\alpha\,\mathrm{cost}(B_x)}{|B_x|\,\mathrm{cost}(B)} + \frac{4}{|B_x|}$$

    with $d$ the squared distance to the nearest centre and $B_x$ its cluster; their total is $6\alpha + 4k$. With probability 1/2
    $\alpha = 16(\ln k + 2)$ is at least $\mathrm{cost}(B) / \mathrm{OPT}$ (Arthur & Vassilvitskii 2007, and Markov). With one centre two
    thirds of the total are the same for all rows: `one_means` is exact there.

    rows    (N, F)
    raises  InputError as `seeding`, and where the centres leave no distance
    Source: Bachem, arXiv 1703.06476. Slow reference: `kmeans_plain`.
    """
    centres, distance, which = seeding(rows, k, generator)
    cost = float(distance.sum())
    if not cost > 0:
        raise InputError(f"rows: {k} centres leave no distance; accepted: fewer centres than different rows")
    alpha = 16 * (math.log(k) + 2)
    sizes = torch.bincount(which, minlength=k).double()
    costs = torch.zeros_like(sizes).index_add_(0, which, distance)
    return 2 * alpha * distance / cost + (4 * alpha * costs / (sizes * cost) + 4 / sizes)[which], centres


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
        found.append(2 * factor * d / cost + 4 * factor * sum(members) / (len(members) * cost) + 4 / len(members))
    return found


@register_score("k-means sensitivity", labels=True, version=2, spec=lambda scores: scores.space("k-means"))
def cluster_sensitivity(scores: "CachedScores", seed: int, k: int) -> Tensor:
    """Within each class, of k clusters: exact for one (`one_means`), else the bounds of `kmeans`."""
    return scores.clusters(seed, k)


ORDERS["k-means++"] = lambda scores: scores.space("k-means")
