"""Sections that answer the question of one shipped study, in a module named after the study.

A study's YAML file names such a section by its import path; nothing else imports them. They build on
:mod:`lightning_gpt.studies.report`.
"""
