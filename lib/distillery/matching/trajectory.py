r"""Trajectory matching: MTT (arXiv 2203.11932), TESLA (2211.10586), FTD (2211.11004) and DATM (2310.05773).

A student starts at an expert's weights $\theta_0 = \tau_t$, takes N steps of rate $\eta$ on augmented batches $x_n$ of the
synthetic set, and shall end near the weights the expert had M epochs later:

$$\theta_{n+1} = \theta_n - \eta\,\nabla_\theta l(\theta_n; x_n), \qquad L = \|\theta_N - \tau_{t+M}\|^2 / D, \quad D = \|\tau_t - \tau_{t+M}\|^2$$

`sweep` gives the exact gradient of L, as through the unrolled loop, with the graph of one step at a time. With
$\lambda = (2/D)(\theta_N - \tau_{t+M})$, for n = N-1 down to 0:

$$s = \langle\lambda, \nabla_\theta l(\theta_n; x_n)\rangle, \qquad \tfrac{dL}{dx} \mathrel{-}= \eta\,\partial_x s, \qquad
\tfrac{dL}{d\eta} \mathrel{-}= s, \qquad \lambda \leftarrow \lambda - \eta\,\partial_{\theta_n} s$$

x stands for every learned tensor (pixels, label logits, targets). TESLA as published is the same sweep with lambda frozen
at its first value: exact for N = 1 alone. Slow reference, plain autograd through all steps: `sweep_plain`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from distillery.augment import Draw, augment, draw
from distillery.checks import InputError, check_choice, check_positive_int
from distillery.networks import Params, trainable
from distillery.seeds import split
from distillery.synthetic import Synthetic
from distillery.training import cross_entropy

# (weights, learned tensors, what was drawn for this step) -> (): the loss of one student step, twice differentiable
StepLoss = Callable[[Params, dict[str, Tensor], Any], Tensor]


class Flat:
    """Named weights as one vector and back."""

    def __init__(self, params: Params):
        self.shapes = {name: value.shape for name, value in params.items()}
        self.sizes = [value.numel() for value in params.values()]

    def vector(self, params: Params) -> Tensor:
        """(P,), a copy."""
        return torch.cat([params[name].detach().reshape(-1) for name in self.shapes])

    def params(self, vector: Tensor) -> Params:
        """Views of vector (P,), differentiable."""
        parts = vector.split(self.sizes)
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}


def student(loss: StepLoss, theta0: Params, synthetic: dict[str, Tensor], draws: Sequence) -> list[Tensor]:
    """The student's weights along its N steps, without graphs: N + 1 flat vectors (P,), the first is `theta0`."""
    flat, step_size = Flat(theta0), synthetic["step_size"].detach()
    tensors = {name: value.detach() for name, value in synthetic.items()}
    path = [flat.vector(theta0)]
    for drawn in draws:
        theta = path[-1].detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(flat.params(theta), tensors, drawn), theta)
        path.append(path[-1] - step_size * gradient)
    return path


def sweep(
    loss: StepLoss,
    theta0: Params,
    target: Params,
    synthetic: dict[str, Tensor],
    draws: Sequence,
    *,
    frozen: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The matching loss L and its gradient on every learned tensor. Slow reference: `sweep_plain`.

    loss       loss(weights, tensors, draws[n]) -> (), the loss of student step n. It forms its own batch from the learned
               tensors and what was drawn, so nothing but weights is kept between the steps
    theta0     the weights a student starts from
    target     the weights it shall reach, same names
    synthetic  the learned floating tensors by name; 'step_size' () is the student's rate
    draws      one entry for each of the N steps, in any form `loss` understands
    frozen     TESLA as published: drop the way later steps depend on earlier ones
    returns    (), and gradients by name. Memory: one step's graph and (N + 1) P numbers
    raises     InputError without a step, a step size, or with target weights of other names
    Source: the recursion above.
    """
    _check(theta0, target, synthetic, draws)
    flat, step_size = Flat(theta0), synthetic["step_size"].detach()
    path = student(loss, theta0, synthetic, draws)
    goal = flat.vector(target)
    distance = (path[0] - goal).square().sum()
    gap = path[-1] - goal
    multiplier = 2 / distance * gap  # (P,), lambda
    tensors = {name: value.detach().requires_grad_() for name, value in synthetic.items()}
    names = [name for name in tensors if name != "step_size"]
    gradients = {name: torch.zeros_like(value) for name, value in synthetic.items()}
    for theta, drawn in zip(reversed(path[:-1]), reversed(draws)):
        theta.requires_grad_()
        value = loss(flat.params(theta), tensors, drawn)
        (gradient,) = torch.autograd.grad(value, theta, create_graph=True)
        along = gradient @ multiplier  # (), s
        wanted = [tensors[name] for name in names] + ([] if frozen else [theta])
        parts = torch.autograd.grad(along, wanted, materialize_grads=True)
        gradients["step_size"] -= along.detach()
        for name, part in zip(names, parts):
            gradients[name] -= step_size * part
        if not frozen:
            multiplier = multiplier - step_size * parts[-1]
    return gap.square().sum() / distance, gradients


def sweep_plain(
    loss: StepLoss, theta0: Params, target: Params, synthetic: dict[str, Tensor], draws: Sequence
) -> tuple[Tensor, dict[str, Tensor]]:
    """`sweep` by plain autograd through all N steps, as MTT is published: the memory of N graphs."""
    _check(theta0, target, synthetic, draws)
    tensors = {name: value.detach().requires_grad_() for name, value in synthetic.items()}
    theta = {name: value.detach().requires_grad_() for name, value in theta0.items()}
    for drawn in draws:
        value = loss(theta, tensors, drawn)
        grads = torch.autograd.grad(value, list(theta.values()), create_graph=True, materialize_grads=True)
        theta = {
            name: weight - tensors["step_size"] * grad
            for (name, weight), grad in zip(theta.items(), grads, strict=True)
        }
    gap = sum((theta[name] - target[name]).square().sum() for name in theta)
    value = gap / sum((theta0[name] - target[name]).square().sum() for name in theta)
    grads = torch.autograd.grad(value, list(tensors.values()), materialize_grads=True)
    return value.detach(), dict(zip(tensors, grads, strict=True))


def _check(theta0: Params, target: Params, synthetic: dict[str, Tensor], draws: Sequence) -> None:
    check_positive_int("steps", len(draws))
    if "step_size" not in synthetic:
        raise InputError(f"synthetic set: {', '.join(synthetic)}; accepted: with a tensor 'step_size' ()")
    shapes, others = ({name: tuple(value.shape) for name, value in p.items()} for p in (theta0, target))
    if shapes != others:
        raise InputError(f"target: weights {others} for a start {shapes}; accepted: the same names and shapes")
