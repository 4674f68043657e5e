"""Scores from the geometry of embeddings. Greedy methods return their rank within the class: low = chosen first.

Herding (Welling 2009, as in iCaRL): each next sample brings the mean of the chosen ones closest to the class mean.
k-means nearest: the real sample nearest to each of n cluster centres.
"""

import torch
from torch import Generator, Tensor


def herding(features: Tensor, targets: Tensor, n: int) -> Tensor:
    """Rank (N,) in which herding takes samples of each class, 0 first; n of each class are ranked, the rest get N.

    features  (N, F)
    targets   (N,)
    Slow reference: `herding_plain`.
    """
    rank = torch.full((len(targets),), float(len(targets)))
    for label in targets.unique():
        members = torch.nonzero(targets == label)[:, 0]
        rows = features[members].double()
        mean, total = rows.mean(0), torch.zeros(rows.shape[1], dtype=torch.float64)
        free = torch.ones(len(members), dtype=torch.bool)
        for i in range(min(n, len(members))):
            gap = (mean - (total + rows) / (i + 1)).square().sum(1)  # (members,)
            best = int(torch.where(free, gap, torch.inf).argmin())
            free[best] = False
            total = total + rows[best]
            rank[members[best]] = i
    return rank


def herding_plain(rows: Tensor, n: int) -> list[int]:
    """Herding of one class by its definition: try every sample, keep the one whose new mean is nearest."""
    chosen: list[int] = []
    for _ in range(n):
        free = [i for i in range(len(rows)) if i not in chosen]
        chosen.append(min(free, key=lambda i: float((rows[chosen + [i]].mean(0) - rows.mean(0)).norm())))
    return chosen


def kmeans_nearest(features: Tensor, targets: Tensor, n: int, generator: Generator) -> Tensor:
    """Rank (N,): 0..n-1 for the distinct real samples nearest to n k-means centres of each class, N for the rest.

    Centres of larger clusters come first. Clustering by scikit-learn, seeded from the generator.
    """
    from sklearn.cluster import KMeans

    rank = torch.full((len(targets),), float(len(targets)))
    for label in targets.unique():
        members = torch.nonzero(targets == label)[:, 0]
        rows = features[members].double().numpy()
        clusters = min(n, len(members))
        seed = int(torch.randint(2**31 - 1, (), generator=generator))
        fitted = KMeans(clusters, n_init=3, random_state=seed).fit(rows)
        distance = torch.from_numpy(fitted.transform(rows))  # (members, clusters)
        sizes = torch.bincount(torch.from_numpy(fitted.labels_).long(), minlength=clusters)
        for i, centre in enumerate(sizes.argsort(descending=True, stable=True)):
            best = int(distance[:, centre].argmin())
            distance[best] = torch.inf  # distinct samples
            rank[members[best]] = i
    return rank
