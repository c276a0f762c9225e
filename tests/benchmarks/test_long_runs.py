"""The short form of ``python -m benchmarks.long_runs``: what is flat is found flat, and planted leaks are found."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.long_runs import LongFit, ManyRequests, Sample, Watched, report, trend, trends, watch
from tests.processes import start_forked

LEAKS = {
    "nothing": "pass",
    "memory, KB": "kept.append(bytearray(20_000))",
    "open files": "kept.append(open(__file__))",
    "threads": "threading.Thread(target=time.sleep, args=(600,), daemon=True).start()",
    "files in its folder": "open(f'left{step}', 'w').close()",
    "files in TMPDIR": "os.close(tempfile.mkstemp()[0])",
}
# steps that are even but for the leak, slow enough to be sampled
PROGRAM = """
import os, tempfile, threading, time
kept = []
with open("done", "ab", buffering=0) as done:
    for step in range({total}):
        {leak}
        bytearray(1_000_000)
        done.write(b".")
        time.sleep(0.002)
"""


class Planted(Watched):
    """A process that leaks one thing at each step."""

    name, unit = "planted", "step"
    leak = "nothing"

    def command(self) -> list[str]:
        (self.folder / "program.py").write_text(PROGRAM.format(total=self.total, leak=LEAKS[self.leak]))
        return [sys.executable, "program.py"]

    def progress(self) -> int:
        done = self.folder / "done"
        return done.stat().st_size if done.exists() else 0


@pytest.mark.parametrize("leak", LEAKS)
def test_a_planted_leak_is_found_and_nothing_else(leak: str, tmp_path: Path) -> None:
    subject = Planted(tmp_path, 600)
    subject.leak = leak
    samples = list(watch(subject, seconds=0.01))
    grown = {name for name, found in trends(subject, samples).items() if found.grows}
    assert leak == "nothing" or leak in grown, report(subject, samples)
    assert grown - {leak, "memory, KB"} == set(), report(subject, samples)  # a file or a thread takes memory too
    if leak == "nothing":
        assert len(trends(subject, samples)) == 5, "the run was too short to tell"


@pytest.mark.parametrize("slope", [0.0, 1.0, -1.0])
def test_the_interval_holds_the_slope(slope: float) -> None:
    draw = random.Random(0)
    steps = list(range(2000))
    found = trend(steps, [100 + slope * step / 100 + draw.gauss(0, 1) for step in steps], "level")
    assert found is not None
    assert abs(found.slope - 10 * slope) < found.half_width < found.least_seen < 5
    assert found.grows == (slope > 0)
    assert trend(steps[:20], steps[:20], "level") is None


# quantities that do not grow, at 400 samples: a share of these sees one more file or thread, there for a moment; memory
# wavers, each sample for itself or, with a memory of 5 samples, together with those before
MOMENTS = [0.0, 0.002, 0.02, 0.2, 0.5, 0.8, 0.98]
MEMORIES = [0.0, 0.8]


def _not_growing(draw: np.random.Generator) -> list[tuple[str, np.ndarray]]:
    moments = [("open files", 4.0 + (draw.random(400) < share)) for share in MOMENTS]
    noise = draw.normal(0, 1000, 400)
    wavering = [np.convolve(noise, memory ** np.arange(50))[:400] for memory in MEMORIES]
    return moments + [("memory, KB", 500_000 + values) for values in wavering]


def test_what_does_not_grow_is_rarely_said_to_grow() -> None:
    """At most 1 of 10,000 quantities, so 1 of 1,000 reports; of 9,000 draws 4 would be too many (p < 0.02)."""
    draw, subject, steps = np.random.default_rng(0), Planted(Path(), 900), list(range(400))
    found = [subject.trend(name, steps, values) for _ in range(1000) for name, values in _not_growing(draw)]
    assert sum(each is not None and each.grows for each in found) <= 3


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5])
def test_a_slow_leak_is_found_among_momentary_files(share: float) -> None:
    """One file per 50 steps is found whenever it is; one file that is opened late and kept is no growth."""
    draw, steps = np.random.default_rng(0), list(range(400))
    for _ in range(100):
        moments = draw.random(400) < share
        leaking = trend(steps, [4 + step // 50 + moment for step, moment in zip(steps, moments, strict=True)], "level")
        kept = trend(steps, [4 + (step > 250) + moment for step, moment in zip(steps, moments, strict=True)], "level")
        assert leaking is not None
        assert kept is not None
        assert leaking.grows
        assert not kept.grows


def test_growth_by_design_must_be_even() -> None:
    steps = list(range(0, 2000, 5))
    even = trend(steps, [80.0 * step for step in steps], "growth", 0.01)
    faster = trend(steps, [80.0 * step + 0.01 * step**2 for step in steps], "growth", 0.01)
    assert even is not None
    assert faster is not None
    assert (even.mean, even.grows) == (pytest.approx(80), False)
    assert faster.grows


def test_a_fit_and_requests_are_watched(tmp_path: Path) -> None:
    """Short runs: what counts files and threads is flat; memory needs a longer one."""
    fit = LongFit(tmp_path / "fit", 150)
    for subject in (fit, ManyRequests(tmp_path / "requests", 150, fit.run / "checkpoints/last.ckpt")):
        samples: list[Sample] = list(watch(subject, 0.01, start_forked))
        assert samples[-1]["at"] <= subject.total
        assert {"memory, KB", "open files", "threads", "files in TMPDIR"} <= samples[0].keys()
        found = trends(subject, samples)
        assert found.keys() == samples[0].keys() - {"at"}, "the run was too short to tell"
        grown = {name for name, each in found.items() if each.grows}
        assert grown <= {"memory, KB"}, report(subject, samples)
        assert samples[-1]["memory, KB"] > 50_000
