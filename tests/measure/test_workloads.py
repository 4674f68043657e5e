"""Both paths of a measured piece of work do the same work."""

import torch

from distillery.evaluation import Protocol
from distillery.measure import workloads
from distillery.networks import ConvNet
from distillery.training.dsa import DSA


def test_the_paths_of_a_matching_step_agree(tiny):
    network = ConvNet(tiny.shape, 3, width=8, depth=1)
    for make in (workloads.distribution_step, workloads.gradient_step):
        paths = make(network, "float32", False, tiny, 2, 4, DSA)
        (gradients, _, _), plain = paths["fast"](), paths["plain"]()
        torch.testing.assert_close(gradients["images"], plain, rtol=1e-3, atol=1e-5)


def test_training_and_evaluation_run(tiny):
    network = ConvNet(tiny.shape, 3, width=4, depth=1)
    made = workloads.first_of_class(tiny, 2)
    assert made.tensors["targets"].tolist() == [0, 0, 1, 1, 2, 2]
    for paths in (
        workloads.training(network, network, made.source(), 2, 3),
        workloads.evaluation(network, network, made.source(), tiny, Protocol(2, 1, augmentation="")),
    ):
        for run in paths.values():
            run()
    assert len(paths["fast"]()) == len(paths["plain"]()) == 2
