"""Writing a prepared corpus: tokenised parts, duplicates and the data card."""
