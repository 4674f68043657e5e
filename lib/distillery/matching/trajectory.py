r"""Trajectory matching: MTT (arXiv 2203.11932), and what TESLA, FTD, DATM and MKDT change of it.

A student starts at an expert's weights $\theta_0 = \tau_t$, takes N steps of rate $\eta$ on augmented batches $x_n$ of the synthetic set,
and shall end near the weights the expert had M epochs later:

$$\theta_{n+1} = \theta_n - \eta\,\nabla_\theta l(\theta_n; x_n), \qquad L = \|\theta_N - \tau_{t+M}\|^2 / D, \quad D = \|\tau_t - \tau_{t+M}\|^2$$

`sweep` (our derivation) gives the exact gradient of L, as through the unrolled loop, with the graph of one step at a time. With
$\lambda = (2/D)(\theta_N - \tau_{t+M})$, for n = N-1 down to 0:

$$s = \langle\lambda, \nabla_\theta l(\theta_n; x_n)\rangle, \qquad \tfrac{dL}{dx} \mathrel{-}= \eta\,\partial_x s, \qquad
\tfrac{dL}{d\eta} \mathrel{-}= s, \qquad \lambda \leftarrow \lambda - \eta\,\partial_{\theta_n} s$$

x stands for every learned tensor (pixels, label logits, targets). TESLA as published is the same sweep with lambda frozen at its first
value: exact for N = 1 alone. Slow reference, plain autograd through all steps: `sweep_plain`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from distillery.checks import InputError, check_positive_int
from distillery.data.synthetic import Synthetic
from distillery.networks import Params, trainable
from distillery.seeds import split
from distillery.training import cross_entropy
from distillery.training.dsa import Draw, augment, draw
from distillery.training.views import ViewDraw, Views, draw_views, view
from distillery.upload import to_device

# bytes of graphs that a sweep holds: the same on every machine, since torch's own norms and swish round otherwise with a graph than without
KEPT = 2**31
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


def descend(loss: StepLoss, flat: Flat, theta: Tensor, tensors: dict[str, Tensor], drawn) -> Tensor:
    """The weights (P,) after one student step from `theta` (P,), without a graph."""
    theta = theta.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(flat.params(theta), tensors, drawn), theta)
    return theta.detach() - tensors["step_size"] * gradient


class Graph(NamedTuple):
    """The gradient (P,) of a student step's loss with its graph, and the leaves of that: weights (P,), learned tensors."""

    theta: Tensor
    tensors: dict[str, Tensor]
    gradient: Tensor


def graph_of(loss: StepLoss, flat: Flat, theta: Tensor, synthetic: dict[str, Tensor], drawn) -> Graph:
    """The gradient of a student step at the weights `theta` (P,), to be differentiated once more."""
    theta, tensors = theta.detach().requires_grad_(), {name: value.detach().requires_grad_() for name, value in synthetic.items()}
    return Graph(theta, tensors, *torch.autograd.grad(loss(flat.params(theta), tensors, drawn), theta, create_graph=True))


def backward_step(graph: Graph, multiplier: Tensor, frozen: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """One step of the recursion above at a student step: (lambda (P,) before it, what it adds to the gradient by name)."""
    (theta, tensors, gradient), step_size = graph, graph.tensors["step_size"].detach()
    names = [name for name in tensors if name != "step_size"]
    along = gradient @ multiplier  # (), s
    wanted = [tensors[name] for name in names] + ([] if frozen else [theta])
    parts = torch.autograd.grad(along, wanted, materialize_grads=True)
    added = {"step_size": -along.detach()} | {name: -step_size * part for name, part in zip(names, parts)}
    return multiplier if frozen else multiplier - step_size * parts[-1], added


def student(loss: StepLoss, theta0: Params, synthetic: dict[str, Tensor], draws: Sequence) -> list[Tensor]:
    """The student's weights along its N steps, without graphs: N + 1 flat vectors (P,), the first is `theta0`."""
    return student_and_graphs(loss, theta0, synthetic, draws, 0)[0]


def student_and_graphs(
    loss: StepLoss, theta0: Params, synthetic: dict[str, Tensor], draws: Sequence, keep: int
) -> tuple[list[Tensor], dict[int, Graph]]:
    """What `student` gives, and the graphs of its last steps by number.

    keep  bytes that the graphs may hold together
    """
    flat, tensors, graphs = Flat(theta0), {name: value.detach() for name, value in synthetic.items()}, {}
    path, first = [flat.vector(theta0)], len(draws) if keep <= 0 else 0  # the first step whose graph is kept
    for n, drawn in enumerate(draws):
        if n == 0 and keep > 0:
            held, graph = held_bytes(lambda: graph_of(loss, flat, path[0], synthetic, draws[0]))
            first = max(0, len(draws) - int(keep // held))
        elif n >= first:
            graph = graph_of(loss, flat, path[-1], synthetic, drawn)
        if n >= first:
            graphs[n] = graph
            path.append(path[-1] - tensors["step_size"] * graph.gradient.detach())
        else:
            path.append(descend(loss, flat, path[-1], tensors, drawn))
    return path, graphs


def held_bytes(make: Callable) -> tuple[int, Any]:
    """(bytes of the tensors that what is made keeps for its derivatives, at least 1; what is made)."""
    held: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        made = make()
    return max(1, sum(held.values())), made


def sweep(
    loss: StepLoss, theta0: Params, target: Params, synthetic: dict[str, Tensor], draws: Sequence, *, frozen: bool = False, keep: int = KEPT
) -> tuple[Tensor, dict[str, Tensor]]:
    """The matching loss L, (), and its gradient on every learned tensor, by the recursion above. Slow reference: `sweep_plain`.

    Memory: one step's graph and (N + 1) P numbers, and the graphs of the last steps as far as `keep` bytes hold them: those of steps before
    are made twice.

    loss       of a student step, which forms its own batch from the learned tensors and what was drawn
    theta0     the weights a student starts from; `target` those it shall reach, same names
    synthetic  the learned floating tensors by name; 'step_size' () is the student's rate
    draws      one entry for each of the N steps, in any form `loss` understands
    frozen     TESLA as published: drop the way later steps depend on earlier ones
    raises     InputError without a step, a step size, or with target weights of other names
    """
    _check(theta0, target, synthetic, draws)
    flat, (path, graphs) = Flat(theta0), student_and_graphs(loss, theta0, synthetic, draws, keep)
    goal = flat.vector(target)
    distance, gap = (path[0] - goal).square().sum(), path[-1] - goal
    multiplier = 2 / distance * gap  # (P,), lambda
    gradients = {name: torch.zeros_like(value) for name, value in synthetic.items()}
    for n in reversed(range(len(draws))):
        graph = graphs.pop(n, None) or graph_of(loss, flat, path[n], synthetic, draws[n])
        multiplier, added = backward_step(graph, multiplier, frozen)
        for name, part in added.items():
            gradients[name] += part
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
        theta = {name: weight - tensors["step_size"] * grad for (name, weight), grad in zip(theta.items(), grads, strict=True)}
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


@dataclass(frozen=True)
class StartEpochs:
    """Which expert epoch a step starts from: t ~ U{min_start_epoch .. bound(step) - 1}. Raises InputError where there is none.

    Source: DATM's public configuration; the bound is min(T+, T + int((T+ - T) step / Delta)).
    """

    min_start_epoch: int  # lowest one (T- of DATM; 0 elsewhere)
    max_start_epoch: int  # one above the highest (T+)
    initial_max_start_epoch: int = 0  # the bound at step 0 where it grows (T), 0 = no growth
    expansion_steps: int = 0  # steps until it reaches `max_start_epoch` (Delta), positive where it grows

    def __post_init__(self):
        low, high, begin, growth = vars(self).values()
        if not 0 <= low < (begin or high) <= high or (begin > 0) != (growth > 0):
            bounds = "0 <= min_start_epoch < initial_max_start_epoch <= max_start_epoch"
            raise InputError(f"start epochs: {self}; accepted: {bounds}, initial_max_start_epoch and expansion_steps both or none")

    def bound(self, step: int) -> int:
        """One above the highest start epoch at a step."""
        begin, high = self.initial_max_start_epoch, self.max_start_epoch
        return min(high, begin + int((high - begin) * step / self.expansion_steps)) if begin else high

    def draw(self, step: int, generator: Generator) -> int:
        return int(torch.randint(self.min_start_epoch, self.bound(step), (), generator=generator))


GRADIENTS: dict[str, Callable] = {"exact": sweep, "frozen": lambda *problem: sweep(*problem, frozen=True), "unrolled": sweep_plain}


class TrajectoryMatching:
    """The objective of MTT, TESLA, FTD, DATM and MKDT; they differ in their experts and options.

    experts       trajectories of `network`, see `experts.Experts`
    student_steps N, which shall cover M `expert_epochs` from one of `start_epochs` on
    batch         synthetic images a student step, 0 or more than there are = all; stored ones where one stored image is several
    augmentation  DSA families, drawn anew in every student step
    views         in their place two random views of each image (`training.views`), for a loss that compares them (`two_views_apart`); their
                  pixels are clamped to [0, 1] where colors are jittered, and pass no gradient there
    transform     the standardization of the images, which views undo and apply again; None = there is none
    loss          (output (1, B, D), targets (1, B[, D])) -> (1, B), or (1,) where samples are coupled
    labels        whether 'label_logits' are learned beside pixels and step size
    targets       whether real-valued 'targets' are in their place (MKDT's public code; in its paper they stay as they are)
    threshold     updates with a loss above it are skipped (DATM); costs a wait for the device in every step
    gradient      'exact', on a GPU as recorded graphs; 'frozen' (TESLA as published) or 'unrolled' (the twin)
    raises        InputError if a start epoch plus M lies beyond the stored ones, or an expert does not move
    """

    learns = ("images", "step_size")
    positive = ("step_size",)  # `distill` stops when one of these leaves the finite positive numbers
    averaged = ("images",)  # FTD's moving average; the present step size and labels go with the averaged images

    def __init__(self, network, experts, student_steps: int, expert_epochs: int, start_epochs: StartEpochs, *, batch: int = 0,
                 augmentation: str = "", views: Views | None = None, transform=None,
                 loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy, labels: bool = False, targets: bool = False,
                 threshold: float = math.inf, gradient: str = "exact", name: str = "trajectory matching"):  # fmt: skip
        last = start_epochs.max_start_epoch - 1
        if (most := experts.epochs - expert_epochs) < last:
            stored = f"{expert_epochs} expert epochs: experts are stored up to epoch {experts.epochs}"
            raise InputError(f"start epoch {last} with {stored}; accepted: at most epoch {most}, or experts trained longer")
        self.network, self.experts, self.start_epochs = network, experts, start_epochs
        self.student_steps, self.expert_epochs, self.batch = student_steps, expert_epochs, batch
        self.augmentation, self.views, self.transform, self.loss = augmentation, views, transform, loss
        self.learns = (*self.learns, *("label_logits",) * labels, *("targets",) * targets)
        self.threshold, self.gradient, self.name, self.recorded = threshold, gradient, name, None
        for expert in range(len(experts)):  # a segment of length zero has the loss 0 / 0
            for epoch in range(start_epochs.min_start_epoch, start_epochs.max_start_epoch):
                begin, target = self._segment(expert, epoch)
                distance = float(sum((target[name] - begin[name]).square().sum() for name in begin))
                if not 0 < distance < math.inf:
                    way = f"squared distance {distance:g} from epoch {epoch} to {epoch + expert_epochs}"
                    raise InputError(f"expert {expert}: {way}; accepted: experts whose weights move and stay finite")

    def start(self, synthetic: Synthetic, generator: Generator) -> dict[str, Tensor]:
        """State: the order in which experts come, how many of them are used, and the number of steps."""
        order = torch.randperm(len(self.experts), generator=generator)
        return {"order": order, "used": torch.tensor(0), "step": torch.tensor(0)}

    def step(self, synthetic: Synthetic, state: dict[str, Tensor], draw_real, generator: Generator):
        """One gradient on every learned tensor: (gradients by name or None to skip, state, log)."""
        expert_stream, start_stream, *student_streams = split(generator, 4)
        order, used, step = state["order"].cpu(), int(state["used"]), int(state["step"])
        if used == len(order):
            order, used = torch.randperm(len(order), generator=expert_stream), 0
        expert, epoch = int(order[used]), self.start_epochs.draw(step, start_stream)
        start, target = self._segment(expert, epoch)
        buffers = {name: v for name, v in self.experts.at(expert, epoch).items() if name not in start}
        tensors = {name: synthetic.tensors[name] for name in self.learns}
        draws = self.draws(synthetic, *student_streams)
        if self._records(synthetic):
            from distillery.matching.recorded import RecordedSweep  # which stands on this module

            self.recorded = self.recorded or RecordedSweep(self.step_loss, self.learns, synthetic, start)
            value, gradients = self.recorded(synthetic, buffers, start, target, draws)
        else:
            value, gradients = GRADIENTS[self.gradient](self.step_loss(synthetic, buffers), start, target, tensors, draws)
        skip = math.isfinite(self.threshold) and bool(value > self.threshold)
        state = {"order": order, "used": torch.tensor(used + 1), "step": torch.tensor(step + 1)}
        log = {"loss": value, "step_size": tensors["step_size"], "start": epoch}
        return None if skip else gradients, state, log

    def loss_at(self, synthetic: Synthetic, expert: int, epoch: int, generator: Generator) -> float:
        """L of a set at its step size for one expert and start epoch, without a gradient; the generator draws the student's batches."""
        start, target = self._segment(expert, epoch)
        buffers = {name: v for name, v in self.experts.at(expert, epoch).items() if name not in start}
        flat, tensors = Flat(start), {name: synthetic.tensors[name] for name in self.learns}
        end = student(self.step_loss(synthetic, buffers), start, tensors, self.draws(synthetic, *split(generator, 2)))[-1]
        goal = flat.vector(target)
        return float((end - goal).square().sum() / (flat.vector(start) - goal).square().sum())

    def _records(self, synthetic: Synthetic) -> bool:
        """Whether student steps are CUDA graphs, recorded in the first one."""
        return self.gradient == "exact" and not self.views and synthetic.device.type == "cuda"

    def step_loss(self, synthetic: Synthetic, buffers: Params) -> StepLoss:
        """The loss of one student step on the batch that `draws` chose."""

        def loss(params: Params, tensors: dict[str, Tensor], drawn: tuple[Tensor, Draw | ViewDraw | None]) -> Tensor:
            indices, drawn = drawn
            images, targets = synthetic.replace(**tensors).decode(indices)
            if self.views:  # all first ones before all second ones: (1, 2B, C, H, W)
                pixels = self.transform.inverse(images) if self.transform else images
                seen = view(torch.cat([pixels, pixels]), drawn)
                images = (self.transform(seen) if self.transform else seen)[None]
            else:
                images = augment(images[None], drawn)  # (1, B, C, H, W)
            output = self.network.apply(buffers | params, images, train=True)
            return self.loss(output.logits, targets[None]).mean()  # (1, B) or (1,) -> ()

        return loss

    def draws(self, synthetic: Synthetic, order: Generator, augmentation: Generator) -> list[tuple[Tensor, Draw | ViewDraw | None]]:
        """For each student step the stored images of its batch (b,) and its augmentation, or its views, from two streams.

        Batches are chunks of a random permutation of the set; when it is used up, another is drawn. Where samples are compared, a last
        chunk that is smaller is left out.
        """
        n, chunks = len(synthetic), []
        batch = min(self.batch or n, n)
        while len(chunks) < self.student_steps:
            found = torch.randperm(n, generator=order).split(batch)
            chunks += found[: n // batch] if self.views else found
        chunks = chunks[: self.student_steps]
        factor = len(synthetic.decode(torch.zeros(1, dtype=torch.int64, device=synthetic.device))[0])  # images of a stored one
        if self.views:
            shape = tuple(synthetic.tensors["images"].shape[1:])
            drawn = [draw_views(self.views, shape, 2 * factor * len(chunk), augmentation) for chunk in chunks]
            return list(zip(to_device(chunks, synthetic.device), drawn, strict=True))
        drawn = draw(self.augmentation, self.student_steps, factor * batch, augmentation)
        if drawn is None:
            return [(here, None) for here in to_device(chunks, synthetic.device)]
        indices, uniforms = to_device((chunks, drawn.uniforms.split(1)), synthetic.device)
        families = drawn.families.split(1)
        return [(here, Draw(f, u[:, : factor * len(here)])) for here, f, u in zip(indices, families, uniforms, strict=True)]

    def _segment(self, expert: int, epoch: int) -> tuple[Params, Params]:
        """Trained weights of an expert where a student starts and where it shall end."""
        return tuple(trainable(self.experts.at(expert, e)) for e in (epoch, epoch + self.expert_epochs))
