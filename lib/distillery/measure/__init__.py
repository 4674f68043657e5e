"""What notebooks measure beside accuracy, a file a question: costs of steps, gates, coverage, spreads of gradients and the like."""
