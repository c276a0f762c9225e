"""Text data: sources, splits, tokenizers, the order of the rows, and batches."""
