"""Scores of one task by name, each from a pass over the images that many scores share: made once, stored, with its cost.

| pass | yields | what it takes |
|---|---|---|
| scratch | loss, converged loss; features of a trained network | an ensemble of networks trained from nothing |
| encoder | complexity and the geometry of features | a pre-trained encoder: one forward pass a mask, no training |
| tuning | what fine-tuning tells of a sample | an encoder and one fine-tuning on all images |
| importance | sensitivities of `sensitivity.py`, of a kernel ridge regression or of k-means | one kernel, or distances |

High = hard in every one; greedy methods give their rank, low = taken first.
"""

import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from distillery import store
from distillery.checks import InputError, check_choice
from distillery.data import Splits
from distillery.evaluation import FineTuning
from distillery.lock import lock
from distillery.networks import ConvNet
from distillery.networks.encoder import Encoder
from distillery.networks.ridge import embeddings, gaussian, ntk
from distillery.runs import Runs
from distillery.scores import complexity, geometry, sensitivity
from distillery.scores import dynamics as training
from distillery.scores.kmeans_sensitivity import kmeans, seeding
from distillery.seeds import generator
from distillery.training.losses import centred

VERSION = 1  # of the scores; raise it when a change makes stored ones stale
SCRATCH = ("loss", "converged loss")  # early in training, and over all of it
FREE = ("complexity", "prototype loss", "prototype distance", "herding", "k-center", "D2")
TUNED = (
    "cumulative loss",
    "forgetting",
    "EL2N",
    "GraNd",
    "AUM",
    "least confidence",
    "entropy",
    "margin",
    "contextual diversity",
)
SENSITIVE = ("ridge sensitivity", "leverage", "k-means sensitivity", "k-means++")
NAMES = (*SCRATCH, *FREE, *TUNED, *SENSITIVE[:-1])
SPACES = ("ntk", "random features", "pixels")
IMPORTANCE = {
    "ridge": "random features",
    "k-means": "pixels",
    "rho": 5e-3,
    "width": 32,
    "networks": 8,
    "factor": "bounded",
}
COLLECTED = ("loss", "margin", "correct")
REVISED = {"EL2N": 2, "forgetting": 2}  # versions of scores that changed by themselves


class CachedScores:
    """The stored scores of the training images of a task."""

    def __init__(
        self,
        data: Splits,
        network,
        runs: Runs,
        lengths: dict[str, tuple[int, int]],
        encoder: Encoder | None = None,
        tuning: FineTuning | None = None,
        path: dict | None = None,
        trials: int = 1,
        importance: dict | None = None,
    ):
        """What the passes need.

        network  as it runs (`MixedPrecision`)
        lengths  (networks, epochs) of each of SCRATCH
        encoder, tuning, trials  of the scores in FREE and TUNED: networks that are fine-tuned
        path     options of `complexity.prototype_path`
        importance  of SENSITIVE: 'ridge' and 'k-means', the space each is of, one of SPACES; 'rho', the ridge over the mean
                 diagonal of the kernel; 'width' and 'networks' of random features; 'factor' of the k-means bound
        """
        self.images, self.network, self.runs, self.lengths = data.train, network, runs, lengths
        self.digest, self.encoder, self.tuning, self.trials = data.digest, encoder, tuning, trials
        self.path = {"steps": 5} | (path or {})
        self.importance = IMPORTANCE | (importance or {})
        for name in self.importance:
            check_choice("importance", name, IMPORTANCE)
        for name in ("ridge", "k-means"):
            check_choice(f"space of {name}", self.importance[name], SPACES[name == "k-means" :])
        self.transform = store.tensor_digest(data.train.transform.tensors())[:16]
        self.costs: dict[tuple[str, int], dict] = {}  # of each pass: seconds, samples
        self._read: dict[tuple[str, int], dict[str, Tensor]] = {}
        self._known: dict[tuple[str, int], Tensor] = {}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_read": {}, "_known": {}, "costs": {}}

    def of(self, name: str, seed: int, k: int = 1) -> Tensor:
        """The scores (N,) of one name. Raises InputError on an unknown one, and without the encoder it needs.

        k  clusters of a class behind 'k-means sensitivity'
        """
        check_choice("score", name, NAMES)
        key = name, 0 if name in (*FREE, *SENSITIVE[:2]) else seed, k
        if key not in self._known:
            self._known[key] = self._score(name, seed, k)
        return self._known[key]

    def _score(self, name: str, seed: int, k: int) -> Tensor:
        if name in SENSITIVE[:2]:
            found = self.ridge()
            return found["tau"] + 1 / len(found["tau"]) if name == SENSITIVE[0] else found["leverage"]
        if name in SENSITIVE:
            return self._clusters(seed, k)
        if name in SCRATCH:
            return self.scratch(seed, name)["loss"]
        targets, n = self.images.targets.cpu(), len(self.images)
        if name == "GraNd":
            return self._gradients(seed)
        if name in TUNED:
            found = self.tuned(seed)
            if name == "EL2N":
                p = training.predictions(self.network, self._early_weights(seed), self.images)
                return training.el2n(p, targets)
            if name == "forgetting":  # most samples tie at no event: they go in a drawn order
                ties = torch.rand(n, generator=generator(seed, "forgetting ties"))
                return found[name] + ties / (2 * self.trials)
            if name == "contextual diversity":
                return geometry.contextual_diversity(found["probabilities"], targets, n)
            return found[name]
        found = self.free()
        rows, whole = found["features"], found["losses"].mean(0)
        if name == "prototype loss":
            return found["losses"][0]
        if name == "prototype distance":
            return geometry.prototype_distance(rows, targets).float()
        if name == "herding":
            return geometry.herding(rows, targets, n)
        if name == "k-center":
            return geometry.k_center(rows, targets, n)
        if name == "D2":  # of unit length: its kernel exp(-d) knows no scale
            return geometry.d2(F.normalize(rows), whole, targets=targets)
        return whole

    def spec(self, name: str) -> dict | list[int]:
        """What identifies a score, besides images, network and preprocessing."""
        if name in SCRATCH:
            return list(self.lengths[name])
        if name in SENSITIVE:
            return self._space("ridge" if name in SENSITIVE[:2] else "k-means")
        if name in FREE:
            return {"encoder": self._encoder().digest, "path": self.path, "version": VERSION}
        found = {"encoder": self._encoder().digest, "tuning": self._tuning().spec(), "trials": self.trials}
        return found | {"version": VERSION} | ({"revised": REVISED[name]} if name in REVISED else {})

    def _space(self, which: str) -> dict:
        """What identifies sensitivities of one kind."""
        one = self.importance
        found = {"space": one[which], "version": VERSION}
        found |= {"rho": one["rho"]} if which == "ridge" else {"factor": one["factor"]}
        drawn = one[which] == "random features"
        return found | ({"width": one["width"], "networks": one["networks"]} if drawn else {})

    def rows(self, which: str) -> Tensor:
        """The images as 'ridge' or 'k-means' see them, (N, D) on their device: pixels, or features of random networks."""
        n, one = len(self.images), self.importance
        parts = torch.arange(n, device=self.images.device).split(1000)
        if one[which] != "random features":
            return torch.cat([self.images.batch(part).flatten(1) for part in parts])
        network = ConvNet(self.images.shape, len(self.images.classes), one["width"], normalization="none")
        params = gaussian(network, generator(0, "sensitivity"), one["networks"], self.images.device)
        with torch.no_grad():
            parts = [embeddings(network, params, self.images.batch(some)) for part in parts for some in part.split(128)]
        return torch.cat(parts) / parts[0].shape[1] ** 0.5

    def ridge(self) -> dict[str, Tensor]:
        """'tau', 'leverage' (N,) of the ridge regression on the labels, 'dimension' () and 'penalty' ()."""
        inputs = self._space("ridge") | {"transform": self.transform}

        def make() -> tuple[dict, int]:
            n = len(self.images)
            labels = centred(self.images.targets, len(self.images.classes))
            rows, rho = self.rows("ridge"), self.importance["rho"]
            if self.importance["ridge"] == "ntk":
                sensitivity.check_points(n)
                matrix = ntk(rows.double())
                penalty = sensitivity.penalty_of(float(matrix.trace()), n, rho)
                found = sensitivity.ridge_kernel(matrix, labels, penalty)
            else:
                penalty = sensitivity.penalty_of(float(rows.double().square().sum()), n, rho)
                found = sensitivity.ridge_features(rows, labels, penalty)
            values = {"tau": found.tau, "leverage": found.leverage}
            values |= {"dimension": torch.tensor(found.effective_dimension), "penalty": torch.tensor(penalty)}
            return {name: value.cpu().float() for name, value in values.items()}, n

        return self._stored("ridge-scores", inputs, make, ("ridge", 0))

    def _clusters(self, seed: int, k: int) -> Tensor:
        """K-means sensitivities (N,) within each class."""
        name = SENSITIVE[2]
        inputs = self._space("k-means") | {"transform": self.transform, "name": name, "seed": seed, "k": k}

        def make() -> tuple[dict, int]:
            rows, targets = self.rows("k-means"), self.images.targets.cpu()
            found = torch.empty(len(rows))
            for label in targets.unique():
                members = torch.nonzero(targets == label)[:, 0]
                own, stream = rows[members.to(rows.device)], generator(seed, name, int(label))
                scores = kmeans(own, k, stream, self.importance["factor"]).scores
                found[members] = scores.cpu().float()
            return {"scores": found}, len(rows)

        return self._stored("cluster-scores", inputs, make, (f"{name} {k}", seed))["scores"]

    def seeded(self, seed: int, k: int, kept: Tensor) -> Tensor:
        """Rank (len(kept),) in which D^2 seeding takes k of the kept images of each class, the rest last."""
        rows, targets = self.rows("k-means"), self.images.targets.cpu()[kept]
        rank = torch.full((len(kept),), float(len(kept)))
        for label in targets.unique():
            members = torch.nonzero(targets == label)[:, 0]
            own, stream = rows[kept[members].to(rows.device)], generator(seed, SENSITIVE[3], int(label))
            rank[members[seeding(own, k, stream).cpu()]] = torch.arange(float(k))
        return rank

    def scratch(self, seed: int, name: str = "loss") -> dict[str, Tensor]:
        """'loss' (N,) mean training loss and 'features' (N, F), from one ensemble pass."""
        trials, epochs = self.lengths[name]
        inputs = {"seed": seed, "trials": trials, "epochs": epochs, "network": self.network.spec()}
        inputs["transform"] = self.transform

        def make() -> tuple[dict, int]:
            stream = generator(seed, "scores")
            passed = training.dynamics(self.network, self.images, trials, epochs, stream, collect_mean=True)
            tensors = {"loss": training.mean_loss(passed), "features": training.features(passed, self.images)}
            return tensors, passed.stats.samples * trials

        return self._stored("scores", inputs, make, (name, seed))

    def free(self) -> dict[str, Tensor]:
        """'losses' (T, N) along the masks and 'features' (N, F) of the encoder, which no seed changes."""
        return self._along(self.path, 0, ("encoder", 0))

    def along(self, path: dict, seed: int = 0) -> Tensor:
        """Losses (T, N) along other masks, by the options of `complexity.prototype_path`; the seed is that of random masks."""
        return self._along(path, seed, (f"masks {store.canonical(path)}", seed))["losses"]

    def _along(self, path: dict, seed: int, key: tuple[str, int]) -> dict[str, Tensor]:
        inputs = {"encoder": self._encoder().digest, "path": path, "version": VERSION}
        inputs |= {"network": self.network.spec(), "transform": self.transform} | ({"seed": seed} if seed else {})

        def make() -> tuple[dict, int]:
            params = self._encoder().to(self.images.device).params
            random = path.get("how") == "random"
            drawn = {"generator": generator(seed, "masks")} if random else {}
            found = complexity.prototype_path(self.network, params, self.images, **path, **drawn)
            tensors = {"losses": found.losses} | ({"features": found.features} if path == self.path else {})
            return tensors, len(found.losses) * len(self.images)

        return self._stored("encoder-scores", inputs, make, key)

    def tuned(self, seed: int) -> dict[str, Tensor]:
        """All of TUNED but EL2N and GraNd, (N,) each, 'probabilities' (N, C) of the last weights, and the early weights 'early.*'."""
        inputs = self.spec("AUM") | {"network": self.network.spec(), "transform": self.transform, "seed": seed}

        def make() -> tuple[dict, int]:
            passed = self._fine_tune(seed)
            p = training.predictions(passed.network, passed.params, self.images)
            tensors = {
                "cumulative loss": training.cumulative_loss(passed),
                "forgetting": training.forgetting(passed),
                "AUM": training.aum(passed),
                "least confidence": training.least_confidence(p),
                "entropy": training.entropy(p),
                "margin": training.margin(p),
                "probabilities": p.mean(0),
            } | {f"early.{k}": v for k, v in passed.stats.snapshots[self.early].items()}
            # a visit in training and one in evaluation an epoch, and the last predictions
            return tensors, (2 * self._tuning().epochs + 1) * self.trials * len(self.images)

        return self._stored("tuning-scores", inputs, make, ("tuning", seed))

    @property
    def early(self) -> int:
        """The epoch of EL2N and GraNd: a tenth of all."""
        return max(1, round(self._tuning().epochs / 10))

    def _fine_tune(self, seed: int):
        tuning, stream = self._tuning(), generator(seed, "tuning scores")
        return training.dynamics(
            self.network,
            self.images,
            self.trials,
            tuning.epochs,
            stream,
            batch=tuning.batch,
            collect=COLLECTED,
            start=self._encoder().to(self.images.device).start(stream, self.trials),
            optimizer=tuning.optimizer(len(self.images))[0],
            augmentation=tuning.augmentation,
            snapshots=(self.early,),
            checkpoints=True,
        )

    def _gradients(self, seed: int) -> Tensor:
        params = self._early_weights(seed)
        inputs = self.spec("GraNd") | {"network": self.network.spec(), "transform": self.transform, "seed": seed}

        def make() -> tuple[dict, int]:
            network = getattr(self.network, "network", self.network)
            return {"GraNd": training.grand(network, params, self.images)}, self.trials * len(self.images)

        return self._stored("gradient-scores", inputs, make, ("GraNd", seed))["GraNd"]

    def _early_weights(self, seed: int) -> dict[str, Tensor]:
        found, device = self.tuned(seed), self.images.device
        return {k.removeprefix("early."): v.to(device) for k, v in found.items() if k.startswith("early.")}

    def _encoder(self) -> Encoder:
        if self.encoder is None:
            raise InputError(f"encoder: None; accepted: an encoder for the scores {', '.join((*FREE, *TUNED))}")
        return self.encoder

    def _tuning(self) -> FineTuning:
        if self.tuning is None:
            raise InputError(f"tuning: None; accepted: a way to fine-tune for the scores {', '.join(TUNED)}")
        return self.tuning

    def _stored(self, producer: str, inputs: dict, make, key: tuple[str, int]) -> dict[str, Tensor]:
        """Tensors of a pass, made once; `make` returns them and the images it touched."""
        if key not in self._read:
            version = 1 if producer == "scores" else VERSION
            path = self.runs.artifact(f"{producer}-" + store.identity(producer, version, inputs, self.digest))
            if not path.exists():
                with lock(path.with_suffix(".lock"), wait=True):
                    if not path.exists():  # else another worker made them meanwhile
                        self._make(path, inputs, make)
            tensors, card = store.load_tensors(path)
            kept = {k: v for k, v in self._read.items() if k[0] == "encoder"}  # else one at a time: features are large
            self._read = kept | {key: tensors}
            self.costs[key] = {name: card[name] for name in ("seconds", "samples")}
        return self._read[key]

    def _make(self, path: Path, inputs: dict, make) -> None:
        began = time.monotonic()
        tensors, samples = make()
        store.save_tensors(path, tensors, inputs | {"seconds": time.monotonic() - began, "samples": samples})
