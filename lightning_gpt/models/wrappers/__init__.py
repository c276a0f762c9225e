"""What runs around a block."""
