"""Grids of training runs: what to run, running it as processes, and the report on what came out.

Nothing here imports torch or Lightning: the study's own process starts others and reads the files that they leave.
"""
