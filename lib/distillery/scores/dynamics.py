r"""Scores from training. One ensemble pass (`dynamics`) yields them all; (N,), mean over trials, high = hard.

Mean training loss (the criterion of BiLP, arXiv 2305.18381): over T networks and E epochs,

$$s(x) = \frac{1}{TE}\sum_{t=1}^{T}\sum_{e=1}^{E} \ell\big(f_{\theta_{t,e}}(x), y\big)$$

with the loss taken from the training pass itself, before the step that uses the sample. Early (5 epochs of 5 trials) and converged
(many epochs) differ only in E and T. The other scores, and where each reads the networks:

- the visits in training: `forgetting` (Toneva et al. 2019, arXiv 1812.05159), `aum` (Pleiss et al. 2020, arXiv 2001.10528)
- the weights after a few epochs: `el2n` (Paul et al. 2021, arXiv 2107.07075)
- the weights at the end of every epoch: `cumulative_loss`, the reference learning complexity of DLC (arXiv 2402.05356)
- the final weights: `least_confidence`, `entropy`, `margin` (Coleman et al. 2020, arXiv 1906.11829)
- any weights, usually the first or early ones: `grand` (Paul et al. 2021)
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from distillery.checks import InputError
from distillery.data import ImageSet
from distillery.evaluation.protocol import logits
from distillery.networks import Params, trainable
from distillery.scores.registry import register_score
from distillery.seeds import generator as stream_of
from distillery.training import Stats, cross_entropy, train
from distillery.training.optimizers import SGD

if TYPE_CHECKING:
    from distillery.scores.cached import CachedScores


GRADIENTS = 32  # held at once, each as large as one network; best on CPUs, where 64 is slower at 32 x 32


@dataclass(frozen=True)
class Dynamics:
    """What T networks trained for E epochs yielded: weights with leading axis T, and per-sample statistics of the visits.

    checkpoint_loss  (E, T, N) cross-entropy in nats in evaluation mode at the end of every epoch, or None
    """

    params: Params
    stats: Stats
    checkpoint_loss: Tensor | None = None


def dynamics(
    network, images: ImageSet, trials: int, epochs: int, generator: Generator, *, start: Params | None = None,
    optimizer: SGD = SGD(0.05, momentum=0.9, weight_decay=5e-4), checkpoints: bool = False, **options,
) -> Dynamics:  # fmt: skip
    """Train `trials` networks on real images and collect per-sample statistics of every epoch.

    start        weights with leading axis `trials` to train from, None = fresh ones; not modified
    checkpoints  keep every sample's loss at the end of every epoch, a pass over all images in evaluation mode each;
                 all trials are then trained as one stack
    options      of `training.train`: batch, collect, snapshots, augmentation, which what is collected has seen, and collect_mean: mean
                 statistics over epochs (1, T, N) alone, so that converged scores (50 epochs of 50 trials) fit in memory
    """
    start = network.init(generator, trials) if start is None else start
    assert {value.shape[:1] for value in start.values()} == {(trials,)}, "start: weights (trials, ...)"
    params = {name: value.to(images.device) for name, value in start.items()}
    losses: list[Tensor] = []

    def record(_epoch: int, weights: Params, _momentum: list[Tensor]) -> None:
        losses.append(cross_entropy(logits(network, weights, images), images.targets.expand(trials, -1)))

    options = {"batch": 64, "collect": ("loss",), "after_epoch": record if checkpoints else None} | options
    params, stats = train(network, params, images, optimizer=optimizer, generator=generator, epochs=epochs, **options)
    return Dynamics(params, stats, torch.stack(losses) if checkpoints else None)


def mean_loss(pass_: Dynamics) -> Tensor:
    """Mean training loss in nats over epochs and trials, (N,). Source: BiLP, the equation above. Slow reference: `mean_loss_plain`."""
    return pass_.stats.collected["loss"].nanmean((0, 1)).cpu()


def forgetting(pass_: Dynamics) -> Tensor:
    """Forgetting events: epochs t with the sample right at t and wrong at t + 1, mean over trials, (N,).

    A sample that a trial never gets right has "infinitely" many there; here it counts E in that trial, more than the E / 2 events that
    can occur at most, so that the mean over trials is finite. Source: Toneva et al. 2019. Slow reference: `forgetting_plain`.
    """
    right = pass_.stats.collected["correct"] == 1  # (E, T, N)
    events = (right[:-1] & ~right[1:]).sum(0)  # (T, N)
    return events.where(right.any(0), len(right)).float().mean(0).cpu()


def aum(pass_: Dynamics) -> Tensor:
    """The area under the margin, negative: largest other logit minus true logit, mean over epochs and trials, (N,). Source: Pleiss et al. 2020."""
    return -pass_.stats.collected["margin"].nanmean((0, 1)).cpu()


def cumulative_loss(pass_: Dynamics) -> Tensor:
    """Learning complexity along the training path: evaluation loss in nats, mean over epochs 1..E and trials, (N,). Source: DLC."""
    return pass_.checkpoint_loss.mean((0, 1)).cpu()


def predictions(network, params: Params, images: ImageSet) -> Tensor:
    """Class probabilities of T networks in evaluation mode: (T, N, classes), what the next three scores take."""
    return logits(network, params, images).softmax(-1)


def el2n(p: Tensor, targets: Tensor) -> Tensor:
    """Norm of softmax minus one-hot label at early weights, mean over trials: (N,), high = hard. Source: Paul et al. 2021.

    p        (T, N, classes) of `predictions` at weights of an early epoch; about ten trials there
    targets  (N,)
    """
    return (_checked(p) - F.one_hot(targets.to(p.device), p.shape[-1])).norm(dim=-1).mean(0).cpu()


def least_confidence(p: Tensor) -> Tensor:
    """1 - largest probability, mean over trials, (N,). Source: Coleman et al. 2020."""
    return (1 - _checked(p).amax(-1)).mean(0).cpu()


def entropy(p: Tensor) -> Tensor:
    """Entropy in nats, 0 log 0 = 0, mean over trials, (N,). Source: Coleman et al. 2020."""
    return torch.special.entr(_checked(p)).sum(-1).mean(0).cpu()


def margin(p: Tensor) -> Tensor:
    """1 - (largest - second largest probability), mean over trials, (N,). Source: Coleman et al. 2020."""
    first, second = _checked(p).topk(2, dim=-1).values.unbind(-1)  # (T, N) each
    return (1 - (first - second)).mean(0).cpu()


def _checked(p: Tensor) -> Tensor:
    """p itself; InputError unless it holds probabilities (T, N, classes): logits would give other ranks unnoticed."""
    assert p.ndim == 3, p.shape
    off = float(torch.maximum((p.sum(-1) - 1).abs().amax(), -p.amin()))
    if not off < 1e-3:
        raise InputError(f"p: off a probability by {off:g}; accepted: probabilities that sum to 1 over classes")
    return p


def grand(network, params: Params, images: ImageSet) -> Tensor:
    """Norm of the gradient of each sample's loss in all trainable weights, mean over K networks, (N,).

    Source: GraNd, Paul et al. 2021, at the weights given, the first ones (epoch 0) or early snapshots. Exact; in evaluation mode, so
    that no sample has a part in the gradient of another. Slow reference: `grand_plain`.

    params  leading axis K
    """

    def loss(learned: Params, one: Params, image: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(network.apply(one | learned, image[None], train=False).logits[0], target[None])

    gradients, norms = torch.func.vmap(torch.func.grad(loss), (None, None, 0, 0)), []
    k = len(next(iter(params.values())))
    for i in range(k):
        one = {name: value[i : i + 1].detach() for name, value in params.items()}
        for indices in torch.arange(len(images), device=images.device).split(GRADIENTS):
            by_name = gradients(trainable(one), one, images.batch(indices), images.targets[indices])  # (B, 1, ...)
            norms.append(sum(gradient.flatten(1).square().sum(1) for gradient in by_name.values()).sqrt())  # (B,)
    return torch.cat(norms).view(k, -1).mean(0).cpu()


def mean_loss_plain(losses: list[list[dict[int, float]]], n: int) -> list[float]:
    """The definition: losses[t][e][i] is the loss of sample i in epoch e of trial t."""
    return [sum(epoch[i] for trial in losses for epoch in trial) / sum(len(trial) for trial in losses) for i in range(n)]


def forgetting_plain(right: list[list[list[bool]]]) -> list[float]:
    """The definition: right[t][e][i] says whether sample i was classified correctly in epoch e of trial t."""
    scores = []
    for i in range(len(right[0][0])):
        total = 0
        for trial in right:
            row = [epoch[i] for epoch in trial]
            events = sum(before and not after for before, after in zip(row, row[1:], strict=False))
            total += events if any(row) else len(row)
        scores.append(total / len(right))
    return scores


def grand_plain(network, params: Params, images: ImageSet) -> list[float]:
    """The definition, one backward pass a sample and network."""
    k = len(next(iter(params.values())))
    scores = [0.0] * len(images)
    for j in range(k):
        one = {name: value[j : j + 1].detach().clone() for name, value in params.items()}
        learned = [value.requires_grad_() for value in trainable(one).values()]
        for i in range(len(images)):
            index = torch.tensor([i], device=images.device)
            logits = network.apply(one, images.batch(index), train=False).logits[0]  # (1, classes)
            gradients = torch.autograd.grad(F.cross_entropy(logits, images.targets[index]), learned)
            scores[i] += float(torch.cat([gradient.flatten() for gradient in gradients]).norm()) / k
    return scores


# Scores by name, from stored passes


@register_score("loss", labels=True, spec=lambda scores: list(scores.lengths["loss"]))
def early_loss(scores: "CachedScores", seed: int, k: int) -> Tensor:
    """The mean loss over the first epochs of some networks (BiLP's economical order)."""
    return scores.scratch(seed, "loss")["loss"]


@register_score("converged loss", labels=True, spec=lambda scores: list(scores.lengths["converged loss"]))
def converged_loss(scores: "CachedScores", seed: int, k: int) -> Tensor:
    """The mean loss over many epochs of some networks (BiLP)."""
    return scores.scratch(seed, "converged loss")["loss"]


@register_score("forgetting", needs="tuning", labels=True, version=2)
def drawn_forgetting(scores: "CachedScores", seed: int, k: int) -> Tensor:
    """`forgetting`; most samples tie at no event: they go in a drawn order."""
    ties = torch.rand(len(scores.images), generator=stream_of(seed, "forgetting ties"))
    return scores.tuned(seed)["forgetting"] + ties / (2 * scores.tunings)


@register_score("EL2N", needs="tuning", labels=True, version=2)
def early_el2n(scores: "CachedScores", seed: int, k: int) -> Tensor:
    """`el2n` by networks early in fine-tuning."""
    return el2n(predictions(scores.network, scores.early_weights(seed), scores.images), scores.images.targets.cpu())


@register_score("GraNd", needs="tuning", labels=True)
def early_grand(scores: "CachedScores", seed: int, k: int) -> Tensor:
    """The norm of the gradient of each image's loss, by networks early in fine-tuning (Paul et al., 2021)."""
    return scores.gradients(seed)


for _name in ("cumulative loss", "AUM", "least confidence", "entropy", "margin"):
    register_score(_name, needs="tuning", labels=True)(lambda scores, seed, k, name=_name: scores.tuned(seed)[name])
