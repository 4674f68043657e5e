"""Expert trajectories: networks trained on real data, their weights kept at the start and after every epoch.

An artifact is a folder `experts-<id>` for a chunk of experts trained together, with one file for each epoch. The id says who trained
(network, optimizer, batch, augmentation, seed, which experts), on what (data digest, preprocessing), and not how long: more epochs go on
from the last file, and a kill or a full disk loses at most the epoch under way.

Source: buffers of MTT (arXiv 2203.11932). MKDT's students are experts that regress a teacher's embeddings (`encoders.regression_set`).
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from distillery import engine, store
from distillery.checks import InputError, check_choice, check_positive_int
from distillery.lock import lock
from distillery.networks import Params
from distillery.networks.precision import float32_matmul, networks_at_once
from distillery.replay import WORTH
from distillery.seeds import generator, split
from distillery.training import LOSSES, train
from distillery.training.contrastive import two_views_apart
from distillery.training.dsa import DSA
from distillery.training.losses import check_targets
from distillery.training.optimizers import SGD, Adam
from distillery.training.views import TwoViews, Views

PRECISIONS = ("float32", "tf32")  # of experts
VERSION = 1  # of everything that decides an expert's weights; raise it when a change makes stored ones stale


@dataclass(frozen=True)
class Training:
    """How experts are trained; the defaults are MTT's, FTD and DATM take `optimizers.GSAM`.

    experts       how many; expert i does not depend on their number, except through rounding in its chunk
    chunk         experts trained together and stored in one artifact, 0 = by shapes
    augmentation  DSA families
    loss          'cross-entropy' with labels, 'squared error' with real-valued targets, as wide as the network's output, or
                  'simclr' with neither: two views of each image, and the network's output is what they are compared by
    views         of 'simclr'; batches that are not full are left out
    precision     'float32', or 'tf32': TensorFloat-32 products on a GPU; on a CPU float32 under another id
    """

    experts: int = 100
    optimizer: SGD = SGD(0.01, momentum=0.0, weight_decay=0.0)
    batch: int = 256
    augmentation: str = DSA
    seed: int = 0
    chunk: int = 0
    loss: str = "cross-entropy"
    views: Views | None = None
    precision: str = "float32"

    def __post_init__(self):
        check_positive_int("experts", self.experts)
        check_choice("precision of experts", self.precision, PRECISIONS)
        check_positive_int("batch", self.batch)
        check_choice("loss", self.loss, (*LOSSES, "simclr"))
        if (self.loss == "simclr") != (self.views is not None) or (self.views and self.augmentation):
            found = f"{self.views} with loss {self.loss!r}, augmentation {self.augmentation!r}"
            raise InputError(f"views: {found}; accepted: views with 'simclr' alone, and no other augmentation beside them")

    def spec(self) -> dict:
        """What identifies it in the id of a bank; loss and precision where they are not the first ones: ids from before hold."""
        absent = {"views": None, "loss": "cross-entropy", "precision": "float32"}
        return {name: value for name, value in asdict(self).items() if name not in absent or value != absent[name]}

    def train(self, network, params: Params, source, first: int, epoch: int, **options) -> Params:
        """`training.train` of experts `first`, .. on a source from an epoch on: their weights."""
        loss = LOSSES.get(self.loss, two_views_apart)
        if self.views:
            numbers = range(first, first + len(next(iter(params.values()))))
            images, step = getattr(source, "images", source), epoch * (len(source) // self.batch)  # `images` of a `RegressionSet`
            source, options["chunk"] = TwoViews(images, self.views, self.seed, step, numbers), len(numbers)
        how = {"batch": self.batch, "augmentation": self.augmentation, "whole_batches": bool(self.views)}
        with float32_matmul(self.precision):  # weights that will be matched
            return train(network, params, source, loss, self.optimizer, **how, **options)[0]


@dataclass(frozen=True, eq=False)
class Experts:
    """Stored trajectories: name -> (E, epochs + 1, ...), BatchNorm statistics included; index 0 of the second axis is the start."""

    weights: Params

    def __len__(self) -> int:
        return len(next(iter(self.weights.values())))

    @property
    def epochs(self) -> int:
        return next(iter(self.weights.values())).shape[1] - 1

    def at(self, expert: int, epoch: int) -> Params:
        """One expert after `epoch` epochs, leading axis 1. Raises InputError on an epoch that is not stored."""
        if not 0 <= epoch <= self.epochs:
            raise InputError(f"epoch {epoch} of experts; accepted: 0 to {self.epochs}, the stored ones")
        return {name: value[expert : expert + 1, epoch] for name, value in self.weights.items()}


def make(
    folder: str | Path, network, source, training: Training, epochs: int, *,
    where: str = "local", billed_to: str = "", log: Callable[[str], None] | None = None,
) -> list[Path]:  # fmt: skip
    """Train and store what is missing of `training.experts` experts up to epoch `epochs`; the artifacts.

    source     an ImageSet: real images, on the device to train on; or a `RegressionSet`, images with real-valued targets
    epochs     trajectory matching reads start epochs plus its span: last start + span (max start - 1 + M)
    where      the engine that chunks of experts are mapped over; each has the caller's threads, and a GPU for images on one
    billed_to  whom `spent` tells the time of the epochs trained now
    log        told the cost before anything is trained
    raises     InputError if the disk refuses; epochs stored before are kept. And on targets that are not those of the loss
    """
    check_positive_int("epochs", epochs)
    _check_source(network, source, training)
    asked = Path(folder), network, source, training, epochs
    if log and any(left for _, left in _left(*asked)):
        told = cost(*asked)
        took = f"about {told['seconds'] / 60:.0f} min" if told["seconds"] > 60 else "less than a minute"
        log(f"{told['experts']} experts: {told['steps']} steps of a chunk, {took}, {told['bytes'] / 1e6:.1f} MB on disk")
    options = {"cpus": torch.get_num_threads(), "gpus": 1 if source.device.type == "cuda" else 0}
    return engine.map(lambda chunk: _make(*chunk, network, source, training, epochs, billed_to), _chunks(*asked[:4]), where, **options)


def _make(first: int, size: int, card: dict, path: Path, network, source, training: Training, epochs: int, billed_to: str) -> Path:
    began = time.monotonic()

    def keep(epoch: int, weights: Params, momentum: list[Tensor]) -> None:
        nonlocal began
        now = time.monotonic()
        _write(path, epoch, weights, momentum, card | {"account": billed_to, "seconds": now - began})
        began = now

    with lock(path.with_suffix(".lock"), wait=True):
        stored = _stored(path)
        if stored > epochs:
            return path
        if stored:
            params, momentum = _read(path, stored - 1, card, source.device)
        else:
            streams = [generator(training.seed, "expert", i) for i in range(first, first + size)]
            networks = [network.init(stream, 1) for stream in streams]
            params, momentum = {name: torch.cat([one[name] for one in networks]).to(source.device) for name in networks[0]}, []
            _write(path, 0, params, momentum, card)
        stream, epoch = generator(training.seed, "expert training"), max(stored - 1, 0)
        split(stream, first)  # those of the experts before
        training.train(network, params, source, first, epoch, generator=stream, epochs=epochs, done=(epoch, momentum), after_epoch=keep)
    return path


def load(folder: str | Path, network, source, training: Training, epochs: int) -> Experts:
    """The stored trajectories up to epoch `epochs`, on the device of `source`. Raises InputError if others or none are there."""
    bank: Params = {}
    for first, size, card, path in _chunks(folder, network, source, training):
        if (stored := _stored(path)) <= epochs:
            raise InputError(f"{path}: {stored} of {epochs + 1} epochs are stored; accepted: the experts of a finished `make`")
        for epoch in range(epochs + 1):
            for name, value in _read(path, epoch, card, source.device)[0].items():
                if name not in bank:
                    bank[name] = value.new_empty(training.experts, epochs + 1, *value.shape[1:])
                bank[name][first : first + size, epoch] = value
    return Experts(bank)


def cost(folder: str | Path, network, source, training: Training, epochs: int) -> dict[str, float]:
    """What `make` would take, chunks one after another: steps of a chunk, 'seconds' from timed ones, 'bytes' on disk, 'experts'."""
    chunks = _left(folder, network, source, training, epochs)
    params = network.init(generator(training.seed, "cost"), max(size for size, _ in chunks))
    snapshot = sum(value[0].numel() * value.element_size() for value in params.values())
    if training.optimizer.momentum:  # stored beside the weights; Adam has two of it
        snapshot *= 3 if isinstance(training.optimizer, Adam) else 2
    steps = sum(min(left, epochs) for _, left in chunks) * -(-_seen(source, training) // training.batch)
    seconds = steps * _seconds_a_step(network, params, source, training) if steps else 0.0
    return {"experts": training.experts, "steps": steps, "seconds": seconds, "bytes": sum(n * left for n, left in chunks) * snapshot}


def spent(folder: str | Path, network, source, training: Training, epochs: int, billed_to: str) -> dict[str, float]:
    """What the stored epochs billed to one took, chunks one after another: 'seconds', 'samples' (real images touched)."""
    seconds, samples = 0.0, 0
    for _, size, _, path in _chunks(folder, network, source, training):
        for epoch in range(1, min(_stored(path) - 1, epochs) + 1):
            _, found = store.load_tensors(_file(path, epoch), verify=False)
            if found.get("account") == billed_to:
                seconds, samples = seconds + found["seconds"], samples + size * _seen(source, training)
    return {"seconds": seconds, "samples": samples}


def bill(folder: str | Path, network, source, training: Training, epochs: int, *, where: str = "local") -> dict:
    """Make what is missing of a bank of experts: what it cost, 'id', 'seconds' and 'samples', kept in `bill-<id>.safetensors` beside them.

    Epochs that another bank shares with it and made before are on that one's bill. Workers wait for each other. Raises InputError on a
    bill that does not match its digest; those from before, `<id>.json`, have none.
    """
    inputs = {"training": training.spec(), "epochs": epochs, "network": network.spec()}
    inputs |= {"kind": type(training.optimizer).__name__, "transform": store.transform_digest(source.transform)}
    key = store.identity("bank", VERSION, inputs, source.digest)
    asked, path = (folder, network, source, training, epochs), Path(folder) / f"bill-{key}.safetensors"
    before = Path(folder) / f"{key}.json"
    with lock(path.with_suffix(".lock"), wait=True):
        if any(left for _, left in _left(*asked)) or not (path.exists() or before.exists()):
            make(*asked, where=where, billed_to=key, log=print)
            store.save_tensors(path, {}, {"id": key} | spent(*asked, key))
    return store.load_tensors(path)[1] if path.exists() else store.read_json(before)


def _left(folder: str | Path, network, source, training: Training, epochs: int) -> list[tuple[int, int]]:
    """For each chunk the number of its experts, and of its snapshots that are not stored."""
    return [(size, max(epochs + 1 - _stored(path), 0)) for _, size, _, path in _chunks(folder, network, source, training)]


def _seconds_a_step(network, params: Params, source, training: Training) -> float:
    """From one and three steps, so that what happens once an epoch does not count; the first call warms up, and captures graphs."""
    params = {name: value.to(source.device) for name, value in params.items()}
    k, times = len(next(iter(params.values()))), []
    for steps in (2 * WORTH if source.device.type == "cuda" else 1, 1, 3):
        began = time.monotonic()
        trained = training.train(network, params, source, 0, 0, generator=generator(0, "cost"), steps=steps, chunk=k)
        float(next(iter(trained.values())).flatten()[0])  # waits for the device
        times.append(time.monotonic() - began)
    return max(times[-1] - times[-2], times[-1] / 10) / 2


def _seen(source, training: Training) -> int:
    """Images of an epoch."""
    return len(source) // training.batch * training.batch if training.views else len(source)


def _check_source(network, source, training: Training) -> None:
    """Refuse targets that the loss would take for something else."""
    if training.loss == "squared error":
        check_targets(source.targets, source, network.classes)
    elif training.views and not 2 <= training.batch <= len(source):
        raise InputError(f"batch: {training.batch} of {len(source)} images; accepted: 2 or more, which are compared, and at most all")
    elif not training.views and source.targets.is_floating_point():
        raise InputError(f"loss: {training.loss!r} with real-valued targets; accepted: 'squared error'")


def _chunk(source, training: Training) -> int:
    shapes = min(training.batch, len(source)), source.shape, source.device
    return min(training.chunk, training.experts) if training.chunk else networks_at_once(training.experts, *shapes)


def _chunks(folder: str | Path, network, source, training: Training) -> list[tuple[int, int, dict, Path]]:
    """First expert, number of experts, card, which identifies them as JSON gives it back, and artifact of each chunk."""
    names = "batch", "augmentation", "seed", "loss", "views", "precision"
    shared = {name: value for name, value in training.spec().items() if name in names}
    shared |= {"network": network.spec(), "optimizer": {"name": type(training.optimizer).__name__, **asdict(training.optimizer)}}
    size, chunks = _chunk(source, training), []
    for first in range(0, training.experts, size):
        n = min(size, training.experts - first)
        inputs = shared | {"preprocessing": store.transform_digest(source.transform), "experts": [first, n]}
        card = json.loads(store.canonical({"producer": "experts", "version": VERSION, "inputs": inputs, "data set": source.digest}))
        key = store.identity("experts", VERSION, card["inputs"], source.digest)
        chunks.append((first, n, card, Path(folder) / f"experts-{key}"))
    return chunks


def _file(path: Path, epoch: int) -> Path:
    return path / f"{epoch:03d}.safetensors"


def _stored(path: Path) -> int:
    """How many snapshots are there without a gap."""
    return next(n for n in count() if not _file(path, n).exists())


def _write(path: Path, epoch: int, params: Params, momentum: list[Tensor], card: dict) -> None:
    tensors = {f"weights.{name}": value for name, value in params.items()}
    tensors |= {f"momentum.{i:03d}": value for i, value in enumerate(momentum)}
    # the order of the names is the order of sums over all weights: it must be the same after reading
    store.save_tensors(_file(path, epoch), tensors, card | {"epoch": epoch, "names": list(params)})


def _read(path: Path, epoch: int, card: dict, device) -> tuple[Params, list[Tensor]]:
    tensors, found = store.load_tensors(_file(path, epoch))
    for name, value in {**card, **card["inputs"], "epoch": epoch}.items():
        if name != "inputs" and (theirs := {**found, **found.get("inputs", {})}.get(name)) != value:
            other = f"{name} differs: {theirs} instead of {value}"
            raise InputError(f"{_file(path, epoch)} is of other experts, {other}; accepted: those asked for")
    params = {name: tensors[f"weights.{name}"].to(device) for name in found["names"]}
    return params, [tensors[name].to(device) for name in sorted(tensors) if name.startswith("momentum.")]
