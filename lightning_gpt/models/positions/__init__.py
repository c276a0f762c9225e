"""Position schemes: a file a kind."""
