"""Networks that run many at once: ConvNet, the pool, precision, encoders."""

from distillery.networks.convnet import ACTIVATIONS, NORMALIZATIONS, ConvNet, Output, Params, depth_for, trainable
from distillery.networks.module import ModuleNetwork

__all__ = ["ACTIVATIONS", "ConvNet", "ModuleNetwork", "NORMALIZATIONS", "Output", "Params", "depth_for", "trainable"]
