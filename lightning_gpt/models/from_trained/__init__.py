"""New models from trained ones."""
