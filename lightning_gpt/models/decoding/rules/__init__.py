"""Rules that change the logits before a token is drawn, one file each; modules added to this folder are found."""

from lightning_gpt.models.registry import find_variants

find_variants(__name__, __path__)
