"""Turn a set into accuracies: a protocol trains fresh networks on it and tests them. One file a protocol; see `protocol.py`."""

from distillery.evaluation.finetune import FineTuning
from distillery.evaluation.outputs import accuracy, distributions, embed
from distillery.evaluation.probe import Linear, Probing, draw_labels, fit_linear, fit_linear_plain, linear_probe, probe
from distillery.evaluation.protocol import LOSSES, Protocol
from distillery.evaluation.train import evaluate, fit

__all__ = [
    "LOSSES",
    "FineTuning",
    "Linear",
    "Probing",
    "Protocol",
    "accuracy",
    "distributions",
    "draw_labels",
    "embed",
    "evaluate",
    "fit",
    "fit_linear",
    "fit_linear_plain",
    "linear_probe",
    "probe",
]
