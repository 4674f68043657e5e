"""First images before any step: how far their draws are from uniform ones, and how well KIP's regression on very many of them does."""

import time
from dataclasses import replace

import torch
from torch import Tensor

from distillery.job import Job
from distillery.networks.ridge import regress
from distillery.scores import SCORES
from distillery.starts import STARTS
from distillery.training.losses import centred

VERSION = 1  # of `at_start`; raise it when a change makes stored draws stale
HELD = 5000  # drawn images whose kernel with all test images is held at once
BLOCK = 256  # of them whose kernel is computed at once
ALIKE = 0.1  # total variation below which draws are taken for uniform ones


def variation(scores: Tensor, targets: Tensor) -> float:
    """Total variation between draws within a class in proportion to scores (N,) and uniform ones, the mean over classes.

    From 0, the same, to 1. Where both are drawn as alike as can be, it is the part of the images that differ: exactly for one image of
    each class, and about for a few of many.
    """
    classes = [scores[targets == c].double() for c in targets.unique()]
    return float(torch.stack([(own / own.sum() - 1 / len(own)).abs().sum() / 2 for own in classes]).mean())


def from_uniform(job: Job) -> float | None:
    """The `variation` of a job's first images; None where they are drawn by no chances, or by chances that change from image to image."""
    if job.start == "random" or (job.start == "k-means++" and job.held == 1):  # whose first image is uniform
        return 0.0
    score = STARTS[job.start].score
    if score != job.start or score not in SCORES:  # in proportion to scores only under their own name
        return None
    return variation(job.score(score, job.held)[job.kept].cpu(), job.kept_labels)


def alike(job: Job) -> str:
    """Why a job's first images are no treatment beside random ones, '' where they are, or may be."""
    found = from_uniform(job)
    return f"total variation to uniform draws {found:.3f}, below {ALIKE}" if found is not None and found < ALIKE else ""


def described(job: Job) -> list[str]:
    """Cells of a table: a job's `from_uniform`, of 100 images how many differ, its effective dimension and the label's part of its scores."""
    found = from_uniform(job)
    line = ["-", "-"] if found is None else [f"{found:.3f}", f"{100 * found:.1f}"]
    if job.start != "ridge sensitivity":
        return [*line, "-", "-"]
    values = job.experiment.scores.ridge()
    return [*line, f"{float(values['dimension']):.0f}", f"{1 - float(values['leverage'].sum() / values['tau'].sum()):.3%}"]


def at_start(arms: dict[str, Job], draws: int) -> dict[str, list[float]]:
    """The accuracy on test images of KIP's regression on the images it would start from, under `draws` seeds; stored as one run.

    arms     name -> the job of the first seed, all on the same images
    returns  name -> accuracies (draws,), none where the budget does not reach
    """
    first = next(iter(arms.values())).experiment

    def compute(key: str) -> dict:
        began, chosen = time.monotonic(), {}
        for name, job in arms.items():
            jobs = [job.experiment.job(replace(job.recipe, seed=job.recipe.seed + i)) for i in range(draws)]
            chosen[name] = torch.stack([job.chosen(job.start) for job in jobs])
        found = accuracies(jobs[0].method.regression(jobs[0]), first.data.train, first.data.test, torch.cat(list(chosen.values())))
        lists = {name: found[i * draws : (i + 1) * draws] for i, name in enumerate(arms)}
        return {"accuracies": lists, "seconds": time.monotonic() - began}

    inputs = {"draws": draws, "arms": {name: job.experiment.set_inputs(job.recipe) for name, job in arms.items()}}
    found = first.runs.try_get("starts", VERSION, inputs, first.data.digest, compute)
    return found["accuracies"] if found else dict.fromkeys(arms, [])


@torch.no_grad()
def accuracies(objective, train, test, chosen: Tensor) -> list[float]:
    """The accuracy on test images of KIP's regression on each of many choices of training images, kernels computed once.

    objective  a `KernelInducingPoints`
    chosen     (draws, m) indices
    Slow reference: `objective.accuracy`, one set after another.
    """
    found, judged = [], objective.features({}, test.batch(torch.arange(len(test), device=test.device)), True)
    for some in chosen.split(len(chosen) if len(train) <= HELD else max(1, HELD // chosen.shape[1])):
        used, places = some.to(train.device).unique(return_inverse=True)
        rows = objective.features({}, train.batch(used), False)
        across = torch.cat([objective.kernel(part, judged) for part in rows.split(BLOCK)])  # (used, test)
        labels = centred(train.targets[used], objective.classes)
        for place in places:
            own = objective.kernel(rows[place])
            outputs = across[place].T @ regress(own, labels[place], objective.ridge(own))
            found.append(float((outputs.argmax(1) == test.targets).double().mean()))
    return found
