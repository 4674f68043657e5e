r"""IDC (arXiv 2205.14959): gradient matching of multi-formation images along networks that train on real data.

$$L = \sum_c \sum_{\mathrm{convolutions}} \| g_c^T - g_c^S \|_2^2 \quad\text{or}\quad \sum_c \sum_{\mathrm{convolutions}} \| g_c^T - g_c^S \|_1$$

with $g_c^T$ and $g_c^S$ the loss gradients on real and on decoded synthetic images of class c: a plain sum over the weights of all
convolutions, neither biases nor norms nor the classifier. A random network sees `inner` pixel updates; after each but the last it trains
on real images, with its momentum kept; then comes a new one. IDC-I is IDC without formation.

Our choices: one step for all classes (`matching.step.effective_rate`); real images of the network training are drawn anew for every
update, where the public code walks through its data; pixels are clamped after every update, published once a network; effects of real
images are those on the squared distance also where absolute differences are descended, because the derivative of an absolute difference
does not see how far a mean moves. Left out: IDC on ImageNet, which trains its networks (ResNetAP-10) before they are matched.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Generator, Tensor

from distillery.checks import InputError, check_choice, check_positive_int
from distillery.data import Standardize
from distillery.data.synthetic import FORMATIONS, Synthetic
from distillery.evaluation import Mixing
from distillery.matching.gradient import GradientMatching
from distillery.matching.step import StepContext, prefixed, train_on_real, under
from distillery.methods.base import ANY, register
from distillery.methods.matched import Formed, FormedSettings
from distillery.networks import Params, trainable
from distillery.seeds import split
from distillery.training.dsa import draw
from distillery.training.optimizers import SGD
from distillery.upload import to_device


def convolutions(params: Params) -> list[str]:
    """Names of the convolution weights: four axes a network."""
    return [n for n, value in trainable(params).items() if n.endswith(".weight") and value.ndim == 5]


def difference(of: Callable[[Tensor], Tensor], ours: dict[str, Tensor], real: dict[str, Tensor]) -> Tensor:
    """Squares or absolute values of differences of gradients (classes, ...), summed over all weights, (classes,) float."""
    return sum(of(a - real[name]).flatten(1).sum(1) for name, a in ours.items())


METRICS = {"mse": partial(difference, torch.square), "l1": partial(difference, torch.abs)}


@dataclass(frozen=True)
class FormationContext(StepContext):
    """picked: (classes, k) which decoded images of a class are used, None = all."""

    picked: Tensor | None = None


class MultiFormation(GradientMatching):
    """The IDC objective. As `GradientMatching`, and:

    batch               real images a class and step; fewer where a class is smaller
    augmentation        siamese, of real and decoded images that are matched
    formation           of the set, 'partition2' (IDC) or 'identity' (IDC-I)
    metric, inner       'mse' or 'l1' (MNIST, FashionMNIST and ImageNet); pixel updates a network
    n_data              real images of all classes that a network trains on between two updates, in whole batches of `train_batch`
    train_augmentation  of its images, each for itself; `cutmix` is the probability of CutMix in a step of the network
    most                decoded images of a class in an update, a new random choice each time
    transform           how images are standardized. Published rates and bounds are those of pixels in [0, 1]: gradients are divided by
                        std^2, so that one step moves pixels by lr times their own gradient, and pixels stay in [0, 1] (`bounds`).
                        None = images are what they are: no scale, no bounds
    raises              InputError on an unknown formation or metric, a count that is not positive, a transform that is no standardization
    """

    names = staticmethod(convolutions)
    compare = staticmethod(METRICS["mse"])

    def __init__(self, network, batch: int = 64, augmentation: str = "color+crop+cutout", real_network=None, *, formation: str = "partition2",
                 metric: str = "mse", inner: int = 100, n_data: int = 2000, train_batch: int = 64, optimizer: SGD = SGD(0.01, 0.9, 5e-4),
                 train_augmentation: str = "color+crop", cutmix: float = 0.5, most: int = 128,
                 transform: Standardize | None = None):  # fmt: skip
        check_choice("formation", formation, FORMATIONS)
        check_choice("metric", metric, METRICS)
        for name, value in {"batch": batch, "inner": inner, "n_data": n_data, "train_batch": train_batch, "most": most}.items():
            check_positive_int(name, value)
        if transform is not None and not isinstance(transform, Standardize):
            raise InputError(f"transform: {type(transform).__name__} with IDC, whose rates are of pixels; accepted: Standardize, or None")
        super().__init__(network, inner, batch=batch, augmentation=augmentation, real_network=real_network)
        self.name = "IDC" if FORMATIONS[formation] > 1 else "IDC-I"
        self.formation, self.metric, self.optimizer, self.most = formation, METRICS[metric], optimizer, most
        self.train_steps, self.train_batch = math.ceil(n_data / train_batch), train_batch
        self.train_augmentation, self.cutmix, self.scale, self.bounds = train_augmentation, cutmix, None, {}
        if transform is not None:
            mean, std = transform.mean[:, None, None], transform.std[:, None, None]
            self.scale, self.bounds = std.square(), {"images": (-mean / std, (1 - mean) / std)}

    def start(self, synthetic: Synthetic, generator: Generator) -> dict[str, Tensor]:
        """State: the network in training, its momentum once it has one, and how many updates it has seen."""
        check_choice(f"formation of the set with {self.name}", synthetic.formation, [self.formation])
        state = super().start(synthetic, generator)
        if not convolutions(under(state, "network.")):
            raise InputError(f"network: {self.network.name} has no convolution; accepted: a convolutional network")
        return state

    def step(self, synthetic: Synthetic, state: dict[str, Tensor], draw_real, generator: Generator):
        """The network's training, then one gradient on the pixels: (gradients by name, state, log)."""
        weights_stream, pick_stream, augment_stream, train_stream = split(generator, 4)
        device, seen = synthetic.device, int(state["updates"])
        if seen == self.updates:
            state, seen = super().start(synthetic, weights_stream), 0
        elif seen > 0:
            state = self._train(state, draw_real, train_stream)
        labels, members = synthetic.classes_present()
        drawn = draw(self.augmentation, len(labels), 1, augment_stream, siamese=True)
        picked, used = None, members.shape[1]
        if used > self.most:
            order = torch.rand(members.shape, generator=pick_stream).argsort(1)
            picked, used = order[:, : self.most], self.most
        params, (labels, picked) = under(state, "network."), to_device((labels, picked), device)
        context = FormationContext(params, labels, drawn, picked=picked)
        loss, gradient = self.pixels(context, synthetic, draw_real, used)
        if self.scale is not None:
            gradient = gradient / self.scale.to(device, non_blocking=True)
        return {"images": gradient}, state | {"updates": torch.tensor(seen + 1)}, {"loss": loss}

    def loss(self, context: StepContext, real: Tensor, weights: Tensor, images: Tensor, here: slice) -> Tensor:
        if context.picked is not None:
            images = images.take_along_dim(context.picked[here, :, None, None, None], 1)
        return super().loss(context, real, weights, images, here)

    def distance(self, context: StepContext, images: Tensor, means: Tensor, c: int) -> Tensor:
        if context.picked is not None:
            images = images[:, context.picked[c]]
        return super().distance(context, images, means, c)

    def _train(self, state: dict[str, Tensor], draw_real, generator: Generator) -> dict[str, Tensor]:
        params, before = under(state, "network."), under(state, "momentum.")
        names, passes, how = list(trainable(params)), [], (self.train_steps, self.train_batch, self.optimizer, generator)
        params, _ = train_on_real(
            self.network, params, draw_real, *how, augmentation=self.train_augmentation, cutmix=self.cutmix,
            after_epoch=lambda epoch, weights, momentum: passes.append(momentum),
            done=(0, [before[name].clone() for name in names] if before else []),
        )  # fmt: skip
        momentum = dict(zip(names, passes[-1]))  # {} without momentum
        return prefixed(params, "network.") | prefixed(momentum, "momentum.") | {"updates": state["updates"]}


@dataclass(frozen=True, kw_only=True)
class IDCSettings(FormedSettings):
    """Settings of IDC, as `MultiFormation`. An iteration is one network of `inner` updates; lr is of pixels in [0, 1]."""

    augmentation: str  # of what is matched, where it is not that of the experiment (`augmented`)
    metric: str
    inner: int
    n_data: int
    train_batch: int
    cutmix: float


@register
class IDC(Formed):
    """Gradients of four images in each stored one, along networks that train on real images."""

    name, kind, paper = "IDC", "gradient matching", "2205.14959"
    source = "code: snu-mllab/Efficient-Dataset-Condensation"
    objective, Settings = MultiFormation, IDCSettings
    common = {
        "formation": "partition2", "interpolation": "nearest", "augmented": False, "augmentation": "color+crop+cutout", "metric": "mse",
        "momentum": 0.5, "batch": 64, "iterations": 2000, "inner": 100, "n_data": 2000, "train_batch": 64, "cutmix": 0.5,
        "normalization": "published",
    }  # fmt: skip
    published = {  # lr: for one image of each class, see `cell`
        "cifar10": {ANY: {"lr": 5e-4}},
        "cifar100": {ANY: {"lr": 5e-4, "normalization": "published:cifar10"}},
        "svhn": {ANY: {"lr": 5e-4, "n_data": 500}},
        "mnist": {ANY: {"lr": 1e-5, "n_data": 500, "metric": "l1", "augmentation": "color+crop", "cutmix": 0.0}},
        "fashion-mnist": {ANY: {"lr": 7.65625e-6, "n_data": 500, "metric": "l1"}},  # 1e-5 (28 / 32)^2
    }
    judged = Mixing(augmentation="flip+color+crop_scale_rotate")
    judged_on = {"mnist": replace(judged, cutmix=0.0)}
    numbers = {"cifar10": {1: (50.0, 0.4), 10: (67.5, 0.5), 50: (74.5, 0.1)}}  # other paper: reprinted by AutoPalette

    def cell(self, dataset: str, size: int, n: int) -> dict:
        """The rate grows with the images of a class."""
        cell = super().cell(dataset, size, n)
        return cell | {"lr": cell["lr"] * size}

    def updates(self, settings: IDCSettings, size: int) -> int:
        return settings.steps or settings.iterations * settings.inner

    def options(self, job) -> dict:
        s = job.settings
        families = job.experiment.augmentation if s.augmented else s.augmentation
        own = {name: getattr(s, name) for name in ("formation", *IDCSettings.__annotations__)}
        return own | {"augmentation": families, "transform": job.experiment.real.transform}


@register
class IDCI(IDC):
    """IDC with one image in each stored one."""

    name = "IDC-I"
    common = IDC.common | {"formation": "identity"}
    published = IDC.published | {"mnist": {ANY: {"lr": 1e-5, "n_data": 500, "metric": "l1"}}}
    judged_on = {("svhn", 1): replace(IDC.judged, augmentation="color+crop_scale_rotate+cutout", cutmix=0.0)}
    numbers = {}
