r"""Pruning by clusters of features ("concepts"): as many images of each as it is complex, the least prototypical ones first.

DBP, "Effective pruning of web-scale datasets based on complexity of concept clusters" (Abbas, ICLR 2024, arXiv 2401.04578). Duplicates are
removed, features of unit length $z_i$ are clustered by spherical k-means, and cluster $j$ of $N_j$ images with centre $c_j$ has

$$C_j = \underbrace{\operatorname{mean}_{l \in \mathcal N_j} (1 - \langle c_j, c_l \rangle)}_{d_{inter}} \;\cdot\;
\underbrace{\operatorname{mean}_{i \in j} (1 - \langle z_i, c_j \rangle)}_{d_{intra}}, \qquad P = \operatorname{softmax}(C / \tau)$$

with its 20 nearest other centres $\mathcal N_j$. Of $n$ images to keep, cluster $j$ keeps $x_j$, those farthest from its centre:

$$\min_x \sum_j (x_j - n P_j)^2 \quad \text{so that} \quad \sum_j x_j = n,\; l_j \le x_j \le N_j; \qquad x_j = \operatorname{clip}(n P_j - \lambda,\, l_j,\, N_j)$$

The program is that of the public code (tau .5, $l_j = \min(\lfloor n/(2k) \rfloor, N_j - 1)$), which solves it by OSQP and rounds; the closed form is ours, with
$\lambda$ by bisection and whole numbers by largest remainder, so that they sum up to n. That the farthest go first is derived from the order of files which
the code reads. Unknown or ours: the first centres, k (of n images the root of n, the paper 100 and 500 of millions) and how near a duplicate is.

Beside it SSP, prototypes of self-supervised features (Sorscher, NeurIPS 2022, arXiv 2206.14486): here the same part of every cluster, after the
abstract of DBP, whose advance is a rate of each concept. From memory, not checked: Sorscher sort the distances of all clusters together.
"""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from distillery.checks import InputError, check_choice, check_positive, check_positive_int
from distillery.scores.geometry import BLOCK, check_features, groups
from distillery.scores.kmeans_sensitivity import seeding
from distillery.scores.registry import register_score
from distillery.seeds import generator as stream_of

TEMPERATURE = 0.5  # of the shares
NEAREST = 20  # other centres that count
LEAST = 0.5  # of an equal share of the budget, kept of every cluster
WITHIN = 1e-6  # 1 - cosine at which two images are duplicates
HALVINGS = 60  # of lambda


def distinct(features: Tensor, within: float = WITHIN) -> Tensor:
    """Whether each sample is none that came before, (N,) bool: 1 less the cosine to every earlier one is above `within`.

    raises  InputError as `check_features`, and on a `within` that is not positive
    """
    check_features(features)
    check_positive("within", within)
    rows, found = F.normalize(features.double()), []
    for block in torch.arange(len(rows)).split(BLOCK):
        near = torch.cdist(rows[block], rows[: block[-1] + 1]).square() <= 2 * within  # |a - b|^2 = 2 (1 - cos)
        found.append(~near.tril(int(block[0]) - 1).any(1))
    return torch.cat(found)


def spherical_kmeans(features: Tensor, k: int, generator: Generator, rounds: int = 100) -> tuple[Tensor, Tensor]:
    """Which of k clusters each sample is in by the cosine, (N,), and the centres, (k, F) of unit length in float64.

    From `seeding`, until no sample moves or for `rounds`; a cluster that loses all samples keeps its centre.
    raises  InputError as `seeding`
    Source: Dhillon & Modha 2001. Slow reference: `spherical_kmeans_plain`.
    """
    check_features(features)
    check_positive_int("rounds", rounds)
    rows = F.normalize(features.double())
    centres = rows[seeding(rows, k, generator)[0]]  # (k, F)
    which = torch.full((len(rows),), -1)
    for _ in range(rounds):
        before, which = which, (rows @ centres.T).argmax(1)
        if torch.equal(before, which):
            break
        sums = torch.zeros_like(centres).index_add_(0, which, rows)
        centres = torch.where(torch.bincount(which, minlength=k)[:, None] > 0, F.normalize(sums), centres)
    return which, centres


def spherical_kmeans_plain(rows: Tensor, centres: Tensor, rounds: int) -> tuple[list[int], Tensor]:
    """Every sample to the centre of greatest cosine, every centre to the direction of the sum of its samples, again and again."""
    rows, centres, which = [row.double() / row.double().norm() for row in rows], [*centres.double()], []
    for _ in range(rounds):
        before, which = which, [max(range(len(centres)), key=lambda j: float(row @ centres[j])) for row in rows]
        if before == which:
            break
        for j in range(len(centres)):
            if members := [row for row, one in zip(rows, which) if one == j]:
                centres[j] = sum(members) / sum(members).norm()
    return which, torch.stack(centres)


def complexities(features: Tensor, which: Tensor, centres: Tensor, nearest: int = NEAREST) -> Tensor:
    """C (k,) of clusters as `spherical_kmeans` finds them; those of one or two samples get the mean of the others, 0 where there is no other.

    Slow reference: `complexities_plain`.
    """
    check_positive_int("nearest", nearest)
    k, sizes = len(centres), torch.bincount(which, minlength=len(centres))
    gaps = 1 - (F.normalize(features.double()) * centres[which]).sum(1)  # (N,)
    intra = torch.zeros(k, dtype=torch.float64).index_add_(0, which, gaps) / sizes
    between = (1 - centres @ centres.T).fill_diagonal_(torch.inf)
    inter = between.sort(1).values[:, : min(nearest, k - 1)].mean(1)
    found = inter * intra
    told = (sizes > 2) & found.isfinite()  # one cluster has no other
    return torch.where(told, found, found[told].mean() if told.any() else 0.0)


def complexities_plain(features: Tensor, which: list[int], centres: Tensor, nearest: int = NEAREST) -> list[float]:
    """C cluster by cluster."""
    found = {}
    for j, centre in enumerate(centres):
        members = [row.double() / row.double().norm() for row, one in zip(features, which) if one == j]
        if len(members) > 2 and len(centres) > 1:
            others = sorted(1 - float(centre @ other) for l, other in enumerate(centres) if l != j)[:nearest]  # noqa: E741
            intra = sum(1 - float(row @ centre) for row in members) / len(members)
            found[j] = sum(others) / len(others) * intra
    return [found.get(j, sum(found.values()) / max(1, len(found))) for j in range(len(centres))]


def budgets(wanted: Tensor, least: Tensor, most: Tensor) -> Tensor:
    """Whole numbers x (.., k) nearest to what is wanted, n P, that sum up as it does, n, within bounds; leading axes are other budgets.

    least, most  (.., k) whole numbers
    raises       InputError on a sum that is no whole number, and on bounds that leave no x
    Slow reference, before whole numbers: `budgets_plain`.
    """
    wanted, total = wanted.double(), wanted.double().sum(-1, keepdim=True).round()  # (.., k), (.., 1)
    if not ((wanted.sum(-1, keepdim=True) - total).abs() < 1e-6 * total.clamp_min(1)).all():
        raise InputError(f"wanted: numbers that sum up to {float(wanted.sum(-1).flatten()[0]):g}; accepted: a whole number of samples")
    ends = (least.sum(-1, keepdim=True) <= total) & (total <= most.sum(-1, keepdim=True)) & (least <= most).all()
    if not ends.all():
        n = int(total[~ends][0])
        raise InputError(f"budget: {n} samples within bounds that do not hold so many; accepted: from the sum of least to that of most")
    low, high = (wanted - most).amin(-1, keepdim=True), (wanted - least).amax(-1, keepdim=True)  # all at most, all at least
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        above = (wanted - middle).clamp(least, most).sum(-1, keepdim=True) > total
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    x = (wanted - (low + high) / 2).clamp(least, most)
    found = x.floor()
    missing = total - found.sum(-1, keepdim=True)
    place = (x - found).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)  # of each remainder
    return (found + (place < missing)).long()


def budgets_plain(wanted: list[float], least: list[int], most: list[int]) -> list[float]:
    """x as a quadratic program, not yet whole numbers."""
    from scipy.optimize import minimize

    def distance(x):
        return sum((a - b) ** 2 for a, b in zip(x, wanted))

    held = {"type": "eq", "fun": lambda x: sum(x) - sum(wanted)}
    return minimize(distance, least, bounds=list(zip(least, most)), constraints=held, method="SLSQP", options={"ftol": 1e-14}).x.tolist()


def shares(features: Tensor, which: Tensor, centres: Tensor, by: str = "complexity", temperature: float = TEMPERATURE) -> Tensor:
    """P (k,) of clusters: by 'complexity', DBP, or by 'size', SSP. Raises InputError on another way, and a temperature that is not positive."""
    check_choice("by", by, ("complexity", "size"))
    check_positive("temperature", temperature)
    if by == "size":
        return torch.bincount(which, minlength=len(centres)).double() / len(which)
    return (complexities(features, which, centres) / temperature).softmax(0)


def budgets_of(n: Tensor, shares: Tensor, sizes: Tensor, floor: float = LEAST) -> Tensor:
    """How many of n images, (B,), each cluster keeps, (B, k); `floor` is the part of an equal share that every cluster keeps where it can."""
    n = n[:, None]
    least = (n / len(sizes) * floor).long().minimum(sizes - 1).clamp_min(0)
    return budgets(n * shares, least, sizes.expand_as(least))


def concepts(features: Tensor, targets: Tensor | None, generator: Generator, by: str = "complexity", clusters: int = 0) -> Tensor:
    """Rank (N,) in which samples of each class are taken, 0 first, duplicates last: the first n are the selection of the budget n.

    Where a larger budget takes an image from a cluster, which rounding may, the image stays and another one comes later: then the first n hold
    of a cluster an image more or less than its budget.

    by        as `shares`; 'size' without a least number of each cluster
    clusters  of each class, or of all samples without classes; 0 = the root of the number of its samples
    raises    InputError as its parts, and on more clusters than different samples
    """
    if clusters:
        check_positive_int("clusters", clusters)
    rank = torch.empty(len(features))
    for members, rows in groups(features, targets):
        first = distinct(rows)
        kept, copies = members[first], members[~first]
        rank[kept] = _order(rows[first], clusters or round(len(kept) ** 0.5), generator, by).float()
        rank[copies] = torch.arange(len(kept), len(members), dtype=rank.dtype)
    return rank


def _order(rows: Tensor, k: int, generator: Generator, by: str) -> Tensor:
    """The place (N,) of each of N distinct samples."""
    total = len(rows)
    which, centres = spherical_kmeans(rows, k, generator)
    sizes, share = torch.bincount(which, minlength=k), shares(rows, which, centres, by)
    floor = LEAST if by == "complexity" else 0.0
    parts = torch.arange(1, total + 1).split(4096)
    reached = torch.cat([budgets_of(part, share, sizes, floor).int() for part in parts]).cummax(0).values  # (N, k), by budget
    cosine = (F.normalize(rows) * centres[which]).sum(1)
    taken = torch.empty(total, dtype=torch.long)  # the least budget that holds each sample
    for j in range(k):
        own = torch.nonzero(which == j)[:, 0]
        own = own[cosine[own].argsort(stable=True)]  # the farthest first
        taken[own] = torch.searchsorted(reached[:, j].contiguous(), torch.arange(1, len(own) + 1, dtype=torch.int32))
    return taken.argsort(stable=True).argsort()


# Scores by name, of all images: of targets where there are no classes


for _name, _by in {"DBP": "complexity", "SSP": "size"}.items():
    register_score(_name, needs="encoder")(
        lambda scores, seed, k, by=_by: concepts(scores.encoded(), scores.labels, stream_of(seed, "concepts"), by)
    )
