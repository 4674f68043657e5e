"""`sweep` on a GPU: the student steps and their shares of the recursion are replayed, one launch each.

There is one pair of captures for each number of images in a batch and each augmentation family. Slow reference: `trajectory.sweep`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from distillery.data.synthetic import Synthetic
from distillery.matching.trajectory import Flat, backward_step, descend, graph_of
from distillery.networks import Params
from distillery.replay import Replay
from distillery.training.dsa import Draw


class RecordedSweep:
    """`sweep` of one trajectory objective, for sets and networks of the shapes it has first seen.

    step_loss  (synthetic set, buffers of the network) -> the loss of a student step
    learns     names of the learned tensors
    """

    def __init__(self, step_loss, learns: Sequence[str], synthetic: Synthetic, theta0: Params):
        self.step_loss, self.learns, self.synthetic, self.flat = step_loss, learns, synthetic, Flat(theta0)
        self.forward, self.backward = Replay(self._forward), Replay(self._backward)

    def __call__(self, synthetic: Synthetic, buffers: Params, theta0: Params, target: Params, draws: Sequence) -> tuple:
        """(L (), its gradient by name) as `sweep` gives them."""
        goal, path, given = self.flat.vector(target), [self.flat.vector(theta0)], (synthetic.tensors, buffers)
        steps = [(here, None, ()) if how is None else (here, how.uniforms, tuple(how.families[0].view(-1).tolist())) for here, how in draws]
        for *drawn, families in steps:
            path.append(self.forward(path[-1], *given, *drawn, families=families).clone())
        distance, gap = (path[0] - goal).square().sum(), path[-1] - goal
        multiplier, gradients = 2 / distance * gap, {name: torch.zeros_like(synthetic.tensors[name]) for name in self.learns}
        for theta, (*drawn, families) in zip(reversed(path[:-1]), reversed(steps)):
            multiplier, gradients = self.backward(theta, *given, *drawn, multiplier, gradients, families=families)
        return gap.square().sum() / distance, {name: value.clone() for name, value in gradients.items()}

    def _step(self, tensors: dict[str, Tensor], buffers: Params, indices: Tensor, uniforms: Tensor | None, families) -> tuple:
        """(loss, learned tensors, what was drawn) of a student step."""
        drawn = None
        if families:
            drawn = Draw(torch.tensor(families if len(families) == 1 else [families]), uniforms)
        return self.step_loss(self.synthetic.replace(**tensors), buffers), {name: tensors[name] for name in self.learns}, (indices, drawn)

    def _forward(self, theta: Tensor, tensors, buffers, indices, uniforms, *, families) -> Tensor:
        loss, learned, drawn = self._step(tensors, buffers, indices, uniforms, families)
        return descend(loss, self.flat, theta, learned, drawn)

    def _backward(self, theta: Tensor, tensors, buffers, indices, uniforms, multiplier, gradients, *, families) -> tuple:
        loss, learned, drawn = self._step(tensors, buffers, indices, uniforms, families)
        multiplier, added = backward_step(graph_of(loss, self.flat, theta, learned, drawn), multiplier)
        for name, part in added.items():
            gradients[name] += part
        return multiplier, gradients
