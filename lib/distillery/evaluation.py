"""The one protocol that turns a set into accuracies: fresh networks, trained on the set alone, tested at the end.

Source: the evaluation shared by DC, DSA, DM and the trajectory methods, as in the public code of the first three
(github.com/VICO-UoE/DatasetCondensation): SGD with momentum .9, weight decay 5e-4, batch 256, epochs 0..E inclusive;
after epoch E // 2 + 1 the rate falls to a tenth once and momentum restarts. Accuracy is that of the final weights;
nothing is chosen on the test images.

Beside it stands fine-tuning (`FineTuning`): a pre-trained encoder with a fresh classifier, trained on a part of a task.
"""

import math
from dataclasses import asdict, dataclass, replace

import torch
from torch import Generator, Tensor

from distillery.checks import InputError, check_choice, check_positive_int
from distillery.data import ImageSet
from distillery.encoders import Encoder
from distillery.networks import Params
from distillery.optimizers import SGD, Nesterov
from distillery.seeds import split
from distillery.training import Plan, Stats, cross_entropy, half_squared_error, squared_error, train

KINDS = ("scratch", "probe", "fine-tune")
LOSSES = {"cross-entropy": cross_entropy, "squared error": half_squared_error}
EQUAL = ("epochs", "steps")


@dataclass(frozen=True)
class Protocol:
    """How a set is evaluated.

    networks      fresh networks, each with its own initialization and data order
    epochs        E; the set is passed E + 1 times
    augmentation  DSA families during training, '' for none
    kind          'scratch': train a classifier on the set; 'probe': train on its targets, then fit a linear classifier
                  on frozen embeddings of labelled real images; 'fine-tune': see `FineTuning`
    loss          'cross-entropy', or 'squared error' to centred one-hot labels, or to real-valued ones as they are, which
                  kernel methods learn
    """

    networks: int = 5
    epochs: int = 1000
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch: int = 256
    augmentation: str = ""
    kind: str = "scratch"
    loss: str = "cross-entropy"

    def __post_init__(self):
        check_positive_int("networks", self.networks)
        check_positive_int("batch", self.batch)
        check_choice("kind", self.kind, KINDS)
        check_choice("loss", self.loss, LOSSES)
        if self.loss != "cross-entropy" and self.kind != "scratch":
            raise InputError(f"loss: {self.loss!r} with kind {self.kind!r}; accepted: 'cross-entropy'")
        if (self.kind == "fine-tune") != isinstance(self, FineTuning):
            raise InputError(
                f"kind: {self.kind!r} of {type(self).__name__}; accepted: 'fine-tune' of FineTuning alone"
            )
        if not isinstance(self.epochs, int) or self.epochs < 0:
            raise InputError(f"epochs: {self.epochs!r} is not accepted; accepted: a whole number, 0 or more")

    def steps(self, n: int) -> tuple[int, int]:
        """(training steps, step at which the rate drops) for a set of n images."""
        per_epoch = math.ceil(n / self.batch)
        return (self.epochs + 1) * per_epoch, (self.epochs // 2 + 2) * per_epoch

    def optimizer(self, n: int) -> tuple[SGD, int]:
        """(optimizer with its drops, training steps) for a set of n images."""
        steps, drop = self.steps(n)
        return SGD(self.lr, self.momentum, self.weight_decay, drops=(drop,)), steps

    def fitting(self, made, batch: int = 0) -> "Protocol":
        """The protocol for a set with a learned step size, which is its rate; `batch` 0 = as it stands."""
        step_size = made.tensors.get("step_size")
        rate = self.lr if step_size is None else float(step_size)
        return replace(self, lr=rate, batch=batch or self.batch)

    def spec(self) -> dict:
        """What identifies it in the id of a run; the loss where it is not the first one: ids from before hold."""
        found = asdict(self)
        return found if found.pop("loss") == "cross-entropy" else found | {"loss": self.loss}


@dataclass(frozen=True)
class FineTuning(Protocol):
    """All weights of an encoder trained further: SGD with Nesterov momentum, the rate falls to a tenth at 1/2 and 3/4.

    Source: DLC (arXiv 2402.05356), its public code; there images are cropped at random scales, here augmented by DSA families.

    epochs   passes over the set
    equal    what a part of a task is given: as many 'epochs' as the whole, so fewer steps (as published), or as many 'steps'
    """

    networks: int = 1
    epochs: int = 50
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 1e-5
    batch: int = 128
    augmentation: str = ""
    kind: str = "fine-tune"
    equal: str = "epochs"

    def __post_init__(self):
        super().__post_init__()
        check_positive_int("epochs", self.epochs)
        check_choice("equal", self.equal, EQUAL)

    def steps(self, n: int) -> tuple[int, int]:
        """(training steps, step of the first drop) for a set of n images."""
        steps = self.epochs * math.ceil(n / self.batch)
        return steps, steps // 2

    @property
    def milestones(self) -> tuple[int, ...]:
        """Epochs, from 0, at which the rate falls, where they are whole."""
        return self.epochs // 2, 3 * self.epochs // 4

    def optimizer(self, n: int) -> tuple[SGD, int]:
        steps, half = self.steps(n)
        drops = tuple(sorted({half, 3 * steps // 4} - {0}))
        return Nesterov(self.lr, self.momentum, self.weight_decay, drops=drops), steps


def evaluate(
    network,
    source,
    protocol: Protocol,
    test: ImageSet,
    generator: Generator,
    *,
    steps_of: int = 0,
    labelled: ImageSet | None = None,
    encoder: Encoder | None = None,
    chunk: int = 0,
) -> Tensor:
    """Test accuracy of each of `protocol.networks` fresh networks trained on `source`: (networks,) fractions.

    source    a TensorSource (`Synthetic.source()`) or an ImageSet
    steps_of  train exactly the steps that a set of this many images gets: whole data beside a small set, 0 = own size
    labelled  real labelled images for protocol kind 'probe'
    encoder   where protocol kind 'fine-tune' starts
    """
    if protocol.kind == "probe" and labelled is None:
        raise InputError("labelled: None; accepted: labelled real images for the linear probe")
    params, _ = fit(
        network, source, protocol, generator, steps_of=steps_of, encoder=encoder, chunk=chunk, device=test.device
    )  # fmt: skip
    if protocol.kind == "probe":
        return linear_probe(network, params, labelled, test)
    return accuracy(network, params, test)


def fit(
    network,
    source,
    protocol: Protocol,
    generator: Generator,
    *,
    steps_of: int = 0,
    encoder: Encoder | None = None,
    hiding=None,
    chunk: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[Params, Stats]:
    """The weights that `evaluate` tests, leading axis `protocol.networks`, and what training counted.

    hiding  a `hiding.Hiding`, which leaves images out of an epoch: rates then follow epochs, and steps are saved
    """
    if protocol.kind == "fine-tune" and encoder is None:
        raise InputError("encoder: None; accepted: an encoder to fine-tune")
    if protocol.kind == "scratch" and protocol.loss == "cross-entropy" and not distributions(source.targets):
        raise InputError(
            "loss: 'cross-entropy' with labels that are no distributions; accepted: 'squared error', for learned real-valued labels"
        )
    init_stream, train_stream = split(generator, 2)
    start = encoder.start if protocol.kind == "fine-tune" else network.init
    params = {name: value.to(device) for name, value in start(init_stream, protocol.networks).items()}
    optimizer, steps = protocol.optimizer(steps_of or len(source))
    length = {"steps": steps}
    if hiding:
        if steps_of not in (0, len(source)) or protocol.networks != 1 or protocol.epochs % 4:
            raise InputError(
                f"hiding: with the steps of {steps_of or len(source)} images, {protocol.networks} networks and "
                f"{protocol.epochs} epochs; accepted: equal epochs, one network, and a multiple of 4 epochs, so that the "
                "rate falls where it falls without hiding"
            )
        optimizer = replace(optimizer, drops=())

        def plan(epoch: int, stats: Stats) -> Plan:
            found = hiding.plan(epoch, stats)
            drops = sum(epoch >= milestone for milestone in protocol.milestones)
            return replace(found, scale=found.scale * optimizer.factor**drops)

        length = {
            "epochs": protocol.epochs, "plan": plan, "collect": hiding.collect, "after_epoch": hiding.after_epoch
        }  # fmt: skip
    return train(
        network,
        params,
        source,
        squared_error if protocol.kind == "probe" else LOSSES[protocol.loss],
        optimizer,
        generator=train_stream,
        batch=protocol.batch,
        augmentation=protocol.augmentation,
        chunk=chunk,
        **length,
    )


def distributions(targets: Tensor) -> bool:
    """Whether labels (N,) or (N, classes) are classes or none below 0 with sum 1, up to rounding."""
    if not targets.is_floating_point():
        return True
    return bool((targets > -1e-6).all() and (targets.sum(-1) - 1).abs().max() < 1e-3)


def accuracy(network, params: Params, images: ImageSet, batch: int = 500) -> Tensor:
    """Fraction of `images` each of K networks classifies correctly: (K,) float64 on the CPU."""
    right = torch.zeros((), dtype=torch.int64, device=images.device)
    with torch.no_grad():
        for indices in torch.arange(len(images), device=images.device).split(batch):
            logits = network.apply(params, images.batch(indices), train=False).logits  # (K, B, classes)
            right = right + (logits.argmax(-1) == images.targets[indices]).sum(1)
    return right.cpu().double() / len(images)


def embed(network, params: Params, images: ImageSet, batch: int = 128) -> Tensor:
    """Embeddings of all images under K networks in evaluation mode: (K, N, F).

    batch   images at once; 128 of 32 x 32 at width 32 fit a CPU's cache, and take a half to a fifth of the time of 500
    """
    with torch.no_grad():
        parts = torch.arange(len(images), device=images.device).split(batch)
        return torch.cat([network.embed(params, images.batch(i), train=False) for i in parts], dim=1)


def linear_probe(
    network, params: Params, labelled: ImageSet, test: ImageSet, strength: float = 1.0
) -> Tensor:
    """Accuracy of a converged logistic regression on frozen embeddings, one per network: (K,) float64.

    strength  inverse of the L2 penalty (scikit-learn's C)
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scores = []
    for train_features, test_features in zip(embed(network, params, labelled), embed(network, params, test)):
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=5000))
        classifier.fit(train_features.cpu().numpy(), labelled.targets.cpu().numpy())
        scores.append(classifier.score(test_features.cpu().numpy(), test.targets.cpu().numpy()))
    return torch.tensor(scores, dtype=torch.float64)
