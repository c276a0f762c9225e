"""Running a study: cells as processes, their progress, and the results that they leave.

Imports :mod:`lightning_gpt.studies.spec` and nothing of :mod:`lightning_gpt.studies.report`.
"""
