"""Comparing the ways to one gradient: what is counted as kept, and that the sweep is the exact one."""

import torch
from torch.nn.functional import cosine_similarity

from distillery import experts as ex
from distillery.data.synthetic import Synthetic
from distillery.matching.trajectory import StartEpochs, TrajectoryMatching
from distillery.measure import gradients
from distillery.networks import ConvNet
from distillery.training.optimizers import SGD


def test_kept_bytes_counts_memory_once_and_lets_go():
    x = torch.ones(100, requires_grad=True)

    def squares(n):
        return [x.exp() for _ in range(n)]  # each keeps its result, 400 bytes

    assert gradients.kept_bytes(lambda: squares(1))[1] == 400
    assert gradients.kept_bytes(lambda: squares(3))[1] == 1200
    assert gradients.kept_bytes(lambda: x * x)[1] == 400

    def one_after_another():
        for _ in range(3):
            torch.autograd.grad(x.exp().sum(), x)

    assert gradients.kept_bytes(one_after_another)[1] == 400


def test_the_sweep_is_exact_and_keeps_little(tiny, tmp_path):
    network = ConvNet((1, 8, 8), 3, width=4, depth=1)
    training = ex.Training(1, SGD(0.05, 0.0, 0.0), batch=8)
    ex.make(tmp_path, network, tiny, training, 2)
    bank = ex.load(tmp_path, network, tiny, training, 2)
    chosen = torch.tensor([0, 8, 16])
    made = Synthetic({"images": tiny.batch(chosen), "targets": tiny.targets[chosen], "step_size": torch.tensor(0.2)})
    ratios = []
    for n in (1, 12):
        objective = TrajectoryMatching(network, bank, n, 1, StartEpochs(0, 1))
        found = gradients.gradients(objective, made, 0, 0, repeats=3)
        assert {len(one.seconds) for one in found.values()} == {3}
        unrolled = found["unrolled"].images
        assert gradients.relative_error(found["exact"].images, unrolled) < 1e-4
        assert (gradients.relative_error(found["frozen"].images, unrolled) < 1e-4) == (n == 1)
        assert cosine_similarity(found["exact"].images.flatten(), unrolled.flatten(), dim=0) > 0.9999
        ratios.append(found["unrolled"].kept / found["exact"].kept)
    assert ratios[1] > 2 * ratios[0]


def test_times_are_compared_turn_by_turn_and_have_a_spread():
    """A machine that slows down in one turn slows all ways of it."""

    def one(*seconds):
        return gradients.Gradient(torch.ones(2), list(seconds), 8)

    found = {3: [{"exact": one(1.0, 10.0), "frozen": one(0.5, 5.0), "unrolled": one(2.0, 40.0)}]}
    time = gradients.compared(found)["time over the sweep's"]
    assert time["frozen"] == ([0.5], [0.0]) and time["unrolled"] == ([3.0], [1.0])
