"""Finished evaluations, kept: networks trained on a set, tested once, and found again by what was trained on what and how."""

import time
from dataclasses import dataclass

from distillery import store
from distillery.data import ImageSet, Splits
from distillery.evaluation.labelling import Teacher
from distillery.evaluation.protocol import Protocol, accuracy, best, fit
from distillery.runs import Runs
from distillery.seeds import generator

VERSION = 1  # of everything that decides an evaluation; raise it when a change makes stored ones stale


@dataclass(frozen=True, eq=False)
class Judge:
    """Trains fresh networks on sets and tests them on the test images of a data set; `runs` keep what is finished, None = nothing is kept."""

    splits: Splits
    network: object
    runs: Runs | None = None

    def __call__(self, source, protocol: Protocol, seed: int, teacher: Teacher | None = None) -> dict:
        """What networks trained on `source` reach, as fractions, one a network, in the order of networks.

        source   an ImageSet or a TensorSource
        seed     of first weights, data order and augmentation
        teacher  labels every batch, see `fit`
        returns  'accuracies' on test images by the final weights; 'validation', likewise, where there are such images; with looks, 'best',
                 the largest on test images on the way; 'seconds'
        """

        def compute(key: str) -> dict:
            began = time.monotonic()
            params, stats = fit(
                self.network, source, protocol, generator(seed, "evaluation"), teacher=teacher, device=self.splits.test.device
            )
            trained = time.monotonic() - began
            found = {"accuracies": accuracy(self.network, params, self.splits.test).tolist(), "seconds": trained}
            if len(self.splits.validation):
                found["validation"] = accuracy(self.network, params, self.splits.validation).tolist()
            if protocol.looks:
                found["best"] = best(self.network, stats, self.splits.test).tolist()
            if key and source is self.splits.train:
                store.save_tensors(
                    self.runs.artifact(key), {name: value[:1] for name, value in params.items()}, {"network": self.network.name}
                )
            return found | {"id": key}

        if self.runs is None:
            return compute("")
        content = (
            source.digest if isinstance(source, ImageSet) else store.tensor_digest({"images": source.images, "targets": source.targets})
        )
        inputs = {"set": content[:16], "seed": seed, "network": self.network.spec(), "protocol": protocol.spec()}
        inputs |= {"transform": store.transform_digest(self.splits.train.transform)} | ({"teacher": teacher.spec()} if teacher else {})
        key = store.identity("judged", VERSION, inputs, self.splits.digest)
        if source is self.splits.train and self.runs.path(key).exists() and not self.runs.artifact(key).exists():
            return compute(key)  # results travel without their weights
        return self.runs.get("judged", VERSION, inputs, self.splits.digest, compute)

    def teacher(self, protocol: Protocol, seed: int, temperature: float = 1.0) -> Teacher:
        """The first of the networks trained on all training images, as a teacher. It needs `runs`."""
        tensors, _ = store.load_tensors(self.runs.artifact(self(self.splits.train, protocol, seed)["id"]))
        return Teacher(self.network, {name: value.to(self.splits.test.device) for name, value in tensors.items()}, temperature)
