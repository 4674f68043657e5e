"""Distillation objectives: what is matched between real and synthetic data."""
