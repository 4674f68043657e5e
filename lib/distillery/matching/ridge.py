r"""Ridge regression on a synthetic set, differentiated through its solution: what kernel methods share.

With synthetic images $S$, their labels $y_S$ (centred one-hot, or learned) and a batch of real images $T$,

$$f_S(x) = k(x, S)\,(K_{SS} + \lambda I)^{-1} y_S, \qquad \lambda = \rho\,\mathrm{tr}(K_{SS}) / |S|,$$

and what is descended is the error of $f_S$ on $T$. Solves are in float64; one that fails is reported with its conditioning. A method's
kernel, loss and plain twin are in its file under `methods/`; the solve is `networks.ridge.regress`.
"""

import torch
from torch import Generator, Tensor

from distillery.checks import InputError, check_positive, check_positive_int
from distillery.data.synthetic import Synthetic
from distillery.networks import Params
from distillery.networks.precision import images_at_once
from distillery.networks.ridge import platt, regress
from distillery.seeds import split
from distillery.training.losses import centred
from distillery.upload import to_device


class KernelRegression:
    """An objective that descends the error of a kernel ridge regression on the set.

    A subclass has `features(params, images, real)`, what the kernel compares, (n, D) float64.

    network       of the experiment: classes and shape
    batch         real images a step; of each class where `balanced`
    real_network  how passes over real images run, such as `MixedPrecision(network, "bfloat16")`; None = float32
    rho           lambda over the mean diagonal of K_SS
    labels        whether the labels of the synthetic images are learned
    raises        InputError on a rho that is not above 0, or a batch that is not positive
    """

    name: str
    learns = ("images",)  # as published
    balanced = False

    def __init__(self, network, batch: int, real_network=None, *, rho: float = 1e-6, labels: bool = False):
        check_positive_int("batch", batch)
        if not hasattr(network, "shape"):
            raise InputError(f"network: {network.name}; accepted with {self.name}: a ConvNet, which says of what images it is")
        check_positive("rho", rho)
        self.network, self.batch, self.rho, self.labels = network, batch, rho, labels
        self.classes, self.label_scale = network.classes, 1.0
        self.precision, self.compiled = getattr(real_network, "precision", "float32"), getattr(real_network, "compiled", False)

    @property
    def learned(self) -> tuple[str, ...]:
        """Names of the tensors that are learned."""
        return ("images", "targets") if self.labels else ("images",)

    def prepare(self, synthetic: Synthetic) -> Synthetic:
        """A set of real images as the method starts from it: with the tensors that it learns."""
        if self.labels and not synthetic.tensors["targets"].is_floating_point():
            synthetic = synthetic.replace(targets=self.labels_of(synthetic).float())
        return synthetic

    def labels_of(self, synthetic: Synthetic) -> Tensor:
        """Labels of the stored images, (M, C) float64: learned ones, or centred one-hot times `label_scale`."""
        targets = synthetic.tensors["targets"]
        return targets.double() if targets.is_floating_point() else self.label_scale * centred(targets, self.classes)

    def start(self, synthetic: Synthetic, generator: Generator) -> dict[str, Tensor]:
        """There is no state."""
        return {}

    def step(self, synthetic: Synthetic, state: dict[str, Tensor], draw_real, generator: Generator):
        """One gradient on everything learned: (gradients by name, state, log)."""
        seen, after = split(generator, 2)
        params = self.networks_of_step(synthetic, state, seen)
        real, targets, weights = self.draw_batch(draw_real)
        leaves = {name: value.detach().requires_grad_() for name, value in synthetic.tensors.items() if value.is_floating_point()}
        made = synthetic.replace(**leaves)
        outputs = self._outputs(made, params, [real])
        loss = self.error(outputs, targets, weights, made)
        grads = torch.autograd.grad(loss, list(leaves.values()))
        log = {"loss": loss.detach()} | self.report(outputs.detach(), targets, weights)
        return dict(zip(leaves, grads, strict=True)), self.after(synthetic, state, seen, after), log

    def draw_batch(self, draw_real) -> tuple[Tensor, Tensor, Tensor]:
        """Real images (n, ...), labels (n,) and weights (n,)."""
        if not self.balanced:
            return draw_real(None, self.batch)
        labels = torch.arange(self.classes)
        drawn, weights = draw_real.classes(labels, self.batch)
        real = drawn[:]  # (C, n, ...), weights (C, n)
        targets = to_device(labels, real.device).repeat_interleave(real.shape[1])
        return real.flatten(0, 1), targets, weights.flatten() / self.classes

    def networks_of_step(self, synthetic: Synthetic, state: dict[str, Tensor], generator: Generator) -> Params:
        """The networks behind the kernel of a step, {} where there is none."""
        return {}

    def after(self, synthetic: Synthetic, state: dict[str, Tensor], seen: Generator, generator: Generator) -> dict[str, Tensor]:
        """The state after a step; `seen` is the generator of `networks_of_step`."""
        return state

    def fresh(self, synthetic: Synthetic, generator: Generator) -> Params:
        """Networks for the kernel by which a finished set is judged."""
        return self.networks_of_step(synthetic, {}, generator)

    def kernel(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        """The kernel of features (n, D) and (m, D), of a with itself where b is None: (n, m)."""
        return a @ (a if b is None else b).T

    def error(self, outputs: Tensor, targets: Tensor, weights: Tensor, made: Synthetic) -> Tensor:
        """The loss of a step, (): half the mean over images and classes of the squared error."""
        return 0.5 * (weights * (outputs - centred(targets, self.classes)).square().mean(1)).sum()

    def report(self, outputs: Tensor, targets: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """What a step logs beside its loss."""
        return {"accuracy": ((outputs.argmax(1) == targets) * weights).sum() / weights.sum()}

    def ridge(self, k_ss: Tensor) -> Tensor:
        """Lambda, ()."""
        return self.rho * k_ss.trace() / len(k_ss)

    def support(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The set's images and labels as the regression sees them."""
        return images, labels

    def _outputs(self, made: Synthetic, params: Params, batches) -> Tensor:
        """f_S of real images in batches, (n, C) float64."""
        images, labels = self.support(made.decode()[0], made.replace(targets=self.labels_of(made)).decode()[1])
        support = self.features(params, images, False)
        k_ss = self.kernel(support)
        dual = regress(k_ss, labels, self.ridge(k_ss))
        outputs = []
        for real in batches:
            with torch.no_grad():
                rows = self.features(params, real, True)
            outputs.append(self.kernel(rows, support) @ dual)
        return torch.cat(outputs)

    @torch.no_grad()
    def outputs(self, made: Synthetic, params: Params, images) -> Tensor:
        """The regression on an ImageSet, (N, C) float64, from one solve."""
        parts = torch.arange(len(images), device=images.device).split(images_at_once(self.network, images.shape, images.device))
        return self._outputs(made, params, (images.batch(part) for part in parts))

    def predict(self, synthetic: Synthetic, state: dict[str, Tensor], images, generator: Generator) -> Tensor:
        """Logits of real images (N, C) under the present regression, their scale fitted to their labels."""
        found = self.outputs(synthetic, self.networks_of_step(synthetic, state, generator), images)
        return found * platt(found, images.targets)

    def accuracy(self, synthetic: Synthetic, images, generator: Generator) -> float:
        """Share of images that the regression on a set takes for what they are, under fresh networks."""
        found = self.outputs(synthetic, self.fresh(synthetic, generator), images)
        return float((found.argmax(1) == images.targets).double().mean())


def label_loss(labels: Tensor) -> Tensor:
    """Minus the mean gap between the two largest labels (m, C >= 2) of an image, of which no more than 1 / C counts, ().

    Source: arXiv 2206.00719 and its code. Slow reference: `label_loss_plain`.
    """
    top = labels.topk(2, dim=1).values
    return -(top[:, 0] - top[:, 1]).clamp(max=1 / labels.shape[1]).mean()


def label_loss_plain(labels: Tensor) -> Tensor:
    """`label_loss` in [-1 / C, 0], image by image: it pulls the largest label away from the second until the gap is 1 / C."""
    m, classes = labels.shape
    loss = labels.new_zeros(())
    for label in labels:
        second, first = label.sort().values[-2:]
        gap = first - second
        # Not torch.minimum, which halves the gradient where the gap is 1 / C.
        loss = loss - gap.clamp(max=1 / classes) / m
    return loss
