"""Training steps on a GPU, compiled, at the papers' sizes and GPT-2's."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from benchmarks import peers
from benchmarks.bench import OURS, Bench
from benchmarks.report import Outcome
from benchmarks.result import Result, Skipped, Target
from benchmarks.rounds import Spread, interleaved, linearity, ratio, seconds
from benchmarks.subject import Subject
from benchmarks.workload import Spec, Workload
from lightning_gpt.planning.flops import training_flops_per_token
from lightning_gpt.training.peak import peak_flops

_PEER = "nanoGPT"
_STEPS = 10  # timed together: a real training does not wait for the device after each step
_PAPER_MS = {2: 1.2, 4: 2.3, 8: 4.8, 12: 7.5}
"""Milliseconds per step stated by the papers, by depth; they do not name their hardware."""


@dataclass(frozen=True)
class _Size:
    """A model and its batch, with what is asked of its step against the peer's."""

    name: str
    n_layer: int
    workload: Workload
    faster: float | None = None


SIZES = (
    _Size("the papers' size, 2,048 tokens", 8, Workload(dim=256, n_head=4, time=256, batch=8), 2.0),
    _Size("the papers' size, 65,536 tokens", 8, Workload(dim=256, n_head=4, time=256, batch=256), 2.0),
    _Size("GPT-2 124M, 16,384 tokens", 12, Workload(dim=768, n_head=12, time=1024, batch=16), 1.15),
    _Size("GPT-2 350M, 8,192 tokens", 24, Workload(dim=1024, n_head=16, time=1024, batch=8)),
)


def step(bench: Bench) -> Iterator[Outcome]:
    """A bf16 step as ``fit`` takes it on a GPU (compiled blocks, a CUDA graph), and compiled nanoGPT's."""
    if bench.device != "cuda":
        yield Skipped("gpu_step", "the row", "it measures a GPU: use --device cuda")
        return
    if _PEER in bench.missing:
        yield Skipped("gpu_step", f"vs. {_PEER}", bench.missing[_PEER])
    names = [OURS, *([_PEER] if _PEER not in bench.missing else [])]
    for size in SIZES:
        specs = {name: _spec(bench, size, name) for name in names}
        memory = {name: bench.step_peak(spec) for name, spec in specs.items()}
        subjects = {name: peers.build(spec) for name, spec in specs.items()}
        times = _step_times(subjects, bench)
        yield from _outcomes(bench, size, times, memory)


def papers(bench: Bench) -> Iterator[Outcome]:
    """A bf16 step by depth, as ``fit`` takes it on a GPU, with the papers' time; every round times all depths."""
    if bench.device != "cuda":
        yield Skipped("papers", "the row", "the papers measured on a GPU: use --device cuda")
        return
    specs = {n: replace(bench.spec(OURS, n, bf16=True), compiled=True) for n in bench.workload.depths}
    memory = {n: bench.step_peak(spec) for n, spec in specs.items()}
    times = _step_times({f"L = {n}": peers.build(spec) for n, spec in specs.items()}, bench)
    figures = [Spread.of(found) for found in times.values()]
    for n_layer, found, figure in zip(specs, times.values(), figures, strict=True):
        stated = f" (the papers state {_PAPER_MS[n_layer]} ms on their hardware)" if n_layer in _PAPER_MS else ""
        speeds = {OURS: Spread.of([bench.workload.tokens / t for t in found])}
        what = f"bf16 step, L = {n_layer}{stated}"
        yield Result("papers", what, figure.scaled(1e3), "ms", None, speeds, "tokens/s")
        yield Result("papers", f"bf16 step, L = {n_layer}, memory", Spread.of([memory[n_layer] / 2**30]), "GiB")
    if len(specs) > 2:  # two points always lie on a line
        yield Result("papers", "bf16 step by depth, R² of a line", Spread.of([linearity([*specs], figures)]), "")


def _step_times(subjects: dict[str, Subject], bench: Bench) -> dict[str, list[float]]:
    """Seconds per step of each of ``subjects``, by round."""

    def timed(subject: Subject) -> Callable[[], float]:
        def steps() -> None:
            for _ in range(_STEPS):
                subject.step()

        return lambda: seconds(steps, bench.torch_device) / _STEPS

    return interleaved({name: timed(subject) for name, subject in subjects.items()}, bench.rounds)


def _outcomes(bench: Bench, size: _Size, times: dict[str, list[float]], memory: dict[str, int]) -> Iterator[Outcome]:
    with torch.device("meta"):
        model = peers.gpt(_spec(bench, size, OURS))
    flops = training_flops_per_token(model, size.workload.time) * size.workload.tokens
    peak = peak_flops(bench.torch_device, torch.bfloat16)
    yield Result("gpu_step", f"{size.name}, time of a step", Spread.of(times[OURS]).scaled(1e3), "ms")
    yield Result("gpu_step", f"{size.name}, MFU", Spread.of([100 * flops / t / peak for t in times[OURS]]), "%")
    yield Result("gpu_step", f"{size.name}, memory", Spread.of([memory[OURS] / 2**30]), "GiB")
    if _PEER in times:
        speeds = {name: Spread.of([size.workload.tokens / t for t in found]) for name, found in times.items()}
        target = None if size.faster is None else Target(size.faster, "at least")
        what = f"{size.name}, vs. compiled {_PEER}"
        yield Result("gpu_step", what, ratio(times[_PEER], times[OURS]), "x", target, speeds, "tokens/s")
        share = Spread.of([memory[OURS] / memory[_PEER]])
        yield Result("gpu_step", f"{size.name}, memory vs. compiled {_PEER}", share, "x")


def _spec(bench: Bench, size: _Size, project: str) -> Spec:
    spec, workload = bench.spec(project, size.n_layer, bf16=True), size.workload
    if project == _PEER:  # its own default: rounded up to a multiple of 64, which suits matrix units
        workload = replace(workload, vocab_size=64 * math.ceil(workload.vocab_size / 64))
    return replace(spec, workload=workload, compiled=True)
