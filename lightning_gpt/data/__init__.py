"""Text: where it comes from, how it is split, tokenised, ordered and batched."""
