"""A training step beside another program that takes a core."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

from benchmarks import peers
from benchmarks.bench import OURS, Bench
from benchmarks.report import Outcome
from benchmarks.result import Result, Skipped, Target
from benchmarks.rounds import Spread, interleaved, ratio
from benchmarks.subject import Subject
from lightning_gpt.waiting import Waiting, cannot_choose

_N_LAYER = 4
_LONGEST, _VOCABULARY = 128, 4096  # of the quick start: many small operations, which suffer most
_SETTLE, _MEASURE = 1.5, 1.0  # seconds


def busy(bench: Bench) -> Iterator[Outcome]:
    """A step of the quick start's model beside an endless loop, with and without choosing how threads wait."""
    reason = "the devices do the work" if bench.device != "cpu" else cannot_choose()
    if reason is not None:
        yield Skipped("busy", "the row", reason)
        return
    work = replace(
        bench.workload, time=min(bench.workload.time, _LONGEST), vocab_size=min(bench.workload.vocab_size, _VOCABULARY)
    )
    subject = peers.build(replace(bench.spec(OURS, _N_LAYER, bench.bf16_reason is None), workload=work))
    costs: dict[str, Callable[[], float]] = {
        "alone": lambda: _step(subject, watched=True, beside=False),
        "alone, without": lambda: _step(subject, watched=False, beside=False),
        "beside": lambda: _step(subject, watched=True, beside=True),
        "beside, without": lambda: _step(subject, watched=False, beside=True),
    }
    times = interleaved(costs, bench.rounds)
    for above, what, target in (
        ("beside", "step beside a busy process", Target(1.7, "at most")),
        ("beside, without", "step beside a busy process, without choosing how threads wait", None),
        ("alone", "step alone, choosing how threads wait", Target(1.03, "at most")),
    ):
        figures = {above: Spread.of(times[above]), "alone, without": Spread.of(times["alone, without"])}
        figures = {name: figure.scaled(1000) for name, figure in figures.items()}
        value = ratio(times[above], times["alone, without"])
        yield Result("busy", f"{what}, vs. alone without", value, "x", target, figures, "ms")


def _step(subject: Subject, *, watched: bool, beside: bool) -> float:
    """Seconds per step, once threads have settled on a way of waiting."""
    with busy_process() if beside else nullcontext(), Waiting() if watched else nullcontext():
        _steps(subject, _SETTLE)
        return statistics.mean(_steps(subject, _MEASURE))


def _steps(subject: Subject, at_least: float) -> list[float]:
    end, taken = time.monotonic() + at_least, list[float]()
    while not taken or time.monotonic() < end:
        taken.append(subject.timed_step())
    return taken


@contextmanager
def busy_process() -> Iterator[None]:
    """Inside the context a process computes without an end, in a session of its own as that of another terminal."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    try:
        yield
    finally:
        process.kill()
        process.wait()
