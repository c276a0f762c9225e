"""The families of published models, one file each; modules added to this folder are found automatically."""

from lightning_gpt.models.registry import find_variants

find_variants(__name__, __path__)
