"""Feed-forward networks: a file a kind."""
