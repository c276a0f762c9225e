"""Attention: a file a kind."""
