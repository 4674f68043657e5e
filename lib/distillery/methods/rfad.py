r"""RFAD, random feature approximation distillation (arXiv 2210.12067): a ridge regression on features of random networks.

$$\min_S\; \mathrm{mean}\; \mathrm{CE}\big( e^k K_{TS} (K_{SS} + \lambda I)^{-1} y_S,\, y_T \big), \qquad K = 2 \psi \psi^T + .01,
\quad \lambda = .005\,\mathrm{tr}(K_{SS}) / |S|$$

with the last features $\psi$ of random networks side by side, drawn anew in every step, and a learned scale $k$ (Platt's); or half the mean
squared error. Slow references: `rfad_kernel_plain`, `rfad_loss_plain`.

The public code normalizes images of SVHN one by one before it whitens them, and stops by validation loss, after 100,000 steps at most.
Left out: its linear map of all pixels, learned beside the images and baked into them. Images of 28x28 are padded to 32x32, as for all our
ConvNets; in the public code they are not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from distillery.checks import check_positive_int
from distillery.data.synthetic import Synthetic
from distillery.matching.ridge import KernelRegression
from distillery.methods.base import ANY, register
from distillery.methods.regression import Regression, RegressionSettings
from distillery.networks import ConvNet, Params
from distillery.networks.precision import MixedPrecision
from distillery.networks.ridge import embeddings, gaussian, kernel_ridge_plain
from distillery.training.losses import cross_entropy


class RandomFeatures(KernelRegression):
    """RFAD. Networks: three blocks of convolution, ReLU and pooling, weights N(0, 2 / fan in), biases N(0, .1^2), no norm.

    networks  drawn in every step, `width` channels wide; `eval_networks` for a finished set
    platt     cross-entropy with a learned scale; False = half the mean squared error
    Others as `KernelRegression`; batch is of all classes. Defaults are the published ones.
    """

    name, learns = "RFAD", ("images", "log_scale")

    def __init__(self, network, batch: int = 5120, real_network=None, *, rho: float = 5e-3, width: int = 256,
                 networks: int = 8, eval_networks: int = 16, platt: bool = True, labels: bool = False):  # fmt: skip
        super().__init__(network, batch, real_network, rho=rho, labels=labels)
        check_positive_int("networks", networks)
        check_positive_int("eval_networks", eval_networks)
        self.networks, self.eval_networks, self.platt = networks, eval_networks, platt
        self.own = ConvNet(network.shape, self.classes, width, normalization="none")
        self.fast = MixedPrecision(self.own, self.precision, self.compiled)

    @property
    def learned(self) -> tuple[str, ...]:
        return (*super().learned, "log_scale") if self.platt else super().learned

    def prepare(self, synthetic: Synthetic) -> Synthetic:
        scale = {"log_scale": torch.zeros((), device=synthetic.device)} if self.platt else {}
        return super().prepare(synthetic).replace(**scale)

    def networks_of_step(self, synthetic, state, generator: Generator) -> Params:
        return gaussian(self.own, generator, self.networks, synthetic.device)

    def fresh(self, synthetic: Synthetic, generator: Generator) -> Params:
        return gaussian(self.own, generator, self.eval_networks, synthetic.device)

    def features(self, params: Params, images: Tensor, real: bool) -> Tensor:
        return embeddings(self.fast if real else self.own, params, images).double()

    def kernel(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        """Twice the mean product of features and .01: the dropped last layer. Slow reference: `rfad_kernel_plain`."""
        return 2 * super().kernel(a, b) / a.shape[1] + 0.01

    def predict(self, synthetic: Synthetic, state: dict[str, Tensor], images, generator: Generator) -> Tensor:
        """Logits of real images (N, C), at the learned scale where there is one."""
        if not self.platt:
            return super().predict(synthetic, state, images, generator)
        found = self.outputs(synthetic, self.networks_of_step(synthetic, state, generator), images)
        return synthetic.tensors["log_scale"].double().exp() * found

    def error(self, outputs: Tensor, targets: Tensor, weights: Tensor, made: Synthetic) -> Tensor:
        """Cross-entropy of exp(k) f, or half the mean squared error. Slow reference: `rfad_loss_plain`."""
        if self.platt:
            wrong = cross_entropy(made.tensors["log_scale"].double().exp() * outputs[None], targets[None])[0]
            return (weights * wrong).sum()
        return super().error(outputs, targets, weights, made)


def rfad_kernel_plain(networks: Sequence[Callable[[Tensor], Tensor]], a: Tensor, b: Tensor) -> Tensor:
    """RFAD's kernel (n, m) of a (n, c, h, w) and b (m, c, h, w): 2 psi(a) psi(b)^T + .01, psi = concatenated features / sqrt(networks x F).

    The 2 and the .01 are the squared weight and bias deviations of the dropped dense layer.
    networks  functions (n, c, h, w) -> (n, F): flattened last activations of random networks
    """
    total = 0
    for network in networks:
        left, right = network(a), network(b)  # (n, F), (m, F)
        # psi psi^T of concatenated blocks is the sum of the blocks' products.
        total = total + left @ right.T / (len(networks) * left.shape[1])  # (n, m)
    return 2 * total + 0.01


def rfad_loss_plain(
    networks: Sequence[Callable], images: Tensor, labels: Tensor, real: Tensor, real_labels: Tensor, weights: Tensor, log_scale=None
) -> Tensor:
    """RFAD: kernel ridge regression with ridge 5e-3 tr(K_SS) / |S|, under the squared or the Platt loss, () float64.

    Source: 2210.12067 and its released code. Images, labels and weights as `kip.kip_loss_plain`, networks as `rfad_kernel_plain`.

    log_scale  None: half the weighted mean over targets of the mean over classes of the squared error. A tensor (), k: weighted mean
               of the cross-entropy (nats) of softmax(exp(k) prediction) with the class argmax(real_labels)
    """
    kernel_ss, kernel_ts = rfad_kernel_plain(networks, images, images), rfad_kernel_plain(networks, real, images)  # (m, m), (n, m)
    penalty = 5e-3 * torch.trace(kernel_ss) / len(images)
    predictions = kernel_ridge_plain(kernel_ss, labels, kernel_ts, penalty)  # (n, C)
    if log_scale is None:
        wrong = [(prediction - truth).square().mean() / 2 for prediction, truth in zip(predictions, real_labels, strict=True)]
    else:
        logits = torch.exp(log_scale) * predictions  # (n, C)
        wrong = [torch.logsumexp(one, dim=0) - one[truth.argmax()] for one, truth in zip(logits, real_labels, strict=True)]
    return sum(weight * one for weight, one in zip(weights, wrong, strict=True))


@dataclass(frozen=True, kw_only=True)
class RFADSettings(RegressionSettings):
    """Settings of RFAD, as `RandomFeatures`; `lr_scale` is the rate of the learned scale."""

    lr_scale: float
    width: int
    networks: int
    eval_networks: int
    platt: bool


@register
class RFAD(Regression):
    """Last features of random networks, new in every step; cross-entropy under a learned scale."""

    name, paper = "RFAD", "2210.12067"
    source = "code: yolky/RFAD"
    objective, Settings = RandomFeatures, RFADSettings
    learns = ("images", "log_scale")
    common = {
        "optimizer": "adabelief", "schedule": "constant", "lr": 1e-3, "lr_scale": 1e-2, "batch": 5120, "iterations": 100_000, "rho": 5e-3,
        "width": 256, "networks": 8, "eval_networks": 16, "platt": True, "labels": False, "normalization": "zca",
    }  # fmt: skip
    published = dict.fromkeys(("cifar10", "cifar100", "svhn"), {ANY: {}})
    published |= dict.fromkeys(("mnist", "fashion-mnist"), {ANY: {"normalization": "published"}})

    def spec(self, job) -> dict:
        """Sets whose batches go by the loss at the learned scale are others than those from before."""
        return super().spec(job) | ({"logits": "learned scale"} if job.recipe.batches else {})
