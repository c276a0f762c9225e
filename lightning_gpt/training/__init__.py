"""Training under Lightning: the modules, the optimizer and the callbacks."""
