"""Turn a set into accuracies: a protocol trains fresh networks on it and tests them. One file a protocol; see `protocol.py`."""

from distillery.evaluation.finetune import FineTuning
from distillery.evaluation.mixing import Mixing
from distillery.evaluation.probe import Probing, fit_linear, linear_probe, probe
from distillery.evaluation.protocol import Protocol, accuracy, embed, evaluate, fit

__all__ = ["FineTuning", "Mixing", "Probing", "Protocol", "accuracy", "embed", "evaluate", "fit", "fit_linear", "linear_probe", "probe"]
