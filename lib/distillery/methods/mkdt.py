r"""MKDT, knowledge distillation trajectories matched (arXiv 2410.02116): a small set for pre-training without labels.

A student $f_\theta$ regresses the embeddings $Z$ that a self-supervised teacher gives to real images: over a batch B and D outputs,

$$L_{KD}(\theta; B) = \frac{1}{|B| D} \sum_{i \in B} \|f_\theta(x_i) - z_i\|^2$$

The gradient of $L_{KD}$ varies less than that of a self-supervised loss, so that its trajectories can be matched as MTT matches those of
classifiers (`matching/trajectory.py`). The set starts from the images of highest loss early in training (`high_loss`; slow reference:
`high_loss_plain`); their targets stay the teacher's.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from distillery import store
from distillery.distill import Optimizer
from distillery.experts import Experts
from distillery.methods.base import METHODS, TINY, register
from distillery.methods.self_supervised import StudentTrajectories
from distillery.methods.trajectories import FlatSettings, load_bank, make_bank, row
from distillery.networks.precision import float32_matmul, images_at_once
from distillery.scores import ORDERS, register_score
from distillery.selection import select
from distillery.starts import start
from distillery.training import squared_error
from distillery.training.losses import check_targets


@dataclass(frozen=True, kw_only=True)
class MKDTSettings(FlatSettings):
    """Settings of MKDT; experts are its students."""

    expert_momentum: float
    expert_weight_decay: float
    learned: bool = False  # whether targets are learned too, as the public code does; in the paper they stay
    lr_targets: float
    momentum_targets: float
    flat: bool = False  # whether experts descend to flat minima by GSAM with `rho` and `alpha`, as those of FTD; ours


@register
class MKDT(StudentTrajectories):
    """Trajectories of students that regress a teacher's embeddings, from the images of highest student loss.

    A set is not balanced over classes. The public code starts from fewer epochs on CIFAR-10 (`max_start_epoch` 2 at 100 images a class,
    and until January 2025 at 250). Images, experts' and synthetic ones, are not augmented. Numbers of its linear probes: `published_probe`.
    """

    name, paper, loss = "MKDT", "2410.02116", "squared error"
    source = "paper: Tables 8 and 9 of arXiv 2410.02116"
    start = "high loss"
    Settings = MKDTSettings
    common = StudentTrajectories.common | {
        "expert_lr": 0.1, "expert_momentum": 0.9, "expert_weight_decay": 1e-4, "rho": 0.01, "alpha": 1.0, "lr_targets": 1.0,
        "momentum_targets": 0.5,
    }  # fmt: skip
    published = {
        "cifar10": {100: row(40, 2, 5, 1000), 250: row(40, 2, 5, 10000)},
        "cifar100": {10: row(40, 2, 2, 1000), 25: row(40, 2, 5, 10000)},
        "tiny-imagenet": {10: row(10, 2, 2, 100000, **TINY), 25: row(10, 2, 2, 100000, **TINY)},
    }

    def options(self, job) -> dict:
        return {"loss": squared_error, "targets": job.settings.learned}

    def optimizers(self, job) -> dict[str, Optimizer]:
        s = job.settings
        return super().optimizers(job) | ({"targets": Optimizer(s.lr_targets, s.momentum_targets)} if s.learned else {})


def losses(network, students: Experts, source, epoch: int = 1) -> Tensor:
    """Squared error of each image of a `RegressionSet`, mean over outputs and over the students after `epoch` epochs: (N,) float64 on the CPU.

    Raises InputError on an epoch that is not stored, and targets that are not as wide as the network's output.
    """
    check_targets(source.targets, source, network.classes)
    everything = torch.arange(len(source), device=source.device)
    weights = [students.at(i, epoch) for i in range(len(students))]
    parts = []
    with torch.no_grad(), float32_matmul("float32"):
        for indices in everything.split(images_at_once(network, source.shape, source.device)):
            images, targets = source.batch(indices)[None], source.targets[indices][None]
            total = torch.zeros(len(indices), dtype=torch.float64, device=source.device)
            for params in weights:  # one by one: images, not students, fill the device here
                total += squared_error(network.apply(params, images, train=False).logits, targets)[0]
            parts.append(total)
    return (torch.cat(parts) / len(students)).cpu()


def high_loss(network, students: Experts, source, m: int, epoch: int = 1) -> Tensor:
    """Indices (m,) of the images of highest `losses`, highest first, on the CPU. Slow reference: `high_loss_plain`.

    Classes are not balanced. Raises InputError as `losses` does. Source: MKDT; `epoch` as in the paper's final runs.
    """
    return select(losses(network, students, source, epoch), m, rule="highest")


def high_loss_plain(network, students: Experts, source, m: int, epoch: int = 1) -> list[int]:
    """`high_loss` student by student and image by image."""
    means = []
    for i in range(len(source)):
        image, target = source.batch(torch.tensor([i])), source.targets[i]
        errors = []
        for k in range(len(students)):
            output = network.apply(students.at(k, epoch), image, train=False).logits[0, 0]  # (D,)
            errors.append(float(((output - target) ** 2).sum() / len(target)))
        means.append(sum(errors) / len(errors))
    return sorted(range(len(source)), key=lambda i: (-means[i], i))[:m]


def _students(experiment, seed: int, own: dict) -> tuple:
    """How the students of a seed are trained whose losses count, with the last epoch that is kept: never flat ones."""
    return METHODS["MKDT"].bank_with(experiment, seed, own | {"flat": False})


def students(experiment, source=None, seed: int = 0) -> Experts:
    """MKDT's students of a seed on all real images of an experiment, or on some: made once, stored."""
    return load_bank(experiment, source or experiment.real, *_students(experiment, seed, {}))


def _identity(training, epochs: int) -> dict:
    return {"training": training.spec(), "kind": type(training.optimizer).__name__, "epochs": epochs}


def _identity_of(scores) -> dict:
    return _identity(*_students(scores.experiment, 0, {})) | {"bank": "of the seed"}


def _stored_losses(experiment, source, training, epochs: int) -> Tensor:
    """`losses` of a bank on a source, made once, stored."""
    inputs = _identity(training, epochs) | {"source": source.digest, "network": experiment.network.spec()}
    inputs |= {"transform": experiment.transform}

    def make() -> tuple[dict, int]:
        bank = load_bank(experiment, source, training, epochs)
        return {"loss": losses(experiment.network, bank, source)}, len(bank) * len(source)

    return experiment.scores.stored("student-loss", inputs, make, (f"student loss {store.canonical(inputs)}", training.seed))["loss"]


@register_score("student loss", labels=False, spec=_identity_of)
def student_loss(scores, seed: int, k: int) -> Tensor:
    """`losses` of the students of the seed on all real images."""
    return _stored_losses(scores.experiment, scores.experiment.real, *_students(scores.experiment, seed, {}))


ORDERS["high loss"] = _identity_of


def _students_of(job) -> tuple:
    return _students(job.experiment, job.recipe.seed, job.recipe.settings if job.method is METHODS["MKDT"] else {})


def _prepare(job, where: str) -> None:
    """The bank and its losses, before the clock of a set starts."""
    make_bank(job.experiment, job.source, *_students_of(job), where)
    _stored_losses(job.experiment, job.source, *_students_of(job))


@start("high loss", score="high loss", general=False, labels=False, prepare=_prepare)
def by_high_loss(job, n: int) -> Tensor:
    """Of highest loss under students after one epoch, highest first, who are trained on the images that are kept."""
    return select(_stored_losses(job.experiment, job.source, *_students_of(job)), n, rule="highest")


COLUMNS = ("no pre-training", "random", "high loss", "KRR-ST", "MKDT, random init", "MKDT", "all images")
# Unlabelled set, part of it, part of the labels, task; then mean±standard deviation in percent of each of COLUMNS, '-' = not published: Tables
# 1, 2 and 4 of MKDT (arXiv 2410.02116) [paper], means over three evaluations of one set. Where the 5% sets of KRR-ST come from is not
# published, and the teacher of the CIFAR-10 sets is not public. 'MKDT, random init' starts from random images.
PROBES = """
    cifar10  2%   1%     cifar10       35.84±1.39 36.35±0.67 -          37.19±0.49 -                 44.36±1.61 58.21±0.28
    cifar10  2%   1%     tiny-imagenet 2.52±0.09  2.41±0.08  -          2.84±0.17  -                 3.58±0.09  4.94±0.38
    cifar10  2%   1%     cifar100      8.01±0.19  7.42±0.31  -          8.67±0.41  -                 10.58±0.24 14.53±0.4
    cifar10  2%   5%     cifar10       46.23±0.07 46.62±1.02 -          46.75±0.45 -                 53.08±0.13 67.16±0.43
    cifar10  2%   5%     tiny-imagenet 5.37±0.39  5.49±0.12  -          6.85±0.2   -                 7.25±0.17  10.85±0.16
    cifar10  2%   5%     cifar100      16.12±0.13 15.28±0.66 -          16.65±0.31 -                 19.57±0.29 26.38±0.52
    cifar10  5%   1%     cifar10       -          37.63±2.28 -          36.69±0.88 -                 50.23±1.48 -
    cifar10  5%   1%     cifar100      -          7.63±0.13  -          8.69±0.32  -                 12.33±0.31 -
    cifar10  5%   1%     tiny-imagenet -          2.63±0.07  -          3.2±0.23   -                 4.27±0.36  -
    cifar10  5%   5%     cifar10       -          48.13±0.35 -          47.4±0.34  -                 58.37±0.17 -
    cifar10  5%   5%     cifar100      -          16.06±0.15 -          16.95±0.53 -                 23.15±0.71 -
    cifar10  5%   5%     tiny-imagenet -          5.21±0.56  -          7.1±0.27   -                 8.84±0.2   -
    cifar100 2%   1%     cifar100      8.01±0.19  9.2±0.15   10.03±0.12 8.31±0.3   11.44±0.36        12.36±0.67 21.44±0.86
    cifar100 2%   1%     tiny-imagenet 2.52±0.09  3.16±0.21  3.33±0.1   2.73±0.08  3.9±0.2           4.13±0.29  6.8±0.37
    cifar100 2%   1%     cifar10       35.84±1.39 38.03±1.22 39.78±1.61 37.19±0.83 43.35±1.08        44.9±1.18  58.21±0.81
    cifar100 2%   5%     cifar100      16.12±0.13 17.75±0.42 18.72±0.21 16.4±0.63  21.71±0.28        22.64±0.42 35.78±0.54
    cifar100 2%   5%     tiny-imagenet 5.37±0.39  6.79±0.06  6.94±0.34  6.16±0.45  8.01±0.08         8.07±0.16  14.11±0.55
    cifar100 2%   5%     cifar10       46.23±0.07 48.59±0.26 49.59±0.34 47.96±0.32 53.08±0.19        54.12±0.29 67.25±0.49
    cifar100 5%   1%     cifar10       -          42.45±0.76 -          37.86±1.14 -                 47.77±1.12 -
    cifar100 5%   1%     cifar100      -          11.55±0.37 -          9.02±0.24  -                 13.4±0.31  -
    cifar100 5%   1%     tiny-imagenet -          4.17±0.15  -          2.94±0.13  -                 4.45±0.33  -
    cifar100 5%   5%     cifar10       -          51.92±0.33 -          47.53±0.11 -                 56.61±0.58 -
    cifar100 5%   5%     cifar100      -          20.34±0.2  -          17.24±0.47 -                 25.18±0.67 -
    cifar100 5%   5%     tiny-imagenet -          7.83±0.24  -          6.6±0.32   -                 9.12±0.4   -
    tiny-imagenet 5% 1%  cifar10       -          40.33±1.16 -          34.27±1.36 -                 41.44±0.85 -
    tiny-imagenet 5% 1%  cifar100      -          9.41±0.29  -          7.54±0.35  -                 10.29±0.38 -
    tiny-imagenet 5% 1%  tiny-imagenet -          4.19±0.19  -          3.19±0.22  -                 5.09±0.45  -
    tiny-imagenet 5% 5%  cifar10       -          48.46±0.4  -          42.82±0.46 -                 50.79±0.47 -
    tiny-imagenet 5% 5%  cifar100      -          15.63±0.62 -          13.71±0.3  -                 19.25±0.23 -
    tiny-imagenet 5% 5%  tiny-imagenet -          8.99±0.61  -          6.5±0.23   -                 10.63±0.23 -
"""


SIDES = {"tiny-imagenet": 64}  # pixels of a task's images where they are not 32; `PROBES` are of images of this size


def published_probe(dataset: str, part: str, labels: str, task: str, method: str) -> dict | None:
    """A published accuracy {'mean', 'std'} as fractions after pre-training without labels, None where none is known.

    part, labels  of the unlabelled images and of the labels, as '2%'; of 'no pre-training' and 'all images' the part does not matter
    """
    asked = [dataset, "2%" if method in (COLUMNS[0], COLUMNS[-1]) else part, labels, task]
    for *key, cells in (line.split(maxsplit=4) for line in PROBES.strip().splitlines()):
        found = dict(zip(COLUMNS, cells.split(), strict=True)).get(method, "-")
        if key == asked and found != "-":
            mean, std = map(float, found.split("±"))
            return {"mean": mean / 100, "std": std / 100}
    return None
