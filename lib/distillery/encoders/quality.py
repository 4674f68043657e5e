"""Embeddings of an encoder and how good they are: a gate against collapse, nearest neighbours and a linear probe, beside an untrained one."""

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


class Quality(NamedTuple):
    """What the features of an encoder are worth: accuracies as fractions, and their `deviation`."""

    knn: float
    probe: float
    deviation: float


def quality(encoder: Encoder, labelled: ImageSet, test: ImageSet, neighbours: int = 200) -> Quality:
    """Accuracy on `test` of the nearest neighbours among `labelled` images, and of a linear probe trained on them.

    neighbours  of `nearest`; Mixed Barlow Twins', with 5000 images of a class: fewer images need fewer neighbours
    raises      InputError on a collapsed encoder
    """
    encoder = encoder.to(labelled.device)
    known, asked = embedded(encoder, labelled), embedded(encoder, test)
    found = check_collapse(known, encoder.name)
    predicted = nearest(known, labelled.targets, asked, min(neighbours, len(labelled)))
    knn = float((predicted == test.targets).double().mean())
    return Quality(knn, float(linear_probe(encoder.network, encoder.params, labelled, test)[0]), found)


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


def closed(teacher: Quality, random: Quality, margin: float = 0.05) -> str:
    """Why a teacher's targets teach nothing, in words: an accuracy less than `margin`, a fraction, above a random encoder's; '' = open."""
    for name in ("knn", "probe"):
        ours, theirs = getattr(teacher, name), getattr(random, name)
        if not ours - theirs >= margin:
            return f"teacher: {name} accuracy {ours:.3f}, a random encoder's {theirs:.3f}"
    return ""


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


def check_collapse(features: Tensor, name: str) -> float:
    """Their `deviation`; raises InputError where it is below COLLAPSED: the encoder maps all images to nearly one point."""
    found = deviation(features)
    if not found >= COLLAPSED:
        raise InputError(f"{name}: relative deviation of features {found:.2g}, collapsed; accepted: {COLLAPSED:g} or more")
    return found
