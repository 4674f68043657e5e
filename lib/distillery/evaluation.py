"""The one protocol that turns a set into accuracies: fresh networks, trained on the set alone, tested at the end.

Source: the evaluation shared by DC, DSA, DM and the trajectory methods, as in the public code of the first three
(github.com/VICO-UoE/DatasetCondensation): SGD with momentum .9, weight decay 5e-4, batch 256, epochs 0..E inclusive;
after epoch E // 2 + 1 the rate falls to a tenth once and momentum restarts. Accuracy is that of the final weights;
nothing is chosen on the test images.

Beside it stand fine-tuning (`FineTuning`): a pre-trained encoder with a fresh classifier, trained on a part of a task; and
probing (`Probing`), MKDT's (arXiv 2410.02116): networks pre-trained on a set with real-valued targets, whose features, frozen,
a linear classifier learns from few labels. Slow reference of that classifier, `fit_linear`: `fit_linear_plain`.
"""

import math
import warnings
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from distillery.checks import InputError, check_choice, check_finite, check_fraction, check_positive_int
from distillery.data import ImageSet
from distillery.encoders import Encoder
from distillery.networks import Params
from distillery.optimizers import SGD, Nesterov
from distillery.seeds import split
from distillery.training import Plan, Stats, cross_entropy, half_squared_error, squared_error, train

LOSSES = {"cross-entropy": cross_entropy, "squared error": half_squared_error}
EQUAL = ("epochs", "steps")
TOLERANCE = 1e-6  # largest entry of the gradient of a linear classifier on centred features of spread 1
ITERATIONS = 10_000  # of a linear classifier; convergence takes some hundreds


@dataclass(frozen=True)
class Protocol:
    """How a set is evaluated.

    networks      fresh networks, each with its own initialization and data order
    epochs        E; the set is passed E + 1 times
    augmentation  DSA families during training, '' for none
    kind          'scratch': train a classifier on the set; 'fine-tune' is that of `FineTuning`, 'probe' of `Probing`
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
        check_choice("loss", self.loss, LOSSES)
        if self.loss != "cross-entropy" and self.kind != "scratch":
            raise InputError(f"loss: {self.loss!r} with kind {self.kind!r}; accepted: 'cross-entropy'")
        if self.kind != type(self).kind:
            raise InputError(
                f"kind: {self.kind!r} of {type(self).__name__}; accepted: {type(self).kind!r}; "
                "'fine-tune' is that of FineTuning, 'probe' of Probing"
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


@dataclass(frozen=True)
class Probing(Protocol):
    """Networks trained from scratch on real-valued targets by squared error, then a linear classifier on frozen features.

    Source: MKDT (arXiv 2410.02116) and its public code. There the solver of the classifier stops after a set number of
    iterations; here it converges.

    epochs      passes over the set; the rate does not fall
    lr          .1 for real images; a distilled set brings its own, see `fitting`
    labels      fractions of the labelled images whose labels the classifier sees
    penalty     of the squared weights of the classifier, see `fit_linear`
    stratified  draw the labels by class; published: not
    """

    networks: int = 3
    epochs: int = 20
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    batch: int = 256
    augmentation: str = ""
    kind: str = "probe"
    labels: tuple[float, ...] = (0.01, 0.05)
    penalty: float = 1e-3
    stratified: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_positive_int("epochs", self.epochs)
        if not isinstance(self.labels, tuple) or not self.labels:
            raise InputError(f"labels: {self.labels!r}; accepted: a tuple of one fraction or more")
        for fraction in self.labels:
            check_fraction("labels", fraction)
        if not (math.isfinite(self.penalty) and self.penalty > 0):
            raise InputError(f"penalty: {self.penalty!r} is not accepted; accepted: a number above 0")

    def steps(self, n: int) -> tuple[int, int]:
        """(training steps, the same: no drop of the rate comes before) for a set of n images."""
        steps = self.epochs * math.ceil(n / self.batch)
        return steps, steps

    def optimizer(self, n: int) -> tuple[SGD, int]:
        return SGD(self.lr, self.momentum, self.weight_decay), self.steps(n)[0]


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

    Under `Probing` those of `probe`: (networks, fractions of labels).

    source    a TensorSource (`Synthetic.source()`), an ImageSet, or images with real-valued targets (`students.Regression`)
    steps_of  train exactly the steps that a set of this many images gets: whole data beside a small set, 0 = own size
    labelled  real images of which `Probing` draws the labels that it sees
    encoder   where protocol kind 'fine-tune' starts
    """
    if protocol.kind == "probe" and labelled is None:
        raise InputError("labelled: None; accepted: labelled real images for the linear probe")
    params, _ = fit(
        network, source, protocol, generator, steps_of=steps_of, encoder=encoder, chunk=chunk, device=test.device
    )  # fmt: skip
    if protocol.kind == "probe":
        return probe(network, params, labelled, test, protocol, generator)[0]
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
    targets = source.targets
    if protocol.kind == "probe" and not (
        targets.is_floating_point() and targets.shape == (len(source), network.classes)
    ):
        raise InputError(
            f"targets: {targets.dtype} {tuple(targets.shape)} of a set to regress; accepted: real numbers "
            f"({len(source)}, {network.classes}), as wide as the network's output"
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


class Linear(NamedTuple):
    """A linear classifier: weight (C, F) and bias (C,) float64 on the CPU for the classes (C,) int64 that it has seen."""

    weight: Tensor
    bias: Tensor
    classes: Tensor
    iterations: int
    converged: bool

    def predict(self, features: Tensor) -> Tensor:
        """The class of the largest logit for features (M, F): (M,) int64 on the CPU."""
        logits = features.cpu().double() @ self.weight.T + self.bias  # (M, C)
        return self.classes[logits.argmax(1)]


def fit_linear(features: Tensor, labels: Tensor, penalty: float) -> Linear:
    r"""The softmax classifier of least penalized cross-entropy. Slow reference: `fit_linear_plain`.

    $$\min_{W, b}\; \frac{1}{n} \sum_i -\log \mathrm{softmax}(W x_i + b)_{y_i} + \lambda \|W\|_F^2$$

    features  (n, F) float, as they are
    labels    (n,) int64; of a class without labels nothing is learned, and a single class is predicted always
    warns     RuntimeWarning where it stops before the gradient is below TOLERANCE
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    features, labels = features.cpu().double(), labels.cpu()
    n, width = features.shape
    classes = labels.unique()
    if len(classes) == 1:
        return Linear(features.new_zeros(1, width), features.new_zeros(1), classes, 0, True)
    # the bias is free of the penalty: a shift of the features, and a common scale with the penalty scaled too, change the
    # time alone. 2250 labels, features of a ConvNet: 867 iterations as they are and 7000 at 100 times their size, now 134
    mean = features.mean(0)
    spread = float((features - mean).square().mean().sqrt()) or 1.0
    strength = spread**2 / (2 * penalty * n)
    if len(classes) == 2:
        strength *= 2  # scikit-learn penalizes the difference of the two weights, whose square is twice the sum of theirs
    solver = LogisticRegression(C=strength, tol=TOLERANCE, max_iter=ITERATIONS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        solver.fit(((features - mean) / spread).numpy(), labels.numpy())
    weight = torch.from_numpy(solver.coef_) / spread  # (C, F), or (1, F) with two classes
    bias = torch.from_numpy(solver.intercept_) - weight @ mean
    if len(classes) == 2:
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    converged = not any(issubclass(one.category, ConvergenceWarning) for one in caught)
    iterations = int(solver.n_iter_[0])
    if not converged:
        warnings.warn(
            f"a linear classifier of {n} labels has not converged in {iterations} iterations",
            RuntimeWarning,
            stacklevel=2,
        )
    return Linear(weight, bias, classes, iterations, converged)


def fit_linear_plain(features: Tensor, labels: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Weight and bias of `fit_linear`, by another solver on the formula as it stands; labels 0 to C - 1, all present."""
    features, classes = features.double(), int(labels.max()) + 1
    weight = torch.zeros(classes, features.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=5000,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def objective():
        solver.zero_grad()
        loss = F.cross_entropy(features @ weight.T + bias, labels) + penalty * (weight**2).sum()
        loss.backward()
        return loss

    solver.step(objective)
    return weight.detach(), bias.detach()


def draw_labels(targets: Tensor, fraction: float, generator: Generator, stratified: bool = False) -> Tensor:
    """Indices of the images whose labels are seen, round(fraction * N) but at least 1, on the CPU.

    Under one seed the draw of a smaller fraction is the beginning of that of a larger one.

    targets     (N,) int64
    stratified  False: uniform, without looking at the classes (MKDT); True: each class in the proportion that it has
    warns       UserWarning where there are fewer labels than classes
    raises      InputError on a fraction that is not above 0 and at most 1
    """
    count = _count(targets, fraction)
    return _label_order(targets, generator, stratified)[:count]


def _count(targets: Tensor, fraction: float) -> int:
    check_fraction("fraction", fraction)
    count, classes = max(1, round(fraction * len(targets))), len(targets.unique())
    if count < classes:
        warnings.warn(f"labels: {count} for {classes} classes, some of which stay unseen", stacklevel=3)
    return count


def _label_order(targets: Tensor, generator: Generator, stratified: bool) -> Tensor:
    """All images (N,) in the order in which their labels are drawn."""
    order = torch.randperm(len(targets), generator=generator)
    if not stratified:
        return order
    labels = targets.cpu()[order]
    place = torch.empty(len(order), dtype=torch.float64)
    for label in labels.unique():
        (own,) = torch.where(labels == label)
        place[own] = (torch.arange(len(own), dtype=torch.float64) + 0.5) / len(own)
    return order[place.argsort(stable=True)]  # each class is spread evenly, so every beginning is stratified


def probe(
    network, params: Params, labelled: ImageSet, test: ImageSet, protocol: Probing, generator: Generator
) -> tuple[Tensor, dict]:
    """Test accuracy of a linear classifier on the frozen features of K networks, for each fraction of labels.

    The features are those of `embed`: the input of the network's own last layer in evaluation mode, not normalized. Each
    network has its own draw of labels, which depends on `generator` alone: methods probed under one seed see the same.

    returns  (K, fractions) float64 on the CPU, and what was seen: 'labels' (fractions,) counts; 'classes_seen', 'iterations'
             and 'converged', (K, fractions) as lists
    warns    as `draw_labels` and `fit_linear` do
    raises   InputError on features that are not finite
    Source: MKDT (arXiv 2410.02116), its linear probe.
    """
    k = len(next(iter(params.values())))
    counts = [_count(labelled.targets, fraction) for fraction in protocol.labels]
    accuracies = torch.zeros(k, len(counts), dtype=torch.float64)
    info = {"labels": counts, "classes_seen": [], "iterations": [], "converged": []}
    for i, stream in enumerate(split(generator, k)):
        one = {name: value[i : i + 1] for name, value in params.items()}
        drawn = labelled.subset(_label_order(labelled.targets, stream, protocol.stratified)[: max(counts)])
        known, asked = embed(network, one, drawn)[0], embed(network, one, test)[0]  # (n, F), (M, F)
        for features in (known, asked):
            check_finite(f"features of network {i}", features)
        fitted = [fit_linear(known[:n], drawn.targets[:n], protocol.penalty) for n in counts]
        for j, classifier in enumerate(fitted):
            accuracies[i, j] = (classifier.predict(asked) == test.targets.cpu()).double().mean()
        info["classes_seen"].append([len(classifier.classes) for classifier in fitted])
        info["iterations"].append([classifier.iterations for classifier in fitted])
        info["converged"].append([classifier.converged for classifier in fitted])
    return accuracies, info


def linear_probe(
    network, params: Params, labelled: ImageSet, test: ImageSet, strength: float = 1.0
) -> Tensor:
    """Accuracy of `fit_linear` on all labels and standardized embeddings, one per network: (K,) float64 on the CPU.

    strength  inverse of the L2 penalty (scikit-learn's C, from three classes on): the penalty of `fit_linear` is 1 / (2 strength N)
    """
    from sklearn.preprocessing import StandardScaler

    scores = []
    for known, asked in zip(embed(network, params, labelled), embed(network, params, test)):
        scaler = StandardScaler().fit(known.cpu().double().numpy())
        known, asked = (torch.from_numpy(scaler.transform(x.cpu().double().numpy())) for x in (known, asked))
        classifier = fit_linear(known, labelled.targets, 1 / (2 * strength * len(labelled)))
        scores.append((classifier.predict(asked) == test.targets.cpu()).double().mean())
    return torch.stack(scores)
