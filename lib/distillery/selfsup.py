r"""Self-supervised teachers: two losses, their training, the targets they give, and their quality.

Sources: MKDT (arXiv 2410.02116) takes the embeddings of a teacher trained without labels as regression targets. The teacher
is a ResNet-18 trained by Barlow Twins (2103.03230) or SimCLR (2002.05709); optimizer, rates, projector and views are those
of Mixed Barlow Twins (2312.02151) for CIFAR, without its mixed term.

$$L_{BT} = \sum_i (1 - F_{ii})^2 + \lambda \sum_i \sum_{j \ne i} F_{ij}^2, \qquad
L_{SimCLR} = -\frac{1}{2B} \sum_a \log \frac{e^{s(a, a^+) / \tau}}{\sum_{c \ne a} e^{s(a, c) / \tau}}$$

with $F$ the correlation, over the batch, of each output of the first view with each of the second, $s$ the cosine, and $a$
running over both views of all images. Slow references: `barlow_twins_plain`, `simclr_plain`, `nearest_plain`.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from distillery import architectures, store
from distillery.augment import Views, two_views
from distillery.checks import InputError, Stopped, check_choice, check_finite, check_positive_int
from distillery.data import ImageSet
from distillery.encoders import Encoder, head_names
from distillery.evaluation import embed, linear_probe
from distillery.fast import Fast, images_at_once, tensor_cores
from distillery.networks import ModuleNetwork, Output, Params, trainable
from distillery.optimizers import Adam
from distillery.seeds import generator
from distillery.training import train

VERSION = 1  # of everything that decides a teacher's weights; raise it when a change makes stored ones stale
LOSSES = ("barlow-twins", "simclr")
CONSTANT = 1e-12  # variance of a projector's output below which it counts as constant
COLLAPSED = 1e-2  # relative deviation of features below which an encoder tells images hardly apart


# Losses of two views: (..., B, D) each -> (...)


def barlow_twins(z_a: Tensor, z_b: Tensor, lam: float = 1 / 128) -> Tensor:
    """Distance of the correlation of two views' outputs from the identity, summed over pairs of outputs.

    Deviations are those of the batch itself (divided by B, not B - 1), so that equal views of uncorrelated outputs give 0.
    An output without deviation correlates with nothing. Slow reference: `barlow_twins_plain`.

    z_a, z_b  (..., B, D) outputs of the projector
    lam       weight of the pairs of different outputs (CIFAR 1/128, Tiny ImageNet 1/1024)
    raises    InputError on shapes that differ, fewer than 2 images, or a weight that is not positive
    """
    _check_views(z_a, z_b)
    _check_positive("lam", lam)
    a, b = (z - z.mean(-2, keepdim=True) for z in (z_a, z_b))
    a, b = (z * z.square().mean(-2, keepdim=True).clamp_min(CONSTANT).rsqrt() for z in (a, b))
    correlation = a.mT @ b / z_a.shape[-2]  # (..., D, D)
    same = correlation.diagonal(dim1=-2, dim2=-1)  # (..., D)
    other = correlation - torch.diag_embed(same)
    return (1 - same).square().sum(-1) + lam * other.square().sum((-2, -1))


def barlow_twins_plain(z_a: Tensor, z_b: Tensor, lam: float = 1 / 128) -> Tensor:
    """One batch, output by output."""
    loss = torch.zeros((), dtype=z_a.dtype)
    for i, x in enumerate(z_a.T):
        for j, y in enumerate(z_b.T):
            spread = x.std(correction=0) * y.std(correction=0)
            correlation = ((x - x.mean()) * (y - y.mean())).mean() / spread if spread > 0 else spread
            loss = loss + ((1 - correlation) ** 2 if i == j else lam * correlation**2)
    return loss


def simclr(z_a: Tensor, z_b: Tensor, temperature: float = 0.5) -> Tensor:
    """Cross-entropy in nats of finding an image's other view among all 2B - 1 others, by cosine: mean over the 2B views.

    Slow reference: `simclr_plain`.

    z_a, z_b     (..., B, D) outputs of the projector
    temperature  tau
    raises       InputError on shapes that differ, fewer than 2 images, or a temperature that is not positive
    """
    _check_views(z_a, z_b)
    _check_positive("temperature", temperature)
    z = F.normalize(torch.cat([z_a, z_b], -2), dim=-1)  # (..., 2B, D)
    cosine = z @ z.mT / temperature  # (..., 2B, 2B)
    n = z.shape[-2]
    itself = torch.eye(n, dtype=torch.bool, device=z.device)
    positive = cosine.roll(n // 2, -1).diagonal(dim1=-2, dim2=-1)  # (..., 2B)
    return (cosine.masked_fill(itself, -math.inf).logsumexp(-1) - positive).mean(-1)


def two_views_apart(output: Tensor, target: Tensor) -> Tensor:
    """`simclr` for outputs (K, 2B, D), all first views before all second ones: (K,), a loss of `training`."""
    return simclr(*output.chunk(2, 1))


def simclr_plain(z_a: Tensor, z_b: Tensor, temperature: float = 0.5) -> Tensor:
    """One batch, view by view."""
    z, n = torch.cat([z_a, z_b]), len(z_a)
    losses = []
    for a in range(2 * n):
        cosine = [torch.dot(z[a], z[c]) / (z[a].norm() * z[c].norm()) / temperature for c in range(2 * n)]
        others = sum(cosine[c].exp() for c in range(2 * n) if c != a)
        losses.append(-(cosine[(a + n) % (2 * n)].exp() / others).log())
    return torch.stack(losses).mean()


def _check_views(z_a: Tensor, z_b: Tensor) -> None:
    if z_a.shape != z_b.shape or z_a.ndim < 2 or z_a.shape[-2] < 2:
        raise InputError(
            f"views: outputs {tuple(z_a.shape)} and {tuple(z_b.shape)}; accepted: equal shapes (.., B, D) of 2 images or more"
        )


def _check_positive(name: str, value: float) -> None:
    if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise InputError(f"{name}: {value!r} is not accepted; accepted: a positive number")


# Networks and sources of two views


def resnet18(shape: tuple[int, int, int], width: float = 1.0, classes: int = 1) -> architectures.PoolNetwork:
    """The teacher's ResNet-18 with BatchNorm: 3x3 stem padded by 1, no max pool, average over the map; 512 x `width` features.

    classes  of the classifier that `embed` leaves out, for downstream use
    """
    return architectures.build("ResNet18", shape, classes, width, "batch")


def projector(loss: str, features: int, width: int) -> ModuleNetwork:
    """The layers between an encoder and its loss, thrown away after training: features -> features -> width.

    'barlow-twins': linear, BatchNorm, ReLU, linear (Mixed Barlow Twins: 512 -> 512 -> 1024). 'simclr': the same with
    BatchNorm behind the second layer too (MKDT, Table 6: width 128). Linear layers before a BatchNorm have no bias.
    """
    check_choice("loss", loss, LOSSES)
    check_positive_int("width", width)
    closing = loss == "simclr"

    def build() -> nn.Module:
        layers = [nn.Linear(features, features, bias=False), nn.BatchNorm1d(features), nn.ReLU()]
        layers += [nn.Linear(features, width, bias=not closing)]
        return nn.Sequential(*layers, *([nn.BatchNorm1d(width)] if closing else []))

    return ModuleNetwork(build, f"projector of {loss}")


class Projected:
    """An encoder under a projector, behind the interface of `networks`, for images in two views.

    `apply` takes (K, 2B, C, H, W), all first views before all second ones. The two halves go through one after the other,
    so that BatchNorm normalizes each by its own statistics. The encoder's classifier is no part of it.
    """

    def __init__(self, encoder, head: ModuleNetwork):
        self.encoder, self.head = encoder, head
        self.name = f"{encoder.name} under {head.name}"
        self.classes, self.channels = head.classes, encoder.channels
        sizes = {name: value.shape[1:] for name, value in encoder.init(Generator(), 1).items()}
        self.classifier = {name: sizes[name] for name in head_names(encoder)}

    def spec(self) -> dict:
        return {"encoder": self.encoder.spec(), "projector": self.head.spec()}

    def init(self, generator: Generator, k: int = 1) -> Params:
        encoder = {n: v for n, v in self.encoder.init(generator, k).items() if n not in self.classifier}
        return _prefixed("encoder", encoder) | _prefixed("projector", self.head.init(generator, k))

    def apply(self, params: Params, images: Tensor, train: bool = True) -> Output:
        encoder, head = self.classified(_under("encoder", params)), _under("projector", params)
        logits, embeddings, buffers = [], [], {}
        for view in images.chunk(2, -4):
            inner = self.encoder.apply(encoder, view, train)
            outer = self.head.apply(head, inner.embedding, train)
            encoder, head = encoder | inner.buffers, head | outer.buffers
            buffers = _prefixed("encoder", inner.buffers) | _prefixed("projector", outer.buffers)
            logits.append(outer.logits)
            embeddings.append(inner.embedding)
        return Output(torch.cat(logits, 1), torch.cat(embeddings, 1), buffers)

    def classified(self, encoder: Params) -> Params:
        """With a classifier of zeros, which the encoder's `apply` asks for."""
        like = next(iter(encoder.values()))
        return encoder | {n: like.new_zeros(len(like), *shape) for n, shape in self.classifier.items()}


def _prefixed(prefix: str, params: Params) -> Params:
    return {f"{prefix}.{name}": value for name, value in params.items()}


def _under(prefix: str, params: Params) -> Params:
    start = prefix + "."
    return {name.removeprefix(start): value for name, value in params.items() if name.startswith(start)}


class TwoViews:
    """Images as two fresh random views of each: what a teacher is trained on. Labels are passed on and never looked at.

    The views of a training step come from a generator of their own, keyed by the number of the step, so that training goes
    on anywhere with the views it would have met. Each `batch` is one step.

    numbers  of the K networks that train together, where each shall meet the views that it would meet alone; None = one draw
             for all
    """

    def __init__(
        self, images: ImageSet, views: Views, seed: int, step: int = 0, numbers: Sequence[int] | None = None
    ):
        self.images, self.pixels = images, replace(images, transform=None)
        self.views, self.seed, self.step, self.numbers = views, seed, step, numbers
        self.shape, self.targets = images.shape, images.targets

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor) -> Tensor:
        """Images at `indices` (K, B), standardized after the augmentation: (K, 2B, C, H, W)."""
        pixels, step = self.pixels.batch(indices), self.step
        self.step += 1
        if self.numbers is None:
            views = two_views(pixels, self.views, generator(self.seed, "views", step))
        else:
            streams = [generator(self.seed, "views", step, number) for number in self.numbers]
            views = torch.cat([two_views(pixels[i : i + 1], self.views, s) for i, s in enumerate(streams)])
        return self.images.transform(views) if self.images.transform else views


# Training


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
class Recipe:
    """How a teacher is trained; the defaults are those of Mixed Barlow Twins for CIFAR, without its mixed term.

    loss         one of LOSSES
    epochs       the rate's cosine ends with them
    lr           peak of the rate (Mixed Barlow Twins: .01 * batch / 256)
    warmup       epochs of rising rate, fewer than `epochs`
    width        outputs of the projector
    lam          of Barlow Twins; 1/1024 on Tiny ImageNet
    temperature  of SimCLR
    """

    loss: str = "barlow-twins"
    epochs: int = 2000
    batch: int = 256
    lr: float = 0.01
    warmup: int = 10
    weight_decay: float = 1e-6
    width: int = 1024
    lam: float = 1 / 128
    temperature: float = 0.5
    views: Views = Views()
    seed: int = 0

    def __post_init__(self):
        check_choice("loss", self.loss, LOSSES)
        for name in ("epochs", "batch", "width"):
            check_positive_int(name, getattr(self, name))
        for name in ("lr", "lam", "temperature"):
            _check_positive(name, getattr(self, name))
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise InputError(
                f"weight_decay: {self.weight_decay!r} is not accepted; accepted: a number, 0 or more"
            )
        if self.batch < 2:
            raise InputError(
                f"batch: {self.batch} is not accepted; accepted: 2 images or more, which are compared"
            )
        if not isinstance(self.warmup, int) or not 0 <= self.warmup < self.epochs:
            raise InputError(
                f"warmup: {self.warmup!r} of {self.epochs} epochs; accepted: a whole number from 0 to {self.epochs - 1}"
            )

    def optimizer(self, n: int) -> Cosine:
        """For a set of n images, of which every epoch leaves out those that fill no batch."""
        steps = n // self.batch
        return Cosine(
            self.lr, weight_decay=self.weight_decay, warmup=self.warmup * steps, steps=self.epochs * steps
        )

    def objective(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss of `training` for outputs (K, 2B, D) of `Projected`: (K,)."""
        views = (output if output.dtype == torch.float64 else output.float()).chunk(2, 1)
        return (
            barlow_twins(*views, self.lam)
            if self.loss == "barlow-twins"
            else simclr(*views, self.temperature)
        )


SIMCLR = Recipe(
    "simclr", epochs=400, batch=512, lr=1e-3, width=128
)  # MKDT, Table 6; its warm-up is not stated


@dataclass(frozen=True, eq=False)
class Teacher(Encoder):
    """An encoder trained by `train_teacher`.

    losses  (epochs,) mean loss of the batches of each epoch
    seconds of training, over all restarts
    """

    recipe: Recipe = Recipe()
    losses: Tensor | None = None
    seconds: float = 0.0


def train_teacher(
    folder: str | Path,
    network,
    images: ImageSet,
    recipe: Recipe,
    log: Callable[[str], None] | None = None,
) -> Teacher:
    """Train an encoder without labels, or go on where an earlier call was cut off, or read what it finished.

    A checkpoint `teacher-<id>` in `folder` is replaced after every epoch; the id says which network, recipe and images.
    On a CPU a teacher that was killed and went on equals, bit for bit, one that was not.

    network  the encoder, of `resnet18` or any network with `embed`; `Fast(network, "bfloat16")` trains in low precision
    images   on the device to train on
    log      told the mean loss after each epoch
    raises   InputError on an encoder without `embed`, or fewer images than a batch; Stopped where the loss or a weight
             becomes NaN or infinite, with the last checkpoint kept
    """
    check_encoder(network)
    if len(images) < recipe.batch:
        raise InputError(
            f"batch: {recipe.batch} of {len(images)} images; accepted: at most as many as there are"
        )
    card = _card(network, images, recipe)
    path = (
        Path(folder)
        / f"teacher-{store.identity('teacher', VERSION, card['inputs'], card['data set'])}.safetensors"
    )
    projected = Projected(network, projector(recipe.loss, _features(network, images.shape), recipe.width))
    with store.lock(path.with_suffix(".lock"), wait=True):
        if path.exists():
            params, momentum, losses, seconds = _read(path, card, images.device)
        else:
            params, momentum, losses, seconds = _start(projected, recipe, images.device), [], [], 0.0
        if len(losses) < recipe.epochs:
            params, seconds = _go_on(
                projected, params, momentum, losses, seconds, images, recipe, path, card, log
            )
    weights = _under("encoder", params)
    plain = network.network if isinstance(network, Fast) else network
    return Teacher(plain, weights, f"teacher by {recipe.loss}", recipe, torch.tensor(losses), seconds)


def _go_on(projected, params, momentum, losses, seconds, images, recipe, path, card, log):
    """Train to the end: the weights and the seconds in all; `losses` grows by one number an epoch."""
    under_way: list[Tensor] = []
    began, epoch = time.monotonic() - seconds, len(losses)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        value = recipe.objective(output, target)
        under_way.append(value.detach())
        return value

    def keep(epoch: int, weights: Params, momentum: list[Tensor]) -> None:
        mean = float(torch.cat(under_way).mean())
        under_way.clear()
        broken = [name for name, value in trainable(weights).items() if not bool(value.isfinite().all())]
        if not math.isfinite(mean) or broken:
            raise Stopped(
                f"teacher: loss {mean} in epoch {epoch}, {len(broken)} tensors of weights not finite; "
                "accepted: finite ones, by a lower rate or a longer warm-up"
            )
        losses.append(mean)
        _write(path, card | {"seconds": time.monotonic() - began}, weights, momentum, losses)
        if log:
            log(f"teacher, epoch {epoch} of {recipe.epochs}: mean loss {mean:.4g}")

    steps = len(images) // recipe.batch
    params, _ = train(
        projected, params, TwoViews(images, recipe.views, recipe.seed, epoch * steps), loss, recipe.optimizer(len(images)),
        generator=generator(recipe.seed, "teacher training"), epochs=recipe.epochs, batch=recipe.batch, whole_batches=True,
        done=(epoch, momentum), after_epoch=keep,
    )  # fmt: skip
    return params, time.monotonic() - began


def _start(projected: Projected, recipe: Recipe, device, k: int = 1) -> Params:
    return {n: v.to(device) for n, v in projected.init(generator(recipe.seed, "teacher"), k).items()}


def pretrain(network, images: ImageSet, recipe: Recipe, k: int = 1) -> Params:
    """What `train_teacher` does for k encoders at once, and without a file: their weights with classifiers of zero, leading axis k.

    raises  InputError on an encoder without `embed`, and fewer images than a batch
    """
    check_encoder(network)
    projected = Projected(network, projector(recipe.loss, _features(network, images.shape), recipe.width))
    source = TwoViews(images, recipe.views, recipe.seed)
    params, _ = train(
        projected, _start(projected, recipe, images.device, k), source, recipe.objective, recipe.optimizer(len(images)),
        generator=generator(recipe.seed, "teacher training"), epochs=recipe.epochs, batch=recipe.batch, whole_batches=True,
        chunk=k,
    )  # fmt: skip
    return projected.classified(_under("encoder", params))


def untrained(network, images: ImageSet, recipe: Recipe) -> Encoder:
    """The encoder that `train_teacher` starts from: random weights, BatchNorm's statistics 0 and 1."""
    check_encoder(network)
    plain = network.network if isinstance(network, Fast) else network
    projected = Projected(plain, projector(recipe.loss, _features(plain, images.shape), recipe.width))
    return Encoder(plain, _under("encoder", _start(projected, recipe, images.device)), "random encoder")


def check_encoder(network) -> None:
    """Raise InputError unless a network gives embeddings."""
    if not callable(getattr(network, "embed", None)):
        name = getattr(network, "name", type(network).__name__)
        raise InputError(
            f"encoder: {name} has no embed; accepted: a network of distillery.networks or architectures"
        )


def _features(network, shape: tuple[int, ...]) -> int:
    """Width of the embedding."""
    with torch.no_grad():
        return network.embed(network.init(Generator(), 1), torch.zeros(1, 1, *shape), train=False).shape[-1]


def _card(network, images: ImageSet, recipe: Recipe) -> dict:
    inputs = {
        "network": network.spec(),
        "recipe": asdict(recipe),
        "preprocessing": _preprocessing(images),
    }
    return json.loads(
        store.canonical({"kind": "teacher", "version": VERSION, "inputs": inputs, "data set": images.digest})
    )


def _preprocessing(images: ImageSet) -> str | None:
    return store.tensor_digest(images.transform.tensors()) if images.transform else None


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


# Targets and quality


def targets(teacher: Encoder, images: ImageSet, path: str | Path | None = None) -> Tensor:
    """The teacher's embeddings of un-augmented images in evaluation mode, as they are: (N, D) float32 on the images' device.

    path    where they are stored with the digests of images and teacher; read from there if the file exists
    raises  InputError if the file holds targets of other images, preprocessing or teacher, if a target is NaN or infinite,
            and if the teacher is collapsed
    """
    check_encoder(teacher.network)
    card = {
        "kind": "targets",
        "data set": images.digest,
        "preprocessing": _preprocessing(images),
        "teacher": teacher.digest,
    }
    if path is not None and Path(path).exists():
        tensors, found = store.load_tensors(path)
        for key, value in card.items():
            theirs = found.get(key) if isinstance(found, dict) else None
            if theirs != value:
                raise InputError(
                    f"{path}: targets of another {key}, {str(theirs)[:12]}; accepted: those of {str(value)[:12]}, or no file"
                )
        return check_targets(tensors["targets"], images).to(images.device)
    found = _embedded(teacher, images)
    check_collapse(found, teacher.name)
    if path is not None:
        store.save_tensors(path, {"targets": found}, card)
    return found


def check_targets(found: Tensor, images, width: int = 0) -> Tensor:
    """The targets themselves; raises InputError unless they are finite, one row for each image, and of `width` (0 = any)."""
    if found.ndim != 2 or len(found) != len(images) or (width and found.shape[1] != width):
        raise InputError(
            f"targets: {tuple(found.shape)} for {len(images)} images; accepted: ({len(images)}, {width or 'D'})"
        )
    if not found.is_floating_point():
        raise InputError(f"targets: {found.dtype}; accepted: real numbers")
    check_finite("targets", found)
    return found


def _embedded(encoder: Encoder, images: ImageSet) -> Tensor:
    """(N, D) float32, in full float32 on a GPU too."""
    encoder = encoder.to(images.device)
    with tensor_cores("float32"):
        chunk = images_at_once(encoder.network, images.shape, images.device)
        found = embed(encoder.network, encoder.params, images, chunk)[0].float()
    check_finite(f"embeddings of {encoder.name}", found)
    return found


def deviation(features: Tensor) -> float:
    """Share of the mean squared length of features (N, D) that is not that of their mean, as a root: 0 to 1, without unit."""
    features = features.double()
    spread = (features - features.mean(0)).square().sum()
    return float((spread / features.square().sum().clamp_min(torch.finfo(torch.float64).tiny)).sqrt())


def check_collapse(features: Tensor, name: str) -> float:
    """Their `deviation`; raises InputError where it is below COLLAPSED: the encoder maps all images to nearly one point."""
    found = deviation(features)
    if not found >= COLLAPSED:
        raise InputError(
            f"{name}: relative deviation of features {found:.2g}, collapsed; accepted: {COLLAPSED:g} or more"
        )
    return found


class Quality(NamedTuple):
    """What the features of an encoder are worth: accuracies as fractions, and their `deviation`."""

    knn: float
    probe: float
    deviation: float


def quality(
    encoder: Encoder, labelled: ImageSet, test: ImageSet, neighbours: int = 200, temperature: float = 0.5
) -> Quality:
    """Accuracy on `test` of the nearest neighbours among `labelled` images, and of a linear probe trained on them.

    neighbours, temperature  of `nearest`, at most all labelled images; Mixed Barlow Twins': 200 and .5, with 5000 images of a
                             class: fewer images need fewer neighbours
    raises                   InputError on a collapsed encoder, or one without `embed`
    """
    check_encoder(encoder.network)
    encoder = encoder.to(labelled.device)
    known, asked = _embedded(encoder, labelled), _embedded(encoder, test)
    found = check_collapse(known, encoder.name)
    predicted = nearest(known, labelled.targets, asked, min(neighbours, len(labelled)), temperature)
    knn = float((predicted == test.targets).double().mean())
    return Quality(knn, float(linear_probe(encoder.network, encoder.params, labelled, test)[0]), found)


def nearest(
    known: Tensor, labels: Tensor, asked: Tensor, neighbours: int, temperature: float = 0.5, chunk: int = 1000
) -> Tensor:
    """Classes (M,) of features by a vote of the `neighbours` of largest cosine, each with weight exp(cosine / temperature).

    known, labels  (N, D) and (N,) int64
    asked          (M, D)
    Source: public code of Mixed Barlow Twins. Slow reference: `nearest_plain`.
    """
    check_positive_int("neighbours", neighbours)
    if neighbours > len(known):
        raise InputError(
            f"neighbours: {neighbours} of {len(known)} images; accepted: at most as many as there are"
        )
    _check_positive("temperature", temperature)
    known, classes = F.normalize(known, dim=1), int(labels.max()) + 1
    found = []
    for part in F.normalize(asked, dim=1).split(chunk):
        cosine, at = (part @ known.T).topk(neighbours)  # (B, neighbours)
        votes = part.new_zeros(len(part), classes).scatter_add_(1, labels[at], (cosine / temperature).exp())
        found.append(votes.argmax(1))
    return torch.cat(found)


def nearest_plain(
    known: Tensor, labels: Tensor, asked: Tensor, neighbours: int, temperature: float
) -> Tensor:
    """One feature after another."""
    found = []
    for x in asked:
        cosine = [float(F.cosine_similarity(x, y, dim=0)) for y in known]
        votes: dict[int, float] = {}
        for i in sorted(range(len(known)), key=lambda i: -cosine[i])[:neighbours]:
            votes[int(labels[i])] = votes.get(int(labels[i]), 0.0) + math.exp(cosine[i] / temperature)
        found.append(max(votes, key=lambda label: votes[label]))
    return torch.tensor(found)


def gate(teacher: Quality, random: Quality, margin: float = 0.05) -> float:
    """The smaller of the teacher's two gains in accuracy over a random encoder.

    margin  both gains must reach it, a fraction
    raises  Stopped if one does not: such targets teach nothing
    """
    if not (math.isfinite(margin) and margin >= 0):
        raise InputError(f"margin: {margin!r} is not accepted; accepted: a fraction, 0 or more")
    for name in ("knn", "probe"):
        ours, theirs = getattr(teacher, name), getattr(random, name)
        if not ours - theirs >= margin:
            raise Stopped(
                f"teacher: {name} accuracy {ours:.3f}, a random encoder's {theirs:.3f}; accepted: {margin:g} above it or more"
            )
    return min(teacher.knn - random.knn, teacher.probe - random.probe)
