"""Many splits of one task by a linear probe: the encoder looks at every image once, then hundreds of parts are judged in a second.

Each split draws training, validation and test images anew from all of a task, scores the training images by complexity, and fits a linear classifier
(`fit_ridge`) on frozen features of each part that a way keeps. Splits share images: their spread is of draws from this task, not of tasks.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from distillery import selection
from distillery.data import Splits
from distillery.evaluation import fit_ridge
from distillery.evaluation.probe import RIDGE
from distillery.recipe import Recipe
from distillery.report.statistics import difference
from distillery.scores import clip_selection, complexity, geometry
from distillery.seeds import generator, split

VERSION = 1  # of what a stored split holds
FREE = {  # baselines that need features alone: score of (features, complexity, targets)
    "Moderate": lambda rows, hard, targets: geometry.prototype_distance(rows, targets),
    "CCS strata": lambda rows, hard, targets: hard,
    "k-center": lambda rows, hard, targets: geometry.k_center(rows, targets, len(rows)),
    "herding": lambda rows, hard, targets: geometry.herding(rows, targets, len(rows)),
    "D2": lambda rows, hard, targets: geometry.d2(F.normalize(rows), hard, targets=targets),
    "alignment": lambda rows, hard, targets: clip_selection.misalignment(rows, targets),
}


def features(experiment) -> tuple[Tensor, Tensor]:
    """Features (T, N, F) under each mask and labels (N,) of training, validation and test images, in that order; stored."""
    parts = (experiment.data.train, experiment.data.validation, experiment.data.test)
    scores, network = experiment.scores, experiment.fast
    inputs = {"network": network.spec(), "transform": scores.transform, "encoder": experiment.encoder.digest, "path": scores.path}

    def make() -> tuple[dict, int]:
        params = experiment.encoder.to(experiment.device).params
        by_part = [torch.stack([*complexity.masked_features(network, params, part, **scores.path)]) for part in parts]
        found = torch.cat(by_part, 1)
        return {"features": found}, len(found) * found.shape[1]

    found = scores.stored("masked-features", inputs, make, ("masked features", 0))["features"]
    return found, torch.cat([part.targets.cpu() for part in parts])


def drawn(targets: Tensor, counts: Sequence[Sequence[int]], stream: Generator) -> list[Tensor]:
    """Disjoint rows of every class, shuffled: counts[part][class] of each."""
    by_class = []
    for label, sizes in enumerate(zip(*counts)):
        members = torch.nonzero(targets == label)[:, 0]
        by_class.append(members[torch.randperm(len(members), generator=stream)].split(sizes))
    return [torch.cat(part) for part in zip(*by_class)]


def run(experiment, keep: Sequence[float], tries: int, splits: int, seed: int) -> list[dict | None]:
    """What each split found, None = not run: part -> way -> [validation, test accuracy], of 'random' and 'FlexRand' one a try.

    keep   parts of each class
    tries  values of gamma, legal for each part, and as many random draws
    Every split is stored by itself; features are made where one is missing.
    """
    data: Splits = experiment.data
    counts = [part.counts() for part in (data.train, data.validation, data.test)]
    path, found = experiment.scores.path, []
    inputs = {"encoder": experiment.encoder.digest, "network": experiment.network.spec(), "transform": experiment.scores.transform}
    inputs |= {"path": path, "keep": list(keep), "tries": tries, "ridge": RIDGE, "seed": seed}
    for i in range(splits):

        def compute(key: str, i: int = i) -> dict:
            along, targets = features(experiment)
            cut, draws = split(generator(seed, "many splits", i), 2)
            return one_split(along, targets, drawn(targets, counts, cut), keep, tries, draws)

        found.append(experiment.runs.try_get("split", VERSION, inputs | {"split": i}, data.digest, compute, f"split {i}"))
    return found


def one_split(along: Tensor, targets: Tensor, rows: Sequence[Tensor], keep: Sequence[float], tries: int, stream: Generator) -> dict:
    """What `run` stores of one split.

    along  (T, N, F) features under each mask
    rows   of training, validation and test images
    """
    train, *judged = rows
    seen, labels = along[0][train], targets[train]
    hard = complexity.losses_along(along[:, train], labels).losses.mean(0)
    rank = {name: score(seen, hard, labels) for name, score in FREE.items()}
    found = {}
    for part in keep:
        pick = partial(selection.prune, keep=part, targets=labels, generator=stream)
        kept = {("random", i): pick(None, rule="random") for i in range(tries)}
        kept |= {("FlexRand", i): pick(hard, rule="flexrand", gamma=gamma) for i, gamma in enumerate(selection.legal_gammas(part, tries))}
        kept |= {("easiest", 0): pick(hard, rule="lowest"), ("hardest", 0): pick(hard, rule="highest")}
        kept |= {(name, 0): pick(score, rule=selection.BASELINES[name][1]) for name, score in rank.items()}
        classifiers = fit_ridge(seen, labels, torch.stack([*kept.values()]))
        right = [accuracies(*classifiers, along[0][some], targets[some]) for some in judged]
        told = found[f"{part:g}"] = {}
        for (name, _), *values in zip(kept, *right):
            told.setdefault(name, []).append([round(value, 6) for value in values])
    return found


def accuracies(weights: Tensor, biases: Tensor, rows: Tensor, targets: Tensor) -> list[float]:
    """The share of rows (M, F) that each of B classifiers, (B, F, C) and (B, C), tells."""
    logits = (rows @ weights.movedim(0, 1).flatten(1)).unflatten(1, biases.shape) + biases  # (M, B, C)
    return (logits.argmax(2) == targets[:, None]).double().mean(0).tolist()


def by_way(found: Sequence[dict | None], part: float) -> dict[str, list[list[float] | None]]:
    """Test accuracies of ways at a part as rows hold them, [[accuracy]] by split, None where it was not run."""
    done = [one and _chosen({name: np.array(tries) for name, tries in one[f"{part:g}"].items()}) for one in found]
    names = next((one for one in done if one), {})
    return {name: [one and [float(one[name])] for one in done] for name in names}


def _chosen(told: dict[str, np.ndarray]) -> dict[str, float]:
    """Test accuracies of one split and part; of several tries, (tries, 2), by what chooses among them: validation, or an oracle on test."""
    random, gammas = told.pop("random"), told.pop("FlexRand")
    found = {"random": random[:, 1].mean(), "random, again": random[0, 1], "random, others": random[1:, 1].mean()}
    found |= {"FlexRand, 1/2": gammas[len(gammas) // 2, 1]}
    for name, tries in (("best of random", random), ("FlexRand", gammas)):
        found |= {name: tries[tries[:, 0].argmax(), 1], f"{name}, oracle on test": tries[:, 1].max()}
    return found | {name: tries[0, 1] for name, tries in told.items()}


def means(found: Sequence[dict | None], keep: Sequence[float]) -> dict[str, list[list[float] | None]]:
    """Test accuracies of ways, mean over the parts, [[accuracy]] by split."""
    by_part = [by_way(found, part) for part in keep]
    return {name: [one[0] and [float(np.mean(one))] for one in zip(*(ways[name] for ways in by_part))] for name in by_part[0]}


def gaps(found: Sequence[dict | None], keep: Sequence[float], names: Sequence[str]) -> dict[str, dict[str, dict | None]]:
    """Differences to random draws by way and part, of one random draw to the others, as `figures.differences` draws them."""
    table: dict[str, dict] = {name: {} for name in names}
    for part in keep:
        ways = by_way(found, part)
        for name in names:
            table[name][f"{part:.0%}"] = difference(ways[name], ways["random, others" if name == "random, again" else "random"])
    return table


def along_gamma(found: Sequence[dict | None], keep: Sequence[float]) -> dict[str, dict[str, dict | None]]:
    """Likewise of FlexRand at each value of gamma, named by its place in the legal range: 0% = all of the easiest, 100% = of the hardest."""
    table: dict[str, dict] = {}
    for part in keep:
        random, tries = by_way(found, part)["random"], [[one[1] for one in each[f"{part:g}"]["FlexRand"]] for each in found if each]
        for place, each in zip(np.linspace(0, 1, len(tries[0])), zip(*tries)):
            table.setdefault(f"{place:.0%}", {})[f"{part:.0%}"] = difference([[one] for one in each], [one for one in random if one])
    return table


def probed(experiment, ways: dict, keep: Sequence[float], seeds: Sequence[int], against: str) -> dict[str, dict[str, dict | None]]:
    """Differences by way and part, as `gaps`, of linear probes on what each way keeps of the training images of an experiment.

    ways  name -> (part) -> how it is kept, a `Prune`; that of `against` is what the others are compared with
    """
    along, targets = features(experiment)
    n, m = len(experiment.data.train), len(experiment.data.test)
    table: dict[str, dict] = {name: {} for name in ways if name != against}
    for part in keep:
        kept = [[experiment.kept(Recipe("whole", 0, seed, prune=way(part))) for seed in seeds] for way in ways.values()]
        classifiers = fit_ridge(along[0][:n], targets[:n], torch.stack([one for each in kept for one in each]))
        right = torch.tensor(accuracies(*classifiers, along[0][-m:], targets[-m:])).view(len(ways), len(seeds), 1)
        found = dict(zip(ways, right.tolist()))
        for name, cells in table.items():
            cells[f"{part:.0%}"] = difference(found[name], found[against])
    return table
