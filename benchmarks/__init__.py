"""Everything that measures time and memory.

``lightning-gpt bench`` runs :mod:`benchmarks.run`: its table compares this package with other projects and with the
machine's limits in interleaved rounds. ``data``, ``early_exit``, ``moe`` and ``speedrun`` are scripts of their own, run
from the repository: ``python -m benchmarks.data``.
"""
