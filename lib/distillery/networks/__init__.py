"""Networks that run many at once: ConvNet, the pool, precision, encoders."""

from distillery.networks.convnet import ConvNet, Output, Params, depth_for, trainable
from distillery.networks.module import ModuleNetwork

__all__ = ["ConvNet", "ModuleNetwork", "Output", "Params", "depth_for", "trainable"]
