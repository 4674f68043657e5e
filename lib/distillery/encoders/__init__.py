"""Pre-trained and self-supervised encoders, their quality and their embeddings as targets."""
