"""Embeddings of an encoder and how good they are: a gate against collapse, nearest neighbours and a linear probe."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from distillery.checks import InputError, check_finite
from distillery.data import ImageSet
from distillery.evaluation import embed, linear_probe
from distillery.networks.encoder import Encoder
from distillery.networks.precision import float32_matmul, images_at_once

COLLAPSED = 1e-2  # relative deviation of features below which an encoder tells images hardly apart
FLAT = 2.0  # effective rank below which they lie nearly on a line


class Quality(NamedTuple):
    """What the features of an encoder are worth: accuracies as fractions, their `deviation` and their `effective_rank`."""

    knn: float
    probe: float
    deviation: float
    rank: float


def quality(encoder: Encoder, labelled: ImageSet, test: ImageSet, neighbours: int = 200) -> Quality:
    """Accuracy on `test` of the nearest neighbours among `labelled` images, and of a linear probe trained on them.

    neighbours  of `nearest`; Mixed Barlow Twins', with 5000 images of a class: fewer images need fewer neighbours
    raises      InputError on a collapsed encoder
    """
    encoder = encoder.to(labelled.device)
    known, asked = embedded(encoder, labelled), embedded(encoder, test)
    check_collapse(known, encoder.name)
    predicted = nearest(known, labelled.targets, asked, min(neighbours, len(labelled)))
    knn = float((predicted == test.targets).double().mean())
    probe = float(linear_probe(encoder.network, encoder.params, labelled, test)[0])
    return Quality(knn, probe, deviation(known), effective_rank(known))


def nearest(known: Tensor, labels: Tensor, asked: Tensor, neighbours: int, temperature: float = 0.5) -> Tensor:
    """Classes (M,) of features (M, D) by a vote of the `neighbours` of largest cosine, each with weight exp(cosine / temperature).

    known, labels  (N, D) and (N,) int64, at least as many as neighbours
    Source: public code of Mixed Barlow Twins.
    """
    from sklearn.neighbors import KNeighborsClassifier  # a second to import

    def weights(distance: np.ndarray) -> np.ndarray:
        return np.exp((1 - distance) / temperature)

    vote = KNeighborsClassifier(neighbours, metric="cosine", weights=weights).fit(known.cpu().numpy(), labels.cpu().numpy())
    return torch.from_numpy(vote.predict(asked.cpu().numpy())).to(asked.device)


def embedded(encoder: Encoder, images: ImageSet) -> Tensor:
    """(N, D) float32, in full float32 on a GPU too."""
    encoder, chunk = encoder.to(images.device), images_at_once(encoder.network, images.shape, images.device)
    with float32_matmul("float32"):
        found = embed(encoder.network, encoder.params, images, chunk)[0].float()
    check_finite(f"embeddings of {encoder.name}", found)
    return found


def deviation(features: Tensor) -> float:
    """Share of the mean squared length of features (N, D) that is not that of their mean, as a root: 0 to 1, without unit."""
    features = features.double()
    spread = (features - features.mean(0)).square().sum()
    return float((spread / features.square().sum().clamp_min(torch.finfo(torch.float64).tiny)).sqrt())


def effective_rank(features: Tensor) -> float:
    r"""How many directions features (N, D) fill: $e^H$ of the entropy $H$ of the singular values of the centred features over their sum.

    1 = a line (or a point), D = all directions alike. Source: Roy and Vetterli (EUSIPCO 2007).
    """
    features = features.double()
    values = torch.linalg.svdvals(features - features.mean(0))
    shares = values / values.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return float(torch.special.entr(shares).sum().exp())


def check_collapse(features: Tensor, name: str) -> None:
    """Raises InputError on features whose `deviation` is below COLLAPSED, nearly one point, or whose `effective_rank` is below FLAT."""
    for what, found, least in (("relative deviation", deviation(features), COLLAPSED), ("effective rank", effective_rank(features), FLAT)):
        if not found >= least:
            raise InputError(f"{name}: {what} of features {found:.2g}, collapsed; accepted: {least:g} or more")
