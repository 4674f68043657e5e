"""Passes over the real images of a task that many scores share: each made once, stored, with its cost.

`scratch` trains an ensemble from nothing, `free` looks through an encoder once a mask, `tuned` fine-tunes it on all images; `ridge` and
`clusters` are sensitivities, of one kernel or of distances. `CachedScores.get` looks up a score by its name in SCORES.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Generator, Tensor

from distillery import store
from distillery.checks import InputError, check_choice, check_positive_int
from distillery.data.cache import SHARE, memory
from distillery.evaluation import FineTuning, Protocol, embed
from distillery.lock import lock
from distillery.networks import ConvNet
from distillery.networks.encoder import Encoder
from distillery.networks.precision import MixedPrecision, unwrapped
from distillery.networks.ridge import embeddings, gaussian, ntk
from distillery.runs import Runs
from distillery.scores import complexity, dynamics, sensitivity
from distillery.scores.kmeans_sensitivity import kmeans, one_means, seeding
from distillery.scores.registry import ORDERS, SCORES, Score
from distillery.seeds import generator
from distillery.training.losses import centred

VERSION = 1  # of the passes; raise it when a change makes stored ones stale
SPACES = ("ntk", "random features", "pixels")
IMPORTANCE = {"ridge": "random features", "k-means": "pixels", "rho": 5e-3, "width": 32, "networks": 8}
COLLECTED = ("loss", "margin", "correct")
OF_TRAINING = {"cumulative loss": dynamics.cumulative_loss, "forgetting": dynamics.forgetting, "AUM": dynamics.aum}
OF_OUTPUTS = {"least confidence": dynamics.least_confidence, "entropy": dynamics.entropy, "margin": dynamics.margin}


@dataclass(frozen=True)
class ScoreSettings:
    """How passes are made.

    early, converged  (networks, epochs) behind the scores 'loss' and 'converged loss'
    path        options of `complexity.prototype_path`, the masks of an encoder; what is not given is as published
    tunings     networks that are fine-tuned
    importance  of sensitivities: 'ridge' and 'k-means', the space each is of, one of SPACES; 'rho', the ridge over the mean
                diagonal of the kernel; 'width' and 'networks' of random features
    raises      InputError on options and spaces that there are not, and numbers that are not positive
    """

    early: tuple[int, int] = (5, 5)
    converged: tuple[int, int] = (50, 50)
    path: dict = field(default_factory=dict)
    tunings: int = 1
    importance: dict = field(default_factory=dict)

    def __post_init__(self):
        given = IMPORTANCE | self.importance
        for name in self.importance:
            check_choice("importance", name, IMPORTANCE)
        for name in self.path:
            check_choice("path", name, ("steps", "schedule", "interval", "how", "normalized", "temperature"))
        for name, spaces in (("ridge", SPACES), ("k-means", SPACES[1:])):
            check_choice(f"space of {name}", given[name], spaces)
        sensitivity.penalty_of(1.0, 1, given["rho"])
        numbers = {"early": self.early, "converged": self.converged, "tunings": [self.tunings]}
        numbers |= {name: [given[name]] for name in ("width", "networks")}
        for name, values in numbers.items():
            for value in values:
                check_positive_int(name, value)


class CachedScores:
    """The stored scores of the real images of an experiment.

    images      an ImageSet, or a RegressionSet, which scores that need classes refuse
    digest      of the data they are of
    network     as it runs (`MixedPrecision`)
    protocol    its fine-tuning is that of scores that need one; of another protocol, the published one
    costs       of each pass that was used: 'seconds' and 'samples'
    experiment  whose they are, for scores that stand on more than passes; set from outside
    """

    def __init__(
        self, images, digest: str, network, runs: Runs, settings: ScoreSettings, encoder: Encoder | None, protocol: Protocol | None
    ):
        self.images, self.digest, self.network, self.runs, self.encoder = images, digest, network, runs, encoder
        self.lengths = {"loss": settings.early, "converged loss": settings.converged}
        self.path, self.tunings, self.importance = complexity.settled(settings.path), settings.tunings, IMPORTANCE | settings.importance
        tuning = protocol if isinstance(protocol, FineTuning) else FineTuning() if encoder else None
        self.tuning = replace(tuning, networks=1, equal="epochs") if tuning else None
        self.transform = store.transform_digest(images.transform)
        self.experiment = None
        self.costs: dict[tuple[str, int], dict] = {}
        self._read: dict[tuple[str, int], dict[str, Tensor]] = {}
        self._known: dict[tuple[str, int, int], Tensor] = {}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_read": {}, "_known": {}, "costs": {}}

    # Scores by name

    def get(self, name: str, seed: int, k: int = 1) -> Tensor:
        """The scores (N,) of one name. Raises InputError on an unknown one, and without the encoder or classes it needs.

        k  images of a class that it serves: the clusters behind 'k-means sensitivity'
        """
        score = self._registered(name)
        key = name, seed if score.seeded else 0, k
        if key not in self._known:
            self._known[key] = score.compute(self, seed, k)
        return self._known[key]

    def spec(self, name: str) -> dict | list[int]:
        """What identifies a score, besides images, network and preprocessing. Raises InputError as `get`."""
        if name in ORDERS:
            return ORDERS[name](self)
        score = self._registered(name)
        of_encoder = lambda: {"encoder": self._encoder().digest, "version": VERSION}  # noqa: E731
        of_masks = lambda: of_encoder() | {"path": self.path}  # noqa: E731
        needed = {"": dict, "encoder": of_encoder, "masks": of_masks, "tuning": self._tuning_spec}[self._needs(score)]
        found = score.spec(self) if score.spec else needed()
        if score.version == 1:
            return found
        return {"revised": score.version} | (found if isinstance(found, dict) else {"spec": found})

    def _registered(self, name: str) -> Score:
        """The score of a name, whose needs are there."""
        check_choice("score", name, SCORES)
        score, labels = SCORES[name], hasattr(self.images, "classes")
        if score.labels is not None and score.labels != labels:
            needed = "classes" if score.labels else "real-valued targets and no classes"
            fit = [one for one in SCORES if SCORES[one].labels in (None, labels)]
            raise InputError(f"score: {name!r} needs {needed}; accepted: {', '.join(fit) or 'none'}")
        if self._needs(score):
            self._encoder()
        return score

    def _needs(self, score: Score) -> str:
        return score.needs if hasattr(self.images, "classes") else ""  # features are the targets

    # From scratch

    def scratch(self, seed: int, name: str = "loss") -> dict[str, Tensor]:
        """'loss' (N,), the mean training loss, and 'first.*', weights of the first network, of the ensemble pass behind 'loss' or 'converged loss'."""
        trials, epochs = self.lengths[name]

        def make() -> tuple[dict, int]:
            passed = dynamics.dynamics(self.network, self.images, trials, epochs, generator(seed, "scores"), collect_mean=True)
            first = {f"first.{name}": value[:1] for name, value in passed.params.items()}
            return {"loss": dynamics.mean_loss(passed)} | first, passed.stats.samples * trials

        return self.stored("scores", self._scratch_inputs(seed, name), make, (name, seed))

    def features(self, seed: int) -> Tensor:
        """Features (N, F) of the first network of the pass behind 'loss', on the CPU: made when they are asked for, as they may be larger than the images."""
        key = "features", seed, 1
        if key not in self._known:
            found = self.scratch(seed)
            first = {
                name.removeprefix("first."): value.to(self.images.device) for name, value in found.items() if name.startswith("first.")
            }
            # scores stored by older versions hold them in place of the weights
            self._known[key] = embed(self.network, first, self.images)[0].cpu() if first else found["features"]
        return self._known[key]

    def seconds_left(self, recipes: list, job) -> float:
        """About how long the ensemble passes take that recipes of one job's method and pruning go by, by a few steps; what is stored takes none."""
        pruned = job.recipe.prune and job.recipe.prune.rule != "random" and job.recipe.prune.score
        names = {*job.method.scores(job), pruned} & set(self.lengths)
        asked = [(name, one.seed) for name in names for one in recipes]
        left = [name for name, seed in asked if not self._path("scores", self._scratch_inputs(seed, name)).exists()]
        if not left:
            return 0.0
        some = self.images.subset(torch.arange(min(64, len(self.images)), device=self.images.device))
        began = time.monotonic()
        dynamics.dynamics(self.network, some, 1, 4, generator(0, "timed"), collect_mean=True)
        visit = (time.monotonic() - began) / (4 * len(some))
        return sum(self.lengths[name][0] * self.lengths[name][1] for name in left) * len(self.images) * visit

    # Through an encoder

    def free(self) -> dict[str, Tensor]:
        """What `complexity.Path` names, of the masks and the encoder, which no seed changes."""
        return self._along(self.path, 0, "encoder")

    @property
    def labels(self) -> Tensor | None:
        """Classes (N,) on the CPU, None where targets are real-valued."""
        return self.images.targets.cpu() if hasattr(self.images, "classes") else None

    def encoded(self) -> Tensor:
        """Features (N, F) through the encoder; images without classes bring theirs as targets."""
        return self.images.targets.cpu() if self.labels is None else self.free()["features"]

    def along(self, path: dict, seed: int = 0) -> dict[str, Tensor]:
        """'losses' (T, N) and 'accuracies' (T,) along other masks, by options of `complexity.prototype_path`; the seed is of random masks."""
        return self._along(complexity.settled(path), seed, f"masks {store.canonical(path)}")

    def _along(self, path: dict, seed: int, name: str) -> dict[str, Tensor]:
        network, own = self.network, unwrapped(self.network)
        if self._encoder().network.spec() != own.spec():  # one that looks at the images and is not trained on them
            network = MixedPrecision(self._encoder().network)
        inputs = self._inputs(encoder=self._encoder().digest, path=path, version=VERSION) | ({"seed": seed} if seed else {})
        inputs |= {"network": network.spec()}

        def make() -> tuple[dict, int]:
            params = self._encoder().to(self.images.device).params
            drawn = {"generator": generator(seed, "masks")} if path.get("how") == "random" else {}
            found = complexity.prototype_path(network, params, self.images, **path, **drawn)._asdict()
            if path != self.path:
                del found["features"]  # large, and the same under all masks
            return found, found["losses"].numel()

        return self.stored("encoder-path", inputs, make, (name, seed))

    def _encoder(self) -> Encoder:
        if self.encoder is None:
            names = ", ".join(name for name, one in SCORES.items() if one.needs)
            raise InputError(f"encoder: None; accepted: an encoder for the scores {names}")
        return self.encoder

    # By fine-tuning

    def tuned(self, seed: int) -> dict[str, Tensor]:
        """Scores (N,) of one fine-tuning by name, 'probabilities' (N, C) of the last weights, and the early weights 'early.*'."""

        def make() -> tuple[dict, int]:
            tuning, stream = self.tuning, generator(seed, "tuning scores")
            start = self._encoder().to(self.images.device).start(stream, self.tunings)
            optimizer, _ = tuning.optimizer(len(self.images))
            options = {"batch": tuning.batch, "augmentation": tuning.augmentation, "collect": COLLECTED, "checkpoints": True}
            options |= {"start": start, "optimizer": optimizer, "snapshots": (self.early,)}
            passed = dynamics.dynamics(self.network, self.images, self.tunings, tuning.epochs, stream, **options)
            p = dynamics.predictions(self.network, passed.params, self.images)
            tensors = {name: score(passed) for name, score in OF_TRAINING.items()} | {name: score(p) for name, score in OF_OUTPUTS.items()}
            tensors |= {"probabilities": p.mean(0)} | {f"early.{k}": v for k, v in passed.stats.snapshots[self.early].items()}
            # a visit in training and one in evaluation an epoch, and the last predictions
            return tensors, (2 * self.tuning.epochs + 1) * self.tunings * len(self.images)

        return self.stored("tuning-scores", self._inputs(**self._tuning_spec(), seed=seed), make, ("tuning", seed))

    @property
    def early(self) -> int:
        """The epoch of EL2N and GraNd: a tenth of all."""
        return max(1, round(self.tuning.epochs / 10))

    def early_weights(self, seed: int) -> dict[str, Tensor]:
        """Weights at the end of the epoch `early` of the fine-tuning, leading axis `tunings`."""
        found, device = self.tuned(seed), self.images.device
        return {k.removeprefix("early."): v.to(device) for k, v in found.items() if k.startswith("early.")}

    def gradients(self, seed: int) -> Tensor:
        """Norms (N,) of each sample's gradient at the early weights."""
        params = self.early_weights(seed)

        def make() -> tuple[dict, int]:
            network = unwrapped(self.network)
            return {"GraNd": dynamics.grand(network, params, self.images)}, self.tunings * len(self.images)

        return self.stored("gradient-scores", self._inputs(**self._tuning_spec(), seed=seed), make, ("GraNd", seed))["GraNd"]

    def _tuning_spec(self) -> dict:
        return {"encoder": self._encoder().digest, "tuning": self.tuning.spec(), "trials": self.tunings, "version": VERSION}

    # Sensitivities

    def space(self, which: str) -> dict:
        """What identifies sensitivities of one kind, 'ridge' or 'k-means'."""
        one = self.importance
        found = {"space": one[which], "version": VERSION} | ({"rho": one["rho"]} if which == "ridge" else {"factor": "bounded"})
        return found | ({name: one[name] for name in ("width", "networks")} if one[which] == "random features" else {})

    def rows(self, which: str) -> Tensor:
        """The images as 'ridge' or 'k-means' see them, (N, D) on their device: pixels, or features of random networks.

        raises  InputError on pixels that take more than SHARE of the memory as numbers
        """
        one = self.importance
        if one[which] == "pixels" and (size := 4 * self.images.pixels.shape.numel()) > SHARE * memory():
            found = f"the pixels of {len(self.images)} images are {size / 1e9:.1f} GB as numbers"
            raise InputError(f"{which} sensitivity: {found}; accepted: fewer images, or importance {{'{which}': 'random features'}}")
        parts = torch.arange(len(self.images), device=self.images.device).split(1000)
        if one[which] != "random features":
            return torch.cat([self.images.batch(part).flatten(1) for part in parts])
        network = ConvNet(self.images.shape, len(self.images.classes), one["width"], normalization="none")
        params = gaussian(network, generator(0, "sensitivity"), one["networks"], self.images.device)
        with torch.no_grad():
            parts = [embeddings(network, params, self.images.batch(some)) for part in parts for some in part.split(128)]
        return torch.cat(parts) / parts[0].shape[1] ** 0.5

    def ridge(self) -> dict[str, Tensor]:
        """'tau', 'leverage' (N,) of the ridge regression on the labels, 'dimension' () and 'penalty' ()."""

        def make() -> tuple[dict, int]:
            n = len(self.images)
            labels = centred(self.images.targets, len(self.images.classes))
            rows, rho = self.rows("ridge"), self.importance["rho"]
            if self.importance["ridge"] == "ntk":
                if n > sensitivity.LARGEST:
                    raise InputError(f"kernel: {n} points; accepted: at most {sensitivity.LARGEST}, or the space 'random features'")
                matrix = ntk(rows.double())
                penalty = sensitivity.penalty_of(float(matrix.trace()), n, rho)
                found = sensitivity.ridge_kernel(matrix, labels, penalty)
            else:
                penalty = sensitivity.penalty_of(float(rows.double().square().sum()), n, rho)
                found = sensitivity.ridge_features(rows, labels, penalty)
            values = {"tau": found.tau, "leverage": found.leverage}
            values |= {"dimension": torch.tensor(found.effective_dimension), "penalty": torch.tensor(penalty)}
            return {name: value.cpu().float() for name, value in values.items()}, n

        inputs = self.spec("ridge sensitivity") | {"transform": self.transform}
        return self.stored("ridge-scores", inputs, make, ("ridge", 0))

    def clusters(self, seed: int, k: int) -> Tensor:
        """K-means sensitivities (N,) with k clusters within each class: exact at k = 1, which no seed changes, else bounds."""
        name, seed = "k-means sensitivity", seed if k > 1 else 0
        inputs = self.spec(name) | {"transform": self.transform, "name": name, "seed": seed, "k": k}

        def make() -> tuple[dict, int]:
            n = len(self.images)
            found = torch.empty(n)
            for members, rows, stream in self._by_class(seed, name, torch.arange(n)):
                found[members] = (one_means(rows) if k == 1 else kmeans(rows, k, stream)[0]).cpu().float()
            return {"scores": found}, n

        return self.stored("cluster-scores", inputs, make, (f"{name} {k}", seed))["scores"]

    def seeded(self, seed: int, k: int, kept: Tensor) -> Tensor:
        """Rank (len(kept),) in which D^2 seeding takes k of the kept images of each class, the rest last."""
        rank = torch.full((len(kept),), float(len(kept)))
        for members, rows, stream in self._by_class(seed, "k-means++", kept):
            rank[members[seeding(rows, k, stream)[0].cpu()]] = torch.arange(float(k))
        return rank

    def _by_class(self, seed: int, name: str, kept: Tensor) -> Iterator[tuple[Tensor, Tensor, Generator]]:
        """Of each class of the kept images: their places in `kept`, their rows for k-means, and a random stream."""
        rows, targets = self.rows("k-means"), self.images.targets.cpu()[kept]
        for label in targets.unique():
            members = torch.nonzero(targets == label)[:, 0]
            yield members, rows[kept[members].to(rows.device)], generator(seed, name, int(label))

    # Stored passes

    def _inputs(self, **inputs) -> dict:
        return {"network": self.network.spec(), "transform": self.transform} | inputs

    def _scratch_inputs(self, seed: int, name: str) -> dict:
        return self._inputs(seed=seed, trials=self.lengths[name][0], epochs=self.lengths[name][1])

    def _path(self, producer: str, inputs: dict):
        return self.runs.artifact(f"{producer}-" + store.identity(producer, VERSION, inputs, self.digest))

    def stored(self, producer: str, inputs: dict, make, key: tuple[str, int]) -> dict[str, Tensor]:
        """Tensors of a pass, made once; `make` returns them and the images it touched."""
        if key not in self._read:
            path = self._path(producer, inputs)
            if not path.exists():
                with lock(path.with_suffix(".lock"), wait=True):
                    if not path.exists():  # else another worker made them meanwhile
                        began, (made, samples) = time.monotonic(), make()
                        spent = time.monotonic() - began
                        store.save_tensors(path, made, inputs | {"seconds": spent, "samples": samples})
                        name = key[0].partition(" {")[0]  # without what tells two passes of a name apart
                        self.runs.tell(scores=f"{name} seed {key[1]}", seconds=spent)
            tensors, card = store.load_tensors(path)
            # but for the encoder's one at a time: features are large
            self._read = {k: v for k, v in self._read.items() if k[0] == "encoder"} | {key: tensors}
            self.costs[key] = {name: card[name] for name in ("seconds", "samples")}
        return self._read[key]
