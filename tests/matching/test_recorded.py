"""Student steps recorded as CUDA graphs against the sweep: on a CPU, where operators are recorded, and the graphs on a GPU."""

from functools import partial

import pytest
import torch

from distillery import replay
from distillery.data.synthetic import Synthetic
from distillery.experts import Experts
from distillery.matching import trajectory
from distillery.matching.trajectory import StartEpochs, TrajectoryMatching
from distillery.networks import ConvNet
from distillery.replay import Captured
from distillery.seeds import generator
from distillery.training.dsa import DSA
from recording import recording

SHAPE, CLASSES, M = (3, 8, 8), 3, 6


def problem(device="cpu", batch=0, normalization="instance", labels=False, augmentation="crop_flip"):
    """(objective, set) with experts that move at random."""
    net, stream = ConvNet(SHAPE, CLASSES, width=8, depth=1, normalization=normalization), generator(0, "recorded")
    weights = {
        n: torch.stack([v + 0.1 * torch.rand(v.shape, generator=stream) for _ in range(3)], 1) for n, v in net.init(stream, 2).items()
    }
    tensors = {"images": torch.randn(M, *SHAPE, generator=stream), "targets": torch.arange(M) % CLASSES, "step_size": torch.tensor(0.1)}
    if labels:
        tensors["label_logits"] = torch.randn(M, CLASSES, generator=stream)
    experts = Experts({name: value.to(device) for name, value in weights.items()})
    options = {"batch": batch, "augmentation": augmentation, "labels": labels}
    return TrajectoryMatching(net, experts, 7, 1, StartEpochs(0, 2), **options), Synthetic(tensors).to(device)


def gradients(objective, made, how, steps=4):
    """What steps on a changing set yield by one way, [(loss, gradients), ...]."""
    state, found = objective.start(made, generator(1, "start")), []
    for i in range(steps):
        grads, state, log = how(made, state, generator(2, "step", i))
        found.append((log["loss"], grads))
        made = made.replace(images=made.tensors["images"] - 0.5 * grads["images"], step_size=made.tensors["step_size"] * 1.1)
    return found


def by_record(objective):
    def step(made, state, stream):
        objective._records = lambda synthetic: True
        return objective.step(made, state, None, stream)

    return step


CASES = {
    "all of the set": {}, "several sizes of batch": {"batch": 4}, "label logits": {"labels": True}, "no augmentation": {"augmentation": ""},
    "one of all families": {"augmentation": DSA}, "several families": {"augmentation": "color+crop+flip"}, "batch norm": {"normalization": "batch"},
}  # fmt: skip


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_recorded_steps_are_the_sweep(options, monkeypatch):
    """Bit for bit, beside a sweep that keeps no step's graph."""
    monkeypatch.setitem(trajectory.GRADIENTS, "exact", partial(trajectory.sweep, keep=0))
    with recording(monkeypatch) as captured:
        objective, made = problem(**options)
        ours = gradients(objective, made, by_record(objective))
        objective, made = problem(**options)
        expected = gradients(objective, made, lambda made, state, stream: objective.step(made, state, None, stream))
    assert {function.__name__ for function in captured} == {"_forward", "_backward"}
    for (loss, grads), (same_loss, same_grads) in zip(ours, expected, strict=True):
        assert torch.equal(loss, same_loss) and grads.keys() == same_grads.keys()
        assert all(torch.equal(grads[name], same_grads[name]) for name in grads)
    assert len({float(loss) for loss, _ in ours}) == len(ours)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_graphs_are_the_sweep(options, monkeypatch):
    """Bit for bit those of the same steps without graphs, where derivatives have the same bits every time; and near those of a CPU."""
    monkeypatch.setattr(replay, "WORTH", 1)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    found = []
    for graphs in ("0", "1"):
        monkeypatch.setenv("DISTILLERY_GRAPHS", graphs)
        objective, made = problem("cuda", **options)
        found.append(gradients(objective, made, lambda made, state, stream: objective.step(made, state, None, stream)))  # noqa: B023
        captured = [isinstance(known, Captured) for known in objective.recorded.backward.known.values()]
        assert any(captured) == (graphs == "1")
    (_, without), (_, ours) = found[0][-1], found[1][-1]
    assert options.get("augmentation") == DSA or all(torch.equal(ours[name], without[name]) for name in ours)
    ours = found[1]
    objective, made = problem(**options)
    expected = gradients(objective, made, lambda made, state, stream: objective.step(made, state, None, stream))
    for (loss, grads), (same_loss, same_grads) in zip(ours, expected, strict=True):
        torch.testing.assert_close(loss.cpu(), same_loss, rtol=1e-3, atol=0)
        for name, value in same_grads.items():
            assert float((grads[name].cpu() - value).norm()) <= 1e-2 * float(value.norm()), name
