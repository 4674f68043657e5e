r"""Individual treatment effects: how far each real image of a step moves the gradient on the stored pixels.

Source: BiLP (arXiv 2305.18381), the dynamic level. With $L$ the loss of a class, $S$ its stored images and $B$ its real batch,

$$\mathrm{ITE}(x_i) = \frac{\partial L(B, S)}{\partial S} - \frac{\partial L(B \setminus x_i, S)}{\partial S}, \qquad \mathrm{score}(x_i) = \|\mathrm{ITE}(x_i)\|_2$$

Where the real images enter by the mean $m$ of a statistic $\phi_i$ alone (embeddings in DM and IDM, loss gradients in DC, DSA and IDC),
leaving one out is a change of that mean, with batch weights $w$ that sum to one

$$m_{-i} = m - \frac{w_i}{1 - w_i}\,(\phi_i - m)$$

so `treatment_effects` is exact, at the price of one statistic and one pull on the pixels an image. The paper expands the pull to first
order instead; for DM the two are the same. `treatment_effects_probed` (ours) estimates the first-order norms from K random directions in
pixel space. Slow reference: `treatment_effects_plain`, which computes the loss again without each image.
"""

import math
from functools import partial

import torch
from torch import Generator, Tensor

from distillery.checks import InputError
from distillery.data.synthetic import Synthetic, form
from distillery.matching.step import StepContext, couples, gradient_by_classes
from distillery.networks import Params
from distillery.networks.precision import float32_matmul, images_at_once, networks_at_once
from distillery.seeds import split
from distillery.training import train
from distillery.training.dsa import augment

LOOK_STEPS = 100  # of SGD (.01, momentum .9) behind `predict`
ROWS = 32  # leave-one-out rows at once: each holds a gradient on all weights


def rows_at_once(rows: int, m: int, shape: tuple[int, ...], device: torch.device) -> int:
    """Groups of m images to stack, by shapes alone."""
    return min(ROWS, networks_at_once(rows, m, shape, device))


class Separable:
    """An objective whose loss of a class sees its real images by the mean of a statistic.

    It has a `network` and, as `real_network`, the same as it runs on real images, such as `MixedPrecision(network, "bfloat16")`; `batch`,
    real images a class and step; and `map_limit`, numbers in the widest feature map of a chunk of classes. It offers
    `loss(context, real, weights, images, classes)` -> (), of the images of these classes, `statistic(context, images, c)` -> (n, D) and
    `distance(context, images, means, c)` -> (rows,) for augmented images, where the mean of a class is one of `means`.
    """

    def predict(self, synthetic: Synthetic, state: dict, images, generator: Generator) -> Tensor:
        """Logits of an ImageSet (N, classes) under a fresh network trained on the present set for LOOK_STEPS steps."""
        weights_stream, order = split(generator, 2)
        params = {name: v.to(synthetic.device) for name, v in self.network.init(weights_stream, 1).items()}
        params, _ = train(self.network, params, synthetic.source(), generator=order, steps=LOOK_STEPS)
        parts = torch.arange(len(images), device=images.device).split(images_at_once(self.network, images.shape, images.device))
        with torch.no_grad():
            return torch.cat([self.real_network.apply(params, images.batch(i), False).logits[0] for i in parts])

    def augmented(self, context: StepContext, images: Tensor, c: int) -> Tensor:
        """Images (rows, m, C, H, W) of class c as the network meets them: an affine function of them."""
        flat = augment(images.flatten(0, 1)[None], context.drawn_for(slice(c, c + 1)))[0]
        return flat.unflatten(0, images.shape[:2])

    def pixel_gradient(self, context: StepContext, stored: Tensor, means: Tensor, c: int, formation: str) -> Tensor:
        """The gradient on stored images (m, C, H, W) of class c for each of `means` (rows, D): (rows, m, C, H, W)."""
        rows = stored.detach().expand(len(means), *stored.shape).clone().requires_grad_()
        loss = self.distance(context, self.augmented(context, _used(rows, formation), c), means, c).sum()
        return torch.autograd.grad(loss, rows)[0]

    @float32_matmul("float32")  # small differences of gradients that are nearly equal
    def effects(self, context: StepContext, synthetic: Synthetic, real: Tensor, weights: Tensor) -> Tensor:
        """`treatment_effects` in this step, for a sampler that follows them."""
        return treatment_effects(self, self.with_real(context, real), synthetic, real, weights)

    def pixels(self, context: StepContext, synthetic: Synthetic, draw_real, used: int = 0) -> tuple[Tensor, Tensor]:
        """(loss, its gradient on the stored images); `used` synthetic images of a class are kept in the graph."""
        labels, _ = synthetic.classes_present()
        real, weights = draw_real.classes(labels, self.batch, partial(self.effects, context, synthetic))
        context = self.with_real(context, real)
        # BatchNorm in training mode: one forward pass of all classes, as published
        whole = context.train_mode and couples(context.params)
        widest = max(real.shape[1], used) * self.network.channels * math.prod(real.shape[-2:])  # numbers in a feature map of a class
        size = len(labels) if whole else max(1, self.map_limit // widest)
        return gradient_by_classes(synthetic, size, partial(self.loss, context, real, weights), draw_real.parts, draw_real.where)

    def with_real(self, context: StepContext, real: Tensor) -> StepContext:
        """The context once its real images are known."""
        return context


def treatment_effects(objective, context: StepContext, synthetic: Synthetic, real: Tensor, weights: Tensor) -> Tensor:
    """Norms of the effects of all real images of a step on the stored pixels, (classes, n) float.

    real    (classes, n, C, H, W), with weights (classes, n) whose rows sum to one; weight zero has effect zero, as has an image alone
    raises  InputError on a network whose images couple (BatchNorm)
    Slow reference: `treatment_effects_plain`.
    """
    stored, found = _checked(context, synthetic), []
    size = rows_at_once(real.shape[1], synthetic.classes_present()[1].shape[1], stored.shape, stored.device)
    for c, images in enumerate(real):
        statistic = objective.statistic(context, images, c)  # (n, D)
        mean, share = _leave_out(statistic, weights[c])
        gradient = partial(objective.pixel_gradient, context, stored[c], c=c, formation=synthetic.formation)
        alone, norms = gradient(mean[None]) if size == 1 else None, []
        for phi, part in zip(statistic.split(size), share.split(size), strict=True):
            means = mean - part[:, None] * (phi - mean)
            if alone is None:  # in one pass: passes of different shapes may round a unit to either side of zero
                full, without = gradient(torch.cat([mean[None], means])).split([1, len(means)])
            else:
                full, without = alone, gradient(means)
            norms.append(torch.where(part > 0, (full - without).flatten(1).norm(dim=1), 0))
        found.append(torch.cat(norms))
    return torch.stack(found)


def treatment_effects_probed(
    objective, context: StepContext, synthetic: Synthetic, real: Tensor, weights: Tensor, probes: int, generator: Generator
) -> Tensor:
    """First-order norms from random directions, (classes, n): the squared norm is unbiased, its relative deviation sqrt(2 / probes).

    With directions $u_k$ from a normal distribution and $w_k$ the gradient of $\\langle$pull$, u_k\\rangle$ on the mean,
    $\\|\\mathrm{ITE}_i\\|^2$ is estimated by the mean over k of $((\\phi_i - m) \\cdot w_k)^2$, times the squared share.
    """
    stored, used = _checked(context, synthetic), synthetic.classes_present()[1].shape[1]
    found = []
    for c, images in enumerate(real):
        statistic = objective.statistic(context, images, c)
        mean, share = _leave_out(statistic, weights[c])
        directions = torch.randn(probes, *stored[c].shape, generator=generator).to(mean)
        total = torch.zeros_like(share)
        for some in directions.split(rows_at_once(probes, used, stored.shape, stored.device)):
            means = mean.expand(len(some), -1).clone().requires_grad_()
            rows = stored[c].expand(len(some), *stored[c].shape)
            with torch.no_grad():  # what a direction moves is seen by the difference, since `augmented` is affine
                seen, moved = (objective.augmented(context, _used(one, synthetic.formation), c) for one in (rows, rows + some))
            leaf = seen.requires_grad_()
            loss = objective.distance(context, leaf, means, c).sum()
            (pulled,) = torch.autograd.grad(loss, leaf, create_graph=True)
            (change,) = torch.autograd.grad((pulled * (moved - seen.detach())).sum(), means)  # (some, D)
            total += (statistic @ change.T - (change @ mean)).square().sum(1)
        found.append(share * (total / probes).sqrt())
    return torch.stack(found)


def treatment_effects_plain(objective, context: StepContext, synthetic: Synthetic, real: Tensor, weights: Tensor) -> Tensor:
    """The definition: the whole gradient again without each image in turn, (classes, n)."""
    stored = _checked(context, synthetic)

    def pixels(c: int, weight: Tensor) -> Tensor:
        leaf = stored.clone().requires_grad_()
        used = _used(leaf, synthetic.formation)
        some = weights.clone()
        some[c] = weight / weight.sum()
        return torch.autograd.grad(objective.loss(context, real, some, used[c : c + 1], slice(c, c + 1)), leaf)[0]

    found = torch.zeros_like(weights)
    for c in range(len(real)):
        full = pixels(c, weights[c])
        for i in torch.nonzero(weights[c])[:, 0]:
            without = weights[c].clone()
            without[i] = 0
            if without.sum() > 0:
                found[c, i] = (full - pixels(c, without)).norm()
    return found


def check_uncoupled(params: Params) -> None:
    """Raise InputError on a network whose images change one another in training."""
    if couples(params):
        raise InputError("treatment effect: a network whose images couple (BatchNorm); accepted: InstanceNorm, GroupNorm")


def _used(stored: Tensor, formation: str) -> Tensor:
    """Stored images (rows, m, C, H, W) as used: (rows, m', C, H, W)."""
    return form(stored.flatten(0, 1), formation).unflatten(0, (len(stored), -1))


def _checked(context: StepContext, synthetic: Synthetic) -> Tensor:
    """Stored images by class, (classes, m, C, H, W)."""
    if context.train_mode:
        check_uncoupled(context.params)
    return synthetic.tensors["images"].detach()[synthetic.stored_by_class()]


def _leave_out(statistic: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """(mean (D,), w / (1 - w) (n,)), the share zero for an image that is alone."""
    alone = weights >= 1
    return weights @ statistic, torch.where(alone, 0, weights) / torch.where(alone, 1, 1 - weights)
