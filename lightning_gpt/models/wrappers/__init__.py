"""What runs around a block: checkpointing, layer drop, token routing, sharing. A block does not know of them."""
