"""Published models in and out: one class for each family, in :mod:`.families`."""
