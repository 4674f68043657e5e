"""What can be made, and how: recipes, the settings of trajectory methods, and the published numbers beside them.

The constants below are the single list of what can be combined; `compatibility()` renders it for the README.
"""

from dataclasses import dataclass, field, fields
from importlib import resources

import torch
import yaml

from distillery.checks import InputError, check_choice, check_fraction, check_keep, check_positive_int
from distillery.data.synthetic import FORMATIONS
from distillery.experts import Training
from distillery.matching import hosts, trajectory
from distillery.matching.distribution import DistributionMatching
from distillery.matching.gradient import GradientMatching, loops
from distillery.networks import pool
from distillery.sampling import Importance, TreatmentEffect, Uniform
from distillery.scores import cached
from distillery.selection import DRAWN, RULES, check_gamma
from distillery.training.optimizers import GSAM, SGD, Adam
from distillery.training.views import Views

PRESETS: dict[str, dict]
PUBLISHED: dict[str, dict]
PRESETS, PUBLISHED = (
    yaml.safe_load(resources.files("distillery.matching").joinpath(name).read_text())
    for name in ("presets.yaml", "published.yaml")
)
OBJECTIVES = {"gradient": GradientMatching, "distribution": DistributionMatching}
SENSITIVE = cached.SENSITIVE  # drawn by importance
SELECTIONS = ("random", "random, packed", "herding", "k-means", "lowest loss", "highest loss", *SENSITIVE)
WHOLE = ("whole", "whole, trained out")
INITIALIZATIONS = ("real", "noise", "herding", "k-means", *SENSITIVE)
# MTT, FTD, TESLA, DATM; MKDT and MTT-SSL use no labels: `pretraining.py`
TRAJECTORIES = tuple(name for name, table in trajectory.presets().items() if "loss" not in table["common"])
HOSTS = tuple(hosts.presets())  # IDM, IDC, IDC-I, KIP, FRePo, RFAD: their settings differ by data set
KERNELS = hosts.KERNELS  # those that fit a kernel ridge regression
ITERATES = ("last", "ema", "best")
SCORES = cached.NAMES
# score and rule of published ways to keep a part; 'Moderate' and 'CCS' by a score that takes no training
BASELINES: dict[str, tuple[str, str]] = {
    "forgetting": ("forgetting", "highest"),
    "EL2N": ("EL2N", "highest"),
    "GraNd": ("GraNd", "highest"),
    "AUM": ("AUM", "highest"),
    "least confidence": ("least confidence", "highest"),
    "entropy": ("entropy", "highest"),
    "margin": ("margin", "highest"),
    "cumulative loss": ("cumulative loss", "highest"),
    "contextual diversity": ("contextual diversity", "lowest"),
    "herding": ("herding", "lowest"),
    "k-center": ("k-center", "lowest"),
    "D2": ("D2", "lowest"),
    "Moderate": ("prototype distance", "middle"),
    "CCS strata": ("complexity", "coverage"),
}
SAMPLERS = {"uniform": Uniform, "treatment effect": TreatmentEffect, "importance": Importance}


@dataclass(frozen=True)
class Recipe:
    """What to make.

    method      a distillation method in PRESETS, HOSTS or TRAJECTORIES, a selection in SELECTIONS, or one of WHOLE
    ipc         images per class; for 'whole' the set whose number of training steps is matched (under fine-tuning, 1 = none)
    keep, rule  prune the real data first: keep this part of each class, a fraction in (0, 1] or a number of images above
                1, by a rule of `selection.py`
    score       what `rule` goes by, one of `scoring.passes`: mean training 'loss' early in training, 'complexity', ..
    gamma       of the rule 'flexrand', the easy share of a class
    draw        which of many draws of a rule that draws, 0 = the first
    hide        for 'whole' under fine-tuning: hide so large a share of the images in an epoch (`hiding.py`), 0 = none
    effect      drop this share of the real images in every step by their treatment effect, 0 = none
    effect_every, effect_tails  steps between two looks at the effects; which tails are dropped (`TreatmentEffect`)
    steps       pixel updates, 0 = as published
    initialize  where a distilled set starts: '' = as published, or one of INITIALIZATIONS; for TRAJECTORIES also
                'correct', real images that an expert classifies right
    importance  draw this share of the real images in every step by their loss (`Importance`), 0 = none
    importance_every, reweight  steps between two looks at the losses; whether weights undo the preference
    batch       real images a class and step, 0 = as published; for 'whole, trained out', FRePo and RFAD images a step
    lr          rate of the pixels, 0 = as published
    epochs      for 'whole, trained out': epochs on all images
    evaluate_on another architecture to evaluate the finished set with, '' = the bench's own network
    iterate     which set of a finished trajectory method is evaluated: 'last', 'ema', the moving average of its images,
                or 'best', by accuracy on validation images; of KERNELS 'last' or 'best'
    """

    method: str
    ipc: int
    seed: int
    keep: float = 1.0
    rule: str = "lowest"
    steps: int = 0
    initialize: str = ""
    batch: int = 0
    lr: float = 0.0
    epochs: int = 0
    evaluate_on: str = ""
    iterate: str = "last"
    score: str = "loss"
    effect: float = 0.0
    effect_every: int = 1
    effect_tails: str = "both"
    gamma: float = 0.0
    draw: int = 0
    hide: float = 0.0
    importance: float = 0.0
    importance_every: int = 100
    reweight: bool = False

    def __post_init__(self):
        check_choice("method", self.method, [*WHOLE, *SELECTIONS, *PRESETS, *HOSTS, *TRAJECTORIES])
        check_choice("iterate", self.iterate, ITERATES)
        check_positive_int("ipc", self.ipc)
        check_keep("keep", self.keep)
        check_choice("rule", self.rule, RULES)
        check_choice("score", self.score, SCORES)
        other = self.method in SELECTIONS or self.initialize in ("herding", "k-means")
        if self.score != SCORES[0] and (self.keep == 1 or self.rule == "random" or other):
            raise InputError(
                f"score: {self.score!r} where nothing is pruned by it, or another score is used too; accepted: {SCORES[0]!r}"
            )
        self._check_draw()
        if self.effect:
            self._check_effect()
        elif (self.effect_every, self.effect_tails) != (1, "both"):
            raise InputError("effect_every, effect_tails: set with effect 0; accepted: 1 and 'both'")
        self._check_importance()
        for name in ("seed", "steps", "batch", "lr", "epochs", "draw"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: {getattr(self, name)} is not accepted; accepted: 0 or more")
        if self.method == WHOLE[1]:
            check_positive_int("epochs", self.epochs)
        if self.method in SELECTIONS and (self.steps or self.batch or self.lr):
            raise InputError(f"steps, batch, lr: set for {self.method!r}, which has no loop; accepted: 0")
        if self.evaluate_on:
            check_choice("evaluate_on", self.evaluate_on, pool.NAMES)
            if self.method in WHOLE:
                raise InputError(
                    f"evaluate_on: {self.evaluate_on!r} with {self.method!r}; accepted: a selected or distilled set"
                )
        if self.initialize:
            extra = ("correct",) if self.method in TRAJECTORIES else ()
            check_choice("initialize", self.initialize, (*INITIALIZATIONS, *extra))
        if self.initialize and self.method not in (*PRESETS, *HOSTS, *TRAJECTORIES):
            raise InputError(
                f"initialize: {self.initialize!r} with {self.method!r}, which starts from nothing; accepted: ''"
            )
        if self.method in TRAJECTORIES and self.batch:
            raise InputError(
                f"batch: {self.batch} with {self.method!r}, which has no real batch: experts have seen the real images; "
                "accepted: 0"
            )
        iterates = ITERATES if self.method in TRAJECTORIES else ("last", "best")[: 1 + (self.method in KERNELS)]
        check_choice(f"iterate of {self.method}", self.iterate, iterates)

    def _check_draw(self) -> None:
        if self.rule == "flexrand":
            check_gamma(self.gamma, self.keep if self.keep <= 1 else 1e-6)
        elif self.gamma:
            raise InputError(f"gamma: {self.gamma} with rule {self.rule!r}; accepted: 0, or the rule 'flexrand'")
        if self.draw and self.rule not in DRAWN:
            raise InputError(f"draw: {self.draw} with rule {self.rule!r}; accepted: 0, or a rule of {', '.join(DRAWN)}")
        if not 0 <= self.hide < 1:
            raise InputError(f"hide: {self.hide} is not accepted; accepted: a share in [0, 1)")
        if self.hide and self.method != WHOLE[0]:
            raise InputError(f"hide: {self.hide} with {self.method!r}; accepted: 0, or {WHOLE[0]!r}")

    def _check_batches(self, name: str) -> None:
        """Refuse a sampler for what has no real batch."""
        if self.method not in (*PRESETS, *HOSTS):
            reason = "experts have seen the real images" if self.method in TRAJECTORIES else "it has no loop"
            raise InputError(
                f"{name}: {getattr(self, name)} with {self.method!r}, which has no real batch: {reason}; accepted: 0"
            )

    def _check_importance(self) -> None:
        if not self.importance:
            if (self.importance_every, self.reweight) != (100, False):
                raise InputError(
                    "importance_every, reweight: set with importance 0; accepted: 100 and False, or importance"
                )
            return
        self._check_batches("importance")
        check_fraction("importance", self.importance)
        check_positive_int("importance_every", self.importance_every)
        if self.effect:
            raise InputError(
                f"importance: {self.importance} with effect {self.effect}; accepted: one sampler of real batches, the other 0"
            )

    def _check_effect(self) -> None:
        self._check_batches("effect")
        if self.method in KERNELS:
            raise InputError(
                f"effect: {self.effect} with {self.method!r}, whose real images enter by no mean of a statistic; accepted: 0"
            )
        TreatmentEffect(torch.zeros(1, dtype=torch.int64), self.effect, self.effect_every, self.effect_tails)

    def spec(self) -> dict:
        """What identifies the recipe in the id of a run; later fields only where they are set: ids from before hold."""
        later = (
            "iterate",
            "score",
            "effect",
            "effect_every",
            "effect_tails",
            "gamma",
            "draw",
            "hide",
            "importance",
            "importance_every",
            "reweight",
        )
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        default = {f.name: f.default for f in fields(self) if f.name in later}
        found = {name: value for name, value in found.items() if name not in later or value != default[name]}
        return found | {"keep": float(self.keep)}


@dataclass(frozen=True)
class Hosts:
    """Settings of IDM, IDC and the kernel methods: the published ones of a data set, with changes.

    dataset      whose published settings, a data set of `hosts.yaml`
    changes      settings by their names there; a method takes those that it has
    validations  how often a kernel method is judged on validation images on its way, 0 = never; the best one is kept
    raises       InputError on a setting that no method has
    """

    dataset: str = "cifar10"
    changes: dict = field(default_factory=dict)
    validations: int = 0

    def __post_init__(self):
        known = {
            name
            for table in hosts.presets().values()
            for cell in table.values()
            for name in (cell | {k: v for one in cell.get("ipc", {}).values() for k, v in one.items()})
        }
        for name in self.changes:
            check_choice(
                "host setting",
                name,
                sorted(known - {"source", "objective", "kernel", "ipc", "lr_ipc", "normalization", "depth", "side"}),
            )

    def settings(self, method: str, ipc: int) -> dict:
        """The settings of a method at a size. Raises InputError where nothing is published."""
        found = hosts.preset(method, self.dataset, ipc)
        return found | {name: value for name, value in self.changes.items() if name in found}

    def spec(self, method: str, ipc: int) -> dict:
        """What identifies a run, besides its recipe and bench."""
        silent = ("source", "normalization", "depth", "side")
        found = {name: v for name, v in self.settings(method, ipc).items() if name not in silent}
        judged = self.validations and method in KERNELS
        return found | ({"validations": self.validations} if judged else {})


@dataclass(frozen=True)
class Trajectory:
    """Settings of the trajectory methods: the published ones of a data set, with changes.

    dataset     whose published settings, a data set of `trajectory.yaml`
    changes     settings by their names there. A changed `last` starts from epoch 0 without growth unless told otherwise
    seed        of the experts; all runs of a bench share them
    validations how often in a distillation the set is judged on validation images, 0 = never; the best one is kept
    networks, epochs  fresh networks a time and their epochs, 0 = those of the bench's protocol
    raises      InputError on a setting that no method has
    """

    dataset: str = "cifar10"
    changes: dict = field(default_factory=dict)
    seed: int = 0
    validations: int = 0
    networks: int = 1
    epochs: int = 0

    def __post_init__(self):
        known = {
            name
            for table in trajectory.presets().values()
            for cell in (table["common"], *(c for ipcs in list(table.values())[1:] for c in ipcs.values()))
            for name in cell
        }
        for name in self.changes:
            check_choice("trajectory setting", name, sorted(known - {"source"}))

    def settings(self, method: str, ipc: int) -> dict:
        """The settings of a method at a size. Raises InputError where nothing is published."""
        found = trajectory.preset(method, self.dataset, ipc)
        if "last" in self.changes:
            found |= {"first": 0, "begin": 0, "growth": 0}
        table = trajectory.presets()[method]
        own = table["common"] | table[self.dataset][ipc]  # a change does not give MTT an average or labels
        return found | {name: value for name, value in self.changes.items() if name in own}

    def spec(self, method: str, ipc: int) -> dict:
        """What identifies a run, besides its recipe and bench."""
        settings = {name: v for name, v in self.settings(method, ipc).items() if name not in ("source", "zca")}
        return {
            "settings": settings,
            "seed": self.seed,
            "validation": [self.validations, self.networks, self.epochs] if self.validations else None,
        }

    def training(self, settings: dict, augmentation: str, views: Views | None = None) -> Training:
        """How the experts of these settings are trained; views are for a loss that compares them."""
        kind, lr = settings["optimizer"], settings["expert_lr"]
        momentum, decay = (settings.get(name, 0.0) for name in ("expert_momentum", "expert_weight_decay"))
        if kind == "GSAM":
            optimizer = GSAM(lr, momentum, decay, rho=settings["rho"], alpha=settings["alpha"])
        else:
            optimizer = Adam(lr, weight_decay=decay) if kind == "Adam" else SGD(lr, momentum, decay)
        loss = settings.get("loss", "cross-entropy")
        return Training(
            settings["experts"], optimizer, settings["expert_batch"], augmentation, self.seed, loss=loss, views=views
        )


def expert_epochs(settings: dict) -> int:
    """The last expert epoch that is read: the end of the last segment, or where first labels come from."""
    return max(settings["last"] - 1 + settings["span"], settings["epochs"] if settings["labels"] else 0)


def published_steps(method: str, ipc: int) -> int:
    """Pixel updates of the published setting."""
    if method in HOSTS:
        return hosts.steps(hosts.presets()[method]["common"])
    preset = PRESETS[method]
    return preset["iterations"] * (loops(ipc)[0] if preset["objective"] == "gradient" else 1)


def published(dataset: str, method: str, ipc: int) -> dict | None:
    """{'mean', 'std'} as fractions from `matching/published.yaml`, None where no checked number is known."""
    found = PUBLISHED.get(dataset, {}).get(method, {}).get(ipc)
    return {"mean": found[0] / 100, "std": found[1] / 100} if found else None


def _samplers(objective) -> str:
    return ", ".join(n for n, one in SAMPLERS.items() if all(hasattr(objective, need) for need in one.needs))


def compatibility() -> str:
    """What combines with what, as a Markdown table generated from the registry and the objectives."""
    lines = ["| method | objective | initialize | real batches | prune first | learns |", "|---|---|---|---|---|---|"]
    for name, preset in PRESETS.items():
        objective = OBJECTIVES[preset["objective"]]
        starts = ", ".join(f"**{i}**" if i == preset["initialize"] else i for i in INITIALIZATIONS)
        lines.append(
            f"| {name} | {preset['objective']} matching | {starts} | {_samplers(objective)} | {', '.join(RULES)} | {', '.join(objective.learns)} |"
        )
    for name, table in hosts.presets().items():
        common = table["common"]
        objective = hosts.OBJECTIVES[hosts.objective_of(common)]
        starts = ", ".join(f"**{i}**" if i == common["initialize"] else i for i in INITIALIZATIONS)
        kind = {"queue": "distribution matching", "multiformation": "gradient matching", "kernel": "kernel regression"}[
            common["objective"]
        ]
        packed = ", four images in each stored one" if FORMATIONS[common["formation"]] > 1 else ""
        lines.append(
            f"| {name} | {kind}{packed} | {starts} | {_samplers(objective)} | {', '.join(RULES)} | {', '.join(objective.learns)} |"
        )
    for name in TRAJECTORIES:
        common = trajectory.presets()[name]["common"]
        chosen = common["initialize"]
        starts = ", ".join(f"**{i}**" if i == chosen else i for i in (*INITIALIZATIONS, "correct"))
        learns = ", ".join(trajectory.learned(common["labels"]))
        lines.append(
            f"| {name} | trajectory matching | {starts} | refused: it has no real batch | {', '.join(RULES)} | {learns} |"
        )
    return "\n".join(lines)
