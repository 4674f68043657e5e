r"""IDM (arXiv 2307.09742): distribution matching on a queue of partly trained networks, with class-aware regularization.

$$L = \sum_c \Big\| \tfrac{1}{|B_c|}\sum_{x \in B_c} \phi(A(x)) - \tfrac{1}{|S_c|}\sum_{s \in S_c} \phi(A(s)) \Big\|^2
+ \lambda\, \mathrm{acc}(\phi)\, \tfrac{1}{|S_c|}\sum_{s \in S_c} \mathrm{CE}(\phi(A(s)), c)$$

with $\phi$ drawn from the queue, in evaluation mode, and acc its running training accuracy in percent, so that a network that has learned
nothing teaches nothing. After every update a few networks of the queue train on real images; from time to time a fresh one enters and the
oldest leaves. Slow reference, class by class: `queue_loss_plain`.

Our choices where the public code has faults or is silent: accuracies are not reset at evaluations; the cross-entropy sees the augmented
images that are matched; networks to train are distinct; momentum starts anew whenever a network trains; pixels move once for all
classes, at the rate that moves them as far as a step after each class (`matching.step.effective_rate`). Left out: on ImageNet-100 at
50 images a class the public code starts from released networks.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from distillery.checks import InputError, check_positive_int
from distillery.data.synthetic import Synthetic
from distillery.evaluation import Protocol
from distillery.matching.distribution import DistributionMatching
from distillery.matching.step import StepContext, prefixed, train_on_real, under
from distillery.methods.base import TINY, register
from distillery.methods.matched import Formed, FormedSettings
from distillery.networks import Params
from distillery.seeds import split
from distillery.training.dsa import DSA, Draw, augment, draw
from distillery.training.losses import cross_entropy
from distillery.training.optimizers import SGD
from distillery.upload import to_device

FIRST = 3  # networks in the queue at the start


@dataclass(frozen=True)
class QueueContext(StepContext):
    """push: () the weight of the cross-entropy, lambda times the accuracy in percent."""

    push: Tensor | float = 0.0


def queue_loss_plain(
    network, params: Params, real: Tensor, weights: Tensor, synthetic: Tensor, labels: Tensor, push: float, drawn: Draw | None
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
    """The IDM objective; effects of real images are those of DM, which the cross-entropy does not change. As `DistributionMatching`, and:

    ce_weight           lambda, with accuracies in percent
    interval, capacity  updates between two fresh networks, networks in the queue at most
    trained             networks that train after an update, each for `train_steps` steps on `train_batch` real images of all classes
    raises              InputError on a count that is not positive or a negative weight
    """

    name = "IDM"

    def __init__(self, network, batch: int = 256, augmentation: str = "", real_network=None, *, ce_weight: float = 0.5, interval: int = 30,
                 capacity: int = 100, trained: int = 2, train_steps: int = 10, train_batch: int = 256,
                 optimizer: SGD = SGD(0.01, 0.9, 5e-4)):  # fmt: skip
        super().__init__(network, batch, augmentation, real_network)
        self.interval, self.capacity, self.trained = interval, capacity, trained
        self.train_steps, self.train_batch, self.ce_weight, self.optimizer = train_steps, train_batch, ce_weight, optimizer
        for name in ("batch", "interval", "capacity", "trained", "train_steps", "train_batch"):
            check_positive_int(name, getattr(self, name))
        if not ce_weight >= 0:
            raise InputError(f"ce_weight: {ce_weight} is not accepted; accepted: 0 or more")

    def start(self, synthetic: Synthetic, generator: Generator) -> dict[str, Tensor]:
        """State: the queue, oldest first, 'queue.NAME' (Q, ...), with 'correct' and 'seen' (Q,), and the updates done."""
        return self._fresh(min(FIRST, self.capacity), synthetic.device, generator) | {"updates": torch.tensor(0)}

    def step(self, synthetic: Synthetic, state: dict[str, Tensor], draw_real, generator: Generator):
        """One gradient on the pixels, then training in the queue: (gradients by name, state, log)."""
        fresh_stream, pick_stream, augment_stream, train_stream = split(generator, 4)
        device, updates = synthetic.device, int(state["updates"])
        queue = {name: value for name, value in state.items() if name != "updates"}
        if updates and updates % self.interval == 0:
            fresh = self._fresh(1, device, fresh_stream).items()
            queue = {name: torch.cat([queue[name], value])[-self.capacity :] for name, value in fresh}
        size = len(queue["seen"])
        i = int(torch.randint(size, (), generator=pick_stream))
        accuracy = 100 * queue["correct"][i] / queue["seen"][i].clamp_min(1)  # (), percent
        labels, _ = synthetic.classes_present()
        drawn = draw(self.augmentation, len(labels), 1, augment_stream, siamese=True)
        context = QueueContext(_network(queue, i), to_device(labels, device), drawn, False, self.ce_weight * accuracy)
        loss, gradient = self.pixels(context, synthetic, draw_real)
        chosen = torch.randperm(size, generator=pick_stream)[: self.trained].tolist()
        queue = self._train(queue, chosen, draw_real, train_stream) | {"updates": torch.tensor(updates + 1)}
        return {"images": gradient}, queue, {"loss": loss, "accuracy": accuracy}

    def loss(self, context: StepContext, real: Tensor, weights: Tensor, images: Tensor, here: slice) -> Tensor:
        """The loss of some classes, (), from one pass of the synthetic images. Slow reference: `queue_loss_plain`."""
        drawn = context.drawn_for(here)
        seen = context.push, context.labels[here], augment(real[here], drawn), weights[here], augment(images, drawn)
        return self.replayed(context.params, *seen, train=context.train_mode)

    def loss_of_augmented(
        self, params: Params, push: Tensor, labels: Tensor, real: Tensor, weights: Tensor, images: Tensor, *, train: bool
    ) -> Tensor:
        output = self.network.apply(params, images.flatten(0, 1), train=train)
        features, logits = (values[0].unflatten(0, images.shape[:2]) for values in (output.embedding, output.logits))
        gap = self.real_means(params, real, weights, train) - features.mean(1)
        return gap.square().sum() + push * cross_entropy(logits, labels[:, None].expand(images.shape[:2])).mean(1).sum()

    def _fresh(self, k: int, device: torch.device, generator: Generator) -> dict[str, Tensor]:
        """k networks that have seen nothing."""
        weights = prefixed(self.network.init(generator, k), "queue.")
        counts = {name: torch.zeros(k, dtype=torch.int64) for name in ("correct", "seen")}
        return to_device(weights | counts, device)

    def _train(self, queue: dict[str, Tensor], chosen: list[int], draw_real, generator: Generator) -> dict[str, Tensor]:
        queue = {name: value.clone() for name, value in queue.items()}
        for i, stream in zip(chosen, split(generator, len(chosen)), strict=True):
            how = draw_real, self.train_steps, self.train_batch, self.optimizer, stream
            params, stats = train_on_real(self.network, _network(queue, i), *how, collect=("correct",))
            for name, value in params.items():
                queue[f"queue.{name}"][i] = value[0]
            queue["correct"][i] += stats.collected["correct"].nansum().long()  # (epochs, 1, n), NaN where not visited
            queue["seen"][i] += stats.samples
        return queue


def _network(queue: dict[str, Tensor], i: int) -> Params:
    """Network i of the queue, with leading axis 1."""
    return {name: value[i : i + 1] for name, value in under(queue, "queue.").items()}


@dataclass(frozen=True, kw_only=True)
class IDMSettings(FormedSettings):
    """Settings of IDM, as `QueueMatching`."""

    ce_weight: float
    interval: int
    capacity: int
    trained: int
    train_steps: int
    train_batch: int


LARGE = {"depth": 6, "side": 224, "ce_weight": 3.0, "batch": 128, "interval": 50, "capacity": 50}


@register
class IDM(Formed):
    """DM on a queue of networks that train along the way, four images in each stored one, and cross-entropy on the set."""

    name, kind, paper = "IDM", "distribution matching", "2307.09742"
    source = "code: command.txt of uitrbn/IDM"
    objective, Settings, once = QueueMatching, IDMSettings, True
    common = {
        "formation": "partition2", "interpolation": "bilinear", "augmented": True, "lr": 0.2, "momentum": 0.5, "iterations": 20_000,
        "batch": 256, "interval": 30, "capacity": 100, "trained": 2, "train_steps": 10, "train_batch": 256, "normalization": "published",
    }  # fmt: skip
    published = {
        "cifar10": {1: {"ce_weight": 0.5, "batch": 5000, "interval": 5}, 10: {"ce_weight": 0.5}, 50: {"ce_weight": 0.1}},
        "cifar100": {
            1: {"ce_weight": 0.5, "batch": 5000, "interval": 5, "normalization": "published:cifar10"},
            10: {"ce_weight": 0.1, "train_steps": 50, "normalization": "published:cifar10"},
            50: {"ce_weight": 0.1, "normalization": "published:cifar10"},
        },
        "tiny-imagenet": {1: TINY | {"ce_weight": 0.5}, 10: TINY | {"ce_weight": 0.5}, 50: TINY | {"ce_weight": 0.8, "train_steps": 50}},
        "imagenet-100": {1: LARGE, 10: LARGE},
    }
    judged = Protocol(augmentation=DSA)
    numbers = {  # other paper: the table of InfoUtil
        "cifar10": {1: (45.6, 0.7), 10: (58.6, 0.1), 50: (67.5, 0.1)},
        "cifar100": {1: (20.1, 0.3), 10: (45.1, 0.1), 50: (50.0, 0.2)},
        "tiny-imagenet": {1: (10.1, 0.2), 10: (21.9, 0.3), 50: (27.7, 0.3)},
        "imagenet-100": {1: (11.2, 0.5), 10: (17.1, 0.6), 50: (26.3, 0.4)},  # 224 x 224, six blocks
    }

    def options(self, job) -> dict:
        return {name: getattr(job.settings, name) for name in IDMSettings.__annotations__}
