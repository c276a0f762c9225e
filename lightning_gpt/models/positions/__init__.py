"""Position schemes, a file each; a file that is added to this folder is found."""

from lightning_gpt.models.registry import find_variants

find_variants(__name__, __path__)
