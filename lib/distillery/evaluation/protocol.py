"""Train fresh networks on the set alone and test them at the end: the protocol that turns a set into accuracies.

Source: the evaluation shared by DC, DSA, DM and the trajectory methods, as in the public code of the first three
(github.com/VICO-UoE/DatasetCondensation): SGD with momentum .9, weight decay 5e-4, batch 256, epochs 0..E inclusive; after epoch
E // 2 + 1 the rate falls to a tenth once and momentum restarts. The final weights are tested; nothing is chosen on the test images. Papers
that report the best accuracy over epochs choose on them: `looks` tells how much that gains, beside and never in place of the last.

`Protocol` is also the base of others, one file each: it says where training starts, with which loss and rate and for how many
steps, which sets and experiments it fits, and what a result says.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Generator, Tensor

from distillery.checks import InputError, check_choice, check_positive_int, is_number
from distillery.data import ImageSet
from distillery.evaluation.labelling import Taught, Teacher
from distillery.networks import Params
from distillery.networks.encoder import Encoder
from distillery.seeds import split
from distillery.training import LOSSES as TRAINING_LOSSES
from distillery.training import Loss, Plan, Stats, dsa, half_squared_error, train
from distillery.training.optimizers import SGD

if TYPE_CHECKING:
    from distillery.experiment import Experiment
    from distillery.recipe import Recipe

MANY = 50  # classes from which on results hold top-5 accuracies too
LOSSES: dict[str, Loss] = TRAINING_LOSSES | {"half squared error": half_squared_error}


@dataclass(frozen=True)
class Protocol:
    """How a set is evaluated: networks trained on it from scratch. Raises InputError on values that are not accepted.

    networks      fresh networks, each with its own initialization and data order
    epochs        E; the set is passed E + 1 times
    augmentation  DSA families during training, '' for none
    loss          'cross-entropy', or 'half squared error' to centred one-hot labels, or to real-valued ones as kernel methods learn
    looks         so many times, evenly spaced over training and at its end, weights are kept for `best`; 0 = never
    """

    networks: int = 5
    epochs: int = 1000
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch: int = 256
    augmentation: str = ""
    loss: str = "cross-entropy"
    looks: int = 0

    kind: ClassVar[str] = "scratch"
    stream: ClassVar[str] = "evaluation"  # name of the random stream of first weights and data order
    losses: ClassVar[tuple[str, ...]] = ("cross-entropy", "half squared error")
    extra: ClassVar[int] = 1  # passes over the set beyond `epochs`
    descent: ClassVar[type[SGD]] = SGD
    cutmix: ClassVar[float] = 0.0  # probability of CutMix in a step
    normalization: ClassVar[str] = ""  # of other architectures that can have it, '' = the field's default

    def __post_init__(self):
        check_positive_int("networks", self.networks)
        check_positive_int("batch", self.batch)
        check_choice("loss", self.loss, self.losses)
        dsa.parse(self.augmentation)
        for name in ("lr", "momentum", "weight_decay"):
            if not is_number(getattr(self, name)) or getattr(self, name) < 0:
                raise InputError(f"{name}: {getattr(self, name)!r} is not accepted; accepted: a number, 0 or more")
        if not isinstance(self.epochs, int) or self.epochs + self.extra < 1:
            raise InputError(f"epochs: {self.epochs!r} is not accepted; accepted: a whole number, {1 - self.extra} or more")
        if not isinstance(self.looks, int) or self.looks < 0:
            raise InputError(f"looks: {self.looks!r} is not accepted; accepted: a whole number, 0 or more")

    def spec(self) -> dict:
        """What identifies it in the id of an evaluation; loss and looks where they are not the default."""
        values = asdict(self) | {"kind": self.kind}
        for name in ("loss", "looks"):
            if values[name] == getattr(type(self), name):
                del values[name]
        return values

    # What it fits

    def check(self, experiment: "Experiment") -> None:
        """Raise InputError on an experiment that it does not fit."""
        if experiment.classes is None:
            raise InputError(f"protocol: {self.kind!r} with real-valued targets and no labels; accepted: 'probe', or data with labels")

    def check_recipe(self, recipe: "Recipe") -> None:
        """Raise InputError on a recipe whose set it cannot evaluate as asked."""

    def check_source(self, source, network) -> None:
        """Raise InputError on a set (a source of `training.train`) that cannot be learned by its loss."""
        if self.loss == "cross-entropy" and not distributions(source.targets):
            raise InputError(
                "loss: 'cross-entropy' with labels that are no distributions; accepted: 'half squared error' for learned labels, --logits for logits"
            )

    def context(self, experiment: "Experiment") -> dict:
        """What else of an experiment is in the id of an evaluation."""
        return {}

    # How it trains

    def start(self, network, encoder: Encoder | None, stream: Generator, k: int) -> Params:
        """The first weights of k networks, leading axis k."""
        return network.init(stream, k)

    def drops(self, per_epoch: int) -> tuple[int, ...]:
        """The steps at which the rate falls, where an epoch has so many."""
        return ((self.epochs // 2 + 2) * per_epoch,)

    def optimizer(self, n: int) -> tuple[SGD, int]:
        """(optimizer with its drops, training steps) for a set of n images."""
        per_epoch = math.ceil(n / self.batch)
        made = self.descent(self.lr, self.momentum, self.weight_decay, drops=self.drops(per_epoch))
        return made, (self.epochs + self.extra) * per_epoch

    def steps_of(self, size: int, classes: int, n: int) -> int:
        """The number of images whose training steps the evaluation of a set takes, 0 = those of its own.

        size     images of each class, those of one stored image counted apart
        classes  how many, 0 = there are none
        n        number of real images
        """
        return size * classes

    def passes(self, epochs: int) -> "Protocol":
        """The protocol with so many passes over the set."""
        return replace(self, epochs=epochs - self.extra)

    def fitting(self, made) -> "Protocol":
        """The protocol for a set with a learned step size, which is its rate."""
        return replace(self, lr=float(made.tensors.get("step_size", self.lr)))

    # What a result says

    def judge(self, experiment: "Experiment", network, params: Params, stats: Stats, seed: int) -> dict:
        """What the result of an evaluation says of trained networks: 'accuracies' on the test images, one a network; of MANY classes also
        'top5'; and, with looks, the 'best' of each on its way."""
        test = experiment.data.test
        names = ("accuracies", "top5") if len(test.classes) >= MANY else ("accuracies",)
        found = dict(zip(names, accuracy_within(network, params, test, (1, 5)[: len(names)]).tolist()))
        return found | ({"best": best(network, stats, test).tolist()} if self.looks else {})


def evaluate(network, source, protocol: Protocol, test: ImageSet, generator: Generator, **options) -> Tensor:
    """Test accuracy of each of `protocol.networks` fresh networks trained on `source`: (networks,) fractions.

    options  `steps_of`, `encoder` and `teacher` of `fit`
    raises   InputError under 'probe', whose networks have features and no classes: `fit` them, and `probe` them
    """
    if protocol.kind == "probe":
        raise InputError(f"protocol: {protocol.kind!r}; accepted: one that trains classifiers (networks are probed by `probe`)")
    params, _ = fit(network, source, protocol, generator, device=test.device, **options)
    return accuracy(network, params, test)


def fit(
    network, source, protocol: Protocol, generator: Generator, *, steps_of: int = 0, encoder=None, hiding=None, teacher: Teacher | None = None,
    device="cpu",
) -> tuple[Params, Stats]:  # fmt: skip
    """The weights that `evaluate` tests, leading axis `protocol.networks`, and what training counted.

    source    a TensorSource (`Synthetic.source()`), an ImageSet, or images with real-valued targets (`RegressionSet`)
    steps_of  train exactly the steps that a set of this many images gets: whole data beside a small set, 0 = own size
    encoder   where fine-tuning starts, an Encoder
    hiding    leaves images out of an epoch: has `plan`, `collect` and `after_epoch` of `training.train`. Rates then follow epochs,
              at the protocol's `milestones`, and steps are saved
    teacher   labels every batch, in place of the protocol's loss and the labels of the set
    raises    InputError on a set that the protocol does not take, and hiding where rates would fall elsewhere than without
    """
    protocol.check_source(source, network)
    init_stream, train_stream = split(generator, 2)
    start = protocol.start(network, encoder, init_stream, protocol.networks)
    params = {name: value.to(device) for name, value in start.items()}
    n = steps_of or len(source)
    optimizer, steps = protocol.optimizer(n)
    length = {"steps": steps}
    if hiding:
        if n != len(source) or protocol.networks != 1 or protocol.epochs % 4:
            raise InputError(
                f"hiding: with the steps of {n} images, {protocol.networks} networks and {protocol.epochs} epochs; "
                "accepted: equal epochs, one network, and a multiple of 4 epochs: the rate then falls where it falls without hiding"
            )
        optimizer = replace(optimizer, drops=())

        def plan(epoch: int, stats: Stats) -> Plan:
            visits = hiding.plan(epoch, stats)
            drops = sum(epoch >= milestone for milestone in protocol.milestones)
            return replace(visits, scale=visits.scale * optimizer.factor**drops)

        length = {"epochs": protocol.epochs, "plan": plan, "collect": hiding.collect, "after_epoch": hiding.after_epoch}
    epochs = math.ceil(steps / math.ceil(len(source) / protocol.batch))
    length["snapshots"] = {max(1, round(i * epochs / protocol.looks)) for i in range(1, protocol.looks + 1)}
    options = {"generator": train_stream, "batch": protocol.batch, "augmentation": protocol.augmentation, "cutmix": protocol.cutmix}
    student, loss = (Taught(network, teacher), teacher.loss) if teacher else (network, LOSSES[protocol.loss])
    return train(student, params, source, loss, optimizer, **options, **length)


def distributions(targets: Tensor) -> bool:
    """Whether labels (N,) or (N, classes) are classes or none below 0 with sum 1, up to rounding."""
    return not targets.is_floating_point() or bool((targets > -1e-6).all() and (targets.sum(-1) - 1).abs().max() < 1e-3)


def accuracy(network, params: Params, images: ImageSet, batch: int = 500) -> Tensor:
    """Fraction of `images` each of K networks classifies correctly: (K,) float64 on the CPU."""
    return accuracy_within(network, params, images, (1,), batch)[0]


@torch.no_grad()
def accuracy_within(network, params: Params, images: ImageSet, tops: Sequence[int], batch: int = 500) -> Tensor:
    """Fraction of `images` of which each of K networks has the class among its largest logits, for each number of these: (tops, K) float64."""
    right = torch.zeros(len(tops), 1, dtype=torch.int64, device=images.device)
    for part in torch.arange(len(images), device=images.device).split(batch):
        found = network.apply(params, images.batch(part), train=False).logits  # (K, batch, classes)
        best = [found.argmax(-1, keepdim=True) if top == 1 else found.topk(min(top, found.shape[-1])).indices for top in tops]
        right = right + torch.stack([(one == images.targets[part, None]).any(-1).sum(1) for one in best])
    return right.cpu().double() / len(images)


def best(network, stats: Stats, images: ImageSet) -> Tensor:
    """The largest accuracy that each of K networks had on `images` where its weights were kept on the way: (K,) float64 on the CPU.

    On test images an optimistic number, as it is chosen on what it is measured on.
    """
    return torch.stack([accuracy(network, weights, images) for weights in stats.snapshots.values()]).amax(0)


@torch.no_grad()
def logits(network, params: Params, images: ImageSet, batch: int = 500) -> Tensor:
    """Logits of all images under K networks in evaluation mode: (K, N, classes)."""
    parts = torch.arange(len(images), device=images.device).split(batch)
    return torch.cat([network.apply(params, images.batch(part), train=False).logits for part in parts], dim=1)


@torch.no_grad()
def embed(network, params: Params, images: ImageSet, batch: int = 128) -> Tensor:
    """Embeddings of all images under K networks in evaluation mode: (K, N, F).

    batch   images at once; 128 of 32 x 32 at width 32 fit a CPU's cache, and take a half to a fifth of the time of 500
    """
    parts = torch.arange(len(images), device=images.device).split(batch)
    return torch.cat([network.embed(params, images.batch(part), train=False) for part in parts], dim=1)
