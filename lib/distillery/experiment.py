"""One experiment: data, a network, a protocol and stored results, under which recipes are made, judged and compared.

`Experiment.run(recipe)` makes the set once and evaluates it once. The two are stored apart: a set under its method's version, settings,
network and data; an evaluation under the set and the protocol. Another protocol, architecture or iterate uses the set again.
"""

import time
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from distillery import engine, store
from distillery.checks import InputError
from distillery.data import Splits
from distillery.data.synthetic import Synthetic, hard
from distillery.evaluation import Protocol
from distillery.further_tests import VERSION, FurtherTests
from distillery.job import Job
from distillery.methods import METHODS
from distillery.networks import pool
from distillery.networks.encoder import Encoder
from distillery.networks.precision import MixedPrecision, float32_matmul
from distillery.recipe import Recipe
from distillery.runs import DependencyMissing, Runs
from distillery.scores.cached import CachedScores, ScoreSettings
from distillery.training.dsa import DSA


@dataclass(frozen=True)
class Presets:
    """Whose published settings methods start from, and changes of them by name; see `Method.settings`."""

    dataset: str = "cifar10"
    changes: dict = field(default_factory=dict)

    def __post_init__(self):
        known = {name for one in METHODS.values() for name in one.Settings.__dataclass_fields__}
        for name in (name for name in self.changes if name not in {*known, *METHODS}):
            raise InputError(f"setting {name!r} is unknown; accepted: {', '.join(sorted(known))}, or a method with settings of its own")


@dataclass(frozen=True)
class Validation:
    """How often a set is judged on validation images on its way, 0 = never, by how many networks of how many epochs (0 = the protocol's)."""

    times: int = 0
    networks: int = 1
    epochs: int = 0


@dataclass(frozen=True)
class Compute:
    """How it runs; of these only precision and compiled are part of an id.

    precision, compiled  of passes that are differentiated at most once and match no weights (`MixedPrecision`)
    engine               what runs, or chunks of experts, are mapped over
    class_engine         what the classes of a step are mapped over, in methods that go by classes
    checkpoint_seconds   time between two checkpoints of a set in the making
    """

    precision: str = "float32"
    compiled: bool = False
    engine: str = "local"
    class_engine: str = "local"
    checkpoint_seconds: float = 60.0
    progress: bool = False


class Experiment(FurtherTests):
    """What recipes are compared under.

    data          `Splits`, or real images with targets and no classes (`RegressionSet`)
    network       of students, scores and, unless a recipe says otherwise, evaluations
    augmentation  DSA families of methods that match augmented batches; a protocol names its own
    encoder       where a protocol that fine-tunes starts, and what some scores look through, None = they are refused
    tasks         without labels: name -> labelled images, of which few are used, and test images of the same shape
    raises        InputError on parts that do not fit each other
    """

    def __init__(
        self, data, network, protocol: Protocol, runs: Runs, *,
        presets: Presets = Presets(), scores: ScoreSettings | None = None, validation: Validation = Validation(),
        compute: Compute = Compute(), augmentation: str = DSA, encoder: Encoder | None = None, tasks: dict[str, Splits] | None = None,
    ):  # fmt: skip
        self.data, self.network, self.protocol, self.runs = data, network, protocol, runs
        self.presets, self.validation, self.compute = presets, validation, compute
        self.augmentation, self.encoder, self.tasks = augmentation, encoder, tasks or {}
        if encoder and encoder.network.spec() != network.spec():
            raise InputError(f"encoder: of {encoder.network.name}; accepted: one of the experiment's network, {network.name}")
        protocol.check(self)
        self.fast = MixedPrecision(network, compute.precision, compute.compiled)
        self.scores = CachedScores(self.real, self.data.digest, self.fast, runs, scores or ScoreSettings(), encoder, protocol)
        self.scores.experiment = self  # for scores that stand on students
        self.shared: dict[str, object] = {}  # experts and students, one bank at a time: they are large
        self.costs: dict[str, dict] = {}  # of banks: 'seconds' and 'samples'

    def __getstate__(self) -> dict:
        """A copy for a worker: it shares stored results and counts for itself."""
        return self.__dict__ | {
            "shared": {},
            "costs": {},
            "compute": replace(self.compute, progress=False, engine="local", class_engine="local"),
        }

    def under(self, protocol: Protocol) -> "Experiment":
        """This experiment under another protocol: data, stored results, scores and experts are shared. Raises InputError where it does not fit."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__, protocol=protocol)
        protocol.check(made)
        return made

    @property
    def real(self):
        """Training images with labels, or images with targets."""
        return self.data.train if isinstance(self.data, Splits) else self.data

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes, None where there are none."""
        return self.real.classes if isinstance(self.data, Splits) else None

    @cached_property
    def labels(self) -> Tensor | None:
        """Labels of the real images on the CPU, None where there are none."""
        return None if self.classes is None else self.real.targets.cpu()

    @property
    def device(self) -> torch.device:
        return self.real.device

    @cached_property
    def transform(self) -> str | None:
        """Digest of the standardization."""
        return store.transform_digest(self.real.transform)

    @property
    def billed_passes(self) -> list[dict]:
        """'seconds' and 'samples' of everything that many runs share: scores, experts, students."""
        return [*self.scores.costs.values(), *self.costs.values()]

    def job(self, recipe: Recipe, key: str = "") -> Job:
        """What a method sees of this experiment for a recipe. Raises InputError on one that does not fit."""
        fitting = [name for name, one in METHODS.items() if one.labels in (None, self.classes is not None)]
        if recipe.method not in fitting:
            needed = "labels" if METHODS[recipe.method].labels else "real-valued targets and no labels"
            raise InputError(f"method: {recipe.method!r} needs {needed}; accepted here: {', '.join(fitting)}")
        return Job(self, recipe, key)

    def set_inputs(self, recipe: Recipe) -> dict:
        """What identifies the set of a recipe."""
        job, method = self.job(recipe), METHODS[recipe.method]
        found = {"method": recipe.method, "size": recipe.size, "seed": recipe.seed}
        found |= {"network": self.fast.spec(), "transform": self.transform} | ({"start": job.start} if method.start else {})
        found |= {name: part.spec() for name in ("prune", "batches") if (part := getattr(recipe, name))}
        needed = [*method.scores(job), *([recipe.prune.score] if recipe.prune and recipe.prune.rule != "random" else [])]
        return found | ({"scores": {name: self.scores.spec(name) for name in needed}} if needed else {}) | method.spec(job)

    def set_id(self, recipe: Recipe) -> str:
        return store.identity("set", METHODS[recipe.method].version, self.set_inputs(recipe), self.data.digest)

    def evaluation_inputs(self, recipe: Recipe) -> dict:
        """What identifies the evaluation of a recipe's set."""
        found = {"set": self.set_id(recipe), "method": recipe.method, "size": recipe.size, "seed": recipe.seed}
        found |= {"network": self.judged_network(recipe).spec(), "protocol": self.protocol.spec(), "transform": self.transform}
        if (held := self.job(recipe).held) > recipe.size:  # once the steps of a set were those of its stored images
            sizes = (self.protocol.steps_of(n, len(self.classes or ()), len(self.real)) for n in (recipe.size, held))
            before, steps = (self.protocol.optimizer(n)[1] for n in sizes)
            found |= {"steps": steps} if steps != before else {}
        return found | self.protocol.context(self) | ({"evaluate": spec} if (spec := recipe.evaluate.spec()) else {})

    def evaluation_id(self, recipe: Recipe) -> str:
        return store.identity("evaluation", VERSION, self.evaluation_inputs(recipe), self.data.digest)

    def judged_network(self, recipe: Recipe) -> MixedPrecision:
        """The network that is trained on a recipe's set."""
        if not recipe.evaluate.network:
            return self.fast
        name, width = recipe.evaluate.network, self.network.channels / 128
        wanted = self.protocol.normalization if self.protocol.normalization in pool.POOL.get(name, ((), ()))[1] else ""
        other = pool.build(name, self.real.shape, self.network.classes, width, wanted)
        return MixedPrecision(other, self.compute.precision)

    def check(self, recipe: Recipe) -> None:
        """Raise InputError on a recipe that does not fit this experiment."""
        job = self.job(recipe)
        self.protocol.check_recipe(recipe)
        _ = job.settings
        METHODS[recipe.method].refuse(job)

    def stored(self, recipe: Recipe) -> bool:
        """Whether the result of a recipe is."""
        return self.runs.path(self.evaluation_id(recipe)).exists()

    def run(self, recipe: Recipe) -> dict | None:
        """The stored result of a recipe, computed now if need be; None if the budget is spent or a set it stands on is not here.

        result  accuracies (one a network; without labels accuracies[task][fraction of labels][network]), steps and samples (real images
                touched) of making the set, loss (about 100 values), stored_numbers, `artifact`, the id under which the set is kept,
                seconds in all and seconds_evaluation of them, and what the method and the protocol say beside
        """
        self.check(recipe)
        inputs = self.evaluation_inputs(recipe)
        found = self.runs.try_get("evaluation", VERSION, inputs, self.data.digest, lambda key: self._evaluate(recipe), self._called(recipe))
        if found is None:
            return None
        made = self.runs.read(inputs["set"]) if METHODS[recipe.method].makes_set else {}
        nothing = {"steps": 0, "samples": 0, "loss": [], "stored_numbers": None, "artifact": None, "seconds": 0.0}
        both = nothing | found | {name: value for name, value in made.items() if value or name not in found}
        return both | {"seconds_evaluation": found["seconds"], "seconds": made.get("seconds", 0.0) + found["seconds"]}

    def run_all(self, recipes: list[Recipe], where: str = "") -> list[dict | None]:
        """The results of recipes, in order, mapped over an engine ('' = the experiment's). All are checked before the first one runs.

        On Ray each recipe takes as many CPUs as torch has threads here, and a GPU for images on a GPU; the machines must share the results
        folder, and that of images that stay on disk. Raises what `engine.map` raises.
        """
        where = where or self.compute.engine
        for recipe in recipes:
            self.check(recipe)
        self.runs.tell(row=len(recipes))
        if where == "local":
            return engine.map(self.run, recipes)
        # what is shared is known before the experiment is copied, and experts are a map of their own: workers only load them
        for recipe in recipes:
            method, key = METHODS[recipe.method], self.set_id(recipe)
            if method.makes_set and not self.runs.path(key).exists() and not self.runs.spent():
                method.prepare(self.job(recipe, key), where)
        options = {"cpus": torch.get_num_threads(), "gpus": int(self.device.type == "cuda")}
        results = []
        for result, counts, scoring, costs in engine.map(self._run_apart, recipes, where, **options):
            results.append(result)
            self.runs.add(counts)
            self.scores.costs |= scoring
            self.costs |= costs
        return results

    def _called(self, recipe: Recipe) -> str:
        """A recipe in a few words."""
        size = f" {'ipc' if self.classes else 'images'} {recipe.size}" if METHODS[recipe.method].makes_set else ""
        parts = [f"{recipe.prune.rule} {recipe.prune.keep:g} kept"] if recipe.prune else []
        parts += [f"from {recipe.start}"] if recipe.start else []
        parts += [f"on {recipe.evaluate.network}"] if recipe.evaluate.network else []
        return ", ".join([f"{recipe.method}{size} seed {recipe.seed}", *parts])

    def _run_apart(self, recipe: Recipe) -> tuple:
        """`run` on a copy of the experiment, with what the copy has counted."""
        return self.run(recipe), self.runs.counts, self.scores.costs, self.costs

    def billed(self, results: list[dict]) -> list[dict]:
        """'seconds' and 'samples' of results, a set that several of them share counted once."""
        bills, seen = [], set()
        for one in results:
            again = one["artifact"] in seen
            bills.append({"seconds": one["seconds_evaluation" if again else "seconds"], "samples": 0 if again else one["samples"]})
            seen |= {one["artifact"]} - {None}
        return bills

    def set_result(self, recipe: Recipe) -> dict:
        """What is stored of a recipe's set, made now if need be, also where its file is gone. Raises DependencyMissing if the budget is spent."""
        version, inputs = METHODS[recipe.method].version, self.set_inputs(recipe)
        found = self.runs.get("set", version, inputs, self.data.digest, lambda key: self._make(recipe, key))
        if found is None:
            raise DependencyMissing
        path = self.runs.artifact(_iterate_file(found["artifact"], recipe.evaluate.iterate))
        if not path.exists() and not self.runs.spent():  # results travel without their sets
            with self.runs.lock(found["artifact"]):
                if not path.exists():
                    self._make(recipe, found["artifact"])
        for suffix in (".checkpoint.safetensors", ".checkpoint.step"):  # only now: a kill before loses a minute
            self.runs.own(found["artifact"], suffix).unlink(missing_ok=True)
        return found

    def synthetic(self, result: dict, iterate: str = "last") -> Synthetic | None:
        """The set behind a result, the images it started from as card['start']; None if its file was not kept."""
        path = self.runs.artifact(_iterate_file(result["artifact"], iterate)) if result["artifact"] else None
        if path is None or not path.exists():
            return None
        stored, card = store.load_tensors(path)
        tensors = {name: value.to(self.device) for name, value in stored.items()}
        more = {"start": tensors.pop("start", None)}
        return Synthetic(tensors, tuple(card["classes"] or ()) or None, card["formation"], more)

    def kept(self, recipe: Recipe) -> Tensor:
        """Indices of the real images left after pruning, ascending."""
        return self.job(recipe).kept

    def _make(self, recipe: Recipe, key: str) -> dict:
        """Make the set of a recipe and store it; what its result says."""
        job = self.job(recipe, key)
        with float32_matmul(self.compute.precision):
            job.method.prepare(job)  # before the clock starts: it serves many sets
            began = time.monotonic()
            made = job.method.make(job)
        for iterate, one in {"last": made.last, **made.iterates}.items():
            card = {"classes": list(one.classes) if one.classes else None, "formation": one.formation}
            first = {"start": made.start} if made.start is not None and iterate == "last" else {}
            store.save_tensors(self.runs.own(_iterate_file(key, iterate)), one.tensors | first, card)
        elapsed = time.monotonic() - began - made.log.get("untimed", 0.0)
        seconds = max(elapsed, made.log.get("seconds", 0.0))  # the latter over all restarts
        found = {"artifact": key, "stored_numbers": made.last.stored_numbers(), "steps": 0, "samples": 0, "loss": []}
        return found | made.log | {"seconds": seconds}

    def _job_and_set(self, recipe: Recipe) -> tuple[Job, Synthetic | None]:
        """The job of a recipe and its set, None where its method makes none."""
        if not METHODS[recipe.method].makes_set:
            return self.job(recipe), None
        result = self.set_result(recipe)
        if (made := self.synthetic(result, recipe.evaluate.iterate)) is None:
            raise DependencyMissing
        return self.job(recipe, result["artifact"]), made

    def judging(self, recipe: Recipe) -> tuple[Synthetic, Protocol, int]:
        """The finished set of a recipe, what judges it, and the number of images whose training steps that takes, 0 = those of the set.

        Raises InputError where the file of the set was not kept.
        """
        if not self.runs.artifact(_iterate_file(self.set_id(recipe), recipe.evaluate.iterate)).exists():
            raise InputError(
                f"the set of {self._called(recipe)} was not kept; accepted: a row whose set is in {self.runs.folder}/artifacts"
            )
        job, made = self._job_and_set(recipe)
        return made, *self._protocol(job, made)

    def _source(self, recipe: Recipe, job: Job, made: Synthetic | None):
        """What networks are trained on, under the labels that the recipe asks for."""
        source = made.source() if made else job.source
        return hard(source) if recipe.evaluate.labels == "hard" else source

    def _protocol(self, job: Job, made: Synthetic | None) -> tuple[Protocol, int]:
        protocol, steps_of = job.method.protocol(job, self.protocol, made)
        asked = job.recipe.evaluate
        changes = {"lr": asked.lr or protocol.lr} | ({"loss": "cross-entropy"} if asked.labels == "hard" else {})
        return replace(protocol, **changes), len(self.real) if asked.equal_steps else steps_of

    def _evaluate(self, recipe: Recipe) -> dict:
        job, made = self._job_and_set(recipe)
        with float32_matmul(self.compute.precision):
            if made is None:
                job.score_first()  # before the clock starts: they serve many recipes
            began, network, source = time.monotonic(), self.judged_network(recipe), self._source(recipe, job, made)
            protocol, steps_of = self._protocol(job, made)
            params, stats, details = job.method.train(job, network, source, protocol, job.stream(protocol.stream), steps_of)
            result = protocol.judge(self, network, params, stats, recipe.seed)
        return result | details | {"seconds": time.monotonic() - began}


def _iterate_file(artifact: str, iterate: str) -> str:
    return artifact if iterate == "last" else f"{artifact}-{iterate}"
