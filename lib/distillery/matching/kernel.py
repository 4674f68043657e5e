r"""Distillers that fit a kernel ridge regression on the synthetic set: KIP, FRePo and RFAD.

With synthetic images $S$, their labels $y_S$ (centred one-hot, or learned) and a batch of real images $T$,

$$f_S(x) = k(x, S)\,(K_{SS} + \lambda I)^{-1} y_S, \qquad \lambda = \rho\,\mathrm{tr}(K_{SS}) / |S|,$$

and what is descended is the error of $f_S$ on $T$. Solves are in float64; one that fails is reported with its conditioning.

| method | kernel | loss | source |
|---|---|---|---|
| KIP | neural tangent kernel of an infinitely wide fully connected network, in closed form | half the mean squared error | arXiv 2011.00050 |
| FRePo | last features of a network from a pool that is trained on S along the way | half the squared error, label loss | 2206.00719 |
| RFAD | last features of random networks, new in every step | cross-entropy of exp(k) f with a learned k, or squared error | 2210.12067 |

Slow references: `kip_loss_plain`, `frepo_loss_plain`, `rfad_kernel_plain`, `rfad_loss_plain`.

Left out: KIP's convolutional kernels; RFAD's learned linear map of all pixels and its stop by validation loss; the evaluations of
KIP and RFAD by networks of width 1024 with scaled and centred labels, and by convolutional kernels of infinite width. Our choices:
nothing is chosen on test images, validation images are no training images; a network of FRePo's pool trains on the images before their
update, and is drawn anew as soon as it is too old; `predict` fits one scale for all three; gray images of 28 x 28 are padded to 32 x 32,
and images of other sizes get as many blocks as the field gives them (`networks.depth_for`).
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor, nn

from distillery.checks import InputError, check_positive_int
from distillery.data.synthetic import Synthetic
from distillery.matching.step import under
from distillery.networks import ConvNet, ModuleNetwork, Params, depth_for, trainable
from distillery.networks.precision import MixedPrecision, images_at_once
from distillery.networks.ridge import embeddings, gaussian, kernel_ridge_plain, ntk, ntk_plain, platt, regress
from distillery.seeds import split
from distillery.training import cross_entropy, half_squared_error, train
from distillery.training.losses import centred
from distillery.training.optimizers import Adam


def label_loss(labels: Tensor) -> Tensor:
    """FRePo: minus the mean gap between the two largest labels of an image, of which no more than 1 / C counts, (). Slow reference: `label_loss_plain`."""
    top = labels.topk(2, dim=1).values
    return -(top[:, 0] - top[:, 1]).clamp(max=1 / labels.shape[1]).mean()


class KernelRegression:
    """What the three objectives share. A subclass says which kernel a step sees and what its error costs.

    network       of the bench: classes and shape
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
            raise InputError(
                f"network: {network.name}; accepted with {self.name}: a ConvNet, which says of what images it is"
            )
        if not rho > 0:
            raise InputError(f"rho: {rho} is not accepted; accepted: a ridge above 0")
        self.network, self.batch, self.rho, self.labels = network, batch, rho, labels
        self.classes, self.scale = network.classes, 1.0  # scale of the labels
        self.precision = getattr(real_network, "precision", "float32")
        self.compiled = getattr(real_network, "compiled", False)

    @property
    def learned(self) -> tuple[str, ...]:
        """Names of the tensors that are learned."""
        return ("images", "targets") if self.labels else ("images",)

    def prepare(self, synthetic: Synthetic) -> Synthetic:
        """A set of real images as the method starts from it: with the tensors that it learns."""
        if self.labels and not synthetic.tensors["targets"].is_floating_point():
            synthetic = synthetic.replace(targets=self.first_labels(synthetic).float())
        return synthetic

    def first_labels(self, synthetic: Synthetic) -> Tensor:
        """Labels of the stored images, (M, C) float64: learned ones, or centred one-hot of this method's scale."""
        targets = synthetic.tensors["targets"]
        return targets.double() if targets.is_floating_point() else self.scale * centred(targets, self.classes)

    def start(self, synthetic: Synthetic, generator: Generator) -> dict[str, Tensor]:
        """No state."""
        return {}

    def step(self, synthetic: Synthetic, state: dict[str, Tensor], draw_real, generator: Generator):
        """One gradient on everything learned: (gradients by name, state, log)."""
        seen, after = split(generator, 2)
        params = self.moment(synthetic, state, seen)
        real, targets, weights = self._draw(draw_real)
        leaves = {
            name: value.detach().requires_grad_()
            for name, value in synthetic.tensors.items()
            if value.is_floating_point()
        }
        made = synthetic.replace(**leaves)
        outputs = self._outputs(made, params, [real])
        loss = self.error(outputs, targets, weights, made)
        grads = torch.autograd.grad(loss, list(leaves.values()))
        log = {"loss": loss.detach()} | self.report(outputs.detach(), targets, weights)
        return dict(zip(leaves, grads, strict=True)), self.after(synthetic, state, seen, after), log

    def _draw(self, draw_real) -> tuple[Tensor, Tensor, Tensor]:
        """Real images (n, ...), labels (n,) and weights (n,)."""
        if not self.balanced:
            return draw_real(None, self.batch)
        labels = torch.arange(self.classes)
        real, weights = draw_real.classes(labels, self.batch)  # (C, n, ...), (C, n)
        targets = labels.to(real.device, non_blocking=True).repeat_interleave(real.shape[1])
        return real.flatten(0, 1), targets, weights.flatten() / self.classes

    def moment(self, synthetic: Synthetic, state: dict[str, Tensor], generator: Generator) -> Params:
        """The networks behind the kernel of a step, {} where there is none."""
        return {}

    def after(self, synthetic, state: dict[str, Tensor], seen: Generator, generator: Generator) -> dict[str, Tensor]:
        """The state after a step."""
        return state

    def fresh(self, synthetic: Synthetic, generator: Generator) -> Params:
        """Networks for the kernel by which a finished set is judged."""
        return self.moment(synthetic, {}, generator)

    def features(self, params: Params, images: Tensor, real: bool) -> Tensor:
        """What the kernel compares, (n, D) float64."""
        raise NotImplementedError

    def kernel(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        """The kernel of features (n, D) and (m, D), of a with itself where b is None: (n, m)."""
        return a @ (a if b is None else b).T

    def error(self, outputs: Tensor, targets: Tensor, weights: Tensor, made: Synthetic) -> Tensor:
        """The loss of a step, ()."""
        raise NotImplementedError

    def report(self, outputs: Tensor, targets: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """What a step logs beside its loss."""
        return {"accuracy": ((outputs.argmax(1) == targets) * weights).sum() / weights.sum()}

    def ridge(self, k_ss: Tensor) -> Tensor:
        """Lambda, ()."""
        return self.rho * k_ss.trace() / len(k_ss)

    def doubled(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Support images and labels as the regression sees them."""
        return images, labels

    def _outputs(self, made: Synthetic, params: Params, batches) -> Tensor:
        """f_S of real images in batches, (n, C) float64."""
        images, labels = self.doubled(made.decode()[0], made.replace(targets=self.first_labels(made)).decode()[1])
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
        size = max(1, images_at_once(self.network, images.shape, images.device))
        parts = torch.arange(len(images), device=images.device).split(size)
        return self._outputs(made, params, (images.batch(part) for part in parts))

    def predict(self, synthetic: Synthetic, state: dict[str, Tensor], images, generator: Generator) -> Tensor:
        """Logits of real images (N, C) under the present regression, their scale fitted to their labels."""
        found = self.outputs(synthetic, self.moment(synthetic, state, generator), images)
        return found * platt(found, images.targets)

    def accuracy(self, synthetic: Synthetic, images, generator: Generator) -> float:
        """Share of images that the regression on a set takes for what they are, under fresh networks."""
        found = self.outputs(synthetic, self.fresh(synthetic, generator), images)
        return float((found.argmax(1) == images.targets).double().mean())


class KernelInducingPoints(KernelRegression):
    """KIP with the kernel of a fully connected network of infinite width.

    layers  hidden ones
    Others as `KernelRegression`; batch is of each class (published: 500, of 10 classes).
    """

    name, balanced = "KIP", True

    def __init__(self, network, batch: int = 500, real_network=None, *, layers: int = 1, **options):
        super().__init__(network, batch, real_network, **options)
        check_positive_int("layers", layers)
        self.layers = layers

    def features(self, params: Params, images: Tensor, real: bool) -> Tensor:
        return images.flatten(1).double()

    def kernel(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        return ntk(a, b, self.layers)

    def error(self, outputs: Tensor, targets: Tensor, weights: Tensor, made: Synthetic) -> Tensor:
        """Half the mean over images and classes of the squared error. Slow reference: `kip_loss_plain`."""
        gap = (outputs - centred(targets, self.classes)).square().mean(1)
        return 0.5 * (weights * gap).sum()


class RandomFeatures(KernelRegression):
    """RFAD. Networks: three blocks of convolution, ReLU and pooling, weights N(0, 2 / fan in), biases N(0, .1^2), no norm.

    width     channels of each network (published: 256)
    networks  drawn in every step, 8; `judged` for a finished set, 16
    platt     cross-entropy with a learned scale; False = half the mean squared error
    Others as `KernelRegression`; batch is of all classes (published: 5,120), rho 5e-3.
    """

    name, learns = "RFAD", ("images", "log_scale")

    def __init__(
        self,
        network,
        batch: int = 5120,
        real_network=None,
        *,
        rho: float = 5e-3,
        width: int = 256,
        networks: int = 8,
        judged: int = 16,
        platt: bool = True,
        labels: bool = False,
    ):
        super().__init__(network, batch, real_network, rho=rho, labels=labels)
        check_positive_int("networks", networks)
        self.drawn, self.judged, self.platt = networks, judged, platt
        self.own = ConvNet(network.shape, self.classes, width, normalization="none")
        self.fast = MixedPrecision(self.own, self.precision, self.compiled)

    @property
    def learned(self) -> tuple[str, ...]:
        return (*super().learned, "log_scale") if self.platt else super().learned

    def prepare(self, synthetic: Synthetic) -> Synthetic:
        synthetic = super().prepare(synthetic)
        scale = {"log_scale": torch.zeros((), device=synthetic.device)} if self.platt else {}
        return synthetic.replace(**scale)

    def moment(self, synthetic, state, generator: Generator) -> Params:
        return gaussian(self.own, generator, self.drawn, synthetic.device)

    def fresh(self, synthetic: Synthetic, generator: Generator) -> Params:
        return gaussian(self.own, generator, self.judged, synthetic.device)

    def features(self, params: Params, images: Tensor, real: bool) -> Tensor:
        return embeddings(self.fast if real else self.own, params, images).double()

    def kernel(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        """Twice the mean product of features and .01: the dropped last layer. Slow reference: `rfad_kernel_plain`."""
        return 2 * super().kernel(a, b) / a.shape[1] + 0.01

    def error(self, outputs: Tensor, targets: Tensor, weights: Tensor, made: Synthetic) -> Tensor:
        """Cross-entropy of exp(k) f, or half the mean squared error. Slow reference: `rfad_loss_plain`."""
        if self.platt:
            wrong = cross_entropy(made.tensors["log_scale"].double().exp() * outputs[None], targets[None])[0]
            return (weights * wrong).sum()
        return 0.5 * (weights * (outputs - centred(targets, self.classes)).square().mean(1)).sum()


class PooledRegression(KernelRegression):
    """What objectives share whose kernel is of features of a network from a pool, which is trained on the set along the way.

    A subclass sets `own`, the network, and `pool`, how many there are; its state is flat, 'net.NAME' (P, ...) and more.
    """

    own: ModuleNetwork
    pool: int

    def _picked(self, generator: Generator) -> int:
        """Which network of the pool a step sees, from a copy of its generator."""
        return int(torch.randint(self.pool, (), generator=generator.clone_state()))

    def moment(self, synthetic, state, generator: Generator) -> Params:
        i = self._picked(generator)
        return {name: value[i : i + 1] for name, value in under(state, "net.").items()}

    def after(self, synthetic, state, seen: Generator, generator: Generator) -> dict[str, Tensor]:
        """The network that was seen takes a step on the synthetic images, or is drawn anew where it is old."""
        i = self._picked(seen)
        state = {name: value.clone() for name, value in state.items()}
        one = {name: value[i : i + 1] for name, value in state.items()}
        for name, value in self.aged(synthetic, one, generator).items():
            state[name][i] = value[0]
        return state

    def aged(self, synthetic, one: dict[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        """The state of one network after a step that saw it, leading axis 1."""
        raise NotImplementedError

    def features(self, params: Params, images: Tensor, real: bool) -> Tensor:
        network = MixedPrecision(self.own, self.precision) if real and self.precision != "float32" else self.own
        return network.embed(params, images, train=False)[0].double()


class FeatureRegression(PooledRegression):
    """FRePo. The pool's networks are of `frepo_network`, judged by their features in evaluation mode.

    width    channels of the first block, twice as many in each next one (published: 128)
    pool     networks (10), which start at staggered ages
    age      steps after which a network is drawn anew (100)
    lr       of their training on the synthetic set, Adam (3e-4)
    flip     whether the regression also sees mirrored synthetic images
    Others as `KernelRegression`; batch is of all classes (published: 1,024). Learned labels add `label_loss`.
    """

    name, learns = "FRePo", ("images", "targets")

    def __init__(
        self,
        network,
        batch: int = 1024,
        real_network=None,
        *,
        rho: float = 1e-6,
        width: int = 128,
        pool: int = 10,
        age: int = 100,
        lr: float = 3e-4,
        flip: bool = True,
        labels: bool = True,
    ):
        super().__init__(network, batch, real_network, rho=rho, labels=labels)
        for name, value in (("pool", pool), ("age", age)):
            check_positive_int(name, value)
        self.pool, self.age, self.flip, self.adam = pool, age, flip, Adam(lr)
        self.scale = 1 / math.sqrt(self.classes / 10)
        self.own = frepo_network(network.shape, self.classes, width)

    def start(self, synthetic: Synthetic, generator: Generator) -> dict[str, Tensor]:
        """State: the pool 'net.NAME' (P, ...), its Adam 'first.NAME', 'second.NAME', 'steps' and 'age' (P,)."""
        return self._drawn(synthetic.device, generator, self.pool) | {
            "age": torch.arange(self.pool) * max(1, self.age // self.pool)
        }

    def _drawn(self, device: torch.device, generator: Generator, k: int) -> dict[str, Tensor]:
        nets = {name: value.to(device, non_blocking=True) for name, value in self.own.init(generator, k).items()}
        state = {f"net.{name}": value for name, value in nets.items()}
        for name, value in trainable(nets).items():
            state |= {f"first.{name}": torch.zeros_like(value), f"second.{name}": torch.zeros_like(value)}
        return state | {"steps": torch.zeros(k, dtype=torch.int64), "age": torch.zeros(k, dtype=torch.int64)}

    def aged(self, synthetic, one: dict[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        new = self._train(synthetic, one, generator)
        return new if int(new["age"]) <= self.age else self._drawn(synthetic.device, generator, 1)

    def _train(self, synthetic: Synthetic, one: dict[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        params = under(one, "net.")
        learned = {name: value.detach().clone().requires_grad_() for name, value in trainable(params).items()}
        source = synthetic.replace(targets=self.first_labels(synthetic).float()).source()
        chosen = torch.randperm(len(source), generator=generator)[:500].to(synthetic.device, non_blocking=True)
        output = self.own.apply(params | learned, source.batch(chosen), train=True)
        loss = half_squared_error(output.logits, source.targets[chosen][None]).mean()
        grads = torch.autograd.grad(loss, list(learned.values()))
        weights = [value.detach() for value in learned.values()]
        moments = [one[f"{kind}.{name}"] for kind in ("first", "second") for name in learned]
        moments = self.adam.update(weights, list(grads), [m.clone() for m in moments], int(one["steps"]), 1.0)
        kinds = [f"{kind}.{name}" for kind in ("first", "second") for name in learned]
        new = {f"net.{name}": value for name, value in zip(learned, weights, strict=True)}
        new |= {f"net.{name}": value.detach() for name, value in output.buffers.items()}
        new |= dict(zip(kinds, moments, strict=True))
        return one | new | {"steps": one["steps"] + 1, "age": one["age"] + 1}

    def fresh(self, synthetic: Synthetic, generator: Generator) -> Params:
        """A network trained on the set as long as the pool's oldest."""
        init, order = split(generator, 2)
        params = {name: value.to(synthetic.device) for name, value in self.own.init(init, 1).items()}
        source = synthetic.replace(targets=self.first_labels(synthetic).float()).source()
        return train(
            self.own, params, source, half_squared_error, self.adam, generator=order, steps=self.age, batch=500
        )[0]

    def doubled(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if not self.flip:
            return images, labels
        return torch.cat([images, images.flip(-1)]), torch.cat([labels, labels])

    def error(self, outputs: Tensor, targets: Tensor, weights: Tensor, made: Synthetic) -> Tensor:
        """Half the squared error and the label loss. Slow reference: `frepo_loss_plain`."""
        gap = (outputs - centred(targets, self.classes)).square().sum(1)
        loss = 0.5 * (weights * gap).sum()
        return loss + label_loss(made.tensors["targets"].double()) if self.labels else loss


def frepo_network(shape: tuple[int, int, int], classes: int, width: int) -> ModuleNetwork:
    """FRePo's network: blocks of convolution, ReLU and pooling, twice as wide each, BatchNorm before all but the first.

    Gray images of 28 x 28 are padded to 32 x 32 in the first convolution. Its statistics follow the last batch by nine tenths
    (momentum .9 in torch's sense).
    """

    def build() -> nn.Module:
        layers, channels = [], shape[0]
        for i in range(depth_for(shape)):
            if i:
                layers.append(nn.BatchNorm2d(channels, momentum=0.9))
            padding = 3 if i == 0 and tuple(shape) == (1, 28, 28) else 1
            layers += [nn.Conv2d(channels, width * 2**i, 3, padding=padding), nn.ReLU(), nn.AvgPool2d(2)]
            channels = width * 2**i
        side = [s + (4 if tuple(shape) == (1, 28, 28) else 0) for s in shape[1:]]
        pixels = math.prod(s // 2 ** depth_for(shape) for s in side)
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * pixels, classes))

    network = ModuleNetwork(build, f"FRePo network width {width}")
    network.channels = width
    return network


def ntk_matrix_plain(left: Tensor, right: Tensor, depth: int) -> Tensor:
    """The NTK of all pairs: left (n, c, h, w) and right (m, c, h, w) images -> (n, m)."""
    return torch.stack([torch.stack([ntk_plain(x.flatten(), y.flatten(), depth) for y in right]) for x in left])


def kip_loss_plain(
    images: Tensor, labels: Tensor, real: Tensor, real_labels: Tensor, weights: Tensor, depth: int = 1
) -> Tensor:
    """KIP: half the weighted mean over targets of the mean over classes of the squared error.

    Source: 2011.00050, kernel ridge regression loss; ridge 1e-6 tr(K_SS) / m as in the released code.

    images       (m, c, h, w) float64: synthetic images;   labels (m, C) float64
    real         (n, c, h, w) float64: targets;       real_labels (n, C) float64, centred one-hot
    weights      (n,) float64
    depth        hidden layers of the network of `ntk_plain`
    returns      () float64
    """
    kernel_ss = ntk_matrix_plain(images, images, depth)  # (m, m)
    kernel_ts = ntk_matrix_plain(real, images, depth)  # (n, m)
    penalty = 1e-6 * torch.trace(kernel_ss) / len(images)
    predictions = kernel_ridge_plain(kernel_ss, labels, kernel_ts, penalty)  # (n, C)
    loss = torch.zeros_like(penalty)
    for weight, prediction, truth in zip(weights, predictions, real_labels, strict=True):
        loss = loss + weight * (prediction - truth).square().mean() / 2
    return loss


def label_loss_plain(labels: Tensor) -> Tensor:
    """FRePo's label term: mean over the images of -min(top1 - top2, 1 / C).

    It pulls the largest entry of a learned label away from the second until the gap is 1 / C.

    labels     (m, C) float64, C >= 2
    returns    () float64 in [-1 / C, 0]
    """
    m, classes = labels.shape
    loss = labels.new_zeros(())
    for label in labels:
        second, first = label.sort().values[-2:]
        gap = first - second
        # Not torch.minimum, which halves the gradient where the gap is 1 / C.
        loss = loss - gap.clamp(max=1 / classes) / m
    return loss


def frepo_loss_plain(
    features: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    real: Tensor,
    real_labels: Tensor,
    weights: Tensor,
    flip: bool,
) -> Tensor:
    """FRePo: weighted mean over targets of half the squared error, summed over classes, plus the label term.

    Source: 2206.00719 and its released code. K(x, x') = h(x).h(x'); ridge 1e-6 tr(K_SS) / |S|.

    features     (n, c, h, w) -> (n, F): flattened last activations of one network, in eval mode
    images       (m, c, h, w) float64: synthetic images;   labels (m, C) float64
    real         (n, c, h, w) float64: targets;       real_labels (n, C) float64
    weights      (n,) float64
    flip         append left-right mirrored copies of the images, labels repeated, before the regression: |S| = 2 m.
                 The targets are not mirrored, and the label term is of the m labels
    returns      () float64
    """
    support, support_labels = images, labels
    if flip:
        support = torch.cat([images, images.flip(3)])  # (2 m, c, h, w)
        support_labels = torch.cat([labels, labels])  # (2 m, C)
    h_s = features(support)  # (|S|, F)
    h_t = features(real)  # (n, F)
    kernel_ss = h_s @ h_s.T  # (|S|, |S|)
    kernel_ts = h_t @ h_s.T  # (n, |S|)
    penalty = 1e-6 * torch.trace(kernel_ss) / len(support)
    predictions = kernel_ridge_plain(kernel_ss, support_labels, kernel_ts, penalty)  # (n, C)
    loss = label_loss_plain(labels)
    for weight, prediction, truth in zip(weights, predictions, real_labels, strict=True):
        loss = loss + weight * (prediction - truth).square().sum() / 2
    return loss


def rfad_kernel_plain(networks: Sequence[Callable[[Tensor], Tensor]], a: Tensor, b: Tensor) -> Tensor:
    """RFAD's kernel, K = 2 psi(a) psi(b)^T + .01, psi = concatenated features / sqrt(networks x F).

    The 2 and the .01 are the squared weight and bias deviations of the dropped dense layer.

    networks   functions (n, c, h, w) -> (n, F): flattened last activations of random networks
    a, b       (n, c, h, w) and (m, c, h, w) float64
    returns    (n, m) float64
    """
    total = 0
    for network in networks:
        left, right = network(a), network(b)  # (n, F), (m, F)
        # psi psi^T of concatenated blocks is the sum of the blocks' products.
        total = total + left @ right.T / (len(networks) * left.shape[1])  # (n, m)
    return 2 * total + 0.01


def rfad_loss_plain(
    networks: Sequence[Callable[[Tensor], Tensor]],
    images: Tensor,
    labels: Tensor,
    real: Tensor,
    real_labels: Tensor,
    weights: Tensor,
    log_scale: Tensor | None = None,
) -> Tensor:
    """RFAD: kernel ridge regression with ridge 5e-3 tr(K_SS) / |S|, under the squared or the Platt loss.

    Source: 2210.12067 and its released code.

    networks     functions (n, c, h, w) -> (n, F), the same for images and targets
    images       (m, c, h, w) float64: synthetic images;   labels (m, C) float64
    real         (n, c, h, w) float64: targets;       real_labels (n, C) float64
    weights      (n,) float64
    log_scale    None: half the weighted mean over targets of the mean over classes of the squared error.
                 () float64, k: weighted mean of the cross-entropy (nats) of softmax(exp(k) prediction) with the
                 class argmax(real_labels)
    returns      () float64, differentiable in log_scale too
    """
    kernel_ss = rfad_kernel_plain(networks, images, images)  # (m, m)
    kernel_ts = rfad_kernel_plain(networks, real, images)  # (n, m)
    penalty = 5e-3 * torch.trace(kernel_ss) / len(images)
    predictions = kernel_ridge_plain(kernel_ss, labels, kernel_ts, penalty)  # (n, C)
    loss = torch.zeros_like(penalty)
    for weight, prediction, truth in zip(weights, predictions, real_labels, strict=True):
        if log_scale is None:
            loss = loss + weight * (prediction - truth).square().mean() / 2
        else:
            logits = torch.exp(log_scale) * prediction  # (C,)
            loss = loss + weight * (torch.logsumexp(logits, dim=0) - logits[truth.argmax()])
    return loss
