"""Conditions, fixed before anything is measured, without which a comparison of pre-trained encoders says nothing.

None looks at a test image. Each gate is told as why it is closed, in words, '' = open.
"""

import numpy as np
import torch

from distillery.data import Splits
from distillery.data.synthetic import Synthetic
from distillery.encoders.quality import embedded
from distillery.evaluation.probe import probe
from distillery.job import Job
from distillery.networks import Params
from distillery.networks.encoder import Encoder
from distillery.recipe import Recipe
from distillery.seeds import generator, split

FALL = 0.1  # of the matching loss, 1 = of a student that stays where it starts, at every start epoch and the first step size
EXPERT = 0.02  # accuracy of what is matched above that of no pre-training
MOVED = 0.1  # mean change of a pixel, in deviations; in its place:
ERROR = 0.1  # relative fall of the error on images that are held out


class Gates:
    """The gates of an experiment without labels; what they measured is in `found`.

    task  whose labels the probes see, and on whose validation images they are asked
    """

    def __init__(self, experiment, task: Splits, seeds: range):
        self.experiment, self.task, self.seeds = experiment, task, seeds
        self.found: dict[str, dict] = {}

    def probes(self, name: str, network, params_of) -> dict[str, list[float]]:
        """Validation accuracies by part of the labels, one a seed and network, under the protocol; params_of: seed -> weights of K encoders."""
        protocol, found = self.experiment.protocol, []
        for seed in self.seeds:
            stream = generator(seed, "labels", "gate")
            found.append(probe(network, params_of(seed), self.task.train, self.task.validation, protocol, stream)[0])
        by_part = torch.cat(found).T.tolist()  # (parts, seeds x networks)
        self.found[name] = {f"{part:g}": values for part, values in zip(protocol.labels, by_part, strict=True)}
        return self.found[name]

    def untrained(self, network, name: str = "no pre-training") -> dict[str, list[float]]:
        """`probes` of networks as they are drawn: those that every row starts from."""
        protocol, device = self.experiment.protocol, self.experiment.device

        def drawn(seed: int) -> Params:
            params = network.init(split(generator(seed, protocol.stream), 2)[0], protocol.networks)
            return {name: value.to(device) for name, value in params.items()}

        return self.probes(name, network, drawn)

    def encoder(self, name: str, encoder: Encoder) -> dict[str, list[float]]:
        """`probes` of one frozen encoder."""
        here = encoder.to(self.experiment.device)
        return self.probes(name, encoder.network, lambda seed: repeated(here, self.experiment.protocol.networks))

    def teacher(self, margin: float) -> str:
        """Whether the teacher's features, probed as every row is, are better than no pre-training by a margin."""
        return _short("teacher", self.found["teacher"], self.found["no pre-training"], margin)

    def ceiling(self, size: int, margin: float) -> str:
        """Whether all real images with their targets, in as many steps as a set of `size` images takes, beat no pre-training by a margin."""
        experiment = self.experiment

        def trained(seed: int) -> Params:
            job = experiment.job(Recipe("whole", size, seed))
            how, steps_of = job.method.protocol(job, experiment.protocol, None)
            return job.method.train(job, experiment.network, job.source, how, job.stream("gate"), steps_of)[0]

        what = "all images, as many steps"
        return _short(what, self.probes(what, experiment.network, trained), self.found["no pre-training"], margin)

    def matching(self, jobs: list[Job], sets: list[Synthetic], experts: int = 2) -> str:
        """Whether matching moved anything, and what it matched is better than no pre-training.

        jobs, sets  of the row, one a seed; experts: how many of a bank are asked for the loss
        """
        if not sets:
            return "nothing has been distilled"
        found = []
        for job, made in zip(jobs, sets, strict=True):
            pair = [made.replace(images=images) for images in (made.card["start"], made.tensors["images"])]
            found.append(matching_losses(job, [(one, job.settings.step_size) for one in pair], experts))
        self.found["matching loss"] = {str(epoch): np.mean([one[epoch] for one in found], 0).tolist() for epoch in found[0]}
        for epoch, (before, after) in self.found["matching loss"].items():
            if not before - after >= FALL:
                return (
                    f"from epoch {epoch} on the matching loss at the first step size fell from {before:.3f} to {after:.3f}, not by {FALL:g}"
                )
        last, network = jobs[0].settings.last_epoch, self.experiment.network
        banks = {job.recipe.seed: job.method.experts(job) for job in jobs}

        def matched(seed: int) -> Params:
            bank = banks.get(seed, next(iter(banks.values())))
            return {name: value[: self.experiment.protocol.networks, last] for name, value in bank.weights.items()}

        ours = self.probes("matched expert", network, matched)
        return _short("the matched expert", ours, self.found["no pre-training"], EXPERT)

    def regression(self, jobs: list[Job], sets: list[Synthetic], teacher: Encoder) -> str:
        """Whether a ridge regression on sets moved their images, or predicts embeddings of validation images better than at its start."""
        if not sets:
            return "nothing has been distilled"
        images, targets = self.task.validation, self.experiment.real.as_targets(embedded(teacher, self.task.validation))
        moved = float(np.mean([float((one.tensors["images"] - one.card["start"]).abs().mean()) for one in sets]))
        errors = []
        for job, made in zip(jobs, sets, strict=True):
            objective = job.method.regression(job)
            both = (objective.outputs(one, objective.fresh(one, job.stream("gate")), images) for one in (job.first(), made))
            errors.append([float((found - targets).square().mean()) for found in both])
        before, after = np.mean(errors, 0).tolist()
        self.found[jobs[0].method.name] = {"moved": moved, "error": [before, after]}
        if moved >= MOVED or after <= (1 - ERROR) * before:
            return ""
        return f"{jobs[0].method.name} moved pixels by {moved:.2f} deviations, and its error on images held out went from {before:.3g} to {after:.3g}"


def matching_losses(job: Job, sets: list[tuple[Synthetic, float]], experts: int = 2) -> dict[int, list[float]]:
    """Start epoch -> the matching loss of each set at a step size, mean over the first `experts` of the bank; batches are the same for all sets."""
    objective = job.method.matching(job)
    sets = [made.replace(step_size=torch.tensor(rate, device=made.device)) for made, rate in sets]

    def of(epoch: int) -> list[float]:
        banks = range(min(experts, len(objective.experts)))
        return np.mean([[objective.loss_at(one, i, epoch, job.stream("gate", epoch, i)) for one in sets] for i in banks], 0).tolist()

    return {epoch: of(epoch) for epoch in range(job.settings.min_start_epoch, job.settings.max_start_epoch)}


def repeated(encoder: Encoder, k: int) -> Params:
    """The weights of an encoder as those of k networks."""
    params = encoder.params
    return {name: value.expand(k, *value.shape[1:]) for name, value in params.items()}


def _short(what: str, ours: dict[str, list[float]], theirs: dict[str, list[float]], margin: float) -> str:
    for part in ours:
        a, b = np.mean(ours[part]), np.mean(theirs[part])
        if not a - b >= margin:
            return (
                f"{what}: {a:.3f} with {float(part):.0%} of the labels, no pre-training {b:.3f}; {100 * margin:g} points more are asked for"
            )
    return ""
