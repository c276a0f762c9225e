"""Training under Lightning: modules, optimizer, schedules and callbacks."""
