"""What units within a model mean: the contexts of a corpus that drive them most, kept on disk."""
