"""What a step costs: rooflines, workloads, gradients."""
