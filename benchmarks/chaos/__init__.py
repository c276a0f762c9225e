"""Real runs that are killed at random moments, resumed, and compared with a run that was left alone."""
