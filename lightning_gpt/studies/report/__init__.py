"""What a study found: its results as tables, plots, fits and sentences, written as HTML and Markdown.

Imports :mod:`lightning_gpt.studies.spec` and :mod:`lightning_gpt.studies.run`.
"""
