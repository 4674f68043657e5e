"""Pre-trained and self-supervised encoders, their targets, and what targets vary by."""
