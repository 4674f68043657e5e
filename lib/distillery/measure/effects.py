"""Treatment effects (`matching/effects.py`) on real images of one step: how fast ways follow the definition, how networks agree, the cost."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import combinations

from scipy.stats import spearmanr
from torch import Tensor

from distillery.data.synthetic import Synthetic
from distillery.matching import effects
from distillery.matching.step import StepContext
from distillery.measure.roofline import timed
from distillery.sampling import RealBatches, TreatmentEffect, Uniform
from distillery.seeds import generator
from distillery.training.dsa import draw


@dataclass(frozen=True)
class Agreement:
    """What was found on some classes.

    effects  of each class by the definition, (n,)
    exact    of each class (rank correlation with the definition, share of its time) of the exact effects
    probed   the same of estimates: number of random directions -> of each class
    """

    effects: list[Tensor] = field(default_factory=list)
    exact: list[tuple[float, float]] = field(default_factory=list)
    probed: dict[int, list[tuple[float, float]]] = field(default_factory=dict)


def one_step(experiment, recipe, classes: Tensor, images: int) -> tuple[Synthetic, tuple[Tensor, Tensor]]:
    """(the set that a recipe starts from, (real images (classes, n, C, H, W), weights (classes, n)) of one step).

    recipe  of a method that keeps real images as they are
    """
    real, chosen = experiment.real, experiment.job(recipe).chosen(recipe.method)
    chosen = chosen.to(real.device)
    made = Synthetic({"images": real.batch(chosen), "targets": real.targets[chosen]}, real.classes)
    drawn, weights = RealBatches(real, Uniform(real.targets), generator(recipe.seed, "effects")).classes(classes, images)
    return made, (drawn[:], weights)


def agreement(objective, made: Synthetic, step: tuple, classes: Tensor, probes: Iterable[int], seed: int, name: str) -> Agreement:
    """The definition, the exact effects and their estimates on the images of a step, class by class.

    objective  of a method whose real images enter by the mean of a statistic
    step       images and weights of `classes`, see `one_step`
    probes     numbers of random directions of the estimates
    name       of the streams, such as that of the method
    """
    found = Agreement()
    for setting in _by_class(objective, made, step, classes, seed, name):
        few = (*setting[:3], *(value[:, :4] for value in setting[3:]))
        timed(effects.treatment_effects_plain, *few)  # the first time a shape is met is slower
        truth, whole = timed(effects.treatment_effects_plain, *setting)
        found.effects.append(truth[0].cpu())
        found.exact.append(_against(truth, whole, effects.treatment_effects, *setting))
        for k in probes:
            way = (effects.treatment_effects_probed, *setting, k, generator(seed, "probes", k))
            found.probed.setdefault(k, []).append(_against(truth, whole, *way))
    return found


def across_networks(objective, made: Synthetic, step: tuple, classes: Tensor, networks: int, seed: int, name: str) -> list[float]:
    """Rank correlations of the exact effects of the same images under each two of several fresh networks, class by class.

    objective, step, name  as in `agreement`; each network with an augmentation of its own, as each step has
    """
    under = [_by_class(objective, made, step, classes, seed, name, i) for i in range(networks)]
    by_class = [[effects.treatment_effects(*setting)[0].cpu() for setting in settings] for settings in zip(*under, strict=True)]
    return [float(spearmanr(a, b)[0]) for norms in by_class for a, b in combinations(norms, 2)]


def _by_class(objective, made: Synthetic, step: tuple, classes: Tensor, seed: int, *name: str | int) -> list[tuple]:
    """Arguments of ways to effects, for each class apart: objective, context, its part of the set, its real images and weights."""
    (real, weights), found = step, []
    params = {k: v.to(real.device) for k, v in objective.network.init(generator(seed, "effects", *name), 1).items()}
    siamese = draw(objective.augmentation, len(classes), 1, generator(seed, "effects draw", *name), siamese=True)
    for label in range(len(classes)):
        this = slice(label, label + 1)
        context = StepContext(params, classes[this].to(real.device), None if siamese is None else siamese[this])
        own = made.stored_by_class()[label]
        one = Synthetic({key: made.tensors[key][own] for key in ("images", "targets")})
        found.append((objective, context, one, real[this], weights[this]))
    return found


def _against(truth: Tensor, whole: float, way: Callable, *more) -> tuple[float, float]:
    """(rank correlation with the definition, share of its time) of a way to effects."""
    timed(way, *more)
    found, taken = timed(way, *more)
    return float(spearmanr(found[0].cpu(), truth[0].cpu())[0]), taken / whole


def looking(objective, made: Synthetic, real, share: float, seed: int) -> float:
    """The time that a look at the effects adds to a step, in steps: on a CPU that of this process, whoever else computes."""
    spent = []
    for sampler in (Uniform(real.targets), TreatmentEffect(real.targets, share)):
        state, seconds = objective.start(made, generator(seed, "start")), []
        for i in range(3):
            batches = RealBatches(real, sampler, generator(seed, "cost", i))
            began = time.process_time()
            _, elapsed = timed(objective.step, made, state, batches, generator(seed, "step", i))
            seconds.append(time.process_time() - began if real.device.type == "cpu" else elapsed)
        spent.append(min(seconds))
    return spent[1] / spent[0] - 1
