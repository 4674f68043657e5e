"""How good an encoder's embeddings are: nearest neighbours and a linear probe, beside an untrained one."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from distillery.checks import InputError, check_positive, check_positive_int
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


def quality(encoder: Encoder, labelled: ImageSet, test: ImageSet, neighbours: int = 200, temperature: float = 0.5) -> Quality:
    """Accuracy on `test` of the nearest neighbours among `labelled` images, and of a linear probe trained on them.

    neighbours, temperature  of `nearest`; Mixed Barlow Twins', with 5000 images of a class: fewer images need fewer neighbours
    raises                   InputError on a collapsed encoder, or one without `embed`
    """
    check_encoder(encoder.network)
    encoder = encoder.to(labelled.device)
    known, asked = _embedded(encoder, labelled), _embedded(encoder, test)
    found = check_collapse(known, encoder.name)
    predicted = nearest(known, labelled.targets, asked, min(neighbours, len(labelled)), temperature)
    knn = float((predicted == test.targets).double().mean())
    return Quality(knn, float(linear_probe(encoder.network, encoder.params, labelled, test)[0]), found)


def nearest(known: Tensor, labels: Tensor, asked: Tensor, neighbours: int, temperature: float = 0.5, chunk: int = 1000) -> Tensor:
    """Classes (M,) of features (M, D) by a vote of the `neighbours` of largest cosine, each with weight exp(cosine / temperature).

    known, labels  (N, D) and (N,) int64
    Source: public code of Mixed Barlow Twins. Slow reference: `nearest_plain`.
    """
    check_positive_int("neighbours", neighbours)
    if neighbours > len(known):
        raise InputError(f"neighbours: {neighbours} of {len(known)} images; accepted: at most as many as there are")
    check_positive("temperature", temperature)
    known, classes = F.normalize(known, dim=1), int(labels.max()) + 1
    found = []
    for part in F.normalize(asked, dim=1).split(chunk):
        cosine, at = (part @ known.T).topk(neighbours)  # (B, neighbours)
        votes = part.new_zeros(len(part), classes).scatter_add_(1, labels[at], (cosine / temperature).exp())
        found.append(votes.argmax(1))
    return torch.cat(found)


def nearest_plain(known: Tensor, labels: Tensor, asked: Tensor, neighbours: int, temperature: float) -> Tensor:
    """One feature after another."""
    found = []
    for x in asked:
        cosine = [float(F.cosine_similarity(x, y, dim=0)) for y in known]
        votes: dict[int, float] = {}
        for i in sorted(range(len(known)), key=lambda i: -cosine[i])[:neighbours]:
            votes[int(labels[i])] = votes.get(int(labels[i]), 0.0) + math.exp(cosine[i] / temperature)
        found.append(max(votes, key=lambda label: votes[label]))
    return torch.tensor(found)


def closed(teacher: Quality, random: Quality, margin: float = 0.05) -> str:
    """Why a teacher's targets teach nothing, in words: an accuracy less than `margin`, a fraction, above a random encoder's; '' = open."""
    if not (math.isfinite(margin) and margin >= 0):
        raise InputError(f"margin: {margin!r} is not accepted; accepted: a fraction, 0 or more")
    for name in ("knn", "probe"):
        ours, theirs = getattr(teacher, name), getattr(random, name)
        if not ours - theirs >= margin:
            return f"teacher: {name} accuracy {ours:.3f}, a random encoder's {theirs:.3f}"
    return ""
