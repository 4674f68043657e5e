r"""Learning complexity: the loss of a sample along a path of weaker and weaker models, without training; high = hard.

A sample that is learned early can be told with few weights. DLC (arXiv 2402.05356) sets growing shares of the weights of a
pre-trained encoder to zero and averages the loss over these models, t = 0 .. T-1, the first one unmasked:

$$z_t(x) = h_{\theta \odot M_t}(x), \quad \mu_c = \frac{1}{n_c}\sum_{i: y_i = c} z_0(x_i), \quad
s_{tc}(x) = \frac{1}{\|z_t(x) - \mu_c\|}, \quad
\mathrm{DLC}(x) = \frac{1}{T}\sum_t -\log \operatorname{softmax}_c\big(s_t(x)\big)_y$$

The path of weights (`masked`, for any `nn.Module`) is apart from the loss that rides on it: that of class prototypes
(`prototype_logits`) for images, that of the response for language models (`scores/text.py`).

Features are the input of a network's classifier. Images are seen in evaluation mode and never augmented: the public code
crops them anew in every pass.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from distillery.checks import InputError, check_choice, check_positive, check_positive_int
from distillery.data import ImageSet
from distillery.evaluation import embed
from distillery.networks import Params
from distillery.networks.precision import unwrapped
from distillery.scores.geometry import check_features
from distillery.scores.registry import register_score

if TYPE_CHECKING:
    from distillery.scores.cached import CachedScores

SCHEDULES = ("linear", "geometric")
MASKS = ("magnitude", "random")
NEAREST = 1e-12  # least squared distance to a prototype


class Path(NamedTuple):
    """What T masks of an encoder yield of N images: losses (T, N) in nats, accuracies (T,) of the prototypes, unmasked features (N, F)."""

    losses: Tensor
    accuracies: Tensor
    features: Tensor


def shares(steps: int, schedule: str = "geometric", interval: float = 0.02) -> list[float]:
    """The share of weights that is zero in each of `steps` models; the first is 0, and they grow.

    schedule  'geometric': 1 - (1 - interval)^t, the public code, which masks that part of what is left (5 steps of .02: 0, 2, 4, 6,
              8%; 50, its default: up to 63%); 'linear': t / steps, the captions of the paper (50 steps: 0, 2, .. 98%; 5: 0, 20, .. 80%)
    raises    InputError on no step, an unknown schedule, or an interval outside (0, 1)
    """
    check_positive_int("steps", steps)
    check_choice("schedule", schedule, SCHEDULES)
    if not 0 < interval < 1:
        raise InputError(f"interval: {interval} is not accepted; accepted: a share in (0, 1)")
    return [t / steps if schedule == "linear" else 1 - (1 - interval) ** t for t in range(steps)]


def settled(path: dict) -> dict:
    """Options of `prototype_path` with what is not given as published, without an interval that does not count, and without features and a
    temperature as published, which no id names."""
    full = {"steps": 5, "schedule": "geometric", "interval": 0.02} | path
    idle = [("normalized", False), ("temperature", 1.0)] + [("interval", full["interval"])] * (full["schedule"] == "linear")
    return {name: value for name, value in full.items() if (name, value) not in idle}


def maskable(module: nn.Module) -> list[str]:
    """Names of the weights to mask: those of convolutions and linear layers, but not of the last linear layer, the head.

    A single convolution in front of linear layers embeds the patches of a transformer and is left whole. Biases and
    normalizations are never masked. Source: the public code of DLC.
    """
    convolutions, linear = [], []
    for name, one in module.named_modules():
        if isinstance(one, nn.modules.conv._ConvNd):
            convolutions.append(f"{name}.weight")
        elif isinstance(one, nn.MultiheadAttention) and one.in_proj_weight is not None:
            linear.append(f"{name}.in_proj_weight")
        elif isinstance(one, nn.Linear):
            linear.append(f"{name}.weight")
    linear = linear[:-1]
    names = linear if len(convolutions) == 1 and len(linear) > 1 else convolutions + linear
    if not names:
        raise InputError(f"module: {type(module).__name__} has no weights to mask; accepted: convolutions or linear layers before a head")
    return names


def masked(
    weights: dict[str, Tensor], shares: Sequence[float], how: str = "magnitude", scope: str = "global", generator: Generator | None = None
) -> Iterator[dict[str, Tensor]]:
    """For each share the weights with that share set to zero: one copy, which the next share overwrites.

    The weights themselves are never touched: pass what is yielded to `torch.func.functional_call`, or to `network.apply`
    beside the other tensors. Masks are nested where shares grow. round(share * n) of n weights are zero; equal magnitudes
    go in the order of the weights. Source: DLC. Slow reference: `masked_plain`.

    how        'magnitude': the smallest first; 'random': in an order drawn from `generator`
    scope      'global': over all weights at once; 'layer': the share of each layer
    raises     InputError on no weights, a share outside [0, 1), unknown words, random masks without a generator
    """
    check_choice("how", how, MASKS)
    check_choice("scope", scope, ("global", "layer"))
    if not weights:
        raise InputError("weights: none to mask; accepted: at least one tensor")
    if how == "random" and generator is None:
        raise InputError("how: 'random' without a generator; accepted: a generator to draw with")
    for share in shares:
        if not 0 <= share < 1:
            raise InputError(f"shares: {share} is not accepted; accepted: shares in [0, 1)")
    ranks, sizes = {}, {}  # of each weight its place in the order in which they go, and how many go by this order
    for names in [list(weights)] if scope == "global" else [[name] for name in weights]:
        lengths = [weights[name].numel() for name in names]
        n = sum(lengths)
        if how == "random":
            order = torch.randperm(n, generator=generator)
        else:
            order = torch.cat([weights[name].detach().abs().flatten() for name in names]).argsort(stable=True)
        rank = torch.empty(n, dtype=torch.int32 if n < 2**31 else torch.int64, device=order.device)
        rank[order] = torch.arange(n, dtype=rank.dtype, device=order.device)
        ranks |= zip(names, rank.split(lengths), strict=True)
        sizes |= dict.fromkeys(names, n)
    copy = {name: torch.empty_like(value, requires_grad=False) for name, value in weights.items()}
    for share in shares:
        for name, value in weights.items():
            kept = ranks[name].view_as(value).to(value.device) >= round(share * sizes[name])
            torch.mul(value.detach(), kept, out=copy[name])
        yield copy


def masked_plain(weights: dict[str, Tensor], share: float, scope: str = "global") -> dict[str, Tensor]:
    """One magnitude mask by its definition: sort the weights, set the smallest to zero one after another."""
    groups = [list(weights)] if scope == "global" else [[name] for name in weights]
    found = {name: value.detach().clone() for name, value in weights.items()}
    for names in groups:
        entries = [(abs(float(v)), j, i) for j, n in enumerate(names) for i, v in enumerate(found[n].flatten())]
        for _, j, i in sorted(entries)[: round(share * len(entries))]:
            found[names[j]].view(-1)[i] = 0
    return found


def check_classes(targets: Tensor) -> Tensor:
    """Samples of each class, (C,). Raises InputError on a class of fewer than two: its prototype is the sample itself."""
    counts = torch.bincount(targets)
    if counts.min() < 2:
        label = int(counts.argmin())
        raise InputError(f"class {label}: {int(counts[label])} sample(s); accepted: two or more, whose mean is the prototype")
    return counts


def prototypes(features: Tensor, targets: Tensor) -> Tensor:
    """Mean features of each class: (N, F), (N,) -> (C, F).

    raises  InputError on features that are not finite or not (N, F), and a class of fewer than two samples
    """
    check_features(features, len(targets))
    counts = check_classes(targets)
    sums = torch.zeros(len(counts), features.shape[1], dtype=torch.float64)
    sums.index_add_(0, targets, features.double())
    return (sums / counts[:, None]).to(features.dtype)  # (C, F)


def prototype_logits(features: Tensor, centres: Tensor) -> Tensor:
    """1 / distance to each prototype: (N, F), (C, F) -> (N, C) float64. Raises InputError on features that are not finite."""
    check_features(features)
    found = []
    for z in features.split(4096):
        # by a product: in float64 what cancels is far below the distances
        squared = torch.cdist(z.double(), centres.double(), compute_mode="use_mm_for_euclid_dist").square()  # (B, C)
        found.append(1 / squared.clamp_min(NEAREST).sqrt())
    return torch.cat(found)


def learning_complexity_plain(features: list[list[list[float]]], targets: list[int], temperature: float = 1.0) -> list[float]:
    """DLC by its definition: features[t][i] are those of sample i under mask t, the first one unmasked; T = 1 is the prototype loss."""
    centres, scores = {}, []
    for c in sorted(set(targets)):
        members = [z for z, y in zip(features[0], targets, strict=True) if y == c]
        centres[c] = [sum(column) / len(members) for column in zip(*members, strict=True)]
    for i, y in enumerate(targets):
        losses = []
        for masked_features in features:
            z = masked_features[i]
            squared = {c: sum((a - b) ** 2 for a, b in zip(z, mu, strict=True)) for c, mu in centres.items()}
            logits = {c: 1 / math.sqrt(max(one, NEAREST)) / temperature for c, one in squared.items()}
            top = max(logits.values())
            losses.append(top + math.log(sum(math.exp(s - top) for s in logits.values())) - logits[y])
        scores.append(sum(losses) / len(losses))
    return scores


def prototype_path(
    network, params: Params, images: ImageSet, steps: int = 5, *,
    schedule: str = "geometric", interval: float = 0.02, how: str = "magnitude", generator: Generator | None = None,
    normalized: bool = False, temperature: float = 1.0,
) -> Path:  # fmt: skip
    """What T = `steps` masks of one pre-trained encoder make of all images; the mean loss over the masks is the learning complexity.

    One forward pass a mask; the loss is the cross-entropy of the nearest-prototype classifier. All is on the CPU.

    network, params  the encoder, leading axis 1; its classifier is not used
    normalized, temperature  as in `losses_along`
    raises           InputError as `shares`, `masked` and `prototypes`
    Source: DLC. Slow reference: `learning_complexity_plain`.
    """
    shares(steps, schedule, interval)  # refuses what it does not accept before the first pass
    check_positive("temperature", temperature)
    check_classes(images.targets.cpu())
    rows = masked_features(network, params, images, steps, schedule=schedule, interval=interval, how=how, generator=generator)
    return losses_along(rows, images.targets.cpu(), normalized, temperature)


def masked_features(
    network, params: Params, images: ImageSet, steps: int = 5, *,
    schedule: str = "geometric", interval: float = 0.02, how: str = "magnitude", generator: Generator | None = None,
) -> Iterator[Tensor]:  # fmt: skip
    """The features (N, F) of all images under each of `steps` masks, on the CPU; options of `shares` and `masked`."""
    weights = {name: params[name] for name in maskable(_skeleton(network))}
    for one in masked(weights, shares(steps, schedule, interval), how, generator=generator):
        yield embed(network, params | one, images)[0].float().cpu()


def losses_along(features: Iterable[Tensor], targets: Tensor, normalized: bool = False, temperature: float = 1.0) -> Path:
    """What the features (N, F) under each mask, the first of which is none, say of their samples.

    normalized   whether distances are those of features of unit length
    temperature  of the logits, 1 / (temperature * distance): below 1 losses differ more
    """
    losses, accuracies, whole = [], [], None
    for rows in features:
        seen = F.normalize(rows) if normalized else rows
        if whole is None:
            whole, centres = rows, prototypes(seen, targets)
        logits = prototype_logits(seen, centres) / temperature  # (N, C)
        losses.append(F.cross_entropy(logits, targets, reduction="none").float())
        accuracies.append((logits.argmax(1) == targets).float().mean())
    return Path(torch.stack(losses), torch.stack(accuracies), whole)


def _skeleton(network) -> nn.Module:
    """The network as a module without weights; `MixedPrecision` is looked through."""
    network = unwrapped(network)
    if hasattr(network, "skeleton"):
        return network.skeleton
    with torch.device("meta"):
        return network.module()


@register_score("complexity", needs="masks", seeded=False, labels=True)
def mean_over_path(scores: "CachedScores", seed: int, k: int) -> Tensor:
    """The learning complexity of DLC."""
    return scores.free()["losses"].mean(0)


@register_score("prototype loss", needs="encoder", seeded=False, labels=True)
def unmasked_loss(scores: "CachedScores", seed: int, k: int) -> Tensor:
    """The loss of the encoder without a mask, DLC at T = 1."""
    return scores.free()["losses"][0]
