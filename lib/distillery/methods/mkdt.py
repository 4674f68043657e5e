r"""MKDT, knowledge distillation trajectories matched (arXiv 2410.02116): a small set for pre-training without labels.

A student $f_\theta$ is a network as wide as the embeddings $Z$ that a self-supervised teacher gives to real images, and regresses
them: over a batch B and D outputs,

$$L_{KD}(\theta; B) = \frac{1}{|B| D} \sum_{i \in B} \|f_\theta(x_i) - z_i\|^2$$

The gradient of $L_{KD}$ varies less than that of a self-supervised loss, so that its trajectories can be matched as MTT matches those of
classifiers (`matching/trajectory.py`). The set starts from the images of highest loss early in training (`high_loss`; slow reference:
`high_loss_plain`); their targets stay the teacher's.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distillery.checks import InputError
from distillery.distill import Optimizer
from distillery.experts import Experts
from distillery.methods.base import METHODS, register
from distillery.methods.mtt import TINY
from distillery.methods.self_supervised import StudentTrajectories
from distillery.methods.trajectories import FlatSettings, load_bank, make_bank
from distillery.networks.precision import float32_matmul, images_at_once
from distillery.scores import ORDERS, register_score
from distillery.starts import start
from distillery.training import squared_error
from distillery.training.losses import check_targets
from distillery.training.optimizers import GSAM, SGD

if TYPE_CHECKING:
    from distillery.experiment import Experiment


@dataclass(frozen=True, kw_only=True)
class MKDTSettings(FlatSettings):
    """Settings of MKDT; experts are its students.

    expert_momentum, expert_weight_decay  of the experts' optimizer
    learned     whether targets are learned too, at `lr_targets` with `momentum_targets`, as the public code does; in the paper they
                stay the teacher's
    flat        whether experts descend to flat minima by GSAM with `rho` and `alpha`, as those of FTD; ours
    """

    expert_momentum: float
    expert_weight_decay: float
    learned: bool = False
    lr_targets: float
    momentum_targets: float
    flat: bool = False

    @property
    def expert_optimizer(self) -> SGD:
        if not self.flat:
            return super().expert_optimizer
        return GSAM(self.expert_lr, self.expert_momentum, self.expert_weight_decay, rho=self.rho, alpha=self.alpha)


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
    common = {
        "iterations": 5000, "momentum": 0.5, "optimizer": "SGD", "expert_lr": 0.1, "expert_momentum": 0.9,
        "expert_weight_decay": 1e-4, "expert_batch": 256, "rho": 0.01, "alpha": 1.0, "expert_training_epochs": 20,
        "experts": 100, "student_batch": 256, "lr_step_size": 1e-4, "step_size": 0.1, "lr_targets": 1.0,
        "momentum_targets": 0.5, "gradient": "exact", "normalization": "published",
    }  # fmt: skip
    published = {
        "cifar10": {
            100: {"student_steps": 40, "expert_epochs": 2, "max_start_epoch": 5, "lr_images": 1000},
            250: {"student_steps": 40, "expert_epochs": 2, "max_start_epoch": 5, "lr_images": 10000},
        },
        "cifar100": {
            10: {"student_steps": 40, "expert_epochs": 2, "max_start_epoch": 2, "lr_images": 1000},
            25: {"student_steps": 40, "expert_epochs": 2, "max_start_epoch": 5, "lr_images": 10000},
        },
        "tiny-imagenet": {
            10: {"student_steps": 10, "expert_epochs": 2, "max_start_epoch": 2, "lr_images": 100000} | TINY,
            25: {"student_steps": 10, "expert_epochs": 2, "max_start_epoch": 2, "lr_images": 100000} | TINY,
        },
    }

    def options(self, job) -> dict:
        return {"loss": squared_error, "targets": job.settings.learned}

    def optimizers(self, job) -> dict[str, Optimizer]:
        s, found = job.settings, super().optimizers(job)
        return found | ({"targets": Optimizer(s.lr_targets, s.momentum_targets)} if s.learned else {})


# Students' losses, and what is chosen by them


def _students(experiment: "Experiment", own: dict) -> tuple:
    """How the students are trained whose losses count, with the last epoch that is kept: never flat ones."""
    return METHODS["MKDT"].bank_with(experiment, own | {"flat": False})


def students(experiment: "Experiment", source=None) -> Experts:
    """MKDT's students on all real images of an experiment, or on some: made once, stored."""
    return load_bank(experiment, source or experiment.real, *_students(experiment, {}))


def _identity(scores) -> dict:
    training, epochs = _students(scores.experiment, {})
    return {"training": training.spec(), "kind": type(training.optimizer).__name__, "epochs": epochs}


@register_score("student loss", labels=False, seeded=False, spec=_identity)
def student_loss(scores, seed: int, k: int) -> Tensor:
    """`losses` of the students on all real images."""
    return losses(scores.experiment.network, students(scores.experiment), scores.experiment.real)


ORDERS["high loss"] = _identity


def _make_students(job, where: str) -> None:
    make_bank(job.experiment, job.source, *_students(job.experiment, _own(job)), where)


def _own(job) -> dict:
    return job.recipe.settings if job.method is METHODS["MKDT"] else {}


@start("high loss", score="high loss", general=False, labels=False, prepare=_make_students)
def by_high_loss(job, n: int) -> Tensor:
    """Of highest loss under students after one epoch, highest first, who are trained on the images that are kept."""
    experiment, bank = job.experiment, _students(job.experiment, _own(job))
    if job.recipe.prune is None and bank == _students(experiment, {}):
        return highest(job.score("student loss"), n)
    return high_loss(job.network, load_bank(experiment, job.source, *bank), job.source, n)


def losses(network, students: Experts, source, epoch: int = 1) -> Tensor:
    """Squared error of each image, mean over outputs and over the students after `epoch` epochs: (N,) float64 on the CPU.

    source  a `RegressionSet`
    raises  InputError on an epoch that is not stored, and targets that are not as wide as the network's output
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


def highest(losses: Tensor, m: int) -> Tensor:
    """Indices (m,) of the highest losses, highest first; of equal ones the lower index comes first.

    So a smaller subset is the beginning of a larger one. Raises InputError unless 1 <= m <= N.
    """
    if not isinstance(m, int) or not 1 <= m <= len(losses):
        raise InputError(f"m: {m!r} of {len(losses)} images; accepted: a whole number from 1 to {len(losses)}")
    return losses.sort(descending=True, stable=True).indices[:m]


def high_loss(network, students: Experts, source, m: int, epoch: int = 1) -> Tensor:
    """Indices (m,) of the images of highest `losses`, highest first, on the CPU. Slow reference: `high_loss_plain`.

    Labels are not read, classes not balanced. Raises InputError as `highest` and `losses` do.
    Source: MKDT, its high-loss subset; `epoch` as in the paper's final runs.
    """
    return highest(losses(network, students, source, epoch), m)


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


# Published linear probes


def published_probe(dataset: str, part: str, labels: str, task: str, method: str) -> dict | None:
    """A published accuracy {'mean', 'std'} as fractions after pre-training without labels, None where none is known.

    part, labels  of the unlabelled images and of the labels, as '2%'; of 'none' and 'whole' the part does not matter
    """
    part = "2%" if method in ("none", "whole") else part
    found = PROBES.get(dataset, {}).get(part, {}).get(labels, {}).get(task, {}).get(method)
    return {"mean": found[0] / 100, "std": found[1] / 100} if found else None


# Unlabelled set -> part of it -> part of the labels -> task -> method -> (mean, standard deviation) in percent, by linear probes. From
# Tables 1, 2 and 4 of MKDT (arXiv 2410.02116) [paper]; means over three evaluations of one set. Tiny-ImageNet as the unlabelled set (Table 3)
# is published without deviations, and so not here; nor are the fine-grained tasks, which lie at chance. The teacher of the CIFAR-10 sets is
# not public. 'MKDT, random init' starts from random images.
PROBES = {
    "cifar10": {
        "2%": {
            "1%": {
                "cifar10": {
                    "none": (35.84, 1.39), "random": (36.35, 0.67), "KRR-ST": (37.19, 0.49), "MKDT": (44.36, 1.61),
                    "whole": (58.21, 0.28),
                },
                "tiny-imagenet": {
                    "none": (2.52, 0.09), "random": (2.41, 0.08), "KRR-ST": (2.84, 0.17), "MKDT": (3.58, 0.09),
                    "whole": (4.94, 0.38),
                },
                "cifar100": {
                    "none": (8.01, 0.19), "random": (7.42, 0.31), "KRR-ST": (8.67, 0.41), "MKDT": (10.58, 0.24),
                    "whole": (14.53, 0.4),
                },
            },
            "5%": {
                "cifar10": {
                    "none": (46.23, 0.07), "random": (46.62, 1.02), "KRR-ST": (46.75, 0.45), "MKDT": (53.08, 0.13),
                    "whole": (67.16, 0.43),
                },
                "tiny-imagenet": {
                    "none": (5.37, 0.39), "random": (5.49, 0.12), "KRR-ST": (6.85, 0.2), "MKDT": (7.25, 0.17),
                    "whole": (10.85, 0.16),
                },
                "cifar100": {
                    "none": (16.12, 0.13), "random": (15.28, 0.66), "KRR-ST": (16.65, 0.31), "MKDT": (19.57, 0.29),
                    "whole": (26.38, 0.52),
                },
            },
        },
        "5%": {
            "1%": {
                "cifar10": {"random": (37.63, 2.28), "KRR-ST": (36.69, 0.88), "MKDT": (50.23, 1.48)},
                "cifar100": {"random": (7.63, 0.13), "KRR-ST": (8.69, 0.32), "MKDT": (12.33, 0.31)},
                "tiny-imagenet": {"random": (2.63, 0.07), "KRR-ST": (3.2, 0.23), "MKDT": (4.27, 0.36)},
            },
            "5%": {
                "cifar10": {"random": (48.13, 0.35), "KRR-ST": (47.4, 0.34), "MKDT": (58.37, 0.17)},
                "cifar100": {"random": (16.06, 0.15), "KRR-ST": (16.95, 0.53), "MKDT": (23.15, 0.71)},
                "tiny-imagenet": {"random": (5.21, 0.56), "KRR-ST": (7.1, 0.27), "MKDT": (8.84, 0.2)},
            },
        },
    },
    "cifar100": {
        "2%": {
            "1%": {
                "cifar100": {
                    "none": (8.01, 0.19), "random": (9.2, 0.15), "high loss": (10.03, 0.12), "KRR-ST": (8.31, 0.3),
                    "MKDT, random init": (11.44, 0.36), "MKDT": (12.36, 0.67), "whole": (21.44, 0.86),
                },
                "tiny-imagenet": {
                    "none": (2.52, 0.09), "random": (3.16, 0.21), "high loss": (3.33, 0.1), "KRR-ST": (2.73, 0.08),
                    "MKDT, random init": (3.9, 0.2), "MKDT": (4.13, 0.29), "whole": (6.8, 0.37),
                },
                "cifar10": {
                    "none": (35.84, 1.39), "random": (38.03, 1.22), "high loss": (39.78, 1.61),
                    "KRR-ST": (37.19, 0.83), "MKDT, random init": (43.35, 1.08), "MKDT": (44.9, 1.18),
                    "whole": (58.21, 0.81),
                },
            },
            "5%": {
                "cifar100": {
                    "none": (16.12, 0.13), "random": (17.75, 0.42), "high loss": (18.72, 0.21),
                    "KRR-ST": (16.4, 0.63), "MKDT, random init": (21.71, 0.28), "MKDT": (22.64, 0.42),
                    "whole": (35.78, 0.54),
                },
                "tiny-imagenet": {
                    "none": (5.37, 0.39), "random": (6.79, 0.06), "high loss": (6.94, 0.34), "KRR-ST": (6.16, 0.45),
                    "MKDT, random init": (8.01, 0.08), "MKDT": (8.07, 0.16), "whole": (14.11, 0.55),
                },
                "cifar10": {
                    "none": (46.23, 0.07), "random": (48.59, 0.26), "high loss": (49.59, 0.34),
                    "KRR-ST": (47.96, 0.32), "MKDT, random init": (53.08, 0.19), "MKDT": (54.12, 0.29),
                    "whole": (67.25, 0.49),
                },
            },
        },
        "5%": {
            "1%": {
                "cifar10": {"random": (42.45, 0.76), "KRR-ST": (37.86, 1.14), "MKDT": (47.77, 1.12)},
                "cifar100": {"random": (11.55, 0.37), "KRR-ST": (9.02, 0.24), "MKDT": (13.4, 0.31)},
                "tiny-imagenet": {"random": (4.17, 0.15), "KRR-ST": (2.94, 0.13), "MKDT": (4.45, 0.33)},
            },
            "5%": {
                "cifar10": {"random": (51.92, 0.33), "KRR-ST": (47.53, 0.11), "MKDT": (56.61, 0.58)},
                "cifar100": {"random": (20.34, 0.2), "KRR-ST": (17.24, 0.47), "MKDT": (25.18, 0.67)},
                "tiny-imagenet": {"random": (7.83, 0.24), "KRR-ST": (6.6, 0.32), "MKDT": (9.12, 0.4)},
            },
        },
    },
}  # fmt: skip
