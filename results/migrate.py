"""Map the runs of results/small that were stored by one bench to sets and evaluations stored apart, once.

Each old file holds its inputs; they are turned into a recipe and the parts of an experiment, whose ids the present code computes.
Results are copied; the seconds of a run split into those of its set and of its evaluation. Prints how many of each.

    python results/migrate.py OLD_RESULTS NEW_RESULTS [--transform DIGEST]
"""

import argparse
import json
from collections import Counter
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

from distillery import store
from distillery.evaluation import FineTuning, Probing, Protocol
from distillery.experiment import VERSION, Experiment, Presets, Validation
from distillery.methods import METHODS
from distillery.networks import ConvNet
from distillery.networks.precision import MixedPrecision
from distillery.recipe import ByLoss, Effect, Evaluate, Prune, Recipe
from distillery.runs import Runs, _digest
from distillery.scores import ORDERS, SCORES
from distillery.training.views import Views

RENAMED = {
    "steps": "student_steps",
    "span": "expert_epochs",
    "first": "min_start_epoch",
    "last": "max_start_epoch",
    "begin": "initial_max_start_epoch",
    "growth": "expansion_steps",
    "epochs": "expert_training_epochs",
    "batch": "student_batch",
}  # of trajectory settings
HOST_RENAMED = {"shrink": "interpolation", "judged": "eval_networks"}
METHOD = {"whole, trained out": "whole", "full": "whole"}
PROTOCOLS = {"scratch": Protocol, "fine-tune": FineTuning, "probe": Probing}
OF_SET = (
    "loss",
    "stored_numbers",
    "experts",
    "step_size",
    "skipped",
    "best_step",
    "best_score",
    "at_start",
    "regression",
    "curve",
    "effective_batch",
    "seconds_regression",
    "moved",
)


class Stored(Experiment):
    """What of an experiment decides ids, from stored inputs."""

    def __init__(
        self,
        inputs: dict,
        data: str,
        transform: str,
        images: int,
        labelled: bool,
        presets: Presets,
        validation: Validation,
    ):
        self.inputs = inputs
        spec = dict(inputs["network"])
        precision, compiled = spec.pop("precision", "float32"), spec.pop("compiled", False)
        spec.pop("network")
        shape, classes, width = tuple(spec.pop("shape")), spec.pop("classes"), spec.pop("width")
        self.network = ConvNet(shape, classes, width, **spec)
        self.compute = SimpleNamespace(precision=precision, compiled=compiled)
        self.fast = MixedPrecision(self.network, precision, compiled)
        assert json.loads(store.canonical(self.fast.spec())) == inputs["network"], (self.fast.spec(), inputs["network"])
        kind = dict(inputs.get("protocol") or {})
        if kind:
            values = {name: tuple(v) if isinstance(v, list) else v for name, v in kind.items() if name != "kind"}
            if values.get("loss") == "squared error":
                values["loss"] = "half squared error"
            self.protocol = PROTOCOLS[kind["kind"]](**values)
        self.presets, self.validation, self.augmentation = presets, validation, inputs.get("augmentation", "")
        self.data = SimpleNamespace(digest=data)
        self._transform, self._images, self._labelled = transform, images, labelled
        self.encoder = SimpleNamespace(digest=inputs["encoder"]) if "encoder" in inputs else None
        self.scores = SimpleNamespace(spec=self._spec, experiment=self)
        self.tasks = {
            name: SimpleNamespace(digest=digest, train=SimpleNamespace(transform=None))
            for name, digest in inputs.get("tasks", {}).items()
        }

    def _spec(self, name):
        if name in ("high loss", "student loss"):
            return (ORDERS.get(name) or SCORES[name].spec)(self.scores)
        if name in ("ridge sensitivity", "leverage", "k-means sensitivity", "k-means++"):
            return self.inputs["importance"]
        return self.inputs["scoring"]

    class _Real:
        def __init__(self, n, shape):
            self.n, self.shape = n, shape

        def __len__(self):
            return self.n

    @property
    def real(self):
        return self._Real(self._images, self.network.shape)

    @property
    def classes(self):
        return tuple(str(i) for i in range(self.inputs["network"]["classes"])) if self._labelled else None

    @property
    def labels(self):
        return () if self._labelled else None

    @property
    def transform(self):
        return self._transform


def own_fields(method: str, values: dict) -> dict:
    names = {one.name for one in fields(METHODS[method].Settings)}
    return {name: value for name, value in values.items() if name in names}


def settings_of(method: str, inputs: dict, old: dict) -> dict:
    """All settings of a recipe, as changes."""
    found = {}
    if "trajectory" in inputs:
        found = {RENAMED.get(n, n): v for n, v in inputs["trajectory"]["settings"].items()} | {
            "expert_seed": inputs["trajectory"]["seed"]
        }
        found["lr_images"] = old["lr"] or found["lr_images"]
    elif "host" in inputs:
        found = {HOST_RENAMED.get(n, n): v for n, v in inputs["host"].items()}
        found["lr"], found["batch"] = old["lr"] or found["lr"], old["batch"] or found["batch"]
    elif method in ("DC", "DSA", "DM"):
        found = {name: old[name] for name in ("lr", "batch") if old[name]}
    elif old["method"] == "whole, trained out":
        found = {"epochs": old["epochs"], "batch": old["batch"]}
    elif method == "KAKURENBO":
        found = {"fraction": old["hide"]}
    if old["steps"]:
        found["steps"] = old["steps"]
    return own_fields(method, found)


def supervised(run: dict) -> tuple[Stored, Recipe]:
    inputs, old = run["inputs"], run["inputs"]["recipe"]
    method = METHOD.get(old["method"], old["method"])
    method = "KAKURENBO" if old.get("hide") else method
    size = old["ipc"]
    if method in ("whole", "KAKURENBO") and (
        inputs["protocol"]["kind"] == "fine-tune" and size == 1 or old["method"] == "whole, trained out"
    ):
        size = 0
    keep = old["keep"]
    random = old["rule"] == "random"
    prune = (
        None
        if keep == 1
        else Prune(
            keep, old["rule"], "loss" if random else old.get("score", "loss"), old.get("gamma", 0.0), old.get("draw", 0)
        )
    )
    batches = None
    if old.get("effect"):
        batches = Effect(old["effect"], old.get("effect_every", 1), old.get("effect_tails", "both"))
    if old.get("importance"):
        batches = ByLoss(old["importance"], old.get("importance_every", 100), old.get("reweight", False))
    start = {"real": "random"}.get(old["initialize"], old["initialize"])
    evaluate = Evaluate(old["evaluate_on"], old.get("iterate", "last"))
    recipe = Recipe(method, size, old["seed"], prune, start, batches, settings_of(method, inputs, old), evaluate)
    judged = inputs.get("trajectory", {}).get("validation") or [inputs.get("host", {}).get("validations", 0), 1, 0]
    dataset = "cifar10"
    return Stored(inputs, run["data"], inputs["transform"], 10**6, True, Presets(dataset), Validation(*judged)), recipe


def unsupervised(run: dict, transform: str, images: int) -> tuple[Stored, Recipe]:
    inputs, old = run["inputs"], run["inputs"]["recipe"]
    method = METHOD.get(old["method"], old["method"])
    prune = (
        None
        if old["keep"] == 1
        else Prune(old["keep"], old["rule"], "student loss" if old["rule"] != "random" else "loss")
    )
    found = {}
    kinds = [kind for kind in inputs if kind.split(",")[0] in ("MKDT", "MTT-SSL")]
    for kind in kinds:  # of students that a start or pruning needs, the settings are those of the experiment
        found[kind.split(",")[0]] = {RENAMED.get(n, n): v for n, v in inputs[kind].items()} | {
            "expert_seed": inputs[kind]["seed"]
        }
    if "KRR-ST" in inputs:
        found["KRR-ST"] = dict(inputs["KRR-ST"])
    if "views" in inputs:
        views = {name: tuple(v) if isinstance(v, list) else v for name, v in inputs["views"].items()}
        found.setdefault("MTT-SSL", {})["views"] = Views(**views)
        found["random, self-supervised"] = {"views": Views(**views)}
    changes = {name: own_fields(name, values) for name, values in found.items()}
    own = {"steps": old["steps"]} if old["steps"] else {}
    own |= {name: True for name in ("learned", "flat") if old[name]}
    start = old["initialize"]
    recipe = Recipe(
        method,
        old["images"],
        old["seed"],
        prune,
        start,
        None,
        own,
        Evaluate(old["encoder"], "last", old["lr"], old["matched"]),
    )
    return Stored(inputs, run["data"], transform, images, False, Presets("cifar10", changes), Validation()), recipe


def write(runs: Runs, producer: str, version: int, inputs: dict, data: str, result: dict, counts: Counter) -> str:
    inputs = json.loads(store.canonical(inputs))
    key = store.identity(producer, version, inputs, data)
    path = runs.path(key)
    run = {"id": key, "producer": producer, "version": version, "inputs": inputs, "data": data, "result": result}
    if path.exists():
        before = json.loads(path.read_text())["result"]
        same = {n: v for n, v in before.items() if not n.startswith("seconds")} == {
            n: v for n, v in result.items() if not n.startswith("seconds")
        }
        counts[f"{producer}: {'shared' if same else 'CONFLICT'}"] += 1
        if not same:
            print("conflict", key, inputs.get("method"), {n for n in before if before[n] != result.get(n)})
        return key
    store.write_json(path, run | {"digest": _digest(result)})
    counts[producer] += 1
    return key


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--transform", required=True, help="of the images without labels")
    parser.add_argument("--images", type=int, default=5000, help="how many they are")
    asked = parser.parse_args()
    total, dropped = Counter(), []
    for folder in sorted(asked.old.glob("*/runs")):
        counts, runs = Counter(), Runs(asked.new / folder.parent.name)
        files = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
        stored = {run["id"]: run for run in files}
        for run in files:
            old, result = run["inputs"]["recipe"], dict(run["result"])
            counts["old files"] += 1
            try:
                if run["producer"] == "bench":
                    experiment, recipe = supervised(run)
                else:
                    experiment, recipe = unsupervised(run, asked.transform, asked.images)
                set_inputs = experiment.set_inputs(recipe)
                set_id = experiment.set_id(recipe)
            except Exception as error:  # listed, not lost
                dropped.append(f"{folder.parent.name} {run['id']} {old['method']}: {type(error).__name__} {error}")
                continue
            version = METHODS[recipe.method].version
            if run["producer"] == "pretraining set":
                result["artifact"] = set_id
                write(runs, "set", version, set_inputs, run["data"], result, counts)
                continue
            base = not old.get("evaluate_on") and old.get("iterate", "last") == "last"
            loop = recipe.method not in ("whole", "KAKURENBO") and result["artifact"] is not None
            if run["producer"] == "pretraining":
                made_seconds = stored[result["artifact"]]["result"]["seconds"] if result["artifact"] else 0.0
                if METHODS[recipe.method].makes_set and not result["artifact"]:  # real images: nothing but a choice
                    write(runs, "set", version, set_inputs, run["data"], empty(set_id, recipe, experiment), counts)
                evaluation = {n: result[n] for n in ("accuracies", "probes", "pretraining_steps")}
                evaluation["seconds"] = result["seconds_evaluation"]
            else:
                made_seconds = result["seconds"] - result["seconds_evaluation"]
                tuned = "validation" in result
                if METHODS[recipe.method].makes_set and base:
                    made = {
                        "artifact": set_id,
                        "steps": 0 if tuned else result["steps"],
                        "samples": 0 if tuned else result["samples"],
                    }
                    made |= {n: result[n] for n in OF_SET if n in result} | {"seconds": made_seconds}
                    write(runs, "set", version, set_inputs, run["data"], made, counts)
                evaluation = {"accuracies": result["accuracies"], "seconds": result["seconds_evaluation"]}
                if tuned:
                    evaluation |= {
                        n: result[n] for n in ("steps", "samples", "validation", "hidden", "refreshed") if n in result
                    }
            inputs = experiment.evaluation_inputs(recipe)
            write(runs, "evaluation", VERSION, inputs, run["data"], evaluation, counts)
        print(folder.parent.name, dict(counts))
        total += counts
    print("all", dict(total))
    print(f"dropped: {len(dropped)}")
    print("\n".join(dropped))


def empty(set_id: str, recipe: Recipe, experiment: Stored) -> dict:
    """The result of real images chosen without labels, of which the old runs stored nothing."""
    numbers = recipe.size * (
        experiment.network.shape[0] * experiment.network.shape[1] * experiment.network.shape[2]
        + experiment.network.classes
    )
    return {"artifact": set_id, "stored_numbers": numbers, "steps": 0, "samples": 0, "loss": [], "seconds": 0.0}


if __name__ == "__main__":
    main()
