"""Memory of a training step, and how much of it activation checkpointing saves."""

from collections.abc import Iterator

from benchmarks import memory as process_memory
from benchmarks.activations import kept_bytes
from benchmarks.bench import OURS, Bench
from benchmarks.report import Outcome
from benchmarks.result import Result, Skipped, Target
from benchmarks.rounds import Spread, interleaved, ratio

_PEERS = ("nanoGPT", "litgpt")
_DEPTHS = (4, 12)


def memory(bench: Bench) -> Iterator[Outcome]:
    """Peak memory of building and training a model, each in a fresh process, above what that process used before."""
    reason = process_memory.missing(bench.device)
    if reason is not None:
        yield Skipped("memory", "the row", reason)
        return
    for peer in (name for name in _PEERS if name in bench.missing):
        yield Skipped("memory", f"vs. {peer}", bench.missing[peer])
    for n_layer in [n for n in bench.workload.depths if n in _DEPTHS] or bench.workload.depths[:1]:
        peaks = {
            name: bench.step_peak(bench.spec(name, n_layer)) for name in (OURS, *_PEERS) if name not in bench.missing
        }
        for peer in list(peaks)[1:]:
            target = Target(0.4, "at most") if peer == "nanoGPT" and n_layer == 4 else None
            figures = {name: Spread.of([peaks[name] / 1e6]) for name in (OURS, peer)}
            what = f"peak of a step, L = {n_layer}, vs. {peer}"
            yield Result("memory", what, Spread.of([peaks[OURS] / peaks[peer]]), "x", target, figures, "MB")
        if len(peaks) == 1:
            yield Result("memory", f"peak of a step, L = {n_layer}", Spread.of([peaks[OURS] / 1e6]), "MB")


def checkpointing(bench: Bench) -> Iterator[Outcome]:
    """Activations kept for the backward pass with checkpointing, and the step time it costs."""
    n_layer = bench.workload.checkpoint_depth
    specs = {kind: bench.spec(OURS, n_layer, checkpointing=kind) for kind in ("none", "block", "attention")}
    kept = {kind: kept_bytes(spec) for kind, spec in specs.items()}
    with bench.steppers(specs) as steps:
        times = interleaved(steps, bench.rounds)
    for kind, most_kept, most_time in (("block", 0.25, 1.35), ("attention", None, None)):
        sizes = {name: Spread.of([kept[name] / 1e6]) for name in ("none", kind)}
        what = f"activations kept, L = {n_layer}, checkpointing {kind} vs. none"
        target = Target(most_kept, "at most") if most_kept else None
        value = Spread.of([kept[kind] / kept["none"]])
        yield Result("checkpointing", what, value, "x", target, sizes, "MB")
        speeds = {name: Spread.of(times[name]) for name in ("none", kind)}
        what = f"step time, L = {n_layer}, checkpointing {kind} vs. none"
        target = Target(most_time, "at most") if most_time else None
        yield Result("checkpointing", what, ratio(times[kind], times["none"]), "x", target, speeds, "s")
