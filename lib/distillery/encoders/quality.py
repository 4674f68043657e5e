"""How good an encoder's embeddings are: nearest neighbours and a linear probe, beside an untrained one."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from distillery.checks import InputError, check_positive_int
from distillery.data import ImageSet
from distillery.encoders.targets import _embedded, check_collapse
from distillery.encoders.teacher import check_encoder
from distillery.evaluation import linear_probe
from distillery.networks.encoder import Encoder


class Quality(NamedTuple):
    """What the features of an encoder are worth: accuracies as fractions, and their `deviation`."""

    knn: float
    probe: float
    deviation: float


def quality(encoder: Encoder, labelled: ImageSet, test: ImageSet, neighbours: int = 200) -> Quality:
    """Accuracy on `test` of the nearest neighbours among `labelled` images, and of a linear probe trained on them.

    neighbours  of `nearest`; Mixed Barlow Twins', with 5000 images of a class: fewer images need fewer neighbours
    raises      InputError on neighbours that are no positive whole number, a collapsed encoder, or one without `embed`
    """
    check_positive_int("neighbours", neighbours)
    check_encoder(encoder.network)
    encoder = encoder.to(labelled.device)
    known, asked = _embedded(encoder, labelled), _embedded(encoder, test)
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
    if not (math.isfinite(margin) and margin >= 0):
        raise InputError(f"margin: {margin!r} is not accepted; accepted: a fraction, 0 or more")
    for name in ("knn", "probe"):
        ours, theirs = getattr(teacher, name), getattr(random, name)
        if not ours - theirs >= margin:
            return f"teacher: {name} accuracy {ours:.3f}, a random encoder's {theirs:.3f}"
    return ""
