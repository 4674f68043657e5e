r"""Scores from the geometry of features. Greedy methods return their rank in the order of taking: low = chosen first.

| function | what it takes or measures | source |
|---|---|---|
| `herding` | each next sample brings the mean of the chosen ones closest to the class mean | Welling 2009, as in iCaRL |
| `kmeans_nearest` | the sample nearest to each of n cluster centres | |
| `k_center` | always the sample farthest from all chosen ones | Sener & Savarese, ICLR 2018 |
| `contextual_diversity` | the same, by symmetric KL between softmax outputs | Agarwal, ECCV 2020 |
| `prototype_distance` | distance to the centre of the class; keeping the middle of it is Moderate | Xia, ICLR 2023 |
| `d2` | difficulty passed along a graph of neighbours, then diversity | Maharana, ICLR 2024 |
| `mmd` | how far a selection is from the whole set, for reports | Gretton, JMLR 2012 |

Features are (N, F), targets (N,), None for one group without classes; all on the CPU. Work is done in float64. Ties go to the
smaller index. Slow references: `herding_plain`, `k_center_plain` (of both k-center methods), `d2_plain`, `mmd_plain`.
"""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from distillery.checks import InputError, check_finite, check_positive_int
from distillery.scores.registry import register_score

if TYPE_CHECKING:
    from distillery.scores.cached import CachedScores

BLOCK = 256  # rows whose distances to all others are held at once
SUBSET = 1000  # rows from which the bandwidth of `mmd` is taken
LEAST = 1e-12  # probabilities are at least this, so that their logarithms are finite


def check_features(features: Tensor, n: int | None = None, name: str = "features") -> None:
    """Raise InputError unless `features` are (N, F) finite floats, with N = n where n is given."""
    if features.ndim != 2 or not features.is_floating_point() or not features.numel():
        raise InputError(f"{name}: {tuple(features.shape)} {features.dtype}; accepted: floats (N, F), neither of them zero")
    if n is not None and len(features) != n:
        raise InputError(f"{name}: {len(features)} rows for {n} samples; accepted: one row a sample, ({n}, F)")
    check_finite(name, features)


def herding(features: Tensor, targets: Tensor | None, n: int) -> Tensor:
    """Rank (N,) in which herding takes samples of each class, 0 first; n of each class are ranked, the rest get N.

    raises  InputError as `check_features`, or unless n is a positive whole number
    Source: Welling 2009. Slow reference: `herding_plain`.
    """
    return _rank(features, targets, n, _herd)


def _herd(rows: Tensor, n: int) -> list[int]:
    """With c = z - mean, ||mean - (total + z) / (k + 1)|| is ||sum of chosen c + c|| / (k + 1): one product a pick."""
    rows -= rows.mean(0)
    own = torch.einsum("nf,nf->n", rows, rows)  # (N,)
    slack = 1e-12 * float(own.max())  # a product rounds copies of a sample differently, by their place
    total, chosen = torch.zeros_like(rows[0]), []
    for _ in range(n):
        gap = own + 2 * (rows @ total)  # (N,)
        chosen.append(int((gap <= gap.min() + slack).int().argmax()))
        own[chosen[-1]] = torch.inf
        total += rows[chosen[-1]]
    return chosen


def herding_plain(rows: Tensor, n: int) -> list[int]:
    """Herding of one class by its definition: try every sample, keep the one whose new mean is nearest."""
    chosen: list[int] = []
    for _ in range(n):
        free = [i for i in range(len(rows)) if i not in chosen]
        chosen.append(min(free, key=lambda i: float((rows[chosen + [i]].mean(0) - rows.mean(0)).norm())))
    return chosen


def kmeans_nearest(features: Tensor, targets: Tensor | None, n: int, generator: Generator) -> Tensor:
    """Rank (N,): 0..n-1 for the distinct real samples nearest to n k-means centres of each class, N for the rest.

    Centres of larger clusters come first. Clustering by scikit-learn, seeded from the generator.
    """
    from sklearn.cluster import KMeans

    def nearest(rows: Tensor, clusters: int) -> list[int]:
        seed, chosen = int(torch.randint(2**31 - 1, (), generator=generator)), []
        fitted = KMeans(clusters, n_init=3, random_state=seed).fit(rows.numpy())
        distance = torch.from_numpy(fitted.transform(rows.numpy()))  # (members, clusters)
        sizes = torch.bincount(torch.from_numpy(fitted.labels_).long(), minlength=clusters)
        for centre in sizes.argsort(descending=True, stable=True):
            chosen.append(int(distance[:, centre].argmin()))
            distance[chosen[-1]] = torch.inf  # distinct samples
        return chosen

    return _rank(features, targets, n, nearest)


def k_center(features: Tensor, targets: Tensor | None, n: int) -> Tensor:
    """Rank (N,) of k-center greedy within each class by Euclidean distance: n of each class are ranked, the rest get N.

    The sample nearest to the class mean is the first, as there is no given pool to start from; then always the one farthest from its
    nearest chosen one. Raises InputError as `herding`. Source: Sener & Savarese 2018, Algorithm 1. Slow reference: `k_center_plain`.
    """
    return _rank(features, targets, n, lambda rows, k: _farthest_first(rows, k, _euclidean(rows)))


def contextual_diversity(probabilities: Tensor, targets: Tensor | None, n: int) -> Tensor:
    """Rank (N,) of k-center greedy within each class by the distance KL(p_a || p_b) + KL(p_b || p_a).

    probabilities  (N, C): softmax outputs, taken as at least 1e-12
    raises         InputError as `herding`
    Source: Agarwal 2020. Starts like `k_center`. Slow reference: `k_center_plain` with `symmetric_kl_plain`.
    """
    check_features(probabilities, None if targets is None else len(targets), "probabilities")
    rows = probabilities.double()
    assert ((rows.sum(1) - 1).abs() < 1e-3).all() and (rows >= 0).all(), "probabilities: rows that are no distributions"
    return _rank(rows.clamp_min(LEAST), targets, n, lambda rows, k: _farthest_first(rows, k, _symmetric_kl(rows)))


def _farthest_first(rows: Tensor, n: int, distance: Callable[[Tensor], Tensor]) -> list[int]:
    """k-center greedy; `distance` is that of one row (F,) to all, (N,)."""
    chosen = [int(distance(rows.mean(0)).argmin())]
    nearest = torch.full((len(rows),), torch.inf, dtype=rows.dtype)
    while len(chosen) < n:
        nearest = nearest.minimum(distance(rows[chosen[-1]]))
        nearest[chosen[-1]] = -1  # below the 0 of its copies
        chosen.append(int(nearest.argmax()))
    return chosen


def _euclidean(rows: Tensor) -> Callable[[Tensor], Tensor]:
    # by differences: a product of matrices would not give copies of a sample the distance 0
    way = "donot_use_mm_for_euclid_dist"
    return lambda one: torch.cdist(rows, one[None], compute_mode=way)[:, 0]  # (N,)


def _symmetric_kl(rows: Tensor) -> Callable[[Tensor], Tensor]:
    """The two directions sum up to (p_a - p_b) . (log p_a - log p_b)."""
    logs = rows.log()
    return lambda one: ((rows - one) * (logs - one.log())).sum(1)  # (N,)


def k_center_plain(rows: Tensor, n: int, distance: Callable | None = None) -> list[int]:
    """k-center greedy of one class by its definition: every free sample against every chosen one.

    distance  two rows -> float; Euclidean if not given
    """
    distance = distance or (lambda a, b: float((a - b).norm()))
    chosen = [min(range(len(rows)), key=lambda i: distance(rows[i], rows.mean(0)))]
    while len(chosen) < n:
        free = [i for i in range(len(rows)) if i not in chosen]
        chosen.append(max(free, key=lambda i: min(distance(rows[i], rows[s]) for s in chosen)))
    return chosen


def symmetric_kl_plain(a: Tensor, b: Tensor) -> float:
    """KL(a || b) + KL(b || a) of two distributions (C,), in nats."""
    pairs = [(max(p, LEAST), max(q, LEAST)) for p, q in zip(a.tolist(), b.tolist())]
    return sum(p * math.log(p / q) for p, q in pairs) + sum(q * math.log(q / p) for p, q in pairs)


def prototype_distance(features: Tensor, targets: Tensor | None) -> Tensor:
    """Euclidean distance (N,) of each sample to the mean of its class; far = hard. Raises InputError as `check_features`.

    With the rule 'middle' of `distillery.selection` this is the Moderate coreset, but within each class and about the mean; its public
    code takes the median of each coordinate and sorts the distances of all classes together. Source: Xia, ICLR 2023.
    """
    distance = torch.empty(len(features), dtype=torch.float64)
    for members, rows in groups(features, targets):
        distance[members] = _euclidean(rows)(rows.mean(0))
    return distance


def d2(features: Tensor, scores: Tensor, neighbours: int = 5, gamma: float = 1.0, targets: Tensor | None = None) -> Tensor:
    """Rank (N,) of all samples in which D2 pruning takes them, 0 first: hard ones, and from all over the set.

    With N(i) the nearest others of sample i and d their Euclidean distances, difficulty is first passed on,
    x_i <- x_i + sum over j in N(i) of exp(-d_ij) x_j, at once for all i. Then the sample i of greatest x is taken, again and again, and
    its neighbours are set back: x_j <- x_j - exp(-gamma d_ij) x_i. Where distances are far above 1, the order is that of the scores.

    scores      (N,): difficulty, not below 0, as in the paper: one below 0 would push its neighbours forward
    neighbours  size of N(i); all others where there are fewer
    gamma       0 sets neighbours back by all of x_i, large values not at all
    targets     (N,): neighbours are of the same class; the rank is still one of all samples. None: of any class
    raises      InputError as `check_features`
    Source: Maharana, ICLR 2024. Slow reference: `d2_plain`.
    """
    total = len(scores)
    check_features(features, total)
    check_finite("scores", scores)
    assert scores.ndim == 1 and (scores >= 0).all() and neighbours >= 1 and gamma >= 0, "difficulties (N,), neighbours and gamma"
    near, distance = nearest_others(features, targets, neighbours)
    there = distance.isfinite()
    passed, setback = ((-rate * distance).exp().where(there, 0.0) for rate in (1.0, gamma))  # (N, k)
    x = scores.double()
    x = x + (passed * x[near]).sum(1)  # (N,)
    rank = torch.empty(total)
    for i in range(total):
        best = int(x.argmax())
        x.index_add_(0, near[best], setback[best], alpha=-float(x[best]))
        x[best], rank[best] = -torch.inf, i
    return rank


def nearest_others(features: Tensor, targets: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest others (N, k) of each sample in its class and their distances; where there are fewer, any at distance infinity."""
    total = len(features)
    k = max(1, min(k, total - 1))
    near = torch.zeros(total, k, dtype=torch.long)
    distance = torch.full((total, k), torch.inf, dtype=torch.float64)
    for members, rows in groups(features, targets):
        size = min(k, len(members) - 1)
        for own in torch.arange(len(members)).split(BLOCK) if size else ():
            gaps = torch.cdist(rows[own], rows)  # (block, members)
            gaps[torch.arange(len(own)), own] = torch.inf
            values, indices = gaps.sort(dim=1, stable=True)  # topk may take any of equal ones
            near[members[own], :size] = members[indices[:, :size]]
            distance[members[own], :size] = values[:, :size]
    return near, distance


def d2_plain(features: Tensor, scores: Tensor, neighbours: int, gamma: float, targets: Tensor | None = None) -> list[int]:
    """All samples in the order in which D2 pruning takes them, by its definition."""
    n = len(features)
    d = [[float((a - b).norm()) for b in features] for a in features]

    def nearest(i):
        others = [j for j in range(n) if j != i and (targets is None or targets[j] == targets[i])]
        return sorted(others, key=lambda j: d[i][j])[:neighbours]

    graph = [nearest(i) for i in range(n)]
    x = scores.tolist()
    x = [x[i] + sum(math.exp(-d[i][j]) * x[j] for j in graph[i]) for i in range(n)]
    chosen: list[int] = []
    while len(chosen) < n:
        i = max((i for i in range(n) if i not in chosen), key=lambda i: x[i])
        chosen.append(i)
        for j in graph[i]:
            x[j] -= math.exp(-gamma * d[i][j]) * x[i]
    return chosen


def mmd(features: Tensor, kept: Tensor, bandwidth: float | None = None) -> float:
    """Squared maximum mean discrepancy between all rows and the kept ones, not below 0; 0 where everything is kept.

    By the kernel exp(-||a - b||^2 / (2 bandwidth^2)), a biased estimate (pairs of a row with itself count).
    kept       (M,): distinct indices
    bandwidth  if not given, the median distance of at most 1,000 evenly spaced rows of `features`: the same for all selections of a set
    raises     InputError as `check_features`, and on a bandwidth that is not above 0
    Source: Gretton, JMLR 2012, Eq. (5). Slow reference: `mmd_plain`.
    """
    check_features(features)
    assert kept.dtype == torch.long and len(kept.unique()) == len(kept) > 0 and kept.min() >= 0, "kept: distinct indices"
    total, rows = len(features), features.double()
    if bandwidth is None:
        size = min(total, SUBSET)
        bandwidth = float(torch.pdist(rows[torch.arange(size) * total // size]).median()) if total > 1 else 1.0
    if not 0 < bandwidth < math.inf:
        raise InputError(f"bandwidth: {bandwidth!r} is not accepted; accepted: a number above 0")
    # the two samples as one signed measure: the discrepancy is its squared norm
    weights = torch.full((total,), 1 / total, dtype=torch.float64)
    weights[kept] -= 1 / len(kept)
    found = sum(
        float(own @ (torch.cdist(block, rows).square() / (-2 * bandwidth**2)).exp() @ weights)
        for block, own in zip(rows.split(BLOCK), weights.split(BLOCK))
    )
    return max(found, 0.0)


def mmd_plain(features: Tensor, kept: Tensor, bandwidth: float) -> float:
    """The squared discrepancy by its definition: three means over pairs."""

    def mean(left, right):
        pairs = [float((a - b).square().sum()) for a in left for b in right]
        return sum(math.exp(-pair / (2 * bandwidth**2)) for pair in pairs) / len(pairs)

    chosen = features[kept]
    return mean(features, features) + mean(chosen, chosen) - 2 * mean(features, chosen)


def groups(features: Tensor, targets: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """The indices of each class, ascending, and a copy of their rows in float64."""
    check_features(features, None if targets is None else len(targets))
    targets = torch.zeros(len(features)) if targets is None else targets
    for label in targets.unique():
        members = torch.nonzero(targets == label)[:, 0]
        yield members, features[members].double()


def _rank(features: Tensor, targets: Tensor | None, n: int, order: Callable[[Tensor, int], list[int]]) -> Tensor:
    """Rank (N,) within each class of the n samples that `order` takes of its rows, N for the rest."""
    check_positive_int("n", n)
    rank = torch.full((len(features),), float(len(features)))
    for members, rows in groups(features, targets):
        chosen = order(rows, min(n, len(members)))
        rank[members[chosen]] = torch.arange(len(chosen), dtype=rank.dtype)
    return rank


# Scores by name, of all images


@register_score("prototype distance", needs="encoder", seeded=False, labels=True)
def encoder_distance(scores: "CachedScores", seed: int, k: int) -> Tensor:
    """`prototype_distance` of the features of the encoder."""
    return prototype_distance(scores.free()["features"], scores.images.targets.cpu()).float()


@register_score("D2", needs="masks", seeded=False, labels=True)
def encoder_d2(scores: "CachedScores", seed: int, k: int) -> Tensor:
    """`d2` by learning complexity, of features of unit length: its kernel exp(-d) knows no scale."""
    found = scores.free()
    return d2(F.normalize(found["features"]), found["losses"].mean(0), targets=scores.images.targets.cpu())


for _name, _rank_by in {"herding": herding, "k-center": k_center}.items():
    register_score(_name, needs="encoder", seeded=False, labels=True)(
        lambda scores, seed, k, rank=_rank_by: rank(scores.free()["features"], scores.images.targets.cpu(), len(scores.images))
    )


@register_score("contextual diversity", needs="tuning", labels=True)
def tuned_diversity(scores: "CachedScores", seed: int, k: int) -> Tensor:
    """`contextual_diversity` of the predictions of a fine-tuned network."""
    return contextual_diversity(scores.tuned(seed)["probabilities"], scores.images.targets.cpu(), len(scores.images))
