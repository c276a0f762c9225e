"""Inspect models: attention maps, interventions, diagnostics, plots and baselines."""
