"""Wrappers around a block: checkpointing, layer drop, token routing, sharing. Blocks do not know about them."""
