"""The one loop over epochs, losses, optimizers and augmentation."""

from distillery.training.loop import COLLECTORS, Plan, Stats, train, train_plain
from distillery.training.losses import LOSSES, Loss, cross_entropy, half_squared_error, squared_error

__all__ = ["COLLECTORS", "LOSSES", "Loss", "Plan", "Stats", "cross_entropy", "half_squared_error", "squared_error", "train", "train_plain"]
