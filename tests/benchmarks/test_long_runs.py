"""The short form of ``python -m benchmarks.long_runs``: what is flat is found flat, and planted leaks are found."""

import random
import sys
from pathlib import Path

import pytest

from benchmarks.long_runs import LongFit, ManyRequests, Sample, Watched, report, trend, trends, watch

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
    subject = Planted(tmp_path, 900)
    subject.leak = leak
    samples = list(watch(subject, seconds=0.01))
    grown = {name for name, found in trends(subject, samples).items() if found.grows}
    assert leak == "nothing" or leak in grown, report(subject, samples)
    assert grown - {leak, "memory, KB"} == set(), report(subject, samples)  # a file or a thread takes memory too
    if leak == "nothing":
        assert len(trends(subject, samples)) == 5, "the run was too short to tell"


@pytest.mark.parametrize("slope", [0.0, 0.5, -0.5])
def test_the_interval_holds_the_slope(slope: float) -> None:
    draw = random.Random(0)
    steps = list(range(2000))
    found = trend(steps, [100 + slope * step / 1000 + draw.gauss(0, 1) for step in steps], "level")
    assert found is not None
    assert abs(found.slope - slope) < found.half_width < 0.5
    assert found.grows == (slope > 0)
    assert trend(steps[:20], steps[:20], "level") is None


def test_growth_by_design_must_be_even() -> None:
    steps = list(range(0, 2000, 5))
    even = trend(steps, [80.0 * step for step in steps], "growth")
    faster = trend(steps, [80.0 * step + 0.01 * step**2 for step in steps], "growth")
    assert even is not None
    assert faster is not None
    assert (even.mean, even.grows) == (pytest.approx(80), False)
    assert faster.grows


def test_a_fit_and_requests_are_watched(tmp_path: Path) -> None:
    """Short runs: what counts files and threads is flat; memory needs a longer one."""
    for subject in (LongFit(tmp_path / "fit", 200), ManyRequests(tmp_path / "requests", 200)):
        samples: list[Sample] = list(watch(subject))
        assert samples[-1]["at"] <= subject.total
        assert {"memory, KB", "open files", "threads", "files in TMPDIR"} <= samples[0].keys()
        grown = {name for name, found in trends(subject, samples).items() if found.grows}
        assert grown <= {"memory, KB"}, report(subject, samples)
        assert samples[-1]["memory, KB"] > 50_000
