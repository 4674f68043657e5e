r"""Self-supervised teachers: encoders under a projector, trained by one of two losses.

Sources: MKDT (arXiv 2410.02116) takes the embeddings of a teacher trained without labels as regression targets. The teacher is a
ResNet-18 trained by Barlow Twins (2103.03230) or SimCLR (2002.05709); optimizer, rates, projector and views are those of Mixed Barlow
Twins (2312.02151) for CIFAR, without its mixed term.

$$L_{BT} = \sum_i (1 - F_{ii})^2 + \lambda \sum_i \sum_{j \ne i} F_{ij}^2, \qquad
L_{SimCLR} = -\frac{1}{2B} \sum_a \log \frac{e^{s(a, a^+) / \tau}}{\sum_{c \ne a} e^{s(a, c) / \tau}}$$

with $F$ the correlation, over the batch, of each output of the first view with each of the second, $s$ the cosine, and $a$ running over
both views of all images. The losses, with their slow references, are in `training.contrastive`.
"""

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from distillery import store
from distillery.checks import InputError, RunFailed, check_choice, check_positive, check_positive_int
from distillery.data import ImageSet
from distillery.lock import lock
from distillery.matching.step import prefixed, under
from distillery.networks import ModuleNetwork, Output, Params, pool, trainable
from distillery.networks.encoder import Encoder, head_names
from distillery.networks.precision import unwrapped
from distillery.seeds import generator
from distillery.training import train
from distillery.training.contrastive import barlow_twins, simclr
from distillery.training.optimizers import Adam
from distillery.training.views import TwoViews, Views

VERSION = 1  # of everything that decides a teacher's weights; raise it when a change makes stored ones stale
LOSSES = ("barlow-twins", "simclr")


def resnet18(shape: tuple[int, int, int], width: float = 1.0, classes: int = 1) -> pool.PoolNetwork:
    """The teacher's ResNet-18: 3x3 stem padded by 1, BatchNorm, no max pool, 512 x `width` features; `embed` leaves its classifier out."""
    return pool.build("ResNet18", shape, classes, width, "batch")


def projector(loss: str, features: int, width: int) -> ModuleNetwork:
    """The layers between an encoder and its loss, thrown away after training: features -> features -> width.

    'barlow-twins': linear, BatchNorm, ReLU, linear (Mixed Barlow Twins: 512 -> 512 -> 1024). 'simclr': the same with BatchNorm behind the
    second layer too (MKDT, Table 6: width 128). Linear layers before a BatchNorm have no bias.
    """
    check_choice("loss", loss, LOSSES)
    check_positive_int("width", width)

    def build() -> nn.Module:
        layers = [nn.Linear(features, features, bias=False), nn.BatchNorm1d(features), nn.ReLU()]
        closing = [nn.BatchNorm1d(width)] if loss == "simclr" else []
        return nn.Sequential(*layers, nn.Linear(features, width, bias=not closing), *closing)

    return ModuleNetwork(build, f"projector of {loss}")


class Projected:
    """An encoder without its classifier under a projector, behind the interface of `networks`, for images in two views.

    `apply` takes (K, 2B, C, H, W), all first views before all second ones. The two halves go through one after the other, so that
    BatchNorm normalizes each by its own statistics.
    """

    def __init__(self, encoder, head: ModuleNetwork):
        self.encoder, self.head, self.name = encoder, head, f"{encoder.name} under {head.name}"
        self.classes, self.channels = head.classes, encoder.channels
        weights = encoder.init(Generator(), 1)
        self.classifier = {name: weights[name].shape[1:] for name in head_names(encoder)}

    def init(self, generator: Generator, k: int = 1) -> Params:
        encoder = {n: v for n, v in self.encoder.init(generator, k).items() if n not in self.classifier}
        return prefixed(encoder, "encoder.") | prefixed(self.head.init(generator, k), "projector.")

    def apply(self, params: Params, images: Tensor, train: bool = True) -> Output:
        encoder, head = self.classified(under(params, "encoder.")), under(params, "projector.")
        seen = []
        for view in images.chunk(2, -4):
            inner = self.encoder.apply(encoder, view, train)
            outer = self.head.apply(head, inner.embedding, train)
            encoder, head = encoder | inner.buffers, head | outer.buffers
            seen.append((outer.logits, inner.embedding))
        buffers = prefixed(inner.buffers, "encoder.") | prefixed(outer.buffers, "projector.")
        return Output(*(torch.cat(both, 1) for both in zip(*seen)), buffers)

    def classified(self, encoder: Params) -> Params:
        """With a classifier of zeros, which the encoder's `apply` asks for."""
        like = next(iter(encoder.values()))
        return encoder | {n: like.new_zeros(len(like), *shape) for n, shape in self.classifier.items()}


@dataclass(frozen=True)
class Cosine(Adam):
    """Adam whose rate rises linearly from 0 over `warmup` steps, then falls by a cosine to `floor` times its peak `lr`."""

    warmup: int = 0
    steps: int = 1
    floor: float = 1e-3

    def rate(self, step: int) -> float:
        if step < self.warmup:
            return self.lr * step / self.warmup
        share = (1 + math.cos(math.pi * (step - self.warmup) / (self.steps - self.warmup))) / 2
        return self.lr * (share + self.floor * (1 - share))


@dataclass(frozen=True)
class TeacherTraining:
    """How a teacher is trained; the defaults are those of Mixed Barlow Twins for CIFAR, without its mixed term."""

    loss: str = "barlow-twins"  # one of LOSSES
    epochs: int = 2000  # with them the rate's cosine ends
    batch: int = 256
    lr: float = 0.01  # peak of the rate (Mixed Barlow Twins: .01 * batch / 256)
    warmup: int = 10  # epochs of rising rate, fewer than `epochs`
    weight_decay: float = 1e-6
    width: int = 1024  # outputs of the projector
    lam: float = 1 / 128  # of Barlow Twins; 1/1024 on Tiny ImageNet
    temperature: float = 0.5  # of SimCLR
    views: Views = Views()
    seed: int = 0

    def __post_init__(self):
        check_choice("loss", self.loss, LOSSES)
        for name in ("epochs", "batch", "width"):
            check_positive_int(name, getattr(self, name))
        for name in ("lr", "lam", "temperature"):
            check_positive(name, getattr(self, name))
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise InputError(f"weight_decay: {self.weight_decay!r} is not accepted; accepted: a number, 0 or more")
        if self.batch < 2:
            raise InputError(f"batch: {self.batch} is not accepted; accepted: 2 images or more, which are compared")
        if not isinstance(self.warmup, int) or not 0 <= self.warmup < self.epochs:
            raise InputError(f"warmup: {self.warmup!r} of {self.epochs} epochs; accepted: a whole number from 0 to {self.epochs - 1}")

    def optimizer(self, n: int) -> Cosine:
        """For a set of n images, of which every epoch leaves out those that fill no batch."""
        steps = n // self.batch
        return Cosine(self.lr, weight_decay=self.weight_decay, warmup=self.warmup * steps, steps=self.epochs * steps)

    def objective(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss of `training` for outputs (K, 2B, D) of `Projected`: (K,)."""
        views = (output if output.dtype == torch.float64 else output.float()).chunk(2, 1)
        return barlow_twins(*views, self.lam) if self.loss == "barlow-twins" else simclr(*views, self.temperature)


SIMCLR = TeacherTraining("simclr", epochs=400, batch=512, lr=1e-3, width=128)  # MKDT, Table 6; its warm-up is not stated


@dataclass(frozen=True, eq=False)
class Teacher(Encoder):
    """An encoder trained by `train_teacher`."""

    losses: Tensor | None = None  # (epochs,) mean loss of the batches of each epoch
    seconds: float = 0.0  # of training, over all restarts


def train_teacher(folder: str | Path, network, images: ImageSet, recipe: TeacherTraining) -> Teacher:
    """Train an encoder without labels, or go on where an earlier call was cut off, or read what it finished.

    A checkpoint `teacher-<id>` in `folder` is replaced after every epoch; the id says which network, recipe and images. On a CPU a
    teacher that was killed and went on equals, bit for bit, one that was not.

    network  the encoder, of `resnet18` or any network with `embed`; `MixedPrecision(network, "bfloat16")` trains in low precision
    images   on the device to train on
    raises   InputError on fewer images than a batch; RunFailed where the loss or a weight becomes NaN or
             infinite, with the last checkpoint kept
    """
    projected, params = _start(network, images, recipe)
    card = _card(network, images, recipe)
    path = Path(folder) / f"teacher-{store.identity('teacher', VERSION, card['inputs'], card['data set'])}.safetensors"
    momentum, losses, seconds = [], [], 0.0
    with lock(path.with_suffix(".lock"), wait=True):
        if path.exists():
            params, momentum, losses, seconds = _read(path, card, images.device)
        began, epoch, batch_losses = time.monotonic() - seconds, len(losses), []

        def loss(output: Tensor, target: Tensor) -> Tensor:
            value = recipe.objective(output, target)
            batch_losses.append(value.detach())
            return value

        def keep(epoch: int, weights: Params, momentum: list[Tensor]) -> None:
            mean = float(torch.cat(batch_losses).mean())
            batch_losses.clear()
            broken = [name for name, value in trainable(weights).items() if not bool(value.isfinite().all())]
            if not math.isfinite(mean) or broken:
                found = f"loss {mean} in epoch {epoch}, {len(broken)} tensors of weights not finite"
                raise RunFailed(f"teacher: {found}; accepted: finite ones, by a lower rate or a longer warm-up")
            losses.append(mean)
            _write(path, card | {"seconds": time.monotonic() - began}, weights, momentum, losses)

        if epoch < recipe.epochs:
            params = _trained(projected, params, images, recipe, epoch, loss, done=(epoch, momentum), after_epoch=keep)
            seconds = time.monotonic() - began
    plain = unwrapped(network)
    return Teacher(plain, under(params, "encoder."), f"teacher by {recipe.loss}", torch.tensor(losses), seconds)


def _trained(projected: Projected, params: Params, images: ImageSet, recipe: TeacherTraining, epoch: int, loss, **options) -> Params:
    """Weights trained to the end of a recipe, from `epoch` on. `options` are those of `train`."""
    source = TwoViews(images, recipe.views, recipe.seed, epoch * (len(images) // recipe.batch))
    options |= {"generator": generator(recipe.seed, "teacher training"), "whole_batches": True}
    optimizer = recipe.optimizer(len(images))
    return train(projected, params, source, loss, optimizer, epochs=recipe.epochs, batch=recipe.batch, **options)[0]


def _start(network, images: ImageSet, recipe: TeacherTraining, k: int = 1) -> tuple[Projected, Params]:
    """An encoder under the projector of a recipe, as wide as its embeddings, and k draws of their weights."""
    with torch.no_grad():
        embedding = network.embed(network.init(Generator(), 1), torch.zeros(1, 1, *images.shape), train=False)
    projected = Projected(network, projector(recipe.loss, embedding.shape[-1], recipe.width))
    drawn = projected.init(generator(recipe.seed, "teacher"), k)
    return projected, {name: value.to(images.device) for name, value in drawn.items()}


def pretrain(network, images: ImageSet, recipe: TeacherTraining, k: int = 1) -> Params:
    """`train_teacher` for k encoders at once, without a file: weights (k, ...) with classifiers of zero. Raises InputError as it does."""
    projected, start = _start(network, images, recipe, k)
    params = _trained(projected, start, images, recipe, 0, recipe.objective, chunk=k)
    return projected.classified(under(params, "encoder."))


def untrained(network, images: ImageSet, recipe: TeacherTraining) -> Encoder:
    """The encoder that `train_teacher` starts from: random weights, BatchNorm's statistics 0 and 1."""
    plain = unwrapped(network)
    return Encoder(plain, under(_start(plain, images, recipe)[1], "encoder."), "random encoder")


def _card(network, images: ImageSet, recipe: TeacherTraining) -> dict:
    inputs = {"network": network.spec(), "recipe": asdict(recipe), "preprocessing": _preprocessing(images)}
    return json.loads(store.canonical({"kind": "teacher", "version": VERSION, "inputs": inputs, "data set": images.digest}))


def _preprocessing(images: ImageSet) -> str | None:
    return store.tensor_digest(vars(images.transform)) if images.transform else None


def _write(path: Path, card: dict, params: Params, momentum: list[Tensor], losses: list[float]) -> None:
    tensors = {f"weights.{name}": value for name, value in params.items()}
    tensors |= {f"momentum.{i:04d}": value for i, value in enumerate(momentum)}
    tensors["losses"] = torch.tensor(losses, dtype=torch.float64)
    # the order of the names is the order of the momentum: it must be the same after reading
    store.save_tensors(path, tensors, card | {"names": list(params)})


def _read(path: Path, card: dict, device) -> tuple[Params, list[Tensor], list[float], float]:
    tensors, found = store.load_tensors(path)
    if {key: found.get(key) for key in card} != card:
        raise InputError(f"{path} is of another teacher; accepted: the checkpoint as saved, or none")
    params = {name: tensors[f"weights.{name}"].to(device) for name in found["names"]}
    momentum = [tensors[name].to(device) for name in sorted(tensors) if name.startswith("momentum.")]
    return params, momentum, tensors["losses"].tolist(), found["seconds"]
