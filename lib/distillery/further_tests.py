"""What else is asked of a recipe's set: other networks, other test images, other rates. Each answer is stored as evaluations are."""

import time
from collections.abc import Sequence
from dataclasses import replace

from distillery.checks import InputError
from distillery.data import ImageSet
from distillery.evaluation import accuracy
from distillery.recipe import Recipe
from distillery.seeds import generator

VERSION = 2  # of these and of everything that decides an evaluation; raise it when a change makes stored ones stale


class FurtherTests:
    """Part of `experiment.Experiment`."""

    def search(self, recipe: Recipe, networks: Sequence) -> dict | None:
        """Train each network of a grid on a recipe's set from scratch, and test it: accuracies[network of the grid][fresh network], seconds."""
        self.check(recipe)
        inputs = self.evaluation_inputs(recipe) | {"grid": [network.spec() for network in networks]}

        def compute(key: str) -> dict:
            began, (job, made) = time.monotonic(), self._job_and_set(recipe)
            source, (protocol, steps_of) = self._source(recipe, job, made), self._protocol(job, made)
            accuracies = []
            for network in networks:
                stream = generator(recipe.seed, "search")
                params, *_ = job.method.train(job, network, source, protocol, stream, steps_of)
                accuracies.append(accuracy(network, params, self.data.test).tolist())
            return {"accuracies": accuracies, "seconds": time.monotonic() - began, "samples": 0, "steps": 0}

        return self.runs.try_get(
            "search", VERSION, inputs, self.data.digest, compute, f"{len(networks)} networks on {self._called(recipe)}"
        )

    def elsewhere(self, recipe: Recipe, tests: dict[str, ImageSet]) -> dict | None:
        """Test the networks that `run` trains on a recipe's set on other images: accuracies[name of the test][network]."""
        self.check(recipe)
        inputs = self.evaluation_inputs(recipe) | {"tests": {name: test.digest for name, test in tests.items()}}

        def compute(key: str) -> dict:
            began, (job, made) = time.monotonic(), self._job_and_set(recipe)
            network, (protocol, steps_of) = self.judged_network(recipe), self._protocol(job, made)
            source, stream = self._source(recipe, job, made), job.stream(protocol.stream)
            params, *_ = job.method.train(job, network, source, protocol, stream, steps_of)
            found = {name: accuracy(network, params, test).tolist() for name, test in tests.items()}
            return {"accuracies": found, "seconds": time.monotonic() - began, "samples": 0, "steps": 0}

        return self.runs.try_get("elsewhere", VERSION, inputs, self.data.digest, compute, f"{self._called(recipe)}, elsewhere")

    def best_rate(self, recipe: Recipe, rates: Sequence[float]) -> dict | None:
        """The training rate that serves a recipe's set best on validation images; None if the set is not here.

        Tried are its own rate and `rates`, by one network each, another one than those that are tested.
        returns  'rate', 0 = its own, as `Evaluate` has it, and 'tried', pairs of a rate and an accuracy, its own first
        raises   InputError where there are no validation images
        """
        self.check(recipe)
        if not len(self.data.validation):
            raise InputError(f"rates: {list(rates)} without validation images; accepted: held_out above 0")

        def compute(key: str) -> dict:
            job, made = self._job_and_set(recipe)
            network, source = self.judged_network(recipe), self._source(recipe, job, made)
            protocol, steps_of = self._protocol(job, made)
            tried = []
            for rate in (protocol.lr, *(one for one in rates if one != protocol.lr)):
                how = replace(protocol, networks=1, lr=rate, looks=0)
                params, *_ = job.method.train(job, network, source, how, job.stream("rate"), steps_of)
                tried.append([rate, float(accuracy(network, params, self.data.validation))])
            best = max(range(len(tried)), key=lambda i: tried[i][1])
            return {"rate": tried[best][0] if best else 0.0, "tried": tried}

        inputs = self.evaluation_inputs(recipe) | {"rates": list(rates)}
        return self.runs.try_get("rate", VERSION, inputs, self.data.digest, compute, f"rate of {self._called(recipe)}")
