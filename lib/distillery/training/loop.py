"""Train K networks at once: the only loop over epochs in the project.

Each network has its own random stream (data order, augmentation), so an ensemble of K is the same K networks that would have been
trained one by one, whatever the chunk. All draws of an epoch are made at its start. What training yields anyway (per-sample loss,
margin, correctness) is collected from its own forward pass. Slow reference, one plain PyTorch module: `train_plain`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from distillery.checks import InputError, check_choice, check_positive_int
from distillery.networks import Output, Params, trainable
from distillery.networks.precision import networks_at_once
from distillery.replay import Replay
from distillery.seeds import split
from distillery.training.dsa import Draw, augment, cutmix, cutmix_plain, draw, draw_boxes
from distillery.training.losses import Loss, cross_entropy, one_hot
from distillery.training.optimizers import GSAM, SGD, gsam_plain
from distillery.upload import to_device

# Collectors: (logits, targets, loss) -> (K, B), one number per sample and visit.


def _margin(logits: Tensor, target: Tensor, loss: Tensor) -> Tensor:
    """Logit of the true class minus the largest other logit."""
    true = logits.gather(-1, target[..., None])
    return true[..., 0] - logits.scatter(-1, target[..., None], -math.inf).amax(-1)


COLLECTORS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "loss": lambda logits, target, loss: loss,
    "margin": _margin,
    "correct": lambda logits, target, loss: (logits.argmax(-1) == target).float(),
    "confidence": lambda logits, target, loss: logits.softmax(-1).amax(-1),
}


@dataclass(frozen=True)
class Plan:
    """What one epoch visits: indices (M,) or (K, M), a weight for each or None, and a factor on the learning rate."""

    indices: Tensor
    weights: Tensor | None = None
    scale: float = 1.0


@dataclass
class Stats:
    """What training yields on the way.

    collected       name -> (epochs, K, N) float32, NaN where a sample was not visited in that epoch; with `collect_mean` (1, K, N), the
                    mean over the epochs that visited the sample, NaN where none did
    snapshots       epoch -> weights at its end; 0 is the initialization
    steps, samples  that each network took and saw
    """

    collected: dict[str, Tensor] = field(default_factory=dict)
    snapshots: dict[int, Params] = field(default_factory=dict)
    steps: int = 0
    samples: int = 0


def train(
    network,
    params: Params,
    source,
    loss: Loss = cross_entropy,
    optimizer: SGD = SGD(),
    *,
    generator: Generator,
    epochs: int = 0,
    steps: int = 0,
    batch: int = 256,
    augmentation: str = "",
    cutmix: float = 0.0,
    plan: Callable[[int, Stats], Plan] | None = None,
    collect: Iterable[str] = (),
    collect_mean: bool = False,
    snapshots: Iterable[int] = (),
    chunk: int = 0,
    whole_batches: bool = False,
    after_epoch: Callable[[int, Params, list[Tensor]], None] | None = None,
    done: tuple[int, list[Tensor]] = (0, []),
) -> tuple[Params, Stats]:
    """Train K networks on one source, each in its own data order. Slow reference: `train_plain`.

    params         stacked weights with leading axis K, not modified
    source         has len(), `.shape` of one image, `.targets` and `.batch(indices)`
    epochs, steps  how long: exactly one of the two; the last batch of an epoch may be smaller
    augmentation   DSA families, one family a step and network ('_') or all of them ('+'), strengths per image
    cutmix         probability of CutMix in a step, after the augmentation; the loss sees soft labels, multiplied by a plan's weights
    plan           called before each epoch with its number and the stats so far
    collect        names in COLLECTORS
    collect_mean   keep the mean over epochs of what is collected, in the memory of a few epochs, instead of every epoch
    snapshots      epochs after which weights are kept, 0 = before training
    chunk          networks stacked at once, 0 = by `networks_at_once`; with a plan or `after_epoch` all, since they see all
    whole_batches  leave out the last batch of an epoch where it is smaller: losses that couple samples need their number
    after_epoch    called with the epochs done, the weights and the momentum: what `done` needs to go on from there
    done           (epochs, momentum) behind `params` where training goes on; `epochs` counts them, their draws are passed
    raises         InputError on an empty source, one smaller than a whole batch, an unknown collector, both or neither of epochs and
                   steps, or collectors of hard labels with soft ones or cutmix
    """
    if (epochs > 0) == (steps > 0):
        raise InputError(f"epochs {epochs} and steps {steps}; accepted: one of them positive, the other 0")
    check_positive_int("batch", batch)
    if len(source) == 0:
        raise InputError("source: no images to train on; accepted: at least one")
    if whole_batches and (plan or len(source) < batch):
        raise InputError(f"whole_batches: {len(source)} images for batches of {batch}; accepted: enough for a batch, and no plan")
    for name in collect:
        check_choice("collect", name, COLLECTORS)
    if not 0 <= cutmix <= 1:
        raise InputError(f"cutmix: {cutmix} is not accepted; accepted: a probability")
    if set(collect) - {"loss"} and (cutmix or source.targets.ndim != 1):
        raise InputError(f"collect: {sorted(collect)} with {'cutmix' if cutmix else 'targets of two axes'}; accepted: 'loss' alone")
    if done[0] and (plan or steps):
        raise InputError(f"done: {done[0]} epochs with a plan or steps; accepted: epochs alone")
    first = next(iter(params.values()))
    k, streams = len(first), split(generator, len(first))
    chunk = k if plan or after_epoch or done[0] else chunk or networks_at_once(k, min(batch, len(source)), source.shape, first.device)
    results = []
    for at in range(0, k, chunk):
        part = {name: value[at : at + chunk] for name, value in params.items()}
        stack = _Stack(network, part, source, loss, optimizer, streams[at : at + chunk], batch, augmentation, cutmix, whole_batches)
        history = {name: _History(collect_mean) for name in collect}
        results.append(stack.run(epochs, steps, plan, history, frozenset(snapshots), after_epoch, done))
    return _joined(results)


class _History:
    """What one collector yielded: every epoch or, with `mean`, a running mean that passes over NaN."""

    def __init__(self, mean: bool):
        self.mean, self.epochs, self.total, self.visits = mean, [], 0, 0

    def add(self, values: Tensor) -> None:
        """The values (K, N) of one more epoch, NaN where a sample was not visited."""
        if self.mean:
            seen = ~values.isnan()
            self.total, self.visits = self.total + values.double().where(seen, 0), self.visits + seen
        else:
            self.epochs.append(values)

    def stacked(self) -> Tensor:
        """(epochs, K, N), or the mean as (1, K, N), NaN where no epoch has a value."""
        return (self.total / self.visits).float()[None] if self.mean else torch.stack(self.epochs)


class _Stack:
    """One chunk of networks in training."""

    def __init__(self, network, params, source, loss, optimizer, streams, batch, augmentation, cutmix, whole_batches=False):
        self.network, self.source, self.loss, self.optimizer, self.streams = network, source, loss, optimizer, streams
        self.batch, self.augmentation, self.cutmix, self.whole_batches = batch, augmentation, cutmix, whole_batches
        self.params = {name: value.detach().clone() for name, value in params.items()}
        for value in trainable(self.params).values():
            value.requires_grad_()
        self.device, self.stats = next(iter(params.values())).device, Stats()

    def weights(self) -> Params:
        return {name: value.detach().clone() for name, value in self.params.items()}

    def _batches(self, m: int) -> int:
        """Steps that an epoch over m images takes."""
        return m // self.batch if self.whole_batches else math.ceil(m / self.batch)

    def run(self, epochs, steps, plan, history, snapshots, after_epoch, done) -> tuple[Params, Stats]:
        stats, everything = self.stats, Plan(torch.arange(len(self.source)))
        epoch, self.momentum = done[0], list(done[1])
        for _ in range(epoch):  # the random streams and the step count stand where training stood
            self._draw_epoch(everything)
        stats.steps = epoch * self._batches(len(self.source))
        if epoch in snapshots:
            stats.snapshots[epoch] = self.weights()
        while (epoch < epochs) if epochs else (stats.steps < steps):
            size = len(self.streams), len(self.source)
            record = {name: torch.full(size, math.nan, device=self.device) for name in history}
            self._epoch(plan(epoch, stats) if plan else everything, steps or None, record)
            for name, values in record.items():
                history[name].add(values)
            if plan:
                stats.collected = {name: kept.stacked() for name, kept in history.items()}
            epoch += 1
            if epoch in snapshots:
                stats.snapshots[epoch] = self.weights()
            if after_epoch:
                after_epoch(epoch, self.weights(), [value.clone() for value in self.momentum])
        stats.collected = {name: kept.stacked() for name, kept in history.items()}  # (epochs or 1, K, N)
        return self.weights(), stats

    def _epoch(self, chosen: Plan, last_step: int | None, record: dict[str, Tensor]) -> None:
        order, weights, draws, boxes = self._draw_epoch(chosen)
        for i in range(self._batches(order.shape[1])):
            if self.stats.steps == last_step:
                return
            here = slice(i * self.batch, (i + 1) * self.batch)
            indices = order[:, here]  # (K, B)
            images = self.source.batch(indices)  # (K, B, C, H, W)
            if draws is not None:
                images = augment(images, Draw(draws.families[:, i], draws.uniforms[:, i, : indices.shape[1]]))
            targets = self.source.targets[indices]  # (K, B) or (K, B, D)
            weight = None if weights is None else weights[:, here]
            if boxes is not None:
                targets = one_hot(targets, self.network.classes) if targets.ndim == 2 else targets
                if weight is not None:  # what is pasted brings its weight
                    targets, weight = targets * weight[..., None], None
                images, targets = cutmix(images, targets, boxes[0][:, i], boxes[1][:, i])
            self._step(images, targets, weight, indices, record, chosen.scale)

    def _draw_epoch(self, chosen: Plan):
        """Every network's data order (K, M), weights in that order, augmentation draws (K, steps) x (B), boxes of CutMix."""

        per_network = chosen.indices.cpu().expand(len(self.streams), -1)  # (K, M)
        m = per_network.shape[1]
        steps, shuffles, draws, boxes = self._batches(m), [], [], []
        for stream in self.streams:
            shuffles.append(torch.randperm(m, generator=stream))
            draws.append(draw(self.augmentation, steps, min(self.batch, m), stream))
            if self.cutmix:
                boxes.append(draw_boxes(self.cutmix, steps, *self.source.shape[-2:], stream))
        shuffle = torch.stack(shuffles)
        families, uniforms = map(torch.stack, zip(*((d.families, d.uniforms) for d in draws))) if draws[0] else (None, None)
        pasted = [torch.stack(part) for part in zip(*boxes, strict=True)] or None  # (K, steps, 4) and (K, steps)
        drawn = per_network.gather(1, shuffle), shuffle, chosen.weights, uniforms, pasted
        order, shuffle, weights, uniforms, pasted = to_device(drawn, self.device)
        if weights is not None:
            weights = weights.expand(len(self.streams), -1).gather(1, shuffle)
        return order, weights, None if families is None else Draw(families, uniforms), pasted  # draws (K, steps, ...)

    def _step(self, images, targets, weights, indices, record, scale) -> None:
        how = {"network": self.network, "loss": self.loss, "optimizer": self.optimizer, "collect": tuple(record)}
        how |= {"step": self.optimizer.like(self.stats.steps), "scale": scale}
        self.params, self.momentum, found = _replayed(self.params, self.momentum, images, targets, weights, **how)
        for name, values in record.items():
            values.scatter_(1, indices, found[name].to(values.dtype))
        self.stats.steps += 1
        self.stats.samples += indices.shape[1]


def training_step(
    params: Params, momentum: list[Tensor], images: Tensor, targets: Tensor, weights: Tensor | None, *,
    network, loss: Loss, optimizer: SGD, collect: tuple[str, ...], step: int, scale: float,
) -> tuple[Params, list[Tensor], dict[str, Tensor]]:  # fmt: skip
    """One step of K networks on images (K, B, C, H, W), in place: weights, momentum, and what is collected, (K, B) by name."""
    learned = list(trainable(params).values())

    def gradients() -> tuple[Output, Tensor, list[Tensor]]:
        """What the networks give at their present weights, the loss (K, B) or (K,), and its gradients."""
        output = network.apply(params, images, train=True)
        values = loss(output.logits, targets)
        if values.ndim == 1 and (weights is not None or "loss" in collect):
            raise InputError("loss: one value a batch, with weights or a collected loss by sample; accepted: a loss (K, B)")
        weighted = values if weights is None else values * weights
        # the sum over networks does not mix their gradients
        total = (weighted.mean(1) if values.ndim == 2 else values).sum()
        return output, values, list(torch.autograd.grad(total, learned))

    output, values, grads = gradients()
    grads = optimizer.direction(learned, grads, lambda: gradients()[-1])
    with torch.no_grad():
        found = {name: COLLECTORS[name](output.logits, targets, values).detach() for name in collect}
        momentum = optimizer.update(learned, grads, momentum, step, scale)
    return params | {name: value.detach() for name, value in output.buffers.items()}, momentum, found


_replayed = Replay(training_step)


def _joined(results: list[tuple[Params, Stats]]) -> tuple[Params, Stats]:
    """Chunks of networks put together along K."""
    if len(results) == 1:
        return results[0]
    weights, parts = zip(*results, strict=True)
    collected = {name: torch.cat([part.collected[name] for part in parts], dim=1) for name in parts[0].collected}
    snapshots = {epoch: _side_by_side([part.snapshots[epoch] for part in parts]) for epoch in parts[0].snapshots}
    return _side_by_side(weights), Stats(collected, snapshots, parts[0].steps, parts[0].samples)


def _side_by_side(weights: Sequence[Params]) -> Params:
    return {name: torch.cat([part[name] for part in weights]) for name in weights[0]}


def train_plain(
    module, source, optimizer: SGD, *, stream: Generator, epochs: int, batch: int, augmentation: str = "", cutmix: float = 0.0
) -> list[float]:
    """One nn.Module in the loop everyone writes: the definition of `train` with cross-entropy. Returns the loss of each step.

    stream  the network's own generator, `seeds.split(generator, K)[i]` for network i of an ensemble
    """
    sgd = torch.optim.SGD(module.parameters(), optimizer.lr, optimizer.momentum, weight_decay=optimizer.weight_decay)
    losses: list[float] = []
    for _ in range(epochs):
        order = torch.randperm(len(source), generator=stream)
        n_steps = math.ceil(len(source) / batch)
        draws = draw(augmentation, n_steps, min(batch, len(source)), stream)
        boxes = draw_boxes(cutmix, n_steps, *source.shape[-2:], stream)[0] if cutmix else None
        for i in range(n_steps):
            if len(losses) in optimizer.drops:  # a new optimizer: momentum starts again from zero
                lr = sgd.param_groups[0]["lr"] * optimizer.factor
                sgd = torch.optim.SGD(module.parameters(), lr, optimizer.momentum, weight_decay=optimizer.weight_decay)
            indices = order[i * batch : (i + 1) * batch]
            images = source.batch(indices)
            if draws is not None:
                step = Draw(draws.families[i : i + 1], draws.uniforms[i : i + 1, : len(indices)])
                images = augment(images[None], step)[0]
            targets = source.targets[indices]
            if boxes is not None:
                soft = F.one_hot(targets, int(source.targets.max()) + 1).float()
                images, targets = cutmix_plain(images, soft, boxes[i])
            loss = F.cross_entropy(module(images), targets)
            sgd.zero_grad()
            loss.backward()
            if isinstance(optimizer, GSAM):
                gsam_plain(module, optimizer, lambda x=images, y=targets: F.cross_entropy(module(x), y))
            sgd.step()
            losses.append(loss.item())
    return losses
