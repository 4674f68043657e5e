"""Scores of real samples: high = hard, whatever the method."""
