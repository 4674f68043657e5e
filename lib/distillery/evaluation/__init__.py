"""Turn a set into accuracies: a protocol trains fresh networks on it and tests them. One file a protocol; see `protocol.py`."""

from distillery.evaluation.finetune import FineTuning
from distillery.evaluation.labelling import Teacher
from distillery.evaluation.mixing import Mixing
from distillery.evaluation.probe import Probing, fit_linear, linear_probe, probe
from distillery.evaluation.protocol import Protocol, accuracy, best, embed, evaluate, fit

__all__ = ["FineTuning", "Mixing", "Probing", "Protocol", "Teacher"]
__all__ += ["accuracy", "best", "embed", "evaluate", "fit", "fit_linear", "linear_probe", "probe"]
