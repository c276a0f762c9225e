"""How a model is laid out over many devices. The models themselves know nothing of it."""
