r"""KRR-ST: a set for self-supervised pre-training by kernel ridge regression of a teacher's embeddings (arXiv 2310.06511).

With made images $X_s$ and made targets $Y_s$, features $F$ of a network that is trained on them along the way, a 1 appended, and a
batch of real images $x_b$ with the teacher's embeddings $g(x_b)$,

$$L = \frac{1}{|b|\,D}\,\lVert K_{bs}\,(K_{ss} + \lambda I)^{-1}\,Y_s - g(x_b) \rVert^2, \qquad K_{bs} = F_b F_s^T, \quad
\lambda = 10^{-6}\,\mathrm{tr}(K_{ss}),$$

is descended in $X_s$ and $Y_s$; $\lambda$ passes no gradient. Slow reference: `krrst_loss_plain`.

Our choices: real images are not augmented, so that the teacher embeds each once (the public code crops and mirrors them, and asks the
teacher in every step); images live standardized as everywhere here; a network's age before the first step is a counter, drawn at
random, and its weights are fresh; its blocks are those of `kernel.frepo_network`.
"""

from collections.abc import Callable
from functools import cache
from importlib import resources

import torch
import yaml
from torch import Generator, Tensor

from distillery.checks import InputError, check_choice, check_positive_int
from distillery.kernels import kernel_ridge_plain
from distillery.matching import under
from distillery.matching.kernel import KernelRegression, frepo_network
from distillery.networks import Params, trainable
from distillery.optimizers import SGD
from distillery.selfsup import check_targets
from distillery.synthetic import Synthetic
from distillery.training import squared_error


class SelfSupervisedRegression(KernelRegression):
    """The objective of KRR-ST. Targets are real-valued, so that `accuracy` and `predict` of its base mean nothing here.

    network     says of what shape the images are, and how wide the targets (its `classes`)
    batch       real images a step
    width       channels of the first block of the networks trained along, twice as many in each next one
    pool, age   how many of them; steps after which one is drawn anew
    network_lr  of their training: SGD on all of the set, momentum .9, weight decay 1e-3, one step whenever they are used
    raises      InputError on numbers that are not positive, and a set whose targets are not as wide as the network's output
    """

    name, learns = "KRR-ST", ("images", "targets")

    def __init__(
        self,
        network,
        batch: int = 1024,
        *,
        width: int = 128,
        pool: int = 10,
        age: int = 1000,
        network_lr: float = 0.1,
    ):
        super().__init__(network, batch, labels=True)
        for name, value in (("width", width), ("pool", pool), ("age", age)):
            check_positive_int(name, value)
        if not network_lr > 0:
            raise InputError(f"network_lr: {network_lr} is not accepted; accepted: a number above 0")
        self.pool, self.age, self.sgd = pool, age, SGD(network_lr, 0.9, 1e-3)
        self.own = frepo_network(network.shape, network.classes, width)

    def start(self, synthetic: Synthetic, generator: Generator) -> dict[str, Tensor]:
        """State: the pool 'net.NAME' (P, ...), its momentum 'momentum.NAME' (P, ...), and 'age' (P,)."""
        check_targets(synthetic.tensors["targets"], synthetic, self.classes)
        drawn = self._drawn(synthetic.device, generator, self.pool)
        return drawn | {"age": torch.randint(1, max(2, self.age), (self.pool,), generator=generator)}

    def _drawn(self, device: torch.device, generator: Generator, k: int) -> dict[str, Tensor]:
        nets = {name: value.to(device) for name, value in self.own.init(generator, k).items()}
        state = {f"net.{name}": value for name, value in nets.items()}
        state |= {f"momentum.{name}": torch.zeros_like(value) for name, value in trainable(nets).items()}
        return state | {"age": torch.zeros(k, dtype=torch.int64)}

    def _picked(self, generator: Generator) -> int:
        """Which network of the pool a step sees, from a copy of its generator."""
        return int(torch.randint(self.pool, (), generator=generator.clone_state()))

    def moment(self, synthetic: Synthetic, state: dict[str, Tensor], generator: Generator) -> Params:
        i = self._picked(generator)
        return {name: value[i : i + 1] for name, value in under(state, "net.").items()}

    def after(
        self, synthetic: Synthetic, state: dict[str, Tensor], seen: Generator, generator: Generator
    ) -> dict[str, Tensor]:
        """The network that was seen takes a step on the set, or is drawn anew where it is old."""
        i = self._picked(seen)
        new = self._train(synthetic, {name: value[i : i + 1] for name, value in state.items()})
        if int(new["age"]) >= self.age:
            new = self._drawn(synthetic.device, generator, 1)
        state = {name: value.clone() for name, value in state.items()}
        for name, value in new.items():
            state[name][i] = value[0]
        return state

    def _train(self, synthetic: Synthetic, one: dict[str, Tensor]) -> dict[str, Tensor]:
        params = under(one, "net.")
        learned = {name: value.detach().clone().requires_grad_() for name, value in trainable(params).items()}
        source = synthetic.source()
        output = self.own.apply(params | learned, source.images[None], train=True)
        loss = squared_error(output.logits, source.targets[None]).mean()
        grads = list(torch.autograd.grad(loss, list(learned.values())))
        weights = [value.detach() for value in learned.values()]
        moments = [one[f"momentum.{name}"].clone() for name in learned]
        moments = self.sgd.update(weights, grads, moments, 0, 1.0)
        new = {f"net.{name}": value for name, value in zip(learned, weights, strict=True)}
        new |= {f"net.{name}": value.detach() for name, value in output.buffers.items()}
        new |= {f"momentum.{name}": value for name, value in zip(learned, moments, strict=True)}
        return one | new | {"age": one["age"] + 1}

    def features(self, params: Params, images: Tensor, real: bool) -> Tensor:
        found = self.own.embed(params, images, train=False)[0].double()
        return torch.cat([found, torch.ones_like(found[:, :1])], 1)

    def ridge(self, k_ss: Tensor) -> Tensor:
        return (self.rho * k_ss.trace()).detach()

    def error(self, outputs: Tensor, targets: Tensor, weights: Tensor, made: Synthetic) -> Tensor:
        return (weights * (outputs - targets).square().mean(1)).sum()

    def report(self, outputs: Tensor, targets: Tensor, weights: Tensor) -> dict[str, Tensor]:
        return {}


def krrst_loss_plain(
    features: Callable[[Tensor], Tensor], images: Tensor, targets: Tensor, real: Tensor, embeddings: Tensor
) -> Tensor:
    """The loss of one step, ().

    features    (n, C, H, W) -> (n, F): last activations of one network in evaluation mode
    images      (m, C, H, W) float64: made images;   targets     (m, D) float64
    real        (n, C, H, W) float64: real images;   embeddings  (n, D) float64, the teacher's
    """
    f_s = torch.cat([features(images), torch.ones(len(images), 1, dtype=images.dtype)], 1)
    f_b = torch.cat([features(real), torch.ones(len(real), 1, dtype=real.dtype)], 1)
    kernel_ss, kernel_bs = f_s @ f_s.T, f_b @ f_s.T  # (m, m), (n, m)
    predictions = kernel_ridge_plain(kernel_ss, targets, kernel_bs, 1e-6 * torch.trace(kernel_ss).detach())
    return ((predictions - embeddings) ** 2).mean()


@cache
def presets() -> dict[str, dict]:
    """Data set -> settings, as in `representation.yaml`, where they are explained."""
    return yaml.safe_load(resources.files("distillery.matching").joinpath("representation.yaml").read_text())


def preset(dataset: str) -> dict:
    """The settings of a data set, with `source`. Raises InputError where there are none."""
    check_choice("KRR-ST data set", dataset, presets())
    return dict(presets()[dataset])


def build(network, settings: dict) -> SelfSupervisedRegression:
    """The objective of a preset."""
    options = {name: settings[name] for name in ("batch", "width", "pool", "age", "network_lr")}
    return SelfSupervisedRegression(network, **options)
