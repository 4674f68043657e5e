"""Scores of real images: what makes one hard, redundant or important."""
