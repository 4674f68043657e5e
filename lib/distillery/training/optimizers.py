r"""How the weights of K stacked networks are updated, beside the one loop of `training`: SGD, Nesterov, Adam and GSAM.

GSAM, the descent of FTD's experts to flat minima (arXiv 2211.11004, Eq. 13), takes two gradients of one batch a step:

$$\epsilon = \rho\,\frac{\theta^2 \odot g}{\|\,|\theta| \odot g\,\|} \text{ (adaptive)} \quad\text{or}\quad \rho\,\frac{g}{\|g\|}, \qquad
g_p = \nabla L(\theta + \epsilon), \qquad g_o = g - \frac{\langle g, g_p\rangle}{\|g_p\|^2}\,g_p$$

and the step goes along $g_p - \alpha\,g_o$. Norms run over all weights of one network: K stacked networks have K. Slow reference: `gsam_plain`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from distillery.checks import InputError


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent; at each step in `drops` the rate falls by `factor` and momentum restarts at zero."""

    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    drops: tuple[int, ...] = ()
    factor: float = 0.1

    restarts: ClassVar[bool] = True

    def rate(self, step: int) -> float:
        return self.lr * self.factor ** sum(step >= drop for drop in self.drops)

    def like(self, step: int) -> int:
        """The first step that updates as this one does."""
        return step if step in self.drops else max((drop + 1 for drop in self.drops if drop < step), default=0)

    def update(self, params: list[Tensor], grads: list[Tensor], state: list[Tensor], step: int, scale: float) -> list[Tensor]:
        """One step in place; `state` is the momentum, [] before the first step; returns the new state."""
        grads = self._decayed(params, grads)
        state = [] if self.restarts and step in self.drops else state
        if self.momentum:
            grads = state = self._gathered(grads, state)
        torch._foreach_add_(params, grads, alpha=-self.rate(step) * scale)
        return state

    def _decayed(self, params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        """Gradients with those of weight decay."""
        return torch._foreach_add(grads, params, alpha=self.weight_decay) if self.weight_decay else grads

    def _gathered(self, grads: list[Tensor], state: list[Tensor]) -> list[Tensor]:
        """The momentum after these gradients, in place."""
        if not state:
            return [grad.clone() for grad in grads]
        torch._foreach_mul_(state, self.momentum)
        torch._foreach_add_(state, grads)
        return state

    def direction(self, params: list[Tensor], grads: list[Tensor], again: Callable[[], list[Tensor]]) -> list[Tensor]:
        """What `update` descends: the gradients themselves. Others ask `again()` for those at changed `params`."""
        return grads


@dataclass(frozen=True)
class Scheduled(SGD):
    """SGD whose momentum goes on where the rate drops, to a fifth, as under a scheduler of torch."""

    factor: float = 0.2

    restarts: ClassVar[bool] = False


@dataclass(frozen=True)
class Nesterov(SGD):
    r"""SGD that descends where its momentum is going to be, as `torch.optim.SGD(nesterov=True)`, which is the slow reference.

    $$v \leftarrow \mu v + g, \qquad \theta \leftarrow \theta - \eta\,(g + \mu v)$$

    with $v = g$ in the first step. Momentum goes on where the rate drops, as under a scheduler of torch, and is above 0 (InputError).
    """

    def __post_init__(self):
        if not self.momentum > 0:
            raise InputError(f"momentum: {self.momentum} with Nesterov; accepted: a number above 0")

    def update(self, params: list[Tensor], grads: list[Tensor], state: list[Tensor], step: int, scale: float) -> list[Tensor]:
        grads = self._decayed(params, grads)
        state = self._gathered(grads, state)
        torch._foreach_add_(params, torch._foreach_add(grads, state, alpha=self.momentum), alpha=-self.rate(step) * scale)
        return state


@dataclass(frozen=True)
class Adam(SGD):
    """Adam as `torch.optim.Adam`, which is the slow reference. The state holds all means, then all mean squares of gradients.

    `momentum` is the decay of the means, `decay` of the squares; `epsilon` stands beside their roots.
    """

    lr: float = 1e-3
    weight_decay: float = 0.0
    decay: float = 0.999
    epsilon: float = 1e-8

    def like(self, step: int) -> int:
        return step

    @torch.no_grad()
    def update(self, params: list[Tensor], grads: list[Tensor], state: list[Tensor], step: int, scale: float) -> list[Tensor]:
        grads = self._decayed(params, grads)
        state = state or [torch.zeros_like(grad) for grad in [*grads, *grads]]
        means, squares = state[: len(grads)], state[len(grads) :]
        torch._foreach_lerp_(means, grads, 1 - self.momentum)
        torch._foreach_mul_(squares, self.decay)
        torch._foreach_addcmul_(squares, grads, grads, 1 - self.decay)
        roots = torch._foreach_div(torch._foreach_sqrt(squares), math.sqrt(1 - self.decay ** (step + 1)))
        torch._foreach_add_(roots, self.epsilon)
        size = self.rate(step) * scale / (1 - self.momentum ** (step + 1))
        torch._foreach_addcdiv_(params, means, roots, -size)
        return state


@dataclass(frozen=True)
class GSAM(SGD):
    """Descent to flat minima, as the head of this module has it.

    rho       size of the ascent, in units of the weights (adaptive: of their relative change); 0 = SGD
    alpha     share of g_o; 0 = SAM, or ASAM where adaptive
    adaptive  whether the ascent scales with the weights
    """

    rho: float = 0.01
    alpha: float = 0.3
    adaptive: bool = True

    @torch.no_grad()
    def direction(self, params: list[Tensor], grads: list[Tensor], again: Callable[[], list[Tensor]]) -> list[Tensor]:
        kept = [param.clone() for param in params]
        torch._foreach_add_(params, self.ascent(params, grads))
        with torch.enable_grad():
            perturbed = again()
        torch._foreach_copy_(params, kept)
        share = _dot(grads, perturbed) / _dot(perturbed, perturbed).clamp_min(_TINY)  # (K,)
        return [p - self.alpha * (g - _over(share, p) * p) for g, p in zip(grads, perturbed, strict=True)]

    def ascent(self, params: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        """The perturbation epsilon, zero where the gradient of a network is zero."""
        scaled = torch._foreach_mul(grads, torch._foreach_abs(params)) if self.adaptive else grads
        size = self.rho / _dot(scaled, scaled).sqrt().clamp_min(_TINY)  # (K,)
        if self.adaptive:
            scaled = torch._foreach_mul(scaled, torch._foreach_abs(params))
        return [_over(size, value) * value for value in scaled]


_TINY = 1e-30  # in place of a norm of zero


def _dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Inner products over all weights of each of K networks: (K,)."""
    return sum(product.reshape(len(product), -1).sum(1) for product in torch._foreach_mul(a, b))


def _over(value: Tensor, like: Tensor) -> Tensor:
    """(K,) shaped to multiply weights (K, ...)."""
    return value.view(-1, *[1] * (like.ndim - 1))


def gsam_plain(module, optimizer: GSAM, loss: Callable[[], Tensor]) -> None:
    """Replace the gradients of one nn.Module by the direction of GSAM, one flat vector at a time.

    loss  computes that of the same batch at the module's present weights
    """
    weights = list(module.parameters())
    theta = [weight.detach().clone() for weight in weights]
    g = torch.cat([weight.grad.flatten() for weight in weights])
    size = torch.cat([weight.abs().flatten() for weight in theta]) if optimizer.adaptive else torch.ones_like(g)
    epsilon = optimizer.rho * size**2 * g / (size * g).norm()
    with torch.no_grad():
        for weight, part in zip(weights, epsilon.split([weight.numel() for weight in weights]), strict=True):
            weight += part.view_as(weight)
    perturbed = torch.autograd.grad(loss(), weights)
    g_p = torch.cat([gradient.flatten() for gradient in perturbed])
    g_o = g - torch.dot(g, g_p) / torch.dot(g_p, g_p) * g_p
    with torch.no_grad():
        direction = (g_p - optimizer.alpha * g_o).split([weight.numel() for weight in weights])
        for weight, before, part in zip(weights, theta, direction, strict=True):
            weight.copy_(before)
            weight.grad = part.view_as(weight).clone()
