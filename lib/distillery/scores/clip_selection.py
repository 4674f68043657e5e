r"""Selection by alignment with the class and spread among its images, after CLIP-powered data selection; low = taken first.

"A CLIP-Powered Framework for Robust and Generalizable Data Selection" (Yang, ICLR 2025, arXiv 2410.11215) weighs how well an image
$z_i$ suits the text $t_{y_i}$ of its label against how far it lies from its $k$ nearest neighbours $\mathcal N_i$ of the same class, and learns a number
$d_i$ an image whose sign says whether it is kept, for a ratio $r$ of the $N$ images:

$$S^A_i = \cos(z_i, t_{y_i}), \qquad S^D_i = \frac{1}{k} \sum_{j \in \mathcal N_i} \|z_i - z_j\|_2$$

$$L(d) = -\frac{1}{N} \sum_i \sigma(d_i) \big(S^A_i + \alpha S^D_i\big) + \beta\, \Big| \frac{1}{N} \sum_i \mathbb 1[\sigma(d_i) > \tfrac12] - r \Big|$$

The step $\mathbb 1$ has the gradient of $\sigma$ (straight-through). The score `alignment + spread` is the plain sort of $S^A_i + \alpha S^D_i$; its slow twin `learned`
minimizes L. From equal $d_i$ a step of a small rate keeps the order of the sums: then the optimization is that sort, up to how many are kept.

What is known of the paper: that there are both scores, a number an image, a straight-through estimator and SGD is told by its public reviews;
cosine and neighbours of the class by secondary texts. From memory, not checked: Euclidean distance, k = a tenth of the class, alpha = .3, beta = 2, an end
where the ratio is missed by less than 5e-4. Unknown, and ours: features of unit length in S^D, as in a cosine; no scaling of the scores;
rate and first d. Left out: the adapters that the paper trains on the task, whose code is not public. A class without a text is told by the mean of its
features, an ablation that reviewers asked for. The paper's ratio is of all images, `Prune`'s of each class.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from distillery.checks import InputError, check_finite, check_fraction, check_positive, check_positive_int, is_number
from distillery.scores.geometry import check_features, groups, nearest_others
from distillery.scores.registry import register_score

if TYPE_CHECKING:
    from distillery.scores.cached import CachedScores

SHARE = 0.1  # of a class that counts as neighbours
ALPHA = 0.3  # weight of the spread
BETA = 2.0  # weight of the ratio
NEAR = 5e-4  # a ratio missed by so little is met


def misalignment(features: Tensor, targets: Tensor | None, texts: Tensor | None = None) -> Tensor:
    """1 - S^A (N,): 1 less the cosine of each sample's features and the text of its class; high = hard.

    texts   (C, F) features of a text of each class, by label, from the text encoder of the same model; None = the mean of each class
    raises  InputError as `check_features`, and on texts of another width, or fewer than there are labels
    """
    found = torch.empty(len(features), dtype=torch.float64)
    if texts is not None:
        check_features(texts, name="texts")
        labels = 0 if targets is None else int(targets.max())
        if labels >= len(texts) or texts.shape[1:] != features.shape[1:]:
            accepted = f"one row a class and {tuple(features.shape)[-1]} columns, those of the features"
            raise InputError(f"texts: {tuple(texts.shape)} for labels up to {labels}; accepted: {accepted}")
    for members, rows in groups(features, targets):
        label = 0 if targets is None else int(targets[members[0]])
        text = rows.mean(0) if texts is None else texts[label].double()
        found[members] = 1 - F.cosine_similarity(rows, text[None])
    return found


def local_spread(features: Tensor, targets: Tensor | None, share: float = SHARE) -> Tensor:
    """S^D (N,): mean distance of each sample to its nearest neighbours in its class, of features of unit length; high = hard.

    share   of the class that are neighbours, at least one and at most all others; a sample alone in its class has spread 0
    raises  InputError as `check_features`, and on a share outside (0, 1]
    Slow reference: `local_spread_plain`.
    """
    check_fraction("share", share)
    found = torch.zeros(len(features), dtype=torch.float64)
    for members, rows in groups(features, targets):
        if len(members) > 1:
            k = max(1, round(share * len(members)))
            found[members] = nearest_others(F.normalize(rows), None, k)[1].mean(1)
    return found


def local_spread_plain(features: Tensor, targets: Tensor | None, share: float = SHARE) -> list[float]:
    """S^D by its definition, sample by sample."""
    found = []
    unit = [row.double() / row.double().norm() for row in features]
    for i in range(len(unit)):
        others = [j for j in range(len(unit)) if j != i and (targets is None or targets[j] == targets[i])]
        gaps = sorted(float((unit[i] - unit[j]).norm()) for j in others)
        nearest = gaps[: max(1, round(share * (len(others) + 1)))]
        found.append(sum(nearest) / len(nearest) if nearest else 0.0)
    return found


def clip_selection(features: Tensor, targets: Tensor | None, alpha: float = ALPHA, texts: Tensor | None = None) -> Tensor:
    """1 - (S^A + alpha S^D) (N,): what the plain sort takes first is lowest. Raises InputError as its parts, and on an alpha below 0.

    Slow reference: `learned`.
    """
    if not is_number(alpha) or alpha < 0:
        raise InputError(f"alpha: {alpha!r} is not accepted; accepted: a number, 0 or more")
    return misalignment(features, targets, texts) - alpha * local_spread(features, targets)


class Learned(NamedTuple):
    """What `learned` ends with: numbers d (N,), of which those above 0 are kept; steps taken; the share by which it misses the ratio."""

    d: Tensor
    steps: int
    missed: float


def learned(
    values: Tensor, ratio: float, beta: float = BETA, rate: float = 1.0, most: int = 20_000, start: Tensor | None = None, near: float = NEAR
) -> Learned:
    """Minimize L by plain SGD on all samples at once, until the ratio is met or for `most` steps.

    values  (N,): S^A + alpha S^D
    ratio   the share to keep, in (0, 1]
    rate    of a sample: that of SGD is N times it, since L is a mean over samples
    start   (N,): the first d, all 0 if not given
    near    the ratio is met where it is missed by no more, or by half a sample; 0 = all steps are taken
    raises  InputError on values that are not finite or not (N,), a ratio outside (0, 1], and a beta, rate or number of steps that is not positive
    """
    if values.ndim != 1 or not values.numel() or not values.is_floating_point():
        raise InputError(f"values: {tuple(values.shape)} {values.dtype}; accepted: floats (N,)")
    check_finite("values", values)
    check_fraction("ratio", ratio)
    check_positive("beta", beta)
    check_positive("rate", rate)
    check_positive_int("most", most)
    if start is not None and start.shape != values.shape:
        raise InputError(f"start: {tuple(start.shape)} for {len(values)} values; accepted: one number a value")
    values = values.double()
    met = max(near, 0.5 / len(values)) if near else -1.0
    d = (torch.zeros_like(values) if start is None else start.double().clone()).requires_grad_()
    optimizer = torch.optim.SGD([d], lr=rate * len(values))
    for step in range(most + 1):
        soft = torch.sigmoid(d)
        hard = (soft > 0.5).double() + soft - soft.detach()  # straight through: the step's value, the sigmoid's gradient
        missed = (hard.mean() - ratio).abs()
        if float(missed.detach()) <= met or step == most:
            return Learned(d.detach(), step, float(missed.detach()))
        optimizer.zero_grad()
        (-(soft * values).mean() + beta * missed).backward()
        optimizer.step()
    raise AssertionError("the last step returns")


# Scores by name, of all images


@register_score("alignment", needs="encoder", seeded=False, labels=True)
def encoder_misalignment(scores: "CachedScores", seed: int, k: int) -> Tensor:
    """`misalignment` of the features of the encoder."""
    return misalignment(scores.free()["features"], scores.images.targets.cpu()).float()


@register_score("local spread", needs="encoder", seeded=False, labels=True)
def encoder_spread(scores: "CachedScores", seed: int, k: int) -> Tensor:
    """`local_spread` of the features of the encoder."""
    return local_spread(scores.free()["features"], scores.images.targets.cpu()).float()


@register_score("alignment + spread", needs="encoder", seeded=False, labels=True)
def encoder_selection(scores: "CachedScores", seed: int, k: int) -> Tensor:
    """`clip_selection` by the features of the encoder."""
    return clip_selection(scores.free()["features"], scores.images.targets.cpu()).float()
