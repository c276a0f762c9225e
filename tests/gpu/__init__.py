"""What only a device shows: skipped where there is none."""
