"""`sweep` on a GPU, its student steps recorded once as CUDA graphs and replayed.

A student step of the published ConvNet and its share of the recursion are about 700 kernels of a few microseconds. Launched one by one
the GPU waits for the processor (measured on an H200: 0.12 s of kernels in 0.92 s at 50 steps of 10 images); a graph is one launch. There is
one pair of graphs for each number of images in a batch and each augmentation family. Slow reference: `trajectory.sweep`.
"""

import gc
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from distillery.data.synthetic import Synthetic
from distillery.matching.trajectory import Flat, backward_step, descend, graph_of
from distillery.networks import Params
from distillery.training.dsa import Draw


def capture(work: Callable[[], None], pool) -> tuple[Callable[[], None], object]:
    """What replays the kernels of `work`, which reads and writes tensors that stay where they are, and the memory behind it."""
    here, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(here)
    with torch.cuda.stream(side):  # libraries choose kernels and allocate on the first calls
        work()
        work()
    here.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    gc.collect()
    gc.disable()  # graphs of another objective that die during a capture would break it
    try:
        with torch.cuda.graph(graph, pool=pool):
            work()
    finally:
        gc.enable()
    return graph.replay, graph.pool()


class RecordedSweep:
    """`sweep` of one trajectory objective, for sets and networks of the shapes it has first seen.

    step_loss  (synthetic set, buffers of the network) -> the loss of a student step
    learns     names of the learned tensors
    """

    def __init__(self, step_loss, learns: Sequence[str], synthetic: Synthetic, buffers: Params, theta0: Params):
        self.tensors = {name: value.detach().clone() for name, value in synthetic.tensors.items()}
        self.buffers = {name: value.detach().clone() for name, value in buffers.items()}
        self.loss = step_loss(synthetic.replace(**self.tensors), self.buffers)
        self.learned, self.flat = {name: self.tensors[name] for name in learns}, Flat(theta0)
        self.theta = self.flat.vector(theta0)
        self.multiplier, self.gradients = torch.zeros_like(self.theta), {n: torch.zeros_like(v) for n, v in self.learned.items()}
        self.steps: dict[tuple, tuple] = {}
        self.pool = None

    def __call__(self, synthetic: Synthetic, buffers: Params, theta0: Params, target: Params, draws: Sequence) -> tuple:
        """(L (), its gradient by name) as `sweep` gives them."""
        for mine, theirs in ((self.tensors, synthetic.tensors), (self.buffers, buffers)):
            for name, value in mine.items():
                value.copy_(theirs[name])
        goal, path = self.flat.vector(target), [self.flat.vector(theta0)]
        self.theta.copy_(path[0])
        for drawn in draws:
            self._step(drawn, "forward")
            path.append(self.theta.clone())
        distance, gap = (path[0] - goal).square().sum(), path[-1] - goal
        self.multiplier.copy_(2 / distance * gap)
        torch._foreach_zero_(list(self.gradients.values()))
        for theta, drawn in zip(reversed(path[:-1]), reversed(draws)):
            self.theta.copy_(theta)
            self._step(drawn, "backward")
        return gap.square().sum() / distance, {name: value.clone() for name, value in self.gradients.items()}

    def _step(self, drawn: tuple[Tensor, Draw | None], way: str) -> None:
        indices, how = drawn
        key = (len(indices), None if how is None else tuple(how.families.flatten().tolist()))
        if key not in self.steps:
            self.steps[key] = self._record(drawn)
        (here, static), replay = self.steps[key]
        here.copy_(indices)
        if how is not None:
            static.uniforms.copy_(how.uniforms)
        replay[way]()

    def _record(self, drawn: tuple[Tensor, Draw | None]) -> tuple:
        indices, how = drawn
        static = indices.clone(), None if how is None else Draw(how.families, how.uniforms.clone())

        def forward() -> None:
            self.theta.copy_(descend(self.loss, self.flat, self.theta, self.learned, static))

        def backward() -> None:
            multiplier, added = backward_step(graph_of(self.loss, self.flat, self.theta, self.learned, static), self.multiplier)
            self.multiplier.copy_(multiplier)
            for name, part in added.items():
                self.gradients[name] += part

        states, replay = [self.theta, self.multiplier, *self.gradients.values()], {}
        before = [value.clone() for value in states]
        for way, work in {"forward": forward, "backward": backward}.items():
            replay[way], self.pool = capture(work, self.pool)
        for value, kept in zip(states, before, strict=True):
            value.copy_(kept)
        return static, replay
