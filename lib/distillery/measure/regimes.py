"""Real images made worse in ways that tell importances apart, and regressions on weighted samples of them. Ours: of arXiv 2307.08086 only
the abstract could be read."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from distillery.checks import InputError, check_choice, check_fraction
from distillery.data import ImageSet, LazyImages
from distillery.measure.guarantee import Sampling, sampling
from distillery.networks.ridge import factor
from distillery.scores import sensitivity
from distillery.scores.importance_sampling import sample
from distillery.seeds import generator
from distillery.training.losses import centred

REGIMES = ("as they are", "outliers", "rare classes", "wrong labels")


def damaged(images: ImageSet, regime: str, share: float, seed: int) -> ImageSet:
    """Training images under one of REGIMES; images that are to be judged on stay as they are.

    'outliers': a share of the images has every pixel black or white, whichever is nearer. 'rare classes': of every second class a share is kept,
    20 images at least. 'wrong labels': a share of the images has the label of another class, drawn uniformly.
    Raises InputError on another regime, or a share that is not above 0 and at most 1.
    """
    check_choice("regime", regime, REGIMES)
    check_fraction("share", share)
    stream, n = generator(seed, "regime", regime), len(images)
    chosen = torch.randperm(n, generator=stream)[: round(share * n)]
    if regime == "outliers":
        hit = torch.zeros(n, dtype=torch.bool).index_fill(0, chosen, True)
        if isinstance(images.pixels, LazyImages):
            hit = images.pixels.by_row(hit)
            return replace(images, pixels=images.pixels.changed(lambda rows, pixels: _extreme(pixels, hit[rows])))
        return replace(images, pixels=_extreme(images.pixels, hit))
    if regime == "wrong labels":
        targets, classes = images.targets.clone(), len(images.classes)
        targets[chosen] = (targets[chosen] + torch.randint(1, classes, (len(chosen),), generator=stream).to(targets)) % classes
        return replace(images, targets=targets)
    if regime == "rare classes":
        kept = []
        for c in range(len(images.classes)):
            own = images.of_class(c)
            few = min(len(own), max(20, round(share * len(own)))) if c % 2 else len(own)
            kept.append(own[torch.randperm(len(own), generator=stream)[:few]])
        return images.subset(torch.cat(kept).sort().values)
    return images


def _extreme(pixels: Tensor, hit: Tensor) -> Tensor:
    """Images (N, C, H, W), those that are hit (N,) black and white."""
    return torch.where(hit.to(pixels.device)[:, None, None, None], (pixels > 127).to(pixels.dtype) * 255, pixels)


def features(train: ImageSet, test: ImageSet, components: int) -> tuple[Tensor, Tensor]:
    """Standardized pixels of both sets on the principal components of the first, with a column of ones: (N, components + 1), float64.

    The first columns have a mean square of 1 together. Raises InputError where images or pixels are fewer than components.
    """
    rows, asked = (one.batch(torch.arange(len(one), device=one.device)).flatten(1).double().cpu() for one in (train, test))
    if not 1 <= components <= min(rows.shape):
        raise InputError(f"components: {components} of pixels {tuple(rows.shape)}; accepted: 1 to {min(rows.shape)}")
    from sklearn.decomposition import PCA  # a second to import

    fitted = PCA(components, svd_solver="covariance_eigh").fit(rows.numpy())
    found = [torch.from_numpy(fitted.transform(one.numpy())) for one in (rows, asked)]
    scale = found[0].square().mean().sqrt()
    return tuple(torch.cat([one / scale, torch.ones(len(one), 1, dtype=torch.float64)], 1) for one in found)


def regression(rows: Tensor, labels: Tensor, penalty: float, indices: Tensor, weights: Tensor) -> Tensor:
    r"""Weights (p, C) of the ridge regression on a weighted sample, $\min_W \sum_j w_j \|W^\top\varphi_{i_j} - y_{i_j}\|^2 + \lambda \|W\|^2$.

    rows, labels      (N, p) and (N, C) float64
    indices, weights  (m,) of the sample, as `importance_sampling.sample` draws them
    """
    some, weighted = rows[indices], rows[indices] * weights[:, None]
    gram = some.T @ weighted + penalty * torch.eye(rows.shape[1], dtype=torch.float64)
    return torch.cholesky_solve(weighted.T @ labels[indices], factor(gram, "Gram matrix + ridge"))


@dataclass(frozen=True)
class SampleQuality:
    """How samples stand for all training images.

    sampling    their largest relative errors over all weights, and the bounds of them
    accuracies  (sizes, trials): of the regressions on them, on test images
    whole       the accuracy of the regression on all training images
    dimension   the effective dimension
    """

    sampling: Sampling
    accuracies: list[list[float]]
    whole: float
    dimension: float


def sample_quality(train: ImageSet, test: ImageSet, components: int, rho: float, **numbers) -> dict[str, SampleQuality]:
    """Weighted samples by ridge sensitivity, and uniform ones, of training images; the regression is on principal components of pixels.

    rho      the ridge, as a part of the mean diagonal of the kernel
    numbers  sizes, trials, failure and seed, as in `guarantee.sampling`
    """
    rows, asked = features(train, test, components)
    labels = centred(train.targets.cpu(), len(train.classes)).double()
    penalty = sensitivity.penalty_of(float(rows.square().sum()), len(rows), rho)
    ridge = sensitivity.ridge_features(rows, labels, penalty)
    whole = torch.ones(len(rows), dtype=torch.float64)
    answers, found = test.targets.cpu(), {}

    def accuracy(indices: Tensor, weights: Tensor) -> float:
        return float(((asked @ regression(rows, labels, penalty, indices, weights)).argmax(1) == answers).double().mean())

    for name, chances in {"by sensitivity": ridge.tau, "random": torch.ones_like(ridge.tau)}.items():
        drawn = [
            [sample(chances, m, generator(numbers["seed"], "trial", m, i)) for i in range(numbers["trials"])] for m in numbers["sizes"]
        ]
        accuracies = [[accuracy(*one) for one in of_size] for of_size in drawn]
        deviating = sampling(rows, labels, penalty, ridge.tau, chances, **numbers)  # the same samples, by the same streams
        found[name] = SampleQuality(deviating, accuracies, accuracy(torch.arange(len(rows)), whole), ridge.effective_dimension)
    return found
