"""Memory from segment to segment of a text."""
