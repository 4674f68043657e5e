"""One pipeline for every method: score, prune, select or initialize, distill, evaluate, and keep the run.

A `Recipe` says what to make; `Bench.run` makes it once, evaluates it under the bench's protocol and stores the result.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from distillery import engine, experts, store
from distillery.checks import InputError
from distillery.data import LazyImages, Splits
from distillery.data.synthetic import FORMATIONS, Synthetic, gaussian_noise, pack
from distillery.distill import Distilled, Optimizer, distill
from distillery.evaluation import FineTuning, Protocol, accuracy, evaluate, fit
from distillery.experts import Experts
from distillery.methods.kakurenbo import Hiding
from distillery.lock import lock
from distillery.matching import hosts, trajectory
from distillery.matching.effects import check_uncoupled
from distillery.networks import pool
from distillery.networks.encoder import Encoder
from distillery.networks.precision import MixedPrecision, float32_matmul
from distillery.recipes import (
    HOSTS,
    KERNELS,
    OBJECTIVES,
    PRESETS,
    SELECTIONS,
    SENSITIVE,
    TRAJECTORIES,
    WHOLE,
    Hosts,
    Recipe,
    Trajectory,
    expert_epochs,
    published_steps,
)
from distillery.runs import DependencyMissing, Runs, subsample
from distillery.sampling import Importance, TreatmentEffect, Uniform
from distillery.scores.cached import CachedScores
from distillery.scores.geometry import herding, kmeans_nearest
from distillery.seeds import generator, split
from distillery.selection import check_enough_left, prune, select
from distillery.training.dsa import DSA

VERSION = 1  # of everything that decides a run's result; raise it when a change makes stored runs stale


class Bench:
    """Data, network, protocol and stored runs under which recipes are compared."""

    def __init__(
        self,
        data: Splits,
        network,
        protocol: Protocol,
        runs: Runs,
        *,
        augmentation: str = DSA,
        score_trials: int = 5,
        score_epochs: int = 5,
        converged: tuple[int, int] = (50, 50),
        checkpoint_seconds: float = 60.0,
        progress: bool = False,
        precision: str = "float32",
        compiled: bool = False,
        trajectory: Trajectory | None = None,
        hosts: Hosts | None = None,
        engine: str = "local",
        encoder: Encoder | None = None,
        score_path: dict | None = None,
        score_tunings: int = 1,
        importance: dict | None = None,
    ):
        """What all runs share.

        score_trials, score_epochs  networks and epochs of the early loss
        converged            the same of the converged loss
        augmentation         the DSA families of methods that match augmented batches; the protocol names its own
        precision, compiled  how passes run that are differentiated at most once and match no weights (`MixedPrecision`): evaluation,
                             scores, real images; synthetic images stay float32 (with TensorFloat-32 products under 'tf32')
        trajectory           settings of MTT, FTD, TESLA and DATM, None = they are refused
        hosts                settings of IDM, IDC, KIP, FRePo and RFAD, None = the published ones for CIFAR-10
        engine               what chunks of experts are mapped over, where no recipes are
        encoder              where a protocol that fine-tunes starts, and what some scores look through, None = they are refused
        score_path, score_tunings  masks of the learning complexity; fine-tunings behind the scores that take one
        importance           in which space sensitivities are measured, see `scoring.passes.Scores`
        """
        if encoder and encoder.network.spec() != network.spec():
            raise InputError(
                f"encoder: of {encoder.network.name}; accepted: one of the bench's network, {network.name}"
            )
        if protocol.kind == "fine-tune" and encoder is None:
            raise InputError("encoder: None; accepted: an encoder, where the protocol fine-tunes one")
        self.fast = MixedPrecision(network, precision, compiled)
        self.data, self.network, self.protocol, self.runs = data, network, protocol, runs
        self.augmentation = augmentation
        self.encoder = encoder
        self.score_lengths = {"loss": (score_trials, score_epochs), "converged loss": converged}
        tuning = protocol if isinstance(protocol, FineTuning) else FineTuning() if encoder else None
        tuning = replace(tuning, networks=1, equal="epochs") if tuning else None
        self.passes = CachedScores(
            data, self.fast, runs, self.score_lengths, encoder, tuning, score_path, score_tunings, importance
        )
        self.checkpoint_seconds, self.progress = checkpoint_seconds, progress
        self.trajectory, self.hosts, self.engine = trajectory, hosts or Hosts(), engine
        self._experts: dict[str, Experts] = {}

    @property
    def scoring(self) -> dict[tuple[str, int], dict]:
        """Seconds and samples of each score pass that was used."""
        return self.passes.costs

    @cached_property
    def context(self) -> dict:
        """What identifies this bench in the id of a run."""
        transform = store.tensor_digest(self.data.train.transform.tensors())[:16]
        found = {
            "network": self.fast.spec(),
            "protocol": self.protocol.spec(),
            "transform": transform,
            "augmentation": self.augmentation,
        }
        return found | ({"encoder": self.encoder.digest} if self.protocol.kind == "fine-tune" else {})

    def run(self, recipe: Recipe) -> dict | None:
        """The stored result of a recipe, computed now if need be; None if the budget is spent.

        result  accuracies (one per network), steps, seconds and seconds_evaluation, samples (real images touched),
                loss (about 100 values), stored_numbers, and `artifact`, the id under which the set is kept. Of KERNELS also the
                test accuracies of the kernel regression on the set, `regression`, and on its first images, `at_start`, and
                `curve`, [step, accuracy on validation images]
        """
        result = self.runs.try_get(
            "bench", VERSION, self._inputs(recipe), self.data.digest, lambda key: self._compute(recipe, key)
        )
        if result and result["artifact"]:  # only now: a kill before loses a minute, not the distillation
            self.runs.artifact(result["artifact"], ".checkpoint.safetensors").unlink(missing_ok=True)
        return result

    def _inputs(self, recipe: Recipe) -> dict:
        """What identifies a run."""
        inputs = {"recipe": recipe.spec(), **self.context}
        scored = recipe.initialize in ("herding", "k-means") or recipe.method in SELECTIONS
        if recipe.keep != 1 or scored:
            inputs["scoring"] = self.passes.spec(recipe.score)
        if (how := recipe.initialize or recipe.method) in SENSITIVE:
            inputs["importance"] = self.passes.spec(how)
        if recipe.method in TRAJECTORIES:
            inputs["trajectory"] = self._settings().spec(recipe.method, recipe.ipc)
        if recipe.method in HOSTS:
            inputs["host"] = self.hosts.spec(recipe.method, recipe.ipc)
        return inputs

    def search(self, recipe: Recipe, networks: Sequence) -> dict | None:
        """Architecture search on the set of a recipe: each network of a grid trained on it from scratch, and tested.

        result  accuracies[network of the grid][fresh network], seconds
        """
        inputs = self._inputs(recipe) | {"grid": [network.spec() for network in networks]}

        def compute(key: str) -> dict:
            began = time.monotonic()
            whole = recipe.method in WHOLE
            made = None if whole else self._finished(replace(recipe, iterate="last"), recipe.iterate)
            source = self.data.train.subset(self.kept(recipe)) if whole else made.source()
            protocol, steps_of = self._protocol(recipe, made)
            accuracies = [
                evaluate(
                    network, source, protocol, self.data.test, generator(recipe.seed, "search"), steps_of=steps_of
                ).tolist()
                for network in networks
            ]
            return {"accuracies": accuracies, "seconds": time.monotonic() - began, "samples": 0, "steps": 0}

        return self.runs.try_get("search", VERSION, inputs, self.data.digest, compute)

    def run_all(self, recipes: list[Recipe], where: str = "local", gpus: float = 1.0) -> list[dict | None]:
        """The results of several recipes, in order, mapped over an engine.

        On Ray each recipe takes as many CPUs as torch has threads here; the machines must share the results folder.

        gpus    for images on a GPU: what a recipe is given on Ray, a fraction packs several on one GPU
        raises  InputError on Ray with images that stay on disk, besides what `engine.map` raises
        """
        if where == "local":
            return engine.map(self.run, recipes)
        self._check_mapped(where)
        _ = self.context, self.data.digest  # known before the bench is copied to the workers
        for recipe in recipes:  # experts are a map of their own: workers only load them
            made = replace(recipe, evaluate_on="", iterate="last")
            if made.method in TRAJECTORIES and not self._over(made):
                self._make_experts(made, where)
        options = {"cpus": torch.get_num_threads(), "gpus": gpus if self.data.train.device.type == "cuda" else 0}
        answers = engine.map(self._run_apart, recipes, where, **options)
        for _, computed, reused, missing, scoring in answers:
            self.runs.computed += computed
            self.runs.reused += reused
            self.runs.missing += missing
            self.passes.costs |= scoring
        return [answer[0] for answer in answers]

    def _check_mapped(self, where: str) -> None:
        parts = (self.data.train, self.data.validation, self.data.test)
        if where != "local" and any(isinstance(part.pixels, LazyImages) for part in parts):
            raise InputError(
                f"engine: {where!r} with images that stay on disk (mapped=True); accepted: local, or mapped=False"
            )

    def _over(self, recipe: Recipe) -> bool:
        """Whether nothing would be computed for a recipe: it is stored, or the budget is spent."""
        key = store.identity("bench", VERSION, self._inputs(recipe), self.data.digest)
        return self.runs.path(key).exists() or self.runs.spent()

    def _run_apart(self, recipe: Recipe) -> tuple[dict | None, int, int, list[dict], dict]:
        """`run` on a copy of the bench, with what the copy has counted."""
        result, runs = self.run(recipe), self.runs
        return result, runs.computed, runs.reused, runs.missing, self.scoring

    def __getstate__(self) -> dict:
        own = {"_experts": {}, "progress": False, "engine": "local"}
        return self.__dict__ | own

    def synthetic(self, result: dict, iterate: str = "last") -> Synthetic | None:
        """The set behind a result, the images it started from as card['start']; None if its file was not kept."""
        path = self.runs.artifact(_file_of(result["artifact"], iterate))
        if not path.exists():
            return None
        tensors, card = store.load_tensors(path)
        start = tensors.pop("start", None)
        made = Synthetic(tensors, tuple(card["classes"]), card["formation"], {"start": start})
        return made.to(self.data.train.device)

    def scores(self, seed: int, score: str = "loss") -> dict[str, Tensor]:
        """'loss' (N,) mean training loss and 'features' (N, F) of the training images, from one ensemble pass, stored.

        score  'loss' or 'converged loss': how long the networks are trained
        """
        return self.passes.scratch(seed, score)

    def kept(self, recipe: Recipe) -> Tensor:
        """Indices of the training images left after pruning, ascending."""
        targets = self.data.train.targets.cpu()
        least = 1 if recipe.method in WHOLE else recipe.ipc * FORMATIONS[self._formation(recipe)[0]]
        check_enough_left(recipe.keep, targets, least)
        if recipe.keep == 1:
            return torch.arange(len(targets))
        scores = None if recipe.rule == "random" else self.passes.of(recipe.score, recipe.seed)
        stream = generator(recipe.seed, "prune", *([recipe.draw] if recipe.draw else []))
        return prune(scores, recipe.keep, targets, recipe.rule, stream, gamma=recipe.gamma).sort().values

    def choose(self, how: str, ipc: int, seed: int, kept: Tensor) -> Tensor:
        """Indices of ipc images of each class, chosen among `kept` by one of SELECTIONS (or 'real' = random)."""
        targets = self.data.train.targets.cpu()[kept]
        if how in ("random", "real"):
            chosen = select(None, ipc, targets, "random", generator(seed, "random subset"))
        elif how == "k-means++":
            rank = self.passes.seeded(seed, ipc, kept)
            chosen = select(rank, ipc, targets, "lowest")
        elif how in SENSITIVE:
            scores = self.passes.of(how, seed, ipc)[kept]
            chosen = select(scores, ipc, targets, "proportional", generator(seed, how))
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
        with float32_matmul(self.fast.precision):
            return self._measured(recipe, key)

    def _measured(self, recipe: Recipe, key: str) -> dict:
        if recipe.method in (*PRESETS, *HOSTS):
            objective = self._objective(recipe)[0]  # what it refuses, it refuses now
            if recipe.method in KERNELS:
                self._check_kernel(recipe, objective)
        if recipe.evaluate_on and self.protocol.kind == "fine-tune":
            raise InputError(
                f"evaluate_on: {recipe.evaluate_on!r} with protocol 'fine-tune', whose encoder is of one network; accepted: ''"
            )
        if recipe.hide and self.protocol.kind != "fine-tune":
            raise InputError(f"hide: {recipe.hide} with protocol {self.protocol.kind!r}; accepted: 'fine-tune'")
        if not recipe.evaluate_on and recipe.iterate == "last":
            self._score_first(recipe)
        started = time.monotonic()
        train, network = self.data.train, self.fast
        synthetic, details = None, {}
        if recipe.evaluate_on:
            width = network.channels / 128
            other = pool.build(recipe.evaluate_on, train.shape, len(train.classes), width)
            network = MixedPrecision(other, self.fast.precision)
        if recipe.evaluate_on or recipe.iterate != "last":
            synthetic = self._finished(replace(recipe, evaluate_on="", iterate="last"), recipe.iterate)
        elif recipe.method not in WHOLE:
            synthetic, details = self._make(recipe, key)
        source = synthetic.source() if synthetic else train.subset(self.kept(recipe))
        making = time.monotonic() - started - details.get("seconds_regression", 0)
        protocol, steps_of = self._protocol(recipe, synthetic)
        stream = generator(recipe.seed, "evaluation")
        if protocol.kind == "fine-tune":
            accuracies, tuned = self._fine_tuned(recipe, source, protocol, stream, steps_of)
            details = tuned | details  # what it took to make a set stands before
        else:
            accuracies = evaluate(network, source, protocol, self.data.test, stream, steps_of=steps_of)
        result = {
            "accuracies": accuracies.tolist(),
            "steps": 0,
            "samples": 0,
            "loss": [],
            "stored_numbers": None,
            "artifact": None,
            "seconds": time.monotonic() - started,
            "seconds_evaluation": time.monotonic() - started - making,
        }
        return result | details

    def _check_kernel(self, recipe: Recipe, objective) -> None:
        """Refuse a kernel method whose set could not be evaluated, before it is made."""
        if "targets" in objective.learned and self.protocol.loss == "cross-entropy":
            raise InputError(
                f"loss: 'cross-entropy' with {recipe.method!r}, which learns real-valued labels; accepted: 'squared error'"
            )
        if recipe.iterate == "best" and not self.hosts.validations:
            raise InputError("iterate: 'best' with 0 validations; accepted: 'last', or hosts that are validated")

    def _fine_tuned(self, recipe: Recipe, source, protocol: Protocol, stream, steps_of: int):
        """Test accuracies of the encoder fine-tuned on a source, and what else its result says."""
        hiding = None
        if recipe.hide:
            hiding = Hiding(self.fast, source, recipe.hide, milestones=protocol.milestones)
        device = self.data.test.device
        params, stats = fit(
            self.fast, source, protocol, stream, steps_of=steps_of, encoder=self.encoder, hiding=hiding, device=device
        )
        details = {
            "validation": accuracy(self.fast, params, self.data.validation).tolist(),
            "steps": stats.steps,
            "samples": stats.samples * protocol.networks,
        }
        if hiding:
            details |= {"hidden": hiding.hidden, "refreshed": hiding.refreshed}
        return accuracy(self.fast, params, self.data.test), details

    def _score_first(self, recipe: Recipe) -> None:
        """Make the scores of a recipe, which serve many recipes, before its clock starts: their cost is in `scoring`."""
        self.kept(recipe)
        how = recipe.initialize or recipe.method
        if how in ("herding", "k-means", "lowest loss", "highest loss"):
            self.scores(recipe.seed)
        elif how in SENSITIVE and how != "k-means++":
            self.passes.of(how, recipe.seed, recipe.ipc * FORMATIONS[self._formation(recipe)[0]])

    def _protocol(self, recipe: Recipe, synthetic: Synthetic | None) -> tuple[Protocol, int]:
        """How a set is evaluated, and the number of images whose steps are matched, 0 = its own."""
        tuning = self.protocol.kind == "fine-tune"
        if recipe.method == "whole, trained out":
            epochs = recipe.epochs if tuning else recipe.epochs - 1
            return replace(self.protocol, epochs=epochs, batch=recipe.batch or self.protocol.batch), 0
        steps_of = recipe.ipc * len(self.data.train.classes)
        if tuning:
            matched = recipe.method in WHOLE and recipe.ipc > 1
            own = len(self.data.train) if self.protocol.equal == "steps" else 0
            return self.protocol, steps_of if matched else own
        if recipe.method not in TRAJECTORIES:
            return self.protocol, steps_of
        settings = self._settings().settings(recipe.method, recipe.ipc)
        return self.protocol.fitting(synthetic, settings.get("evaluation_batch", 0)), steps_of

    def _settings(self) -> Trajectory:
        if self.trajectory is None:
            raise InputError(f"trajectory: None; accepted: a bench with settings for {', '.join(TRAJECTORIES)}")
        return self.trajectory

    def experts(self, recipe: Recipe) -> Experts:
        """The experts of a trajectory method, trained on what the recipe keeps of the real images; made once, stored."""
        return self._load_experts(recipe)[0]

    def _load_experts(self, recipe: Recipe) -> tuple[Experts, dict]:
        """The experts, and the cost of training them: 'id', 'seconds', 'samples' (real images touched)."""
        key, cost, asked = self._make_experts(recipe, self.engine)
        if key not in self._experts:  # one bank at a time: they are large
            self._experts = {key: experts.load(*asked)}
        return self._experts[key], cost

    def _make_experts(self, recipe: Recipe, where: str) -> tuple[str, dict, tuple]:
        """Train what is missing of a recipe's experts, mapped over an engine: their id, cost, and what names them."""
        self._check_mapped(where)
        settings = self._settings().settings(recipe.method, recipe.ipc)
        training, epochs = self.trajectory.training(settings, self.augmentation), expert_epochs(settings)
        source = self.data.train if recipe.keep == 1 else self.data.train.subset(self.kept(recipe))
        folder = self.runs.folder / "artifacts" / "experts"
        asked = folder, self.network, source, training, epochs
        identity = {"training": training.spec(), "epochs": epochs, "network": self.network.spec()}
        identity |= {"kind": settings["optimizer"], "transform": self.context["transform"]}
        key = store.identity("bank", experts.VERSION, identity, source.digest)
        path = folder / f"{key}.json"
        with lock(path.with_suffix(".lock"), wait=True):
            if experts.missing(*asked) or not path.exists():
                experts.make(*asked, where=where, account=key, log=print)
                store.write_json(path, {"id": key} | experts.spent(*asked, key))
        return key, store.read_json(path), asked

    def _finished(self, recipe: Recipe, iterate: str = "last") -> Synthetic:
        """The set of a recipe that has run and whose file is here."""
        result = self.run(recipe)
        made = self.synthetic(result, iterate) if result else None
        if made is None:
            raise DependencyMissing
        return made

    def _make(self, recipe: Recipe, key: str) -> tuple[Synthetic, dict]:
        """The set of a recipe, stored, and what its result says of it."""
        kept = self.kept(recipe)
        if recipe.method in SELECTIONS:
            synthetic, start, log = self._real(recipe.method.split(",")[0], recipe, kept), None, {}
        else:
            if recipe.method in TRAJECTORIES:
                done, start, log = self._match_trajectories(recipe, kept, key)
            else:
                start, log = self._start(recipe, kept), {}
                done = self._distill(recipe, start, kept, key)
                if recipe.method in KERNELS:
                    log |= self._regressed(recipe, {"at_start": start, "regression": done.last})
            synthetic = done.last
            log |= {"steps": done.cost["steps"], "samples": done.cost["samples"], "loss": subsample(done.log["loss"])}
            if recipe.method in KERNELS and "validation" in done.log:
                log["curve"] = [
                    [step + 1, float(score)] for step, score in enumerate(done.log["validation"]) if score == score
                ]
            if "effective_batch" in done.log:
                log["effective_batch"] = float(done.log["effective_batch"].mean())
            for iterate, other in (("ema", done.ema), ("best", done.best)):
                if other is not None:
                    self._save(_file_of(key, iterate), other)
        self._save(key, synthetic, {} if start is None else {"start": start.tensors["images"]})
        return synthetic, {"artifact": key, "stored_numbers": synthetic.stored_numbers(), **log}

    def _regressed(self, recipe: Recipe, sets: dict[str, Synthetic]) -> dict:
        """Test accuracies of kernel regressions on sets, as many as the protocol has networks where a kernel is of networks."""
        began, objective = time.monotonic(), self._objective(recipe)[0]
        draws = 1 if recipe.method == "KIP" else self.protocol.networks
        found = {}
        for name, made in sets.items():
            streams = split(generator(recipe.seed, "regression"), draws)
            made = objective.prepare(made)
            found[name] = [objective.accuracy(made, self.data.test, stream) for stream in streams]
        return found | {"seconds_regression": time.monotonic() - began}

    def _save(self, name: str, synthetic: Synthetic, extra: dict[str, Tensor] | None = None) -> None:
        card = {"classes": list(synthetic.classes), "formation": synthetic.formation}
        store.save_tensors(self.runs.artifact(name), synthetic.tensors | (extra or {}), card)

    def _formation(self, recipe: Recipe) -> tuple[str, str]:
        """(formation of the set, how real images shrink into it)."""
        if recipe.method in HOSTS:
            settings = self._loop(recipe)
            return settings["formation"], settings["shrink"]
        return "partition2" if recipe.method == "random, packed" else "identity", "bilinear"

    def _real(self, how: str, recipe: Recipe, kept: Tensor) -> Synthetic:
        """Real images of the recipe's size, as many in each stored one as the formation holds."""
        copies = FORMATIONS[self._formation(recipe)[0]]
        return self._of(self.choose(how, copies * recipe.ipc, recipe.seed, kept), recipe)

    def _of(self, chosen: Tensor, recipe: Recipe) -> Synthetic:
        train, (formation, shrink) = self.data.train, self._formation(recipe)
        chosen = chosen.to(train.device)
        images = pack(train.batch(chosen), formation, shrink)
        return Synthetic(
            {"images": images, "targets": train.targets[chosen][:: FORMATIONS[formation]]}, train.classes, formation
        )

    def _start(self, recipe: Recipe, kept: Tensor, how: str = "") -> Synthetic:
        how = how or recipe.initialize or self._loop(recipe)["initialize"]
        real = self._real("real" if how == "noise" else how, recipe, kept)
        if how != "noise":
            return real
        noise = gaussian_noise(len(real), self.data.train.shape, generator(recipe.seed, "noise"))
        return real.replace(images=noise.to(real.device))

    def _loop(self, recipe: Recipe) -> dict:
        """The settings of a method with real batches."""
        if recipe.method in HOSTS:
            return self.hosts.settings(recipe.method, recipe.ipc)
        preset = PRESETS[recipe.method]
        return preset | {"lr": preset.get("lr_large", preset["lr"]) if recipe.ipc >= 100 else preset["lr"]}

    def _objective(self, recipe: Recipe):
        """(objective, optimizers by learned tensor, number of steps) of a method with real batches."""
        settings = self._loop(recipe)
        settings |= {"lr": recipe.lr or settings["lr"], "batch": recipe.batch or settings["batch"]}
        # gradients are differentiated twice, which no compiled function may be; kernel methods bring networks of their own
        once = settings["objective"] in ("distribution", "queue")
        network = MixedPrecision(self.network, compiled=self.fast.compiled) if once else self.network
        if recipe.effect and recipe.method == "DM":
            check_uncoupled(network.init(generator(0, "names"), 1))
        if recipe.method in HOSTS:
            transform = self.data.train.transform
            objective = hosts.build(settings, network, self.augmentation, self.fast, transform)
            steps = recipe.steps or hosts.steps(settings)
            if recipe.method not in KERNELS:
                rate = hosts.rate(settings, len(self.data.train.classes))
                return objective, {"images": Optimizer(rate)}, steps
            rates = {name: settings["lr"] for name in objective.learned}
            if "log_scale" in rates:
                rates["log_scale"] = settings["lr_scale"]
            how = {"kind": settings["optimizer"], "schedule": settings["schedule"]}
            return objective, {name: Optimizer(lr, **how) for name, lr in rates.items()}, steps
        objective = OBJECTIVES[settings["objective"]](
            network,
            batch=settings["batch"],
            augmentation=self.augmentation if settings["augmented"] else "",
            real_network=self.fast,
        )
        steps = recipe.steps or published_steps(recipe.method, recipe.ipc)
        return objective, {"images": Optimizer(settings["lr"], settings["momentum"])}, steps

    def _distill(self, recipe: Recipe, start: Synthetic, kept: Tensor, key: str) -> Distilled:
        real = self.data.train.subset(kept)
        sampler = Uniform(real.targets)
        if recipe.effect:
            sampler = TreatmentEffect(real.targets, recipe.effect, recipe.effect_every, recipe.effect_tails)
        if recipe.importance:
            sampler = Importance(
                real,
                recipe.importance,
                recipe.importance_every,
                recipe.reweight,
                generator=generator(recipe.seed, "importance"),
            )
        objective, optimizers, steps = self._objective(recipe)
        times = self.hosts.validations if recipe.method in KERNELS else 0

        def judged(made: Synthetic, step: int) -> float:
            return objective.accuracy(made, self.data.validation, generator(recipe.seed, "validation"))

        if recipe.method in KERNELS:
            start = objective.prepare(start)
        return distill(
            start,
            objective,
            real,
            sampler,
            optimizers,
            steps,
            generator(recipe.seed, "distill"),
            validate=judged if times else None,
            validate_every=-(-steps // times) if times else 0,
            checkpoint=self.runs.artifact(key, ".checkpoint.safetensors"),
            checkpoint_seconds=self.checkpoint_seconds,
            identity=key,
            progress=self.progress,
        )

    def _match_trajectories(self, recipe: Recipe, kept: Tensor, key: str) -> tuple[Distilled, Synthetic, dict]:
        """Distill by trajectory matching: what came out, the start, and what the result says of experts and steps."""
        bank, cost = self._load_experts(recipe)
        settings = self.trajectory.settings(recipe.method, recipe.ipc)
        start = self._trajectory_start(recipe, settings, bank, kept)
        objective = trajectory.build(recipe.method, self.network, bank, settings, augmentation=self.augmentation)
        momentum = settings["momentum"]
        pixels = (recipe.lr or settings["lr_images"]) * settings["gradient_scale"]
        optimizers = {"images": Optimizer(pixels, momentum), "step_size": Optimizer(settings["lr_step_size"], momentum)}
        if settings["labels"]:
            optimizers["label_logits"] = Optimizer(settings["lr_labels"], settings["momentum_labels"])
        real, steps = self.data.train.subset(kept), recipe.steps or settings["iterations"]
        times = self.trajectory.validations
        with float32_matmul("float32"):  # matched weights
            done = distill(
                start,
                objective,
                real,
                Uniform(real.targets),
                optimizers,
                steps,
                generator(recipe.seed, "distill"),
                ema=settings["ema"] or None,
                validate=(lambda made, step: self._validated(recipe, made)) if times else None,
                validate_every=-(-steps // times) if times else 0,
                checkpoint=self.runs.artifact(key, ".checkpoint.safetensors"),
                checkpoint_seconds=self.checkpoint_seconds,
                identity=key,
                progress=self.progress,
            )
        log = {"experts": cost, "step_size": float(done.last.tensors["step_size"]), "skipped": done.cost["skipped"]}
        if times:
            log |= {"best_step": done.best_step, "best_score": done.best_score}
        return done, start, log

    def _trajectory_start(self, recipe: Recipe, settings: dict, bank, kept: Tensor) -> Synthetic:
        """First images, step size and label logits."""
        how = recipe.initialize or settings["initialize"]
        if how == "correct":
            stream = generator(recipe.seed, "correct images")
            pool = self.data.train.subset(kept)
            chosen = kept[experts.choose_correct(self.network, bank, pool, recipe.ipc, stream)]
            start = self._of(chosen, recipe)
        else:
            chosen = self.choose("real" if how == "noise" else how, recipe.ipc, recipe.seed, kept)
            start = self._start(recipe, kept, how)
        start = start.replace(step_size=torch.tensor(float(settings["step_size"]), device=start.device))
        if settings["labels"]:
            one = 0 if how == "real" else None  # as published: one expert's labels for random real images
            start = start.replace(label_logits=experts.first_logits(self.network, bank, self.data.train, chosen, one))
        return start

    def _validated(self, recipe: Recipe, made: Synthetic) -> float:
        """Mean accuracy on validation images of fresh networks trained on a set, the same ones at every step."""
        protocol, _ = self._protocol(recipe, made)
        if not protocol.lr > 0:  # `distill` is about to stop
            return 0.0
        how = self.trajectory
        protocol = replace(protocol, networks=how.networks, epochs=how.epochs or protocol.epochs)
        stream = generator(recipe.seed, "validation")
        return float(evaluate(self.network, made.source(), protocol, self.data.validation, stream).mean())


def _file_of(artifact: str, iterate: str) -> str:
    """The name under which one iterate of a run is kept."""
    return artifact if iterate == "last" else f"{artifact}-{iterate}"
