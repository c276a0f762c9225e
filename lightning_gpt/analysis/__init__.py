"""Looking at models: attention maps, baselines and pictures."""
