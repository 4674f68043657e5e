r"""Gradient matching: DC (arXiv 2006.05929) and DSA (arXiv 2102.08259).

Along the training of many random networks, the gradient of the loss on the synthetic images of a class shall point the way the gradient
on real images of that class does. Every weight tensor with two or more axes is reshaped to rows [out, rest], $a_i$ and $b_i$ the rows
of the two gradients:

$$\mathrm{Dist} = \sum_{\mathrm{layers}} \sum_i \Big(1 - \frac{\langle a_i, b_i\rangle}{\|a_i\|\,\|b_i\| + 10^{-6}}\Big), \qquad L = \sum_c \mathrm{Dist}_c$$

After each pixel update but the last of T, the network trains on the synthetic set for zeta epochs; after T updates a new network is
drawn. DSA is DC with one siamese augmentation per class on both batches and augmentation in the inner training. Classes are stacked: C
classes see the network as C networks. Slow references, by classes and rows: `gradient_loss_plain`, `gradient_distance_plain`.
"""

from dataclasses import replace

import torch
from torch import Generator, Tensor

from distillery.checks import check_positive_int
from distillery.data.synthetic import Synthetic
from distillery.matching.effects import Separable, rows_at_once
from distillery.matching.step import StepContext, couples, prefixed, under
from distillery.networks import Params, trainable
from distillery.networks.precision import images_at_once, networks_at_once
from distillery.replay import ReplayedLoss
from distillery.seeds import split
from distillery.training import cross_entropy, train
from distillery.training.dsa import Draw, augment, draw
from distillery.training.optimizers import SGD
from distillery.upload import to_device

INNER = SGD(0.01, momentum=0.0, weight_decay=0.0)  # of the inner training, as published


def loops(ipc: int) -> tuple[int, int]:
    """(T, zeta), pixel updates per network and inner epochs between them: published for ipc 1, 10, .. 50, between them by our rule.

    The rule, T = ipc and zeta = max(1, round(500 / ipc)), gives the published values at 10, 20 and 50.
    """
    check_positive_int("ipc", ipc)
    published = {1: (1, 1), 30: (30, 20), 40: (40, 15)}
    return published.get(ipc, (ipc, max(1, round(500 / ipc))))


def gradient_distance(ours: dict[str, Tensor], real: dict[str, Tensor]) -> Tensor:
    """Row-wise cosine distance of each class, summed over rows and layers, (classes,) float. Slow reference: `gradient_distance_plain`.

    Each gradient is (classes, out, ...); those of one-dimensional weights, (classes, out), count nothing.
    """
    total = 0.0
    for name, a in ours.items():
        if a.ndim >= 3:
            a, b = a.flatten(2), real[name].flatten(2)  # (classes, out, rest)
            cosine = (a * b).sum(-1) / (_norm(a) * _norm(b) + 1e-6)  # (classes, out)
            total = total + (1 - cosine).sum(1)
    return total


def _norm(rows: Tensor) -> Tensor:
    """Euclidean norm over the last axis whose gradient at zero is zero instead of NaN."""
    square = rows.square().sum(-1)
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


def gradient_distance_plain(ours: dict[str, Tensor], real: dict[str, Tensor]) -> float:
    """The distance by loops over classes, layers and rows."""
    total = 0.0
    for name, gradient in ours.items():
        for c in range(len(gradient)):
            if gradient[c].ndim < 2:
                continue
            for a, b in zip(gradient[c], real[name][c], strict=True):
                a, b = a.flatten(), b.flatten()
                total += float(1 - torch.dot(a, b) / (a.norm() * b.norm() + 1e-6))
    return total


def matrices(params: Params) -> list[str]:
    """Names of the weights with two or more axes, which DC compares."""
    return [name for name, value in trainable(params).items() if value.ndim >= 3]  # (1, out, rest...)


def gradient_loss_plain(network, params, real, weights, synthetic, labels, drawn: Draw | None) -> Tensor:
    """One class after another through one network, as published."""
    total = torch.zeros(())
    for c, label in enumerate(labels):
        siamese = None if drawn is None else drawn[c : c + 1]
        gradients = []
        for images, weight in ((real[c : c + 1], weights[c]), (synthetic[c : c + 1], None)):
            learned = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
            logits = network.apply(learned, augment(images, siamese)[0]).logits[0]  # (n, classes)
            loss = torch.nn.functional.cross_entropy(logits, label.expand(len(logits)), reduction="none")
            loss = loss.mean() if weight is None else (loss * weight).sum()
            gradients.append(torch.autograd.grad(loss, list(learned.values()), create_graph=weight is None))
        for b, a in zip(*gradients, strict=True):
            if a.ndim < 3:
                continue
            a, b = a[0].flatten(1), b[0].flatten(1)  # (out, rest)
            total = total + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()
    return total


class GradientMatching(Separable):
    """The DC objective; with `augmentation` it is DSA.

    network        architecture that is drawn and trained along the way
    updates        T, pixel updates per network; 0 = `loops(ipc)`
    inner_epochs   zeta, epochs of inner training between updates; 0 = `loops(ipc)`
    batch          real images a class and step (published: 256)
    """

    name, learns = "gradient matching", ("images",)
    map_limit = 2**26  # about ten such maps are kept for the gradient
    names = staticmethod(matrices)  # which weights are compared
    compare = staticmethod(gradient_distance)  # of which effects are taken
    metric = staticmethod(gradient_distance)  # that is descended

    def __init__(self, network, updates=0, inner_epochs=0, batch: int = 256, augmentation: str = "", real_network=None):
        self.network, self.real_network = network, real_network or network
        self.updates, self.inner_epochs, self.batch, self.augmentation = updates, inner_epochs, batch, augmentation
        self.replayed = ReplayedLoss(self.loss_of_augmented)

    def start(self, synthetic: Synthetic, generator: Generator) -> dict[str, Tensor]:
        """State: the network in training and how many updates it has seen."""
        params = to_device(self.network.init(generator, 1), synthetic.device)
        return prefixed(params, "network.") | {"updates": torch.tensor(0)}

    def step(self, synthetic: Synthetic, state: dict[str, Tensor], draw_real, generator: Generator):
        """One gradient on the pixels, then the inner training: (gradients by name, state, log).

        The inner training needs the updated pixels, so it happens at the start of the next step.
        """
        weights_stream, inner_stream, augment_stream = split(generator, 3)
        labels, members = synthetic.classes_present()
        updates, inner_epochs = loops(len(synthetic) // len(labels))
        seen = int(state["updates"])
        if seen == (self.updates or updates):
            state, seen = self.start(synthetic, weights_stream), 0
        elif seen > 0:
            params, options = under(state, "network."), {"epochs": self.inner_epochs or inner_epochs, "augmentation": self.augmentation}
            params, _ = train(self.network, params, synthetic.source(), optimizer=INNER, generator=inner_stream, **options)
            state = prefixed(params, "network.")
        drawn = draw(self.augmentation, len(labels), 1, augment_stream, siamese=True)
        params, labels = under(state, "network."), to_device(labels, synthetic.device)
        loss, gradient = self.pixels(StepContext(params, labels, drawn), synthetic, draw_real, members.shape[1])
        return {"images": gradient}, state | {"updates": torch.tensor(seen + 1)}, {"loss": loss}

    def loss(self, context: StepContext, real: Tensor, weights: Tensor, images: Tensor, here: slice) -> Tensor:
        """The sum over some classes of the gradient distance, (). Slow reference: `gradient_loss_plain`."""
        drawn = context.drawn_for(here)
        seen = context.labels[here], augment(real[here], drawn), weights[here], augment(images, drawn)
        return self.replayed(context.params, *seen, train=context.train_mode)

    def loss_of_augmented(self, params: Params, labels: Tensor, real: Tensor, weights: Tensor, images: Tensor, *, train: bool) -> Tensor:
        """`loss` of real (classes, n, C, H, W) and synthetic images as the network sees them."""
        context = StepContext(params, labels, train_mode=train)
        target = self.real_gradients(context, real, labels, weights)
        return self.metric(self.class_gradients(self.network, context, images, labels, graph=True), target).sum()

    def class_gradients(
        self, network, context: StepContext, images: Tensor, labels: Tensor, weights: Tensor | None = None, graph: bool = False
    ) -> dict[str, Tensor]:
        """The loss gradient of every class at one network, on the weights that are compared: name -> (classes, ...).

        images   (classes, n, C, H, W), with the label of each class (classes,)
        weights  (classes, n), rows summing to one, or None for the mean
        graph    whether it is differentiable
        """
        classes, n = images.shape[:2]
        stacked = {name: value.detach().expand(classes, *value.shape[1:]) for name, value in context.params.items()}
        learned = {name: stacked[name].clone().requires_grad_() for name in self.names(context.params)}
        output = network.apply(stacked | learned, images, train=context.train_mode)
        loss = cross_entropy(output.logits, labels[:, None].expand(classes, n))  # (classes, n)
        total = loss.mean(1).sum() if weights is None else (loss * weights).sum()
        grads = torch.autograd.grad(total, list(learned.values()), create_graph=graph)
        return dict(zip(learned, grads, strict=True))

    def real_gradients(self, context: StepContext, images: Tensor, labels: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """`class_gradients` of the real network without a graph: classes stacked where that pays, the images of a class a few at a time.

        A gradient is a sum over images, so parts of a class add up; BatchNorm in training mode couples them and stays whole.
        """
        classes, n = images.shape[:2]
        stack = networks_at_once(classes, n, images.shape, images.device)
        whole = context.train_mode and couples(context.params)
        size = n if whole else max(1, images_at_once(self.real_network, images.shape, images.device) // stack)
        found = []
        for at in range(0, classes, stack):
            here, total = slice(at, at + stack), {}
            for part, share in zip(images[here].split(size, 1), weights[here].split(size, 1), strict=True):
                grads = self.class_gradients(self.real_network, context, part, labels[here], share)
                total = {name: total[name] + value for name, value in grads.items()} if total else grads
            found.append(total)
        return {name: torch.cat([one[name] for one in found]) for name in found[0]}

    def statistic(self, context: StepContext, images: Tensor, c: int) -> Tensor:
        """Loss gradients of real images (n, C, H, W) of class c, on the weights that are compared: (n, D)."""
        images = self.augmented(context, images[None], c)[0]
        size = rows_at_once(len(images), 1, images.shape, images.device)
        parts = [
            self.class_gradients(self.network, context, some[:, None], context.labels[c].expand(len(some))) for some in images.split(size)
        ]
        return torch.cat([torch.cat([g.flatten(1) for g in one.values()], 1) for one in parts])

    def distance(self, context: StepContext, images: Tensor, means: Tensor, c: int) -> Tensor:
        """Distance of the gradient on images (rows, m, C, H, W) to each of means (rows, D): (rows,)."""
        ours = self.class_gradients(self.network, context, images, context.labels[c].expand(len(images)), graph=True)
        parts = means.split([value[0].numel() for value in ours.values()], 1)
        return self.compare(ours, {n: p.view_as(ours[n]) for n, p in zip(ours, parts, strict=True)})

    def with_real(self, context: StepContext, real: Tensor) -> StepContext:
        """BatchNorm networks: running statistics from 16 real images a class, then frozen (as published)."""
        if not couples(context.params):
            return context
        with torch.no_grad():
            buffers = self.network.apply(context.params, real[:, :16].flatten(0, 1), train=True).buffers
        return replace(context, params=context.params | buffers, train_mode=False)
