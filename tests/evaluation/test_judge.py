"""What makes an evaluation another one, and that it is found again where nothing does."""

from dataclasses import replace

import pytest
import torch

from distillery.data import Splits, TensorSource, fit_zca
from distillery.evaluation import Protocol, Teacher, accuracy, evaluate, fit
from distillery.evaluation.judge import Judge
from distillery.networks import ConvNet
from distillery.runs import Runs
from distillery.seeds import generator

PROTOCOL = Protocol(2, 3, lr=0.05)


@pytest.fixture
def judge(tiny, net, tmp_path):
    parts = (tiny.subset(torch.arange(i, 24, 3)) for i in range(3))
    return Judge(Splits(*parts), net, Runs(tmp_path))


def test_it_is_evaluation_with_what_else_is_asked(judge):
    train, validation, test = vars(judge.splits)["train"], judge.splits.validation, judge.splits.test
    found = judge(train, replace(PROTOCOL, looks=2), 3)
    assert found["accuracies"] == evaluate(judge.network, train, PROTOCOL, test, generator(3, "evaluation")).tolist()
    params, _ = fit(judge.network, train, PROTOCOL, generator(3, "evaluation"))
    assert found["validation"] == accuracy(judge.network, params, validation).tolist()
    assert all(best >= last for best, last in zip(found["best"], found["accuracies"]))
    bare = replace(judge, runs=None, splits=replace(judge.splits, validation=train.subset(torch.arange(0))))(train, PROTOCOL, 3)
    assert bare["accuracies"] == found["accuracies"] and not {"validation", "best"} & set(bare)


def test_what_makes_another_evaluation(judge, tiny, net):
    """Images, labels, seed, protocol, teacher, network, standardization and data; nothing else, and not who asks."""
    source = TensorSource(tiny.batch(torch.arange(6)), tiny.targets[:6])
    weights = net.init(generator(0, "t"), 1)
    others = [
        (judge, (source, PROTOCOL, 0)),
        (judge, (replace(source, images=source.images + 0.1), PROTOCOL, 0)),
        (judge, (replace(source, targets=source.targets.roll(1) + 1 - source.targets.roll(1)), PROTOCOL, 0)),
        (judge, (source, PROTOCOL, 1)),
        (judge, (source, replace(PROTOCOL, lr=0.1), 0)),
        (judge, (source, replace(PROTOCOL, looks=1), 0)),
        (judge, (source, PROTOCOL, 0, Teacher(net, weights))),
        (judge, (source, PROTOCOL, 0, Teacher(net, weights, 2.0))),
        (judge, (source, PROTOCOL, 0, Teacher(net, net.init(generator(1, "t"), 1)))),
        (judge, (judge.splits.train, PROTOCOL, 0)),
        (replace(judge, network=ConvNet(tiny.shape, 3, width=5)), (source, PROTOCOL, 0)),
        (replace(judge, splits=replace(judge.splits, test=judge.splits.validation)), (source, PROTOCOL, 0)),
        (replace(judge, splits=replace(judge.splits, train=replace(judge.splits.train, transform=fit_zca(tiny)))), (source, PROTOCOL, 0)),
    ]
    for n, (one, given) in enumerate(others, 1):
        found = one(*given)
        assert judge.runs.computed == n, given
        assert one(*given) == found and replace(one, runs=Runs(judge.runs.folder))(*given) == found
        assert judge.runs.computed == n


def test_a_teacher_is_the_first_network_trained_on_all_images(judge):
    params, _ = fit(judge.network, judge.splits.train, PROTOCOL, generator(5, "evaluation"))
    for _ in range(2):  # results travel without their weights
        found = judge.teacher(PROTOCOL, 5, 3.0)
        assert found.temperature == 3.0 and all(torch.equal(found.weights[name], value[:1]) for name, value in params.items())
        for path in (judge.runs.folder / "artifacts").iterdir():
            path.unlink()
