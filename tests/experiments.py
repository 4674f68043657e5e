"""Small experiments that every method and every score fits, on the device of their images."""

import torch

from distillery.encoders.regression_set import RegressionSet
from distillery.evaluation import FineTuning, Probing, Protocol
from distillery.experiment import Experiment, Presets, ScoreSettings
from distillery.methods import METHODS
from distillery.networks import ConvNet
from distillery.networks.encoder import Encoder, head_names
from distillery.runs import Runs
from distillery.seeds import generator
from distillery.training.dsa import DSA_NO_FLIP

SHORT = {"steps": 2, "batch": 8}
TINY = {
    # of IDM and IDC
    "interval": 1, "capacity": 4, "train_steps": 1, "train_batch": 8, "inner": 2, "n_data": 40,
    # of regressions
    "width": 4, "networks": 2, "eval_networks": 2, "pool": 2, "age": 1, "flip": False,
    # of trajectories
    "experts": 2, "expert_lr": 0.05, "expert_batch": 32, "student_steps": 3, "expert_epochs": 1, "max_start_epoch": 2,
    "lr_images": 50.0, "step_size": 0.05, "expert_training_epochs": 3, "ema": 0.9, "threshold": 0,
    # of what mines, and of teachers
    "labelled": 4, "keep": 1.0, "RDED": {"teacher_epochs": 2}, "RDED, hard labels": {"teacher_epochs": 2},
}  # fmt: skip


def untrained(splits) -> Encoder:
    """An encoder as it is drawn."""
    network = ConvNet(splits.train.shape, 10, width=4)
    params = network.init(generator(0, "encoder"), 1)
    return Encoder(network, {name: value for name, value in params.items() if name not in head_names(network)})


def experiment(splits, folder, changes=None, **options):
    """Real images with labels."""
    runs = Runs(folder)
    network, protocol = ConvNet(splits.train.shape, 10, width=4), options.pop("protocol", Protocol(2, 2))
    scores = options.pop("scores", ScoreSettings(early=(2, 1)))
    options = {"augmentation": DSA_NO_FLIP, "presets": Presets("cifar10", SHORT | (changes or {}))} | options
    return Experiment(splits, network, protocol, runs, scores=scores, **options)


def unlabelled(splits, folder):
    """Real images with targets, and one task."""
    targets = torch.randn(len(splits.train), 6, generator=generator(0, "targets"))
    real, network = RegressionSet(splits.train, targets, splits.train.digest), ConvNet(splits.train.shape, 6, width=4)
    protocol, presets = Probing(2, 1, labels=(0.5,)), Presets("cifar100", SHORT | TINY)
    return Experiment(real, network, protocol, Runs(folder), presets=presets, tasks={"digits": splits})


def made_for(method, splits, encoder, folder):
    """An experiment that a method fits."""
    if METHODS[method].labels is False:
        return unlabelled(splits, folder)
    options = {}
    if method == "FRePo":  # it learns real-valued labels
        options = {"protocol": Protocol(2, 2, loss="half squared error")}
    if method in ("KAKURENBO", "InfoBatch"):
        options = {"protocol": FineTuning(epochs=4), "encoder": encoder}
    return experiment(splits, folder, TINY, **options)
