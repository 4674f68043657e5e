r"""Why flat experts help: the error a student piles up over segments, and the curvature along expert paths.

FTD (arXiv 2211.11004, Eq. 6-11). Let $W_S(\theta)$ be the change of the weights by one segment's student steps from $\theta$, and $\tau_k$
the expert's weights where segment k starts. A student that goes on from its own weights is off by

$$\epsilon_{k+1} = \epsilon_k + I_k + \delta_k, \qquad I_k = W_S(\tau_k + \epsilon_k) - W_S(\tau_k), \qquad
\delta_k = \tau_k + W_S(\tau_k) - \tau_{k+1}$$

with $\epsilon_0 = 0$ (the paper writes $\delta_{k+1}$; the index here is that of the exact identity). Distillation lowers the matching
error $\delta$ alone, while the initialization error I is small where the loss is flat. Sharpness is the largest eigenvalue of the
Hessian, by power iteration; slow reference, the whole matrix: `top_eigenvalue_plain`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from distillery.checks import InputError, check_positive_int
from distillery.matching.trajectory import Flat, StepLoss, student
from distillery.networks import Params
from distillery.training import cross_entropy


@dataclass(frozen=True)
class Errors:
    """Flat vectors by segment; K segments, P weights."""

    accumulated: Tensor  # (K + 1, P) epsilon, zero at the start
    initialization: Tensor  # (K, P) I
    matching: Tensor  # (K, P) delta

    def squared(self) -> dict[str, list[float]]:
        """Squared norms by name."""
        return {name: value.square().sum(1).tolist() for name, value in vars(self).items()}


def trajectory_errors(loss: StepLoss, path: Sequence[Params], synthetic: dict[str, Tensor], draws: Sequence[Sequence]) -> Errors:
    """Errors of a student that runs through K segments, each from its own last weights.

    loss, synthetic  as in `trajectory.sweep`
    path             K + 1 expert weights, the ends of the segments
    draws            for each segment what its student steps draw; the student on the expert draws the same
    raises           InputError unless there is one more weight than segments, and a segment
    """
    check_positive_int("segments", len(draws))
    if len(path) != len(draws) + 1:
        raise InputError(f"path: {len(path)} weights for {len(draws)} segments; accepted: one more than segments")
    flat = Flat(path[0])
    ends = [flat.vector(params) for params in path]
    own, accumulated, initialization, matching = ends[0], [torch.zeros_like(ends[0])], [], []
    for k, drawn in enumerate(draws):
        on_expert = student(loss, path[k], synthetic, drawn)[-1]
        on_own = student(loss, flat.params(own), synthetic, drawn)[-1]
        matching.append(on_expert - ends[k + 1])
        initialization.append((on_own - own) - (on_expert - ends[k]))
        own = on_own
        accumulated.append(own - ends[k + 1])
    return Errors(*(torch.stack(values) for values in (accumulated, initialization, matching)))


# A loss as parts that add up: each maps weights to a scalar. One part at a time is in memory.
Parts = Sequence[Callable[[Params], Tensor]]


def loss_parts(network, source, indices: Tensor, batch: int = 500, loss=cross_entropy) -> Parts:
    """The mean loss over the images at `indices` (M,), in evaluation mode, as parts of `batch` images."""

    def part(here: Tensor, params: Params) -> Tensor:
        logits = network.apply(params, source.batch(here), train=False).logits  # (1, B, classes)
        return loss(logits, source.targets[here][None]).sum() / len(indices)

    return [partial(part, here) for here in indices.split(batch)]


def hessian_product(parts: Parts, params: Params, vector: Tensor) -> Tensor:
    """The Hessian of the sum of `parts` at `params` times a flat vector (P,): (P,)."""
    flat, total = Flat(params), torch.zeros_like(vector)
    for part in parts:
        theta = flat.vector(params).requires_grad_()
        (gradient,) = torch.autograd.grad(part(flat.params(theta)), theta, create_graph=True)
        total += torch.autograd.grad(gradient @ vector, theta)[0]
    return total


def top_eigenvalue(parts: Parts, params: Params, generator: Generator, tolerance: float = 1e-3, iterations: int = 200) -> tuple[float, int]:
    """The largest eigenvalue of the Hessian and the number of products it took. Slow reference: `top_eigenvalue_plain`.

    Power iteration until the Rayleigh quotient changes by less than `tolerance` of itself, or `iterations` products. It finds the
    eigenvalue of the largest magnitude; where that one is negative, a second run on the Hessian shifted by it finds the largest.
    params  one network's learned weights (leading axis 1)
    """
    check_positive_int("iterations", iterations)
    start = torch.randn(sum(Flat(params).sizes), generator=generator).to(next(iter(params.values())))
    first, used = _power(parts, params, start, 0.0, tolerance, iterations)
    if not first < 0:
        return first, used
    value, more = _power(parts, params, start, first, tolerance, iterations)
    return value + first, used + more


def _power(parts, params, vector: Tensor, shift: float, tolerance: float, iterations: int) -> tuple[float, int]:
    """Of the Hessian minus `shift` times the identity."""
    value = 0.0
    for i in range(iterations):
        vector = vector / vector.norm()
        product = hessian_product(parts, params, vector) - shift * vector
        before, value = value, float(vector @ product)
        if i and abs(value - before) <= tolerance * abs(value):
            return value, i + 1
        if not product.any():
            return 0.0, i + 1
        vector = product
    return value, iterations


def top_eigenvalue_plain(parts: Parts, params: Params) -> float:
    """From the eigenvalues of the whole Hessian, P x P numbers: for tiny networks."""
    flat = Flat(params)
    hessian = torch.autograd.functional.hessian(lambda theta: sum(part(flat.params(theta)) for part in parts), flat.vector(params))
    return float(torch.linalg.eigvalsh(hessian)[-1])
