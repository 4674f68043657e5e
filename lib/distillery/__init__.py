"""distillery: learning from less data, by pruning and by distillation."""

__version__ = "0.1.0"
