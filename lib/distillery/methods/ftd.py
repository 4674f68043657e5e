r"""FTD, flat trajectory distillation (arXiv 2211.11004): MTT with experts that descend to flat minima, and averaged images.

$$\min_\theta\; L_T(\theta) + \alpha \max_{\|\epsilon\| \le \rho} \big( L_T(\theta + \epsilon) - L_T(\theta) \big)$$

for the experts (eq. 13), by GSAM (`training.optimizers`, plain twin `gsam_plain`) on each batch, adaptive as in the public code:

$$\epsilon = \rho\,\frac{\theta^2 \odot g}{\|\,|\theta| \odot g\,\|}, \qquad g_p = \nabla L(\theta + \epsilon), \qquad
g_o = g - \frac{\langle g, g_p \rangle}{\|g_p\|^2}\, g_p, \qquad \theta \leftarrow \theta - \eta\,(g_p - \alpha\, g_o)$$

How the errors of a student pile up over the segments of an expert is measured by `matching/flatness.py`. Beside the images $S$ their
moving average is kept, whose numbers are published; labels and step size are the present ones:

$$\bar S \leftarrow \gamma\, \bar S + (1 - \gamma)\, S \ \text{ after each update}, \qquad \bar S_0 = S_0$$
"""

from dataclasses import dataclass

from distillery.checks import InputError
from distillery.methods.base import SUBSET, TINY, register
from distillery.methods.trajectories import FlatSettings, Trajectories, row

LAGS = 20  # lags of the average that a shortened loop shall last at least


@dataclass(frozen=True, kw_only=True)
class FTDSettings(FlatSettings):
    """Settings of FTD; `ema` is the decay of the average of the images, 0 = none."""

    ema: float

    def __post_init__(self):
        super().__post_init__()
        if not self.ema < 1:
            raise InputError(f"ema: {self.ema} is not accepted; accepted: a decay from 0 to below 1")


@register
class FTD(Trajectories):
    """Trajectories of experts trained by GSAM, and a moving average of the images."""

    name, paper = "FTD", "2211.11004"
    source = "paper: Table 7 of arXiv 2211.11004; iterations and ZCA from its code"
    iterates = ("last", "ema", "best")
    Settings = FTDSettings
    common = Trajectories.common | {"optimizer": "GSAM", "rho": 0.01, "normalization": "zca"}
    _tiny = TINY | {"alpha": 1.0, "ema": 0.999, "normalization": "published"}  # whether images were whitened is not stated
    # the first rate of the student is given as ".01/.001" for both sizes; .01 at 1 and .001 at 10 is how we read it
    _subset = SUBSET | {"alpha": 1.0, "ema": 0.999, "student_batch": 64}
    _subset |= {"source": "issue: author's reply in the repository's issue thread"}
    published = {
        "cifar10": {
            1: row(50, 2, 2, 100, 1e-7, 0.01, alpha=0.3, ema=0.9999),
            10: row(30, 2, 20, 100, 1e-5, 0.001, alpha=0.3, ema=0.9995),
            50: row(30, 2, 40, 1000, 1e-5, 0.01, alpha=1.0, ema=0.999),
        },
        "cifar100": {
            1: row(40, 3, 20, 1000, 1e-5, 0.01, alpha=1.0, ema=0.9995),
            10: row(20, 2, 40, 1000, 1e-5, 0.01, alpha=1.0, ema=0.9995),
            50: row(80, 2, 40, 1000, 1e-5, 0.01, alpha=1.0, ema=0.999, student_batch=1000),
        },
        "tiny-imagenet": {1: row(30, 2, 10, 10000, 1e-4, 0.01, **_tiny), 10: row(20, 2, 40, 10000, 1e-4, 0.01, student_batch=500, **_tiny)},
        "imagenet-subset": {1: row(20, 2, 10, 10000, 1e-4, 0.01, **_subset), 10: row(20, 2, 10, 10000, 1e-4, 0.001, **_subset)},
    }
    numbers = {  # paper, Table 1: with the average. Table 4 has 43.2 for CIFAR-100 at 10, and 10.0 for Tiny-ImageNet at 1
        "cifar10": {1: (46.8, 0.3), 10: (66.6, 0.3), 50: (73.8, 0.2)},
        "cifar100": {1: (25.2, 0.2), 10: (43.4, 0.3), 50: (50.7, 0.3)},
        "tiny-imagenet": {1: (10.4, 0.3), 10: (24.5, 0.2)},
        # 10 classes of ImageNet each, 128 x 128
        "imagenette": {1: (52.2, 1.0), 10: (67.7, 0.7)}, "imagewoof": {1: (30.1, 1.0), 10: (38.8, 1.4)},
        "imagefruit": {1: (29.1, 0.9), 10: (44.9, 1.5)}, "imagemeow": {1: (33.8, 1.5), 10: (43.3, 0.6)},
        # distilled on the ConvNet, evaluated on another network: Table 3
        "cifar10 on ResNet18": {50: (65.7, 0.3)}, "cifar10 on VGG11": {50: (58.4, 1.6)}, "cifar10 on AlexNet": {50: (53.8, 0.9)},
    }  # fmt: skip

    def behind(self, job) -> str:
        r"""Why the average of a shortened loop cannot be judged, '' = it can.

        It lags $1/(1-\gamma)$ updates, which costs accuracy as long as the loss falls. As a condition fixed beforehand it is judged where
        the loop lasts `LAGS` lags or, however few lags that is, as many updates as published.
        """
        s, lag = job.settings, 1 / (1 - job.settings.ema)
        updates, published = self.updates(s, job.recipe.size), s.iterations
        if updates >= min(LAGS * lag, published):
            return ""
        return (
            f"the average lags {lag:.0f} of {updates} updates; {LAGS} lags or the published {published} updates were asked for beforehand"
        )

    def refuse(self, job) -> None:
        super().refuse(job)
        if job.recipe.evaluate.iterate == "ema" and not job.settings.ema:
            raise InputError("iterate: 'ema' with ema 0; accepted: 'last', 'best', or a decay above 0")
