r"""KDEP, knowledge distillation as efficient pre-training (arXiv 2203.05180): students regress a teacher's features, aligned and evened out.

Of centred features $t$ of a teacher, (N, D), with right singular vectors $V$, the first $d$ components are as wide as a student, without
a layer to learn. Their variances are very unequal, and a squared error sees the first few alone: a root evens them (power temperature scaling),

$$\tilde t = (t - \mu)\, V_{:,\,1..d}, \qquad z = \mathrm{sign}(\tilde t)\, \big|\tilde t / T\big|^{1/n}, \qquad
L(\theta; B) = \frac{w}{|B|\, d} \sum_{i \in B} \|f_\theta(x_i) - z_i\|^2$$

MKDT's student loss with other targets (`aligned`, `scaled`; slow reference: `targets_plain`). `spectra` tells the variances before and after.

Here $w$ is in the rate: SGD on $w L$ at rate $\eta$ with decay $\lambda$ is SGD on $L$ at $w \eta$ with $\lambda / w$. Our choices: a student's
outputs, one linear layer above its features after ReLU, are what is compared, as MKDT has them (there the pooled features before the last
ReLU, of teacher and student); $d$ is the width of the targets, so that a narrower student takes `RegressionSet.components` first, which is
the same but for one scale; $\mu$ and $V$ are of all real images that are kept; images are not augmented, and the rate is that of the protocol
(there .3, a tenth from epoch 30 and 60 of 90). Weights and tables of the paper: unknown here, so that there are no published numbers.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from distillery.checks import InputError, check_finite, check_positive
from distillery.methods.base import Made, Settings, register
from distillery.methods.self_supervised import WithoutLabels
from distillery.selection import count


def aligned(features: Tensor, d: int, of: Tensor | None = None) -> Tensor:
    """The first d principal components of features (N, D), largest variance first: (N, d) float64 on the CPU.

    of      features (M, D) whose mean and singular vectors are taken, None = these. The largest entry of each vector is positive
    raises  InputError where there are not d components, and on features that are not finite
    """
    features = features.cpu().double()
    of = features if of is None else of.cpu().double()
    for one in (features, of):
        check_finite("features", one)
    if not 1 <= d <= min(of.shape):
        raise InputError(f"d: {d} components of features {tuple(of.shape)}; accepted: 1 to {min(of.shape)}")
    mean = of.mean(0)
    vectors = torch.linalg.svd(of - mean, full_matrices=False).Vh[:d]  # (d, D)
    signs = vectors.gather(1, vectors.abs().argmax(1, keepdim=True)).sign()
    return (features - mean) @ (vectors * signs).T


def scaled(components: Tensor, temperature: float, power: float) -> Tensor:
    """Power temperature scaling, sign(x) |x / T|^(1/n). Raises InputError on a temperature or a power that is not above 0."""
    check_positive("temperature", temperature)
    check_positive("power", power)
    return components.sign() * (components / temperature).abs() ** (1 / power)


def targets_plain(features: list[list[float]], d: int, temperature: float, power: float) -> list[list[float]]:
    """`scaled` of `aligned`, number by number, by eigenvectors of the covariance, of largest eigenvalue first."""
    n, width = len(features), len(features[0])
    mean = [sum(row[j] for row in features) / n for j in range(width)]
    centred = [[row[j] - mean[j] for j in range(width)] for row in features]
    covariance = [[sum(row[j] * row[k] for row in centred) / n for k in range(width)] for j in range(width)]
    _, vectors = torch.linalg.eigh(torch.tensor(covariance, dtype=torch.float64))  # ascending, in columns
    directions = [vectors[:, width - 1 - i].tolist() for i in range(d)]
    directions = [[-v for v in one] if max(one, key=abs) < 0 else one for one in directions]
    targets = []
    for row in centred:
        along = [sum(x * v for x, v in zip(row, one, strict=True)) for one in directions]
        targets.append([(1 if x > 0 else -1) * abs(x / temperature) ** (1 / power) for x in along])
    return targets


def spectra(features: Tensor, d: int, temperature: float = 0.1, power: float = 3.0) -> dict[str, Tensor]:
    """Variances of features (N, D) by dimension, largest first, each over their sum: 'features' (D,), 'aligned' and 'scaled' (d,) float64.

    Raises InputError as `aligned` and `scaled`.
    """
    components = aligned(features, d)
    stages = {"features": features.cpu().double(), "aligned": components, "scaled": scaled(components, temperature, power)}
    variances = {name: one.var(0).sort(descending=True).values for name, one in stages.items()}
    return {name: one / one.sum() for name, one in variances.items()}


@dataclass(frozen=True, kw_only=True)
class KDEPSettings(Settings):
    """Settings of KDEP; with temperature 1 and power 1 targets are the teacher's, centred and turned."""

    temperature: float  # T
    power: float  # n
    weight: float  # w, of the loss: 3 with the teacher of the public script, 20 with another. A rate of `Evaluate` has it in it

    def __post_init__(self):
        super().__post_init__()
        for name, value in vars(self).items():
            check_positive(name, value)


@register
class KDEP(WithoutLabels):
    """Real images, random ones as published, with a teacher's features as targets, aligned by singular vectors and evened out by a root."""

    name, kind, paper = "KDEP", "feature distillation", "2203.05180"
    source = "code: src/resnet.py and scripts/KDEP_MS-R50_R18.sh of CVMI-Lab/KDEP"
    start = "random"
    Settings = KDEPSettings
    common = {"temperature": 0.1, "power": 3.0, "weight": 3.0}

    def refuse(self, job) -> None:
        super().refuse(job)
        n, width = job.experiment.real.targets.shape
        if (kept := count(job.recipe.prune.keep, n) if job.recipe.prune else n) < width:
            raise InputError(f"images: {kept} for {width} singular vectors; accepted: {width} or more, or targets of fewer components")

    def make(self, job) -> Made:
        s, chosen, real = job.settings, job.chosen(job.start), job.experiment.real
        components = aligned(real.targets[chosen.to(real.device)], real.targets.shape[1], job.source.targets)
        return Made(job.packed(chosen).replace(targets=scaled(components, s.temperature, s.power).to(real.targets)))

    def protocol(self, job, protocol, made):
        w = job.settings.weight
        return replace(protocol, lr=w * protocol.lr, weight_decay=protocol.weight_decay / w), job.steps_of(protocol)
