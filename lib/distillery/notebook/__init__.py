"""What notebooks are built on: typed parameters, the session that owns everything that is not the paper's, sweeps."""
