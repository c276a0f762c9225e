"""Mixtures of experts: many feed-forward networks; each token goes through a few of them."""

from lightning_gpt.models.registry import find_variants

find_variants(__name__, __path__)
