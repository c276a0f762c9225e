"""Attention alone: the memory saved by a kernel that never stores T × T scores, and the cost of a window by length."""

from collections.abc import Iterator
from dataclasses import asdict

from benchmarks import memory as process_memory
from benchmarks.attention import attention_seconds
from benchmarks.bench import OURS, Bench
from benchmarks.report import Outcome
from benchmarks.result import Result, Skipped, Target
from benchmarks.rounds import Spread, interleaved, ratio


def memory(bench: Bench) -> Iterator[Outcome]:
    """Peak memory of one layer's forward and backward pass with the fused kernel, relative to the formula."""
    reason = process_memory.missing(bench.device)
    if reason is not None:
        yield Skipped("attention", "the row", reason)
        return
    peaks = {}
    for backend in ("sdpa", "manual"):
        with bench.worker(OURS) as worker:
            spec = bench.spec(OURS, 1, attention_backend=backend)
            peaks[backend] = int(worker.ask("attention_memory", spec=asdict(spec)))
    figures = {name: Spread.of([peak / 1e6]) for name, peak in peaks.items()}
    value = Spread.of([peaks["sdpa"] / peaks["manual"]])
    what = f"attention memory, T = {bench.workload.attention_time}, forward and backward, sdpa vs. manual"
    yield Result("attention", what, value, "x", Target(0.1, "at most"), figures, "MB")


def window(bench: Bench) -> Iterator[Outcome]:
    """The time of window attention on a sequence of twice the length, relative to the single length."""
    time, width = bench.workload.attention_time, bench.workload.window
    spec = bench.spec(OURS, 1, attention={"kind": "window", "window": width})
    lengths = {f"T = {length}": attention_seconds(spec, length) for length in (2 * time, time)}
    times = interleaved(lengths, bench.rounds)
    long, short = times
    figures = {name: Spread.of(times[name]).scaled(1e3) for name in times}
    what = f"window attention of {width}, forward and backward, T = {2 * time} vs. {time}"
    yield Result("window", what, ratio(times[long], times[short]), "x", Target(2.2, "at most"), figures, "ms")
