"""What a method sees of an experiment while it makes one set: recipe, settings, the images that are kept, streams, the loop."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distillery.checks import InputError
from distillery.data.synthetic import FORMATIONS, Synthetic, pack
from distillery.distill import Distilled, Optimizer, distill
from distillery.evaluation import Protocol, evaluate
from distillery.methods import METHODS, Method, Settings
from distillery.recipe import Recipe
from distillery.sampling import Uniform
from distillery.scores import ORDERS
from distillery.seeds import generator
from distillery.selection import check_enough_left, prune
from distillery.starts import STARTS

if TYPE_CHECKING:
    from distillery.experiment import Experiment


class Job:
    """What a method sees while it makes one set; key: the id of the set, '' where nothing is made."""

    def __init__(self, experiment: "Experiment", recipe: Recipe, key: str = ""):
        self.experiment, self.recipe, self.key = experiment, recipe, key
        self.method: Method = METHODS[recipe.method]

    @cached_property
    def settings(self) -> Settings:
        """The method's settings. Raises InputError where nothing is published for the data set and size."""
        presets, n = self.experiment.presets, len(self.experiment.real)
        return self.method.settings(presets.dataset, self.recipe.size, n, presets.changes, self.recipe.settings)

    @property
    def network(self):
        """The network as it is: what is differentiated twice, and weights that are matched."""
        return self.experiment.network

    @property
    def start(self) -> str:
        """How the first images are chosen: as the recipe says, or as published."""
        dataset, size, n = self.experiment.presets.dataset, self.recipe.size, len(self.experiment.real)
        return self.recipe.start or (self.method.start and self.method.cell(dataset, size, n).get("start", self.method.start))

    @cached_property
    def kept(self) -> Tensor:
        """Indices of the real images left after pruning, ascending. Raises InputError where too few are left."""
        asked, labels, n = self.recipe.prune, self.experiment.labels, len(self.experiment.real)
        groups = torch.zeros(n, dtype=torch.int64) if labels is None else labels
        check_enough_left(asked.keep if asked else 1.0, groups, self.held if self.method.makes_set else 1)
        if asked is None:
            return torch.arange(n)
        scores = None if asked.rule == "random" else self.score(asked.score)
        stream = self.stream("prune", *([asked.draw] if asked.draw else []))
        return prune(scores, asked.keep, groups, asked.rule, stream, gamma=asked.gamma).sort().values

    @property
    def held(self) -> int:
        """How many images (of each class) the set holds, those of one stored image counted apart."""
        stored, formation, _ = self.method.stored(self)
        return stored * FORMATIONS[formation]

    @cached_property
    def kept_labels(self) -> Tensor | None:
        """Their labels (kept,) on the CPU, None where there are no classes."""
        return None if self.experiment.labels is None else self.experiment.labels[self.kept]

    @cached_property
    def source(self):
        """The real images that are kept."""
        return self.experiment.real if self.recipe.prune is None else self.experiment.real.subset(self.kept)

    @property
    def features(self) -> Tensor:
        """Features (kept, F) of the kept images: of networks trained early, or the targets where there are no labels."""
        if self.experiment.labels is None:
            return self.experiment.real.targets.cpu()[self.kept]
        return self.experiment.scores.features(self.recipe.seed)[self.kept]

    def score(self, name: str, k: int = 1) -> Tensor:
        """The scores (N,) of all real images by name."""
        return self.experiment.scores.get(name, self.recipe.seed, k)

    def score_first(self) -> None:
        """Make the scores that the set goes by."""
        _ = self.kept
        for name in self.method.scores(self):
            if name not in ORDERS:  # by which images are drawn: nothing is stored
                self.score(name, self.held)

    def stream(self, *purpose: str | int):
        """The generator of a purpose under the recipe's seed."""
        return generator(self.recipe.seed, *purpose)

    def steps_of(self, protocol: Protocol) -> int:
        """The number of images whose training steps an evaluation takes: those that the set holds; 0 = its own."""
        return protocol.steps_of(self.held, len(self.experiment.classes or ()), len(self.experiment.real))

    def chosen(self, how: str) -> Tensor:
        """Indices of as many real images (of each class) as the set holds, chosen by a start."""
        if self.experiment.labels is None and self.held > len(self.kept):
            raise InputError(f"size: {self.held} of {len(self.kept)} images; accepted: at most as many as there are")
        return self.kept[STARTS[how].choose(self, self.held)]

    def packed(self, indices: Tensor) -> Synthetic:
        """Real images, neighbours packed into one stored image where the formation holds several."""
        real, (_, formation, interpolation) = self.experiment.real, self.method.stored(self)
        indices = indices.to(real.device)
        images, targets = pack(real.batch(indices), formation, interpolation), real.targets[indices][:: FORMATIONS[formation]]
        return Synthetic({"images": images, "targets": targets}, self.experiment.classes, formation)

    def first(self, indices: Tensor | None = None) -> Synthetic:
        """The first images of the set; `indices` where they are chosen already."""
        real, then = self.packed(self.chosen(self.start) if indices is None else indices), STARTS[self.start].then
        return then(self, real) if then else real

    def distill(
        self, start: Synthetic, objective, optimizers: dict[str, Optimizer], steps: int, *,
        ema: float | None = None, judge: Callable[[Synthetic, int], float] | None = None,
    ) -> Distilled:  # fmt: skip
        """The one loop, from a checkpoint where there is one; `judge` scores the set as often as the experiment says."""
        real, compute, times = self.source, self.experiment.compute, self.experiment.validation.times if judge else 0
        sampler = Uniform(None if self.experiment.labels is None else real.targets, len(real))
        if self.recipe.batches:
            sampler = self.recipe.batches.sampler(real, self.stream("importance"))
        validated = {"validate": judge, "validate_every": -(-steps // times)} if times else {}
        checkpoint = {"checkpoint": self.experiment.runs.own(self.key, ".checkpoint.safetensors"), "identity": self.key}
        how = (
            {"ema": ema, "checkpoint_seconds": compute.checkpoint_seconds, "progress": compute.progress, "where": compute.class_engine}
            | validated
            | checkpoint
        )
        return distill(start, objective, real, sampler, optimizers, steps, self.stream("distill"), **how)

    def validated(self, made: Synthetic) -> float:
        """Mean accuracy on validation images of fresh networks trained on a set, the same ones at every step."""
        how, experiment = self.experiment.validation, self.experiment
        if not float(made.tensors.get("step_size", 1.0)) > 0:  # also NaN: `distill` is about to stop
            return 0.0
        protocol, _ = self.method.protocol(self, experiment.protocol, made)
        protocol = replace(protocol, networks=how.networks, epochs=how.epochs or protocol.epochs)
        return float(evaluate(self.network, made.source(), protocol, experiment.data.validation, self.stream("validation")).mean())
