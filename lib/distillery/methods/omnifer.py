r"""Omni-supervised learning with distilled data (arXiv 2005.08551): few labelled images, and many others mined and distilled.

A network $f_0$ is trained on the labelled images $L$. With prototypes $\mu_c$, the mean feature of class $c$ in $L$, an image $u$ of the
others $U$ has a class and a confidence,

$$\hat y(u) = \arg\max_c \cos\big(f_0(u), \mu_c\big), \qquad s(u) = \max_c \cos\big(f_0(u), \mu_c\big)$$

and the part $q$ of highest $s$ of each predicted class is mined, $M$. Networks then learn $L$ with what stands for $M$: all of it, a few images
of it at random, or as many distilled from it under the predicted classes; beside them $L$ alone, and images distilled from all of $U$ under
its true classes, which nobody has. All train for equal steps. Slow reference: `mined_plain`.

Of the paper only the abstract and its first page are known here, and there is no public code. These are [paper]: a network trained on few
labels, others mined by similarity of features with high confidence, mined images distilled, networks trained on labelled and distilled images.
Ours are prototypes, cosine, the part, the hosts, the rows, and images of any kind in the place of faces.
"""

from copy import copy
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from distillery.checks import RunFailed, check_choice, check_fraction, check_positive_int
from distillery.data import ImageSet
from distillery.data.synthetic import Synthetic
from distillery.evaluation import fit
from distillery.evaluation.protocol import embed
from distillery.methods.base import METHODS, Made, Method, Settings, register
from distillery.methods.regression import Regression
from distillery.selection import select
from distillery.training.losses import one_hot

ADDED = ("nothing", "mined", "some mined", "distilled", "distilled, true labels")


class Mined(NamedTuple):
    """What prototypes say: 'chosen' (M,) places in U, by predicted class, most confident first; of all of U 'classes' and 'confidence' (N,)."""

    chosen: Tensor
    classes: Tensor
    confidence: Tensor


def mined(labelled: Tensor, labels: Tensor, others: Tensor, keep: float) -> Mined:
    """Mine features of other images (N, F) by those of labelled ones (n, F) with classes (n,): on the CPU. Slow reference: `mined_plain`.

    keep    q, the part of each predicted class, in (0, 1], rounded up
    raises  InputError on another part
    """
    check_fraction("keep", keep)
    found = labels.unique()
    prototypes = torch.stack([labelled[labels == label].double().mean(0) for label in found])  # (C, F)
    best = (F.normalize(others.double()) @ F.normalize(prototypes).T).max(1)  # (N,)
    classes, chosen = found[best.indices], []
    for label in found:
        members = (classes == label).nonzero()[:, 0]
        order = best.values[members].argsort(descending=True, stable=True)
        chosen.append(members[order[: _part(keep, len(members))]])
    return Mined(torch.cat(chosen), classes, best.values)


def mined_plain(labelled: list[list[float]], labels: list[int], others: list[list[float]], keep: float) -> list[tuple[int, int]]:
    """The definition, image by image: (place, predicted class) of what is mined."""
    prototypes = {}
    for label in sorted(set(labels)):
        own = [row for row, one in zip(labelled, labels, strict=True) if one == label]
        prototypes[label] = [sum(column) / len(own) for column in zip(*own, strict=True)]
    predicted: dict[int, list[tuple[float, int]]] = {label: [] for label in prototypes}
    for i, row in enumerate(others):
        cosines = {label: _cosine(row, one) for label, one in prototypes.items()}
        label = max(cosines, key=lambda one: cosines[one])
        predicted[label].append((-cosines[label], i))
    return [(i, label) for label, rows in predicted.items() for _, i in sorted(rows)[: _part(keep, len(rows))]]


def _cosine(x: list[float], y: list[float]) -> float:
    dot, norms = sum(a * b for a, b in zip(x, y, strict=True)), sum(a * a for a in x) * sum(b * b for b in y)
    return dot / norms**0.5


def _part(keep: float, n: int) -> int:
    return -int(-keep * n // 1)


@dataclass(frozen=True, kw_only=True)
class OmniSettings(Settings):
    """Settings of omni-supervised learning, all ours."""

    labelled: int  # images of each class whose labels are known, drawn by the seed
    keep: float  # q, the part of each predicted class that is mined
    added: str  # to the labelled images, one of ADDED
    host: str  # the method that distils, with its published settings

    def __post_init__(self):
        super().__post_init__()
        check_positive_int("labelled", self.labelled)
        check_fraction("keep", self.keep)
        check_choice("added", self.added, ADDED)
        hosts = (
            one for one in METHODS.values() if one.objective and one.labels and not isinstance(one, Regression)
        )  # its labels are no classes
        check_choice("host", self.host, [one.name for one in hosts])


@register
class OmniSupervised(Method):
    """Few labelled images with images mined among the others and distilled: so many distilled ones of each class are added as the size says."""

    name, kind, paper = "omni-supervised", "mines what is not labelled", "2005.08551"
    source = "ours: no settings of the paper are known here"
    Settings = OmniSettings
    common = {"labelled": 50, "keep": 0.1, "added": "distilled", "host": "DM"}

    def refuse(self, job) -> None:
        super().refuse(job)
        host = self.host(job, job.experiment.real)
        _ = host.settings
        host.method.refuse(host)

    def stored(self, job) -> tuple[int, str, str]:
        return job.settings.labelled + job.recipe.size, "identity", "bilinear"

    def host(self, job, images: ImageSet):
        """The job of the host, as if these were all images."""
        how = {"method": job.settings.host, "settings": {}, "prune": None, "evaluate": type(job.recipe.evaluate)()}
        return type(job)(on(job.experiment, images), replace(job.recipe, **how), job.key)

    def spec(self, job) -> dict:
        found, added = super().spec(job), job.settings.added
        if added != "nothing":
            found["protocol"] = job.experiment.protocol.spec()  # of the network that mines
        if added.startswith("distilled"):
            host = self.host(job, job.experiment.real)
            found["host"] = {"version": host.method.version, "start": host.start} | host.method.spec(host)
        return found

    def make(self, job) -> Made:
        s, real = job.settings, job.experiment.real
        known, hidden = select(None, s.labelled, job.kept_labels, "random", job.stream("labelled")), torch.ones(len(job.kept))
        hidden[known] = 0
        labelled, others = real.subset(job.kept[known]), real.subset(job.kept[hidden > 0])
        log: dict = {}
        if s.added == "nothing":
            return Made(_set(labelled))
        if s.added != "distilled, true labels":
            others, log = self.mine(job, labelled, others)
        if s.added == "mined":
            return Made(_set(labelled, others.batch(torch.arange(len(others), device=real.device)), others.targets), log=log)
        host = self.host(job, others)
        n = host.held if s.added.startswith("distilled") else job.recipe.size
        if min(counts := others.counts()) < n:
            name = real.classes[counts.index(min(counts))]
            raise RunFailed(f"class {name}: {min(counts)} images mined, fewer than {n}; accepted: a larger part (keep), or fewer images")
        if s.added == "some mined":
            some = select(None, n, others.targets.cpu(), "random", job.stream("some mined")).to(real.device)
            return Made(_set(labelled, others.batch(some), others.targets[some]), log=log)
        host.method.prepare(host)
        made = host.method.make(host)
        return Made(_set(labelled, *made.last.decode()), log=made.log | log)

    def mine(self, job, labelled: ImageSet, others: ImageSet) -> tuple[ImageSet, dict]:
        """What is mined, under the predicted classes, and how right these are: 'mined' images, their 'precision', and that of 'all' others."""
        here, own = job.experiment, replace(job.experiment.protocol, networks=1, looks=0)
        params, _ = fit(job.network, labelled, own, job.stream("miner"), encoder=here.encoder, device=here.device)
        features = [embed(job.network, params, images)[0].cpu() for images in (labelled, others)]
        chosen, classes, _ = mined(features[0], labelled.targets.cpu(), features[1], job.settings.keep)
        right = (classes == others.targets.cpu()).double()
        log = {"mined": len(chosen), "precision": float(right[chosen].mean()), "all": float(right.mean())}
        return replace(others.subset(chosen), targets=classes[chosen].to(others.device)), log


def on(experiment, images: ImageSet):
    """An experiment on other training images of the same classes; scores and experts are their own, bills are shared."""
    made, scores = copy(experiment), copy(experiment.scores)
    made.__dict__ = {name: value for name, value in vars(experiment).items() if name not in ("labels", "transform")}  # known of others
    made.__dict__ |= {"data": replace(experiment.data, train=images), "scores": scores, "shared": {}}
    scores.__dict__ |= {"images": images, "digest": made.data.digest, "experiment": made, "_read": {}, "_known": {}}
    return made


def _set(labelled: ImageSet, images: Tensor | None = None, targets: Tensor | None = None) -> Synthetic:
    """Labelled images as a set, and others behind them with hard labels or soft ones, which all then have."""
    first, labels = labelled.batch(torch.arange(len(labelled), device=labelled.device)), labelled.targets
    if images is not None:
        labels = one_hot(labels, targets.shape[1]) if targets.is_floating_point() else labels
        first, labels = torch.cat([first, images]), torch.cat([labels, targets])
    return Synthetic({"images": first, "targets": labels}, labelled.classes)
