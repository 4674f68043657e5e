"""The one place where a set becomes an accuracy: from scratch, by fine-tuning, by a linear probe."""

from distillery.evaluation.outputs import accuracy, embed
from distillery.evaluation.probe import Linear, fit_linear, linear_probe, probe
from distillery.evaluation.protocol import FineTuning, Probing, Protocol
from distillery.evaluation.train import evaluate, fit

__all__ = [
    "FineTuning",
    "Linear",
    "Probing",
    "Protocol",
    "accuracy",
    "embed",
    "evaluate",
    "fit",
    "fit_linear",
    "linear_probe",
    "probe",
]
