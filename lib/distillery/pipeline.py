"""One pipeline for every method: score, prune, select or initialize, distill, evaluate, and keep the run.

A `Recipe` says what to make; `Bench.run` makes it once, evaluates it under the bench's protocol and stores the result.
The registry below is the single list of what can be combined; `compatibility()` renders it for the README.
"""

import time
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib import resources
from pathlib import Path

import torch
import yaml
from torch import Tensor

from distillery import architectures, engine, store
from distillery.augment import DSA
from distillery.checks import InputError, check_choice, check_fraction, check_positive_int
from distillery.data import Rows, Splits
from distillery.distill import Distilled, Optimizer, distill
from distillery.evaluation import Protocol, evaluate
from distillery.fast import Fast, tensor_cores
from distillery.matching.distribution import DistributionMatching
from distillery.matching.gradient import GradientMatching, loops
from distillery.sampling import Uniform
from distillery.scoring.dynamics import dynamics, features, mean_loss
from distillery.scoring.geometry import herding, kmeans_nearest
from distillery.seeds import generator
from distillery.selection import RULES, prune, select
from distillery.synthetic import Synthetic, gaussian_noise

PRESETS: dict[str, dict]
PUBLISHED: dict[str, dict]
PRESETS, PUBLISHED = (
    yaml.safe_load(resources.files("distillery.matching").joinpath(name).read_text())
    for name in ("presets.yaml", "published.yaml")
)
OBJECTIVES = {"gradient": GradientMatching, "distribution": DistributionMatching}
SELECTIONS = ("random", "herding", "k-means", "lowest loss", "highest loss")
WHOLE = ("whole", "whole, trained out")
INITIALIZATIONS = ("real", "noise", "herding", "k-means")
SAMPLERS = ("uniform",)
VERSION = 1  # of everything that decides a run's result; raise it when a change makes stored runs stale


class Unfinished(Exception):
    """A run that another one stands on has not run within the budget, or its set was not kept on this machine."""


@dataclass(frozen=True)
class Recipe:
    """What to make.

    method      a distillation method in PRESETS, a selection in SELECTIONS, or one of WHOLE
    ipc         images per class; for 'whole' the set whose number of training steps is matched
    keep, rule  prune the real data first: keep this fraction of each class by mean training loss ('lowest', 'highest')
                or at random
    steps       pixel updates, 0 = as published
    initialize  where a distilled set starts: '' = as published, or one of INITIALIZATIONS
    batch       real images a class and step, 0 = as published; for 'whole, trained out' images a step
    lr          rate of the pixels, 0 = as published
    epochs      for 'whole, trained out': epochs on all images
    evaluate_on another architecture to evaluate the finished set with, '' = the bench's own network
    """

    method: str
    ipc: int
    seed: int
    keep: float = 1.0
    rule: str = "lowest"
    steps: int = 0
    initialize: str = ""
    batch: int = 0
    lr: float = 0.0
    epochs: int = 0
    evaluate_on: str = ""

    def __post_init__(self):
        check_choice("method", self.method, [*WHOLE, *SELECTIONS, *PRESETS])
        check_positive_int("ipc", self.ipc)
        check_fraction("keep", self.keep)
        check_choice("rule", self.rule, RULES)
        for name in ("seed", "steps", "batch", "lr", "epochs"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: {getattr(self, name)} is not accepted; accepted: 0 or more")
        if self.method == WHOLE[1]:
            check_positive_int("epochs", self.epochs)
        if self.method in SELECTIONS and (self.steps or self.batch or self.lr):
            raise InputError(f"steps, batch, lr: set for {self.method!r}, which has no loop; accepted: 0")
        if self.evaluate_on:
            check_choice("evaluate_on", self.evaluate_on, architectures.NAMES)
            if self.method in WHOLE:
                raise InputError(
                    f"evaluate_on: {self.evaluate_on!r} with {self.method!r}; accepted: a selected or distilled set"
                )
        if self.initialize:
            check_choice("initialize", self.initialize, INITIALIZATIONS)
        if self.initialize and self.method not in PRESETS:
            raise InputError(
                f"initialize: {self.initialize!r} with {self.method!r}, which starts from nothing; accepted: ''"
            )


class Bench:
    """Data, network, protocol and stored runs under which recipes are compared."""

    def __init__(
        self,
        data: Splits,
        network,
        protocol: Protocol,
        runs: store.Runs,
        *,
        augmentation: str = DSA,
        score_trials: int = 5,
        score_epochs: int = 5,
        checkpoint_seconds: float = 60.0,
        progress: bool = False,
        precision: str = "float32",
        compiled: bool = False,
    ):
        """What all runs share.

        augmentation         the DSA families of methods that match augmented batches; the protocol names its own
        precision, compiled  how passes run that are differentiated at most once and match no weights (`Fast`): evaluation,
                             scores, real images; synthetic images stay float32
        """
        self.fast = Fast(network, precision, compiled)
        self.data, self.network, self.protocol, self.runs = data, network, protocol, runs
        self.augmentation = augmentation
        self.score_trials, self.score_epochs = score_trials, score_epochs
        self.checkpoint_seconds, self.progress = checkpoint_seconds, progress
        self._scored: dict[int, dict[str, Tensor]] = {}
        self.scoring: dict[int, dict] = {}  # seconds and samples of the score pass of each seed

    @cached_property
    def context(self) -> dict:
        """What identifies this bench in the id of a run."""
        transform = store.tensor_digest(self.data.train.transform.tensors())[:16]
        return {
            "network": self.fast.spec(),
            "protocol": self.protocol.spec(),
            "transform": transform,
            "augmentation": self.augmentation,
        }

    def run(self, recipe: Recipe) -> dict | None:
        """The stored result of a recipe, computed now if need be; None if the budget is spent.

        result  accuracies (one per network), steps, seconds and seconds_evaluation, samples (real images touched),
                loss (about 100 values), stored_numbers, and `artifact`, the id under which the set is kept
        """
        inputs = {"recipe": asdict(recipe), **self.context}
        scored = recipe.initialize in ("herding", "k-means") or recipe.method in SELECTIONS
        if recipe.keep < 1 or scored:
            inputs["scoring"] = [self.score_trials, self.score_epochs]
        try:
            result = self.runs.get(
                "bench", VERSION, inputs, self.data.digest, lambda key: self._compute(recipe, key)
            )
        except Unfinished:
            self.runs.missing.append(inputs)
            return None
        if result and result["artifact"]:  # only now: a kill before loses a minute, not the distillation
            self.runs.artifact(result["artifact"], ".checkpoint.safetensors").unlink(missing_ok=True)
        return result

    def run_all(self, recipes: list[Recipe], where: str = "local", gpus: float = 1.0) -> list[dict | None]:
        """The results of several recipes, in order, mapped over an engine.

        On Ray each recipe takes as many CPUs as torch has threads here; the machines must share the results folder.

        gpus    for images on a GPU: what a recipe is given on Ray, a fraction packs several on one GPU
        raises  InputError on Ray with images that stay on disk, besides what `engine.map` raises
        """
        if where == "local":
            return engine.map(self.run, recipes)
        parts = (self.data.train, self.data.validation, self.data.test)
        if any(isinstance(part.pixels, Rows) for part in parts):
            raise InputError(
                f"engine: {where!r} with images that stay on disk (mapped=True); accepted: local, or mapped=False"
            )
        _ = self.context, self.data.digest  # known before the bench is copied to the workers
        options = {
            "cpus": torch.get_num_threads(),
            "gpus": gpus if self.data.train.device.type == "cuda" else 0,
        }
        answers = engine.map(self._run_apart, recipes, where, **options)
        for _, computed, reused, missing, scoring in answers:
            self.runs.computed += computed
            self.runs.reused += reused
            self.runs.missing += missing
            self.scoring |= scoring
        return [answer[0] for answer in answers]

    def _run_apart(self, recipe: Recipe) -> tuple[dict | None, int, int, list[dict], dict]:
        """`run` on a copy of the bench, with what the copy has counted."""
        result, runs = self.run(recipe), self.runs
        return result, runs.computed, runs.reused, runs.missing, self.scoring

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_scored": {}, "scoring": {}, "progress": False}

    def synthetic(self, result: dict) -> Synthetic | None:
        """The set behind a result, the images it started from as card['start']; None if its file was not kept."""
        path = self.runs.artifact(result["artifact"])
        if not path.exists():
            return None
        tensors, card = store.load_tensors(path)
        start = tensors.pop("start", None)
        made = Synthetic(tensors, tuple(card["classes"]), card["formation"], {"start": start})
        return made.to(self.data.train.device)

    def scores(self, seed: int) -> dict[str, Tensor]:
        """'loss' (N,) mean training loss and 'features' (N, F) of the training images, from one ensemble pass, stored."""
        if seed not in self._scored:
            inputs = {
                "seed": seed,
                "trials": self.score_trials,
                "epochs": self.score_epochs,
                "network": self.fast.spec(),
            }
            inputs["transform"] = self.context["transform"]
            path = self.runs.artifact("scores-" + store.identity("scores", VERSION, inputs, self.data.digest))
            if not path.exists():
                with store.lock(path.with_suffix(".lock"), wait=True):
                    if not path.exists():  # else another worker made them meanwhile
                        self._score(seed, path, inputs)
            tensors, card = store.load_tensors(path)
            self._scored = {seed: tensors}  # one seed at a time: features are large
            self.scoring[seed] = {name: card[name] for name in ("seconds", "samples")}
        return self._scored[seed]

    def _score(self, seed: int, path: Path, inputs: dict) -> None:
        began, stream = time.monotonic(), generator(seed, "scores")
        passed = dynamics(self.fast, self.data.train, self.score_trials, self.score_epochs, stream)
        tensors = {"loss": mean_loss(passed), "features": features(passed, self.data.train)}
        cost = {
            "seconds": time.monotonic() - began,
            "samples": passed.stats.samples * self.score_trials,
        }
        store.save_tensors(path, tensors, inputs | cost)

    def kept(self, recipe: Recipe) -> Tensor:
        """Indices of the training images left after pruning, ascending."""
        targets = self.data.train.targets.cpu()
        if recipe.keep == 1:
            return torch.arange(len(targets))
        scores = None if recipe.rule == "random" else self.scores(recipe.seed)["loss"]
        stream = generator(recipe.seed, "prune")
        least = 1 if recipe.method in WHOLE else recipe.ipc
        return prune(scores, recipe.keep, targets, recipe.rule, stream, at_least=least).sort().values

    def choose(self, how: str, ipc: int, seed: int, kept: Tensor) -> Tensor:
        """Indices of ipc images of each class, chosen among `kept` by one of SELECTIONS (or 'real' = random)."""
        targets = self.data.train.targets.cpu()[kept]
        if how in ("random", "real"):
            chosen = select(None, ipc, targets, "random", generator(seed, "random subset"))
        elif how in ("herding", "k-means"):
            rows = self.scores(seed)["features"][kept]
            rank = (
                herding(rows, targets, ipc)
                if how == "herding"
                else kmeans_nearest(rows, targets, ipc, generator(seed, "k-means"))
            )
            chosen = select(rank, ipc, targets, "lowest")
        else:
            chosen = select(self.scores(seed)["loss"][kept], ipc, targets, how.split()[0])
        return kept[chosen]

    def _compute(self, recipe: Recipe, key: str) -> dict:
        with tensor_cores(self.fast.precision):
            return self._measured(recipe, key)

    def _measured(self, recipe: Recipe, key: str) -> dict:
        started = time.monotonic()
        train, network = self.data.train, self.fast
        if recipe.evaluate_on:
            width = network.channels / 128
            other = architectures.build(recipe.evaluate_on, train.shape, len(train.classes), width)
            network = Fast(other, self.fast.precision)
            source, made = self._finished(replace(recipe, evaluate_on="")).source(), None
        elif recipe.method in WHOLE:
            source, made = train.subset(self.kept(recipe)), None
        else:
            made = self._make(recipe, key)
            source = made["set"].source()
        making = time.monotonic() - started
        protocol, steps_of = self.protocol, recipe.ipc * len(train.classes)
        if recipe.method == "whole, trained out":
            protocol = Protocol(
                **protocol.spec() | {"epochs": recipe.epochs - 1, "batch": recipe.batch or protocol.batch}
            )
            steps_of = 0
        stream = generator(recipe.seed, "evaluation")
        accuracies = evaluate(network, source, protocol, self.data.test, stream, steps_of=steps_of)
        result = {
            "accuracies": accuracies.tolist(), "steps": 0, "samples": 0, "loss": [], "stored_numbers": None, "artifact": None,
            "seconds": time.monotonic() - started, "seconds_evaluation": time.monotonic() - started - making,
        }  # fmt: skip
        return result | (made["result"] if made else {})

    def _finished(self, recipe: Recipe) -> Synthetic:
        """The set of a recipe that has run and whose file is here."""
        result = self.run(recipe)
        made = self.synthetic(result) if result else None
        if made is None:
            raise Unfinished
        return made

    def _make(self, recipe: Recipe, key: str) -> dict:
        kept = self.kept(recipe)
        if recipe.method in SELECTIONS:
            chosen = self.choose(recipe.method, recipe.ipc, recipe.seed, kept)
            synthetic, start, log = self._real(chosen), None, {}
        else:
            start = self._start(recipe, kept)
            done = self._distill(recipe, start, kept, key)
            synthetic, log = (
                done.last,
                {
                    "steps": done.cost["steps"],
                    "samples": done.cost["samples"],
                    "loss": thin(done.log["loss"]),
                },
            )
        tensors = synthetic.tensors | ({} if start is None else {"start": start.tensors["images"]})
        store.save_tensors(
            self.runs.artifact(key),
            tensors,
            {"classes": list(synthetic.classes), "formation": synthetic.formation},
        )
        return {
            "set": synthetic,
            "result": {"artifact": key, "stored_numbers": synthetic.stored_numbers(), **log},
        }

    def _real(self, chosen: Tensor) -> Synthetic:
        train = self.data.train
        chosen = chosen.to(train.device)
        return Synthetic({"images": train.batch(chosen), "targets": train.targets[chosen]}, train.classes)

    def _start(self, recipe: Recipe, kept: Tensor) -> Synthetic:
        how = recipe.initialize or PRESETS[recipe.method]["initialize"]
        real = self._real(self.choose("real" if how == "noise" else how, recipe.ipc, recipe.seed, kept))
        if how != "noise":
            return real
        noise = gaussian_noise(len(real), self.data.train.shape, generator(recipe.seed, "noise"))
        return real.replace(images=noise.to(real.device))

    def _distill(self, recipe: Recipe, start: Synthetic, kept: Tensor, key: str) -> Distilled:
        preset = PRESETS[recipe.method]
        real = self.data.train.subset(kept)
        options = {
            "batch": recipe.batch or preset["batch"],
            "augmentation": self.augmentation if preset["augmented"] else "",
            "real_network": self.fast,
        }
        twice = preset["objective"] == "gradient"  # differentiated twice: never compiled
        network = self.network if twice else Fast(self.network, compiled=self.fast.compiled)
        objective = OBJECTIVES[preset["objective"]](network, **options)
        lr = recipe.lr or (preset.get("lr_large", preset["lr"]) if recipe.ipc >= 100 else preset["lr"])
        return distill(
            start, objective, real, Uniform(real.targets), {"images": Optimizer(lr, preset["momentum"])},
            recipe.steps or published_steps(recipe.method, recipe.ipc), generator(recipe.seed, "distill"),
            checkpoint=self.runs.artifact(key, ".checkpoint.safetensors"), checkpoint_seconds=self.checkpoint_seconds,
            identity=key, progress=self.progress,
        )  # fmt: skip


def published_steps(method: str, ipc: int) -> int:
    """Pixel updates of the published setting."""
    preset = PRESETS[method]
    return preset["iterations"] * (loops(ipc)[0] if preset["objective"] == "gradient" else 1)


def published(dataset: str, method: str, ipc: int) -> dict | None:
    """{'mean', 'std'} as fractions from `matching/published.yaml`, None where no checked number is known."""
    found = PUBLISHED.get(dataset, {}).get(method, {}).get(ipc)
    return {"mean": found[0] / 100, "std": found[1] / 100} if found else None


def thin(log: Tensor, n: int = 100) -> list[float]:
    """At most n evenly spaced values of a log, rounded to 6 significant digits, NaN left out."""
    values = log[~log.isnan()]
    chosen = values[torch.linspace(0, len(values) - 1, min(n, len(values))).long()] if len(values) else values
    return [float(f"{value:.6g}") for value in chosen.tolist()]


def compatibility() -> str:
    """What combines with what, as a Markdown table generated from the registry and the objectives."""
    lines = [
        "| method | objective | initialize | real batches | prune first | learns |",
        "|---|---|---|---|---|---|",
    ]
    for name, preset in PRESETS.items():
        objective = OBJECTIVES[preset["objective"]]
        starts = ", ".join(f"**{i}**" if i == preset["initialize"] else i for i in INITIALIZATIONS)
        samplers = ", ".join(SAMPLERS) if objective.uses_real_batches else "refused: it has no real batch"
        lines.append(
            f"| {name} | {preset['objective']} matching | {starts} | {samplers} | {', '.join(RULES)} | {', '.join(objective.learns)} |"
        )
    return "\n".join(lines)
