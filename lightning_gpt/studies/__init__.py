"""Studies: grids of training runs, each run as a process of its own, and a report on the results.

``spec`` describes a study, ``run`` runs its cells, ``report`` writes what they gave, and ``verdicts`` holds the report
sections that only one shipped study needs. Imports point one way: verdicts → report → run → spec.

The study's own process imports neither torch nor Lightning while cells run: it starts other processes and reads the
files that they write.
"""
