"""Probe features: pre-train networks on a set with real-valued targets, then fit a linear classifier to few labels.

Source: MKDT (arXiv 2410.02116) and its public code. There the solver of the classifier stops after a set number of
iterations; here it converges. Slow references of the classifiers `fit_linear` and `fit_ridge`: `fit_linear_plain`, `fit_ridge_plain`.
"""

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from distillery import store
from distillery.checks import InputError, check_finite, check_fraction, check_positive
from distillery.data import ImageSet
from distillery.evaluation.protocol import Protocol, embed
from distillery.networks import Params
from distillery.seeds import generator as stream_of
from distillery.seeds import split
from distillery.training import Stats
from distillery.training.losses import check_targets

if TYPE_CHECKING:
    from distillery.experiment import Experiment

TOLERANCE = 1e-6  # largest entry of the gradient of a linear classifier on centred features of spread 1
RIDGE = 3e-3  # of `fit_ridge`: best of six on validation images of textures, from 9 to 80 images a class
ITERATIONS = 10_000  # of a linear classifier; convergence takes some hundreds


@dataclass(frozen=True)
class Probing(Protocol):
    """Train networks from scratch on real-valued targets by squared error, then a linear classifier on frozen features.

    epochs      passes over the set; the rate does not fall
    lr          .1 for real images; a distilled set brings its own, see `fitting`
    labels      fractions of the labelled images whose labels the classifier sees
    penalty     of the squared weights of the classifier, see `fit_linear`
    """

    networks: int = 3
    epochs: int = 20
    lr: float = 0.1
    weight_decay: float = 1e-4
    loss: str = "squared error"
    labels: tuple[float, ...] = (0.01, 0.05)
    penalty: float = 1e-3

    kind: ClassVar[str] = "probe"
    stream: ClassVar[str] = "pre-training"
    losses: ClassVar[tuple[str, ...]] = ("squared error",)
    extra: ClassVar[int] = 0
    normalization: ClassVar[str] = "batch"  # as larger encoders have it in MKDT's public code

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.labels, tuple) or not self.labels:
            raise InputError(f"labels: {self.labels!r}; accepted: a tuple of one fraction or more")
        for fraction in self.labels:
            check_fraction("labels", fraction)
        check_positive("penalty", self.penalty)
        if self.looks:
            raise InputError(f"looks: {self.looks} of networks without classes; accepted: 0")

    def spec(self) -> dict:
        return super().spec() | {"stratified": False}  # labels are drawn whatever their class

    def check(self, experiment: "Experiment") -> None:
        if experiment.classes is not None:
            raise InputError(f"protocol: {self.kind!r} with labels; accepted: real images with real-valued targets, and tasks")
        real = experiment.real
        check_targets(real.targets, real, experiment.network.classes)
        for name, task in experiment.tasks.items():
            if task.train.shape != real.shape:
                raise InputError(f"task {name}: images of {task.train.shape}; accepted: {real.shape}")

    def check_source(self, source, network) -> None:
        targets, wanted = source.targets, (len(source), network.classes)
        if not (targets.is_floating_point() and targets.shape == wanted):
            raise InputError(f"targets: {targets.dtype} {tuple(targets.shape)}; accepted: real numbers {wanted}, as wide as the output")

    def context(self, experiment: "Experiment") -> dict:
        """The tasks: name -> [digest of images and labels, digest of their standardization]."""
        tasks = experiment.tasks.items()
        return {"tasks": {name: [task.digest, store.transform_digest(task.train.transform)] for name, task in tasks}}

    def drops(self, per_epoch: int) -> tuple[int, ...]:
        return ()

    def steps_of(self, size: int, classes: int, n: int) -> int:
        return 0

    def judge(self, experiment: "Experiment", network, params: Params, stats: Stats, seed: int) -> dict:
        """'accuracies'[task][fraction of labels][network], how the 'probes' went, and the 'pretraining_steps' of each network."""
        accuracies, probes = {}, {}
        for name, task in experiment.tasks.items():
            found, probes[name] = probe(network, params, task.train, task.test, self, stream_of(seed, "labels", name))
            accuracies[name] = {f"{fraction:g}": found[:, i].tolist() for i, fraction in enumerate(self.labels)}
        return {"accuracies": accuracies, "probes": probes, "pretraining_steps": stats.steps}


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
        warnings.warn(f"a linear classifier of {n} labels has not converged in {iterations} iterations", RuntimeWarning, stacklevel=2)
    return Linear(weight, bias, classes, iterations, converged)


def fit_linear_plain(features: Tensor, labels: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Weight and bias of `fit_linear`, by another solver on the formula as it stands; labels 0 to C - 1, all present."""
    features, classes = features.double(), int(labels.max()) + 1
    weight = torch.zeros(classes, features.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=5000, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe")

    def objective():
        solver.zero_grad()
        loss = F.cross_entropy(features @ weight.T + bias, labels) + penalty * (weight**2).sum()
        loss.backward()
        return loss

    solver.step(objective)
    return weight.detach(), bias.detach()


def fit_ridge(features: Tensor, labels: Tensor, subsets: Tensor, penalty: float = RIDGE) -> tuple[Tensor, Tensor]:
    r"""Linear classifiers of many subsets at once, by least squares instead of `fit_linear`: weights (B, F, C), biases (B, C).

    $$\min_{W, b}\; \sum_i \|W x_i + b - e_{y_i}\|^2 + \lambda \sum_i \|x_i - \bar x\|^2\; \|W\|_F^2$$

    In closed form from products of features, which all subsets share: some milliseconds a subset.

    features  (N, F) float32
    labels    (N,) int64, of C classes
    subsets   (B, n) int64, rows of each; of a class that is not among them nothing is learned
    Slow reference: `fit_ridge_plain`.
    """
    mean = features.mean(0)  # what all have in common would cost digits
    features = features - mean
    gram, one_hot = features @ features.T, F.one_hot(labels).float()
    weights, biases = [], []
    for rows in subsets:  # a stack of them would be no faster from a hundred rows on
        products, targets = gram[rows][:, rows], one_hot[rows]  # (n, n), (n, C)
        centre = products.mean(0)
        centred = products - centre - centre[:, None] + centre.mean()
        ridge = penalty * centred.trace() * torch.eye(len(rows), device=rows.device)
        dual = torch.cholesky_solve(targets - targets.mean(0), torch.linalg.cholesky(centred + ridge))  # (n, C)
        weights.append(features[rows].T @ dual)
        biases.append(targets.mean(0) - centre @ dual - mean @ weights[-1])  # the dual sums to 0
    return torch.stack(weights), torch.stack(biases)


def fit_ridge_plain(features: Tensor, labels: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """The classifier of `fit_ridge` on all features by its normal equations, in float64: (F, C), (C,)."""
    rows, targets = features.double(), F.one_hot(labels).double()
    centred = rows - rows.mean(0)
    ridge = penalty * centred.square().sum() * torch.eye(rows.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(centred.T @ centred + ridge, centred.T @ (targets - targets.mean(0)))
    return weight, targets.mean(0) - rows.mean(0) @ weight


def label_count(targets: Tensor, fraction: float) -> int:
    """How many labels are seen, round(fraction * N) but at least 1; warns where that is fewer than there are classes. The public code rounds down."""
    count, classes = max(1, round(fraction * len(targets))), len(targets.unique())
    if count < classes:
        warnings.warn(f"labels: {count} for {classes} classes, some of which stay unseen", stacklevel=3)
    return count


def probe(network, params: Params, labelled: ImageSet, test: ImageSet, protocol: Probing, generator: Generator) -> tuple[Tensor, dict]:
    """Test accuracy of a linear classifier on the frozen features of K networks, for each fraction of labels.

    The features are those of `embed`: the input of the network's own last layer in evaluation mode, not normalized. Each
    network has its own draw of labels, which depends on `generator` alone: methods probed under one seed see the same.

    returns  (K, fractions) float64 on the CPU, and what was seen: 'labels' (fractions,) counts; 'classes_seen', 'iterations'
             and 'converged', (K, fractions) as lists
    warns    as `label_count` and `fit_linear` do
    raises   InputError on features that are not finite
    """
    k = len(next(iter(params.values())))
    counts = [label_count(labelled.targets, fraction) for fraction in protocol.labels]
    accuracies = torch.zeros(k, len(counts), dtype=torch.float64)
    info = {"labels": counts, "classes_seen": [], "iterations": [], "converged": []}
    for i, stream in enumerate(split(generator, k)):
        one = {name: value[i : i + 1] for name, value in params.items()}
        drawn = labelled.subset(torch.randperm(len(labelled), generator=stream)[: max(counts)])  # uniform, as MKDT draws
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


def linear_probe(network, params: Params, labelled: ImageSet, test: ImageSet) -> Tensor:
    """Accuracy of `fit_linear` with penalty 1 / (2 N) on all N labels and standardized embeddings, one per network: (K,) float64, CPU."""
    from sklearn.preprocessing import StandardScaler

    scores = []
    for known, asked in zip(embed(network, params, labelled), embed(network, params, test)):
        scaler = StandardScaler().fit(known.cpu().double().numpy())
        known, asked = (torch.from_numpy(scaler.transform(x.cpu().double().numpy())) for x in (known, asked))
        classifier = fit_linear(known, labelled.targets, 1 / (2 * len(labelled)))
        scores.append((classifier.predict(asked) == test.targets.cpu()).double().mean())
    return torch.stack(scores)
