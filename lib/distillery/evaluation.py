"""The one protocol that turns a set into accuracies: fresh networks, trained on the set alone, tested at the end.

Source: the evaluation shared by DC, DSA, DM and the trajectory methods, as in the public code of the first three
(github.com/VICO-UoE/DatasetCondensation): SGD with momentum .9, weight decay 5e-4, batch 256, epochs 0..E inclusive;
after epoch E // 2 + 1 the rate falls to a tenth once and momentum restarts. Accuracy is that of the final weights;
nothing is chosen on the test images.
"""

import math
from dataclasses import asdict, dataclass, replace

import torch
from torch import Generator, Tensor

from distillery.checks import InputError, check_choice, check_positive_int
from distillery.data import ImageSet
from distillery.networks import Params
from distillery.optimizers import SGD
from distillery.seeds import split
from distillery.training import cross_entropy, squared_error, train

KINDS = ("scratch", "probe")


@dataclass(frozen=True)
class Protocol:
    """How a set is evaluated.

    networks      fresh networks, each with its own initialization and data order
    epochs        E; the set is passed E + 1 times
    augmentation  DSA families during training, '' for none
    kind          'scratch': train a classifier on the set; 'probe': train on its targets, then fit a linear classifier
                  on frozen embeddings of labelled real images
    """

    networks: int = 5
    epochs: int = 1000
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch: int = 256
    augmentation: str = ""
    kind: str = "scratch"

    def __post_init__(self):
        check_positive_int("networks", self.networks)
        check_positive_int("batch", self.batch)
        check_choice("kind", self.kind, KINDS)
        if not isinstance(self.epochs, int) or self.epochs < 0:
            raise InputError(f"epochs: {self.epochs!r} is not accepted; accepted: a whole number, 0 or more")

    def steps(self, n: int) -> tuple[int, int]:
        """(training steps, step at which the rate drops) for a set of n images."""
        per_epoch = math.ceil(n / self.batch)
        return (self.epochs + 1) * per_epoch, (self.epochs // 2 + 2) * per_epoch

    def fitting(self, made, batch: int = 0) -> "Protocol":
        """The protocol for a set with a learned step size, which is its rate; `batch` 0 = as it stands."""
        step_size = made.tensors.get("step_size")
        rate = self.lr if step_size is None else float(step_size)
        return replace(self, lr=rate, batch=batch or self.batch)

    def spec(self) -> dict:
        return asdict(self)


def evaluate(
    network,
    source,
    protocol: Protocol,
    test: ImageSet,
    generator: Generator,
    *,
    steps_of: int = 0,
    labelled: ImageSet | None = None,
    chunk: int = 0,
) -> Tensor:
    """Test accuracy of each of `protocol.networks` fresh networks trained on `source`: (networks,) fractions.

    source    a TensorSource (`Synthetic.source()`) or an ImageSet
    steps_of  train exactly the steps that a set of this many images gets: whole data beside a small set, 0 = own size
    labelled  real labelled images for protocol kind 'probe'
    """
    init_stream, train_stream = split(generator, 2)
    params = network.init(init_stream, protocol.networks)
    params = {name: value.to(test.device) for name, value in params.items()}
    steps, drop = protocol.steps(steps_of or len(source))
    sgd = SGD(protocol.lr, protocol.momentum, protocol.weight_decay, drops=(drop,))
    if protocol.kind == "probe" and labelled is None:
        raise InputError("labelled: None; accepted: labelled real images for the linear probe")
    params, _ = train(
        network,
        params,
        source,
        cross_entropy if protocol.kind == "scratch" else squared_error,
        sgd,
        generator=train_stream,
        steps=steps,
        batch=protocol.batch,
        augmentation=protocol.augmentation,
        chunk=chunk,
    )
    if protocol.kind == "probe":
        return linear_probe(network, params, labelled, test)
    return accuracy(network, params, test)


def accuracy(network, params: Params, images: ImageSet, batch: int = 500) -> Tensor:
    """Fraction of `images` each of K networks classifies correctly: (K,) float64 on the CPU."""
    right = torch.zeros((), dtype=torch.int64, device=images.device)
    with torch.no_grad():
        for indices in torch.arange(len(images), device=images.device).split(batch):
            logits = network.apply(params, images.batch(indices), train=False).logits  # (K, B, classes)
            right = right + (logits.argmax(-1) == images.targets[indices]).sum(1)
    return right.cpu().double() / len(images)


def embed(network, params: Params, images: ImageSet, batch: int = 500) -> Tensor:
    """Embeddings of all images under K networks in evaluation mode: (K, N, F)."""
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
