"""From the tests of all sections to what they show together."""

from collections.abc import Sequence

from lightning_gpt.studies.report.comparisons import holm
from lightning_gpt.studies.report.document import Block, Tested, Written


def written(blocks: Sequence[Block]) -> list[Written]:
    """The blocks of a report, with its tested ones written: p-values are corrected over all of them (Holm 1979)."""
    tests = [p for block in blocks if isinstance(block, Tested) for p in block.p]
    corrected, done = iter(holm(tests)), []
    for block in blocks:
        if isinstance(block, Tested):
            done += block.write([next(corrected) for _ in block.p], len(tests))
        else:
            done.append(block)
    return done


def p_text(p: float) -> str:
    """A p-value in words: ``p = 0.012``, or ``p < 0.001``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3g}" if 0.045 < p < 0.055 else f"p = {p:.2g}"
