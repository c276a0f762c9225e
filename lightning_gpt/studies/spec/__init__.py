"""What a study is: its YAML file, its cells, what it measures and the vocabularies its cells share.

Imports nothing of :mod:`lightning_gpt.studies.run` or :mod:`lightning_gpt.studies.report`.
"""
