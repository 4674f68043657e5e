"""What objectives share: the context of a step, flat states, gradients class by class, training on real batches."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from distillery import engine
from distillery.data import TensorSource
from distillery.data.synthetic import Synthetic
from distillery.networks import Params
from distillery.training import Plan, Stats, train
from distillery.training.dsa import Draw
from distillery.training.optimizers import SGD


@dataclass(frozen=True)
class StepContext:
    """What a step sees beside its images."""

    params: Params  # of one network (leading axis 1)
    labels: Tensor  # (classes,) the label of each class in the step, on the device
    drawn: Draw | None = None  # one siamese draw a class
    train_mode: bool = True  # whether the network runs as in training

    def drawn_for(self, here: slice) -> Draw | None:
        """The draws of some classes."""
        return None if self.drawn is None else self.drawn[here]


def prefixed(values: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Entries of a flat state, whose names start with `prefix`, such as 'network.'."""
    return {prefix + name: value for name, value in values.items()}


def under(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries of a flat state whose names start with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def couples(params: Params) -> bool:
    """Whether the images of a batch change one another in training, by BatchNorm; dropout changes each by itself."""
    return any(name.endswith("running_mean") for name in params)


def gradient_by_classes(synthetic: Synthetic, size: int, loss: Callable[[Tensor, slice], Tensor], parts=None, where: str = "local"):
    """(loss, its gradient on the stored images) of a loss that is a sum over classes, a chunk of classes at a time.

    size   classes at once; memory follows it, the result does not
    loss   (images of some classes (some, m, C, H, W), their slice) -> ()
    parts  keeps finished chunks of a long step: `distill.Parts`, None = nothing does
    where  the engine that chunks are mapped over: the bits are the same
    """
    images = synthetic.tensors["images"].detach().requires_grad_()
    labels, members = synthetic.classes_present()
    grouped = synthetic.replace(images=images).decode()[0][members]  # (classes, m, C, H, W)
    chunks = [slice(at, at + size) for at in range(0, len(labels), size)]
    found = {i: tuple(kept.to(images.device) for kept in pair) for i, pair in parts.known(len(chunks)).items()} if parts else {}
    left = [i for i in range(len(chunks)) if i not in found]
    copied = Tensor.detach if where == "local" else Tensor.clone  # a view would travel with all it is a view of

    def ended(j: int, result: tuple[Tensor, Tensor]) -> None:
        found[left[j]] = result
        if parts:
            parts.add(left[j], *result)

    shards = [(copied(grouped.detach()[chunks[i]]), chunks[i]) for i in left]
    options = {"cpus": torch.get_num_threads(), "gpus": int(images.device.type == "cuda")}
    engine.map(partial(_of_classes, loss), shards, where, ended=ended, **options)
    total = 0.0
    for i in range(len(chunks)):
        total = total + found[i][0]
    (gradient,) = torch.autograd.grad(grouped, [images], torch.cat([found[i][1] for i in range(len(chunks))]))
    return total, gradient


def _of_classes(loss: Callable[[Tensor, slice], Tensor], shard: tuple[Tensor, slice]) -> tuple[Tensor, Tensor]:
    leaf = shard[0].detach().requires_grad_()
    value = loss(leaf, shard[1])
    return value.detach(), torch.autograd.grad(value, [leaf])[0]


def effective_rate(lr: float, momentum: float, classes: int) -> float:
    """The rate of plain SGD that moves pixels as one published step a class does.

    IDM and IDC step once a class with one SGD on all pixels. While other classes have their turn, a class coasts on its momentum, by
    lr * (1 + momentum + ... ) g over `classes` steps; what is left then, momentum ** classes, is forgotten here, and one step serves all.
    """
    return lr * (1 - momentum**classes) / (1 - momentum)


def train_on_real(
    network, params: Params, draw_real, steps: int, batch: int, optimizer: SGD, generator: Generator, **options
) -> tuple[Params, Stats]:
    """Train one network on real images of all classes: (weights, what training yields). `options` are those of `train`.

    All steps share one draw of steps * batch images; a smaller set is visited again. Weights of the sampler are factors of the loss,
    relative to their mean over the draw.
    """
    images, targets, weights = draw_real(None, steps * batch)
    plan = Plan(torch.arange(len(images)), weights * len(images))
    options |= {"optimizer": optimizer, "generator": generator, "steps": steps, "batch": batch, "plan": lambda *_: plan}
    return train(network, params, TensorSource(images, targets), **options)
