r"""Sets for pre-training without labels: made, used and judged in one way, MKDT (arXiv 2410.02116) beside what it is compared with.

A `Pretraining` says which images an encoder is pre-trained on, and how; `PretrainingBench.run` makes the set once, trains fresh
encoders on it, fits linear probes on few labels of every task, and stores the result. Labels are read by the probes alone.

```
teacher -> targets -> students -> select or initialize -> distill -> pre-train fresh encoders -> probe: tasks x labels
```

| method | images | what an encoder learns on them |
|---|---|---|
| none | - | nothing |
| random, k-means, high loss, full | real | the teacher's embeddings, by squared error |
| random, self-supervised | real | SimCLR, without the teacher |
| MKDT | distilled by matching the students' trajectories | their targets |
| KRR-ST | distilled by kernel ridge regression (arXiv 2310.06511) | their learned targets |
| MTT-SSL | distilled by matching trajectories of SimCLR | SimCLR |
"""

import time
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property
from importlib import resources

import torch
import yaml
from torch import Tensor

from distillery import engine, experts, store
from distillery.checks import InputError, check_choice, check_fraction, check_positive_int
from distillery.data import Splits
from distillery.data.synthetic import Synthetic
from distillery.distill import Distilled, Optimizer, distill
from distillery.encoders.students import RegressionSet, high_loss, losses
from distillery.encoders.teacher import SIMCLR, pretrain
from distillery.evaluation import Probing, fit, probe
from distillery.experts import Experts
from distillery.lock import lock
from distillery.matching import representation, trajectory
from distillery.networks import pool
from distillery.networks.precision import MixedPrecision, float32_matmul
from distillery.recipes import Trajectory, expert_epochs
from distillery.runs import DependencyMissing, Runs, subsample
from distillery.sampling import Uniform
from distillery.scores.geometry import kmeans_nearest
from distillery.seeds import generator, split
from distillery.selection import prune, select
from distillery.training import train
from distillery.training.contrastive import two_views_apart
from distillery.training.losses import check_targets
from distillery.training.views import TwoViews, Views

VERSION = 1  # of everything that decides a run's result; raise it when a change makes stored runs stale
NONE, FULL, SUPERVISED_BY_ITSELF = "none", "full", "random, self-supervised"
SELECTIONS = ("random", "k-means", "high loss")  # of real images, without classes
MATCHED = ("MKDT", "MTT-SSL")
STARTS = {"MKDT": "high loss", "MTT-SSL": "random", "KRR-ST": "random"}  # as published
DISTILLED = tuple(STARTS)
PRUNED = ("lowest", "highest", "middle", "random")  # rules of selection.py that need no more than a loss
METHODS = (NONE, *SELECTIONS, SUPERVISED_BY_ITSELF, *DISTILLED, FULL)


@dataclass(frozen=True)
class Pretraining:
    """What an encoder is pre-trained on, and how.

    method      one of METHODS
    images      m, how many images; 0 for 'none' and 'full'
    keep, rule  prune the real images first: keep this part of them, a fraction in (0, 1], by the students' loss after one epoch
    initialize  where a distilled set starts: '' = as published ('high loss' for MKDT, else 'random'), or one of SELECTIONS
    steps       updates of a distilled set, 0 = as published
    learned     whether MKDT learns the targets too, as its public code does; in the paper they stay the teacher's
    flat        whether MKDT's students descend to flat minima (GSAM, as FTD's experts)
    matched     train encoders as many steps as all real images would take (without a teacher: over as many images), instead of
                the passes of the protocol
    lr          rate of pre-training, 0 = the learned step size of a matched set, else the protocol's
    encoder     another architecture to pre-train, one of the pool; '' = the students' own
    raises      InputError on values that a method does not take
    """

    method: str
    images: int
    seed: int
    initialize: str = ""
    steps: int = 0
    learned: bool = False
    flat: bool = False
    matched: bool = False
    lr: float = 0.0
    encoder: str = ""
    keep: float = 1.0
    rule: str = "lowest"

    def __post_init__(self):
        check_choice("method", self.method, METHODS)
        if self.method in (NONE, FULL):
            if self.images:
                raise InputError(f"images: {self.images} with {self.method!r}; accepted: 0")
        else:
            check_positive_int("images", self.images)
        if self.initialize:
            check_choice("initialize", self.initialize, SELECTIONS)
        if (self.initialize or self.steps) and self.method not in DISTILLED:
            raise InputError(f"initialize, steps: set for {self.method!r}, which distils nothing; accepted: '' and 0")
        if (self.learned or self.flat) and self.method != "MKDT":
            raise InputError(f"learned, flat: set for {self.method!r}; accepted: False, or 'MKDT'")
        if self.matched and self.method in (NONE, FULL):
            raise InputError(f"matched: True with {self.method!r}; accepted: False, its steps are its own")
        check_fraction("keep", self.keep)
        check_choice("rule", self.rule, PRUNED)
        if self.keep < 1 and self.method in (NONE, FULL):
            raise InputError(f"keep: {self.keep} with {self.method!r}; accepted: 1")
        if self.encoder:
            check_choice("encoder", self.encoder, pool.NAMES)
        for name in ("seed", "steps", "lr"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: {getattr(self, name)} is not accepted; accepted: 0 or more")

    def spec(self) -> dict:
        """What identifies it in the id of a run."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @property
    def making(self) -> "Pretraining":
        """The recipe of its set alone, which recipes that differ in how encoders are trained share."""
        return replace(self, matched=False, lr=0.0, encoder="")


@dataclass(frozen=True)
class Settings:
    """How sets are distilled: the published settings of a data set, with changes.

    matching    of MKDT, `recipes.Trajectory`
    contrast    of MTT-SSL, the same
    prior       changes of KRR-ST's settings by their names in `representation.yaml`
    views       of SimCLR: in experts, student steps, and pre-training without a teacher
    """

    matching: Trajectory = Trajectory()
    contrast: Trajectory = Trajectory()
    prior: dict = field(default_factory=dict)
    views: Views = Views()


class PretrainingBench:
    """Real images with targets, students, protocol, tasks and stored runs under which recipes are compared."""

    def __init__(
        self,
        real: RegressionSet,
        network,
        protocol: Probing,
        tasks: dict[str, Splits],
        runs: Runs,
        settings: Settings = Settings(),
        *,
        precision: str = "float32",
        checkpoint_seconds: float = 60.0,
        progress: bool = False,
    ):
        """What all runs share.

        real       images and the teacher's targets; labels are not read
        network    of students and encoders, its output as wide as the targets
        protocol   how encoders are pre-trained and probed
        tasks      name -> labelled training images, of which few are used, and test images of the same shape
        precision  in which encoders are pre-trained and their features taken; students and matching run in float32
        raises     InputError on targets of another width than the network's output, and tasks of another shape
        """
        check_targets(real.targets, real, network.classes)
        for name, task in tasks.items():
            if task.train.shape != real.shape:
                raise InputError(f"task {name}: images of {task.train.shape}; accepted: {real.shape}")
        self.real, self.network, self.protocol, self.tasks, self.runs = real, network, protocol, tasks, runs
        self.settings, self.precision = settings, precision
        self.checkpoint_seconds, self.progress = checkpoint_seconds, progress
        self.costs: dict[str, dict] = {}  # of students, which serve many sets
        self._banks: dict[str, Experts] = {}

    @cached_property
    def context(self) -> dict:
        """What identifies this bench in the id of a run."""
        return {
            "network": MixedPrecision(self.network, self.precision).spec(),
            "protocol": self.protocol.spec(),
            "tasks": {name: task.digest for name, task in self.tasks.items()},
            "views": vars(self.settings.views),
        }

    def run(self, recipe: Pretraining) -> dict | None:
        """The stored result of a recipe, computed now if need be; None if the budget is spent.

        result  accuracies[task][fraction of labels][network], probes (how they went), seconds (making the set and training on
                it), seconds_evaluation, steps and samples of the distillation, pretraining_steps, stored_numbers, and of a
                distilled set `loss`, `artifact`, `step_size` and `moved`, the mean change of a pixel in units of the
                standardized images
        """
        inputs = {"recipe": recipe.spec(), **self.context, **self._how(recipe)}
        return self.runs.try_get("pretraining", VERSION, inputs, self.real.digest, lambda key: self._compute(recipe))

    def run_all(self, recipes: list[Pretraining], where: str = "local", gpus: float = 1.0) -> list[dict | None]:
        """The results of several recipes, in order, mapped over an engine; students are made first."""
        if where == "local":
            return engine.map(self.run, recipes)
        _ = self.context, self.real.digest  # known before the bench is copied to the workers
        for one in recipes:
            if not self.runs.spent() and one.method != NONE:
                real = self.pruned(one)
                for kind in self._students(one):
                    self._made_students(kind, real)
        options = {"cpus": torch.get_num_threads(), "gpus": gpus if self.real.device.type == "cuda" else 0}
        answers = engine.map(self._run_apart, recipes, where, **options)
        for _, computed, reused, missing, costs in answers:
            self.runs.computed += computed
            self.runs.reused += reused
            self.runs.missing += missing
            self.costs |= costs
        return [answer[0] for answer in answers]

    def _run_apart(self, recipe: Pretraining) -> tuple:
        """`run` on a copy of the bench, with what the copy has counted."""
        result, runs = self.run(recipe), self.runs
        return result, runs.computed, runs.reused, runs.missing, self.costs

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_banks": {}, "progress": False}

    def synthetic(self, result: dict) -> Synthetic | None:
        """The set behind a result, the images it started from as card['start']; None if its file was not kept."""
        path = self.runs.artifact(result["artifact"]) if result["artifact"] else None
        if path is None or not path.exists():
            return None
        tensors, _ = store.load_tensors(path)
        start = tensors.pop("start")
        return Synthetic(tensors, None, card={"start": start}).to(self.real.device)

    def billed(self, results: list[dict]) -> list[dict]:
        """'seconds' and 'samples' of results, a set that several of them share counted once."""
        bills, seen = [], set()
        for one in results:
            seconds, samples = one["seconds"], one["samples"]
            if one["artifact"] in seen:
                made = store.read_json(self.runs.path(one["artifact"]))["result"]
                seconds, samples = seconds - made["seconds"], samples - made["samples"]
            elif one["artifact"]:
                seen.add(one["artifact"])
            bills.append({"seconds": seconds, "samples": samples})
        return bills

    def students(self, kind: str = "MKDT", real: RegressionSet | None = None) -> Experts:
        """The students of 'MKDT', of 'MKDT, flat', or the experts of 'MTT-SSL', on all real images or some: trained once, stored."""
        real = real or self.real
        if (kind, real.digest) not in self._banks:
            asked = self._made_students(kind, real)
            self._banks = {(kind, real.digest): experts.load(*asked)}  # one bank at a time: they are large
        return self._banks[kind, real.digest]

    def pruned(self, recipe: Pretraining) -> RegressionSet:
        """The real images that a recipe keeps, with their targets, in their order."""
        if recipe.keep == 1:
            return self.real
        scores = None if recipe.rule == "random" else losses(self.network, self.students(), self.real)
        everything = torch.zeros(len(self.real), dtype=torch.int64)  # one class
        stream = generator(recipe.seed, "prune")
        return self.real.subset(prune(scores, recipe.keep, everything, recipe.rule, stream).sort().values)

    def choose(self, how: str, m: int, seed: int, real: RegressionSet | None = None) -> Tensor:
        """Indices (m,) into the real images, or some of them, by one of SELECTIONS, without classes."""
        real = real or self.real
        if m > len(real):
            raise InputError(f"images: {m} of {len(real)}; accepted: at most as many as there are")
        if how == "high loss":
            return high_loss(self.network, self.students("MKDT", real), real, m)
        if how == "k-means":
            rank = kmeans_nearest(real.targets.cpu(), None, m, generator(seed, "k-means"))
            return select(rank, m, None, "lowest")
        return torch.randperm(len(real), generator=generator(seed, "random subset"))[:m]

    # Students

    def _matching(self, kind: str) -> Trajectory:
        return self.settings.contrast if kind == "MTT-SSL" else self.settings.matching

    def published_size(self, m: int, kind: str = "MKDT") -> int:
        """Which of the two published sizes, images over classes, is meant by m images: the nearer one, 2 or 5%."""
        sizes = sorted(trajectory.presets()[kind.split(",")[0]][self._matching(kind).dataset])
        return sizes[0] if m <= 0.035 * len(self.real) else sizes[-1]

    def settings_of(self, kind: str, m: int) -> dict:
        """The published settings of the nearer of the two published sizes, with changes."""
        method, matching = kind.split(",")[0], self._matching(kind)
        found = matching.settings(method, self.published_size(m, kind))
        return found | ({"optimizer": "GSAM"} if kind.endswith(", flat") else {})

    def _students(self, recipe: Pretraining) -> list[str]:
        """The kinds of students that a recipe needs."""
        kinds = []
        if recipe.method in MATCHED:
            kinds.append(f"{recipe.method}, flat" if recipe.flat else recipe.method)
        if self._start_of(recipe) == "high loss" and "MKDT" not in kinds:
            kinds.append("MKDT")
        return kinds

    def _start_of(self, recipe: Pretraining) -> str:
        """How the real images of a recipe are chosen, '' where there are none to choose."""
        if recipe.method in SELECTIONS:
            return recipe.method
        if recipe.method in DISTILLED:
            return recipe.initialize or STARTS[recipe.method]
        return "random" if recipe.method == SUPERVISED_BY_ITSELF else ""

    def _made_students(self, kind: str, real: RegressionSet) -> tuple:
        """Train what is missing of a kind of students; what names them for `experts.load`."""
        cells = trajectory.presets()[kind.split(",")[0]][self._matching(kind).dataset]
        sizes = [round(size * len(self.real) * share) for size, share in zip(sorted(cells), (0, 1))]
        settings = [self.settings_of(kind, size) for size in sizes]
        epochs = max(expert_epochs(one) for one in settings)  # one bank serves both published sizes
        views = self.settings.views if kind == "MTT-SSL" else None
        training = self._matching(kind).training(settings[0], "", views)
        folder = self.runs.folder / "artifacts" / "experts"
        asked = folder, self.network, real, training, epochs
        identity = {"training": training.spec(), "epochs": epochs, "network": self.network.spec()}
        key = store.identity("students", VERSION, identity, real.digest)
        path = folder / f"{key}.json"
        with lock(path.with_suffix(".lock"), wait=True):
            if experts.missing(*asked) or not path.exists():
                experts.make(*asked, account=key, log=print)
                store.write_json(path, {"id": key} | experts.spent(*asked, key))
        self.costs[key] = store.read_json(path)
        return asked

    # Sets

    def _how(self, recipe: Pretraining) -> dict:
        """What identifies a set besides its recipe."""
        found = {}
        for kind in [*self._students(recipe), *(["MKDT"] if recipe.keep < 1 else [])]:
            settings = self.settings_of(kind, recipe.images)
            found[kind] = {n: v for n, v in settings.items() if n not in ("source", "zca")} | {
                "seed": self._matching(kind).seed
            }
        if recipe.method == "KRR-ST":
            silent = ("source", "images", "normalization", "depth", "side")
            found["KRR-ST"] = {n: v for n, v in self._prior().items() if n not in silent}
        return found

    def _prior(self) -> dict:
        """KRR-ST's settings; it has none for cifar10, where MKDT's authors took those of cifar100."""
        dataset = self.settings.matching.dataset
        found = representation.preset("cifar100" if dataset == "cifar10" else dataset)
        for name in self.settings.prior:
            check_choice("KRR-ST setting", name, found)
        return found | self.settings.prior

    def _distilled(self, recipe: Pretraining) -> tuple[Synthetic, dict]:
        """The set of a recipe of DISTILLED, stored by itself, and what its result says."""
        recipe = recipe.making
        inputs = {"recipe": recipe.spec(), "network": self.network.spec(), **self._how(recipe)}
        if recipe.method == "MTT-SSL":
            inputs["views"] = vars(self.settings.views)
        result = self.runs.get(
            "pretraining set", VERSION, inputs, self.real.digest, lambda key: self._distill(recipe, key)
        )
        made = self.synthetic(result) if result else None
        if made is None:
            raise DependencyMissing
        self.runs.artifact(result["artifact"], ".checkpoint.safetensors").unlink(missing_ok=True)
        return made, result

    def _distill(self, recipe: Pretraining, key: str) -> dict:
        real = self.pruned(recipe)
        chosen = self.choose(self._start_of(recipe), recipe.images, recipe.seed, real).to(real.device)
        kinds = [kind for kind in self._students(recipe) if kind.startswith(recipe.method)]
        for kind in kinds:
            self.students(kind, real)  # before the clock starts: they serve many sets
        began = time.monotonic()
        start = Synthetic({"images": real.batch(chosen), "targets": real.targets[chosen]}, None)
        if recipe.method == "KRR-ST":
            done = self._regress(recipe, start, real, key)
        else:
            done = self._match(recipe, start, kinds[0], real, key)
        made, first = done.last, start.tensors["images"]
        tensors = made.tensors | {"start": first}
        store.save_tensors(self.runs.artifact(key), tensors, {"method": recipe.method})
        details = {
            "artifact": key,
            "steps": done.cost["steps"],
            "samples": done.cost["samples"],
            "seconds": max(time.monotonic() - began, done.cost["seconds"]),  # the latter over all restarts
            "stored_numbers": made.stored_numbers(),
            "moved": float((made.tensors["images"] - first).abs().mean()),
            "loss": subsample(done.log["loss"]),
        }
        return details | ({"step_size": float(made.tensors["step_size"])} if "step_size" in made.tensors else {})

    def _match(self, recipe: Pretraining, start: Synthetic, kind: str, real: RegressionSet, key: str) -> Distilled:
        """Match the trajectories of students."""
        settings = self.settings_of(kind, recipe.images) | ({"targets": True} if recipe.learned else {})
        start = start.replace(step_size=torch.tensor(float(settings["step_size"]), device=start.device))
        options = {"augmentation": ""}
        if kind == "MTT-SSL":
            options |= {"views": self.settings.views, "transform": real.transform}
        objective = trajectory.build(recipe.method, self.network, self.students(kind, real), settings, **options)
        optimizers = {
            "images": Optimizer(settings["lr_images"], settings["momentum"]),
            "step_size": Optimizer(settings["lr_step_size"], settings["momentum"]),
        }
        if recipe.learned:
            optimizers["targets"] = Optimizer(settings["lr_targets"], settings["momentum_targets"])
        with float32_matmul("float32"):  # matched weights
            return self._loop(recipe, start, objective, real, optimizers, settings["iterations"], key)

    def _regress(self, recipe: Pretraining, start: Synthetic, real: RegressionSet, key: str) -> Distilled:
        """KRR-ST."""
        settings = self._prior()
        objective = representation.build(settings, self.network)
        how = Optimizer(settings["lr"], kind=settings["optimizer"], schedule=settings["schedule"])
        how = {"images": how, "targets": how}
        with float32_matmul("float32"):
            return self._loop(recipe, start, objective, real, how, settings["iterations"], key)

    def _loop(
        self, recipe, start: Synthetic, objective, real: RegressionSet, optimizers: dict, published: int, key: str
    ) -> Distilled:
        return distill(
            start,
            objective,
            real,
            Uniform(None, len(real)),
            optimizers,
            recipe.steps or published,
            generator(recipe.seed, "distill"),
            checkpoint=self.runs.artifact(key, ".checkpoint.safetensors"),
            checkpoint_seconds=self.checkpoint_seconds,
            identity=key,
            progress=self.progress,
        )

    # Encoders

    def _compute(self, recipe: Pretraining) -> dict:
        details = {"artifact": None, "steps": 0, "samples": 0, "stored_numbers": None, "loss": [], "seconds": 0.0}
        made = None
        if recipe.method in DISTILLED:
            made, found = self._distilled(recipe)
            details |= found
        with float32_matmul(self.precision):
            began = time.monotonic()
            network, params, steps = self._pretrained(recipe, made)
            seconds = time.monotonic() - began
            accuracies, probes = {}, {}
            for name, task in self.tasks.items():
                stream = generator(recipe.seed, "labels", name)
                found, probes[name] = probe(network, params, task.train, task.test, self.protocol, stream)
                accuracies[name] = {
                    f"{fraction:g}": found[:, i].tolist() for i, fraction in enumerate(self.protocol.labels)
                }
        return details | {
            "accuracies": accuracies,
            "probes": probes,
            "pretraining_steps": steps,
            "seconds": details["seconds"] + seconds,
            "seconds_evaluation": time.monotonic() - began,
        }

    def _pretrained(self, recipe: Pretraining, made: Synthetic | None):
        """(network, weights of fresh encoders trained on what a recipe says, steps each took)."""
        network = self.network
        if recipe.encoder:
            width = network.channels / 128
            network = pool.build(recipe.encoder, self.real.shape, network.classes, width)
        network, k = MixedPrecision(network, self.precision), self.protocol.networks
        stream = generator(recipe.seed, "pre-training")
        if recipe.method == NONE:
            params = network.init(stream, k)
            return network, {name: value.to(self.real.device) for name, value in params.items()}, 0
        source = self.real
        if made is not None:
            source = made.source()
        elif recipe.method != FULL:
            real = self.pruned(recipe)
            source = real.subset(self.choose(self._start_of(recipe), recipe.images, recipe.seed, real))
        protocol = self.protocol if made is None else self.protocol.fitting(made)
        protocol = replace(protocol, lr=recipe.lr or protocol.lr)
        steps_of = len(self.real) if recipe.matched else 0
        steps = protocol.optimizer(steps_of or len(source))[1]
        if recipe.method == "MTT-SSL":
            params = self._contrasted(network, source, protocol, stream, steps, recipe.seed)
        elif recipe.method == SUPERVISED_BY_ITSELF:
            params, steps = self._by_itself(network, source, recipe)
        else:
            params, _ = fit(network, source, protocol, stream, steps_of=steps_of, device=self.real.device)
        return network, params, steps

    def _contrasted(self, network, source, protocol: Probing, stream, steps: int, seed: int) -> dict:
        """Encoders trained on made images by SimCLR under the protocol's optimizer, their output taken for the projection."""
        device, k = self.real.device, protocol.networks
        start, order = split(stream, 2)
        params = {name: value.to(device) for name, value in network.init(start, k).items()}
        views = TwoViews(Pixels.of(source.images, self.real.transform), self.settings.views, seed)
        return train(
            network,
            params,
            views,
            two_views_apart,
            protocol.optimizer(len(source))[0],
            generator=order,
            steps=steps,
            batch=min(protocol.batch, len(source)),
            whole_batches=True,
            chunk=k,
        )[0]

    def _by_itself(self, network: MixedPrecision, source: RegressionSet, recipe: Pretraining) -> tuple[dict, int]:
        """Encoders trained on images by SimCLR as its teachers are, over as many images as the others see; steps of each."""
        batch = min(SIMCLR.batch, len(source))
        seen = len(source) // batch * batch  # images of a pass
        passes = self.protocol.epochs * (len(self.real) if recipe.matched else len(source)) / seen
        epochs = max(1, round(passes))
        how = replace(
            SIMCLR,
            epochs=epochs,
            batch=batch,
            warmup=min(SIMCLR.warmup, epochs - 1),
            views=self.settings.views,
            seed=recipe.seed,
        )
        params = pretrain(network, source.images, how, self.protocol.networks)
        return params, epochs * (len(source) // batch)


@dataclass(frozen=True, eq=False)
class Pixels:
    """Made images behind what `selfsup.TwoViews` asks of an ImageSet.

    pixels     (M, C, H, W) float, in [0, 1] but for what distillation moved out of it
    transform  what standardizes them
    """

    pixels: Tensor
    targets: Tensor
    transform: object = None

    @staticmethod
    def of(images: Tensor, transform) -> "Pixels":
        """From standardized images."""
        pixels = transform.inverse(images) if transform else images
        return Pixels(pixels, torch.zeros(len(images), dtype=torch.int64, device=images.device), transform)

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.pixels.shape[1:])

    def batch(self, indices: Tensor) -> Tensor:
        return self.pixels[indices]


def read(results: list[dict | None], task: str, fraction: float) -> list[dict | None]:
    """Results as `records.row` takes them: the accuracies of one task at one fraction of labels."""
    return [one and one | {"accuracies": one["accuracies"][task][f"{fraction:g}"]} for one in results]


@cache
def _published() -> dict:
    return yaml.safe_load(resources.files("distillery.matching").joinpath("pretraining.yaml").read_text())


def published(dataset: str, part: str, labels: str, task: str, method: str) -> dict | None:
    """{'mean', 'std'} as fractions from `matching/pretraining.yaml`, None where no number is known.

    part, labels  of the unlabelled images and of the labels, as '2%'; of 'none' and 'full' the part does not matter
    """
    table = _published().get(dataset, {}).get("2%" if method in (NONE, FULL) else part, {})
    found = table.get(labels, {}).get(task, {}).get(method)
    return {"mean": found[0] / 100, "std": found[1] / 100} if found else None


def compatibility() -> str:
    """What combines with what where no labels are used, as a Markdown table."""
    lines = ["| method, without labels | objective | initialize | prune first | learns |", "|---|---|---|---|---|"]
    objectives = {
        "MKDT": ("trajectories of students, or of flat students", "images, step_size, or targets too"),
        "KRR-ST": ("kernel regression", "images, targets"),
        "MTT-SSL": ("trajectories of SimCLR", "images, step_size"),
    }
    for name, (objective, learns) in objectives.items():
        starts = ", ".join(f"**{one}**" if one == STARTS[name] else one for one in SELECTIONS)
        lines.append(f"| {name} | {objective} | {starts} | {', '.join(PRUNED)} | {learns} |")
    return "\n".join(lines)
