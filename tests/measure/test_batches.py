"""Batches by loss go to hard images, classes alike."""

from dataclasses import replace

import pytest
import torch

from distillery.data import Splits
from distillery.evaluation import Protocol
from distillery.experiment import Experiment
from distillery.measure.batches import chances_by_loss, hardest
from distillery.networks import ConvNet
from distillery.recipe import Recipe
from distillery.runs import Runs
from made_up import blobs


def test_chances_are_those_of_classes_alike_and_prefer_few(tmp_path):
    train = blobs(classes=3, shape=(1, 8, 8), per_class=20)
    train = replace(train, targets=train.targets[torch.randperm(60, generator=torch.Generator().manual_seed(0))])  # hard
    data = Splits(train, train, train)
    network = ConvNet(data.train.shape, 3, 4)
    experiment = Experiment(data, network, Protocol(1, 1, loss="half squared error"), Runs(tmp_path))
    job = experiment.job(Recipe("KIP", 1, 0, settings={"batch": 4}))
    flat, drawn = (chances_by_loss(job, share) for share in (0.0, 1.0))
    assert hardest(flat) == pytest.approx(0.1) and hardest(drawn) > 0.1
    for label in range(3):
        assert float(drawn[data.train.targets == label].sum()) == pytest.approx(1 / 3)
    assert torch.equal(drawn, chances_by_loss(job, 1.0))
