"""Document sources: one file per kind of source; ``base.py`` defines what a source is."""
