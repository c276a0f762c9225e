"""Memory across the segments of a text, one file per kind; modules added to this folder are found automatically."""

from lightning_gpt.models.registry import find_variants

find_variants(__name__, __path__)
