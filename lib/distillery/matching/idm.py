r"""IDM (arXiv 2307.09742): distribution matching on a queue of partly trained networks, with class-aware regularization.

$$L = \sum_c \Big\| \tfrac{1}{|B_c|}\sum_{x \in B_c} \phi(A(x)) - \tfrac{1}{|S_c|}\sum_{s \in S_c} \phi(A(s)) \Big\|^2
+ \lambda\, \mathrm{acc}(\phi)\, \tfrac{1}{|S_c|}\sum_{s \in S_c} \mathrm{CE}(\phi(A(s)), c)$$

with $\phi$ drawn from the queue, in evaluation mode, and acc its running training accuracy in percent, so that a network
that has learned nothing teaches nothing. After every update a few networks of the queue train on real images; from time to
time a fresh one enters and the oldest leaves. Slow reference, class by class: `queue_loss_plain`.

Our choices where the public code has faults or is silent: accuracies are not reset at evaluations; the cross-entropy sees the
augmented images that are matched; networks to train are distinct; momentum starts anew whenever a network trains.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from distillery.checks import InputError, check_positive_int
from distillery.data.synthetic import Synthetic
from distillery.matching.distribution import MAP_LIMIT, DistributionMatching, class_means
from distillery.matching.step import StepContext, classes_at_once, gradient_by_classes, train_on_real, under
from distillery.networks import Params
from distillery.seeds import split
from distillery.training import cross_entropy
from distillery.training.dsa import Draw, augment, draw
from distillery.training.optimizers import SGD

FIRST = 3  # networks in the queue at the start


@dataclass(frozen=True)
class QueueContext(StepContext):
    """push: () the weight of the cross-entropy, lambda times the accuracy in percent."""

    push: Tensor | float = 0.0


def queue_loss(
    network,
    params: Params,
    real: Tensor,
    weights: Tensor,
    synthetic: Tensor,
    labels: Tensor,
    push: Tensor | float,
    drawn: Draw | None,
    train_mode: bool = False,
    real_network=None,
) -> Tensor:
    """The loss above, () float: `distribution_loss` and the cross-entropy from one pass of the synthetic images.

    labels  (classes,)
    push    () factor of the cross-entropy; the others are those of `distribution_loss`
    Slow reference: `queue_loss_plain`.
    """
    real_mean = class_means(real_network or network, params, real, weights, drawn, train_mode)
    classes, m = synthetic.shape[:2]
    output = network.apply(params, augment(synthetic, drawn).flatten(0, 1), train=train_mode)
    features = output.embedding[0].unflatten(0, (classes, m))
    wrong = cross_entropy(output.logits[0].unflatten(0, (classes, m)), labels[:, None].expand(classes, m))
    return (real_mean - features.mean(1)).square().sum() + push * wrong.mean(1).sum()


def queue_loss_plain(
    network,
    params: Params,
    real: Tensor,
    weights: Tensor,
    synthetic: Tensor,
    labels: Tensor,
    push: float,
    drawn: Draw | None,
) -> Tensor:
    """One class after another, as published."""
    total = torch.zeros(())
    for c, label in enumerate(labels):
        siamese = None if drawn is None else drawn[c : c + 1]
        target = network.embed(params, augment(real[c : c + 1], siamese)[0], train=False)[0].detach()
        logits, features, _ = network.apply(params, augment(synthetic[c : c + 1], siamese)[0], train=False)
        gap = (weights[c, :, None] * target).sum(0) - features[0].mean(0)
        wrong = torch.nn.functional.cross_entropy(logits[0], label.expand(len(logits[0])))
        total = total + gap.square().sum() + push * wrong
    return total


class QueueMatching(DistributionMatching):
    """The IDM objective; effects of real images are those of DM, which the cross-entropy does not change.

    network       architecture of the queue
    batch         real images a class and step that are matched (published: 256, CIFAR at ipc 1: 5000)
    augmentation  DSA families, '' for none
    real_network  the same network as it runs on real images that are matched, such as `MixedPrecision(network, "bfloat16")`; None = `network`
    ce_weight     lambda, with accuracies in percent
    interval      updates between two fresh networks
    capacity      networks in the queue at most
    trained       networks that train after an update
    train_steps   steps each of them takes
    train_batch   real images of all classes a step
    optimizer     of the networks
    raises        InputError on a count that is not positive or a negative weight
    """

    name = "IDM"

    def __init__(
        self,
        network,
        batch: int = 256,
        augmentation: str = "",
        real_network=None,
        *,
        ce_weight: float = 0.5,
        interval: int = 30,
        capacity: int = 100,
        trained: int = 2,
        train_steps: int = 10,
        train_batch: int = 256,
        optimizer: SGD = SGD(0.01, 0.9, 5e-4),
    ):
        super().__init__(network, batch, augmentation, real_network)
        for name, value in (
            ("batch", batch),
            ("interval", interval),
            ("capacity", capacity),
            ("trained", trained),
            ("train_steps", train_steps),
            ("train_batch", train_batch),
        ):
            check_positive_int(name, value)
        if not ce_weight >= 0:
            raise InputError(f"ce_weight: {ce_weight} is not accepted; accepted: 0 or more")
        self.ce_weight, self.interval, self.capacity = ce_weight, interval, capacity
        self.trained, self.train_steps, self.train_batch = trained, train_steps, train_batch
        self.optimizer = optimizer

    def start(self, synthetic: Synthetic, generator: Generator) -> dict[str, Tensor]:
        """State: the queue, oldest first, 'queue.NAME' (Q, ...), with 'correct' and 'seen' (Q,), and the updates done."""
        first = min(FIRST, self.capacity)
        return self._fresh(first, synthetic.device, generator) | {"updates": torch.tensor(0)}

    def step(self, synthetic: Synthetic, state: dict[str, Tensor], draw_real, generator: Generator):
        """One gradient on the pixels, then training in the queue: (gradients by name, state, log)."""
        fresh_stream, pick_stream, augment_stream, train_stream = split(generator, 4)
        device, updates = synthetic.device, int(state["updates"])
        queue = {name: value for name, value in state.items() if name != "updates"}
        if updates and updates % self.interval == 0:
            fresh = self._fresh(1, device, fresh_stream)
            queue = {name: torch.cat([queue[name], v])[-self.capacity :] for name, v in fresh.items()}
        size = len(queue["seen"])
        i = int(torch.randint(size, (), generator=pick_stream))
        accuracy = 100 * queue["correct"][i] / queue["seen"][i].clamp_min(1)  # (), percent
        labels, _ = synthetic.classes_present()
        drawn = draw(self.augmentation, len(labels), 1, augment_stream, siamese=True)
        moment = QueueContext(
            _network(queue, i), labels.to(device, non_blocking=True), drawn, False, self.ce_weight * accuracy
        )
        real, weights = draw_real.classes(labels, self.batch, self.effects(moment, synthetic))

        def one(images: Tensor, here: slice) -> Tensor:
            return self.loss(moment, real, weights, images, here)

        at_once = classes_at_once(self.network, real.shape[1], real.shape, MAP_LIMIT)
        loss, gradient = gradient_by_classes(synthetic, at_once, one)
        chosen = torch.randperm(size, generator=pick_stream)[: self.trained].tolist()
        queue = self._train(queue, chosen, draw_real, train_stream)
        log = {"loss": loss, "accuracy": accuracy}
        return {"images": gradient}, queue | {"updates": torch.tensor(updates + 1)}, log

    def loss(self, moment: StepContext, real: Tensor, weights: Tensor, images: Tensor, here: slice) -> Tensor:
        """The loss of some classes, ()."""
        pairs = real[here], weights[here], images[here], moment.labels[here], moment.push
        return queue_loss(
            self.network, moment.params, *pairs, moment.drawn_for(here), moment.train_mode, self.real_network
        )

    def _fresh(self, k: int, device: torch.device, generator: Generator) -> dict[str, Tensor]:
        """k networks that have seen nothing."""
        weights = {f"queue.{name}": value for name, value in self.network.init(generator, k).items()}
        counts = {name: torch.zeros(k, dtype=torch.int64) for name in ("correct", "seen")}
        return {name: value.to(device, non_blocking=True) for name, value in (weights | counts).items()}

    def _train(self, queue: dict[str, Tensor], chosen: list[int], draw_real, generator: Generator) -> dict[str, Tensor]:
        queue = {name: value.clone() for name, value in queue.items()}
        for i, stream in zip(chosen, split(generator, len(chosen)), strict=True):
            params, stats = train_on_real(
                self.network,
                _network(queue, i),
                draw_real,
                self.train_steps,
                self.train_batch,
                self.optimizer,
                stream,
                collect=("correct",),
            )
            for name, value in params.items():
                queue[f"queue.{name}"][i] = value[0]
            correct = stats.collected["correct"]  # (epochs, 1, n), NaN where not visited
            queue["correct"][i] += correct.nansum().long()
            queue["seen"][i] += stats.samples
        return queue


def _network(queue: dict[str, Tensor], i: int) -> Params:
    """Network i of the queue, with leading axis 1."""
    return {name: value[i : i + 1] for name, value in under(queue, "queue.").items()}
