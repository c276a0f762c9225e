"""Mixtures of experts: many feed-forward networks, a few of which each token goes through."""

from lightning_gpt.models.registry import find_variants

find_variants(__name__, __path__)
