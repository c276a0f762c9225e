"""Training steps: compared with other projects and with the machine's peak, and by depth."""

from collections.abc import Iterator

import torch
from torch._dynamo.exc import BackendCompilerFailed

from benchmarks import peers
from benchmarks.bench import OURS, PRODUCT, Bench
from benchmarks.report import Outcome
from benchmarks.result import Result, Skipped, Target
from benchmarks.rounds import Spread, interleaved, linearity, ratio
from benchmarks.subject import Subject
from lightning_gpt.models import GPT
from lightning_gpt.planning.flops import training_flops_per_token
from lightning_gpt.training.compiling import CompiledBlocks

_AT_LEAST = {"nanoGPT": 1.8, "litgpt": 1.5}


def step(bench: Bench) -> Iterator[Outcome]:
    """A training step in fp32, vs. each project."""
    yield from _skipped("step", bench)
    for n_layer in bench.workload.depths:
        times = bench.step_times(n_layer, bf16=False)
        for peer in (name for name in times if name not in (OURS, PRODUCT)):
            target = Target(_AT_LEAST[peer], "at least") if peer in _AT_LEAST else None
            yield _versus("step", f"fp32, L = {n_layer}, vs. {peer}", times, peer, target, bench)


def step_bf16(bench: Bench) -> Iterator[Outcome]:
    """A training step under bf16 autocast, vs. each project, and vs. nanoGPT in fp32."""
    if bench.bf16_reason is not None:
        yield Skipped("step_bf16", "the row", bench.bf16_reason)
        return
    yield from _skipped("step_bf16", bench)
    asked = {"nanoGPT": Target(1.5, "at least"), "nanoGPT fp32": Target(3.5, "at least")}
    for n_layer in bench.workload.depths:
        times = bench.step_times(n_layer, bf16=True)
        for peer in (name for name in times if name not in (OURS, PRODUCT)):
            other = "nanoGPT as published (fp32)" if peer == "nanoGPT fp32" else f"{peer} under the same autocast"
            yield _versus("step_bf16", f"bf16, L = {n_layer}, vs. {other}", times, peer, asked.get(peer), bench)


def peak(bench: Bench) -> Iterator[Outcome]:
    """The FLOP/s of a step's matrix products as a share of the product peak measured in the same rounds."""
    if bench.bf16_reason is not None:
        yield Skipped("peak", "bf16", bench.bf16_reason)
    for bf16 in (False, True) if bench.bf16_reason is None else (False,):
        for n_layer in bench.workload.depths:
            times = bench.step_times(n_layer, bf16)
            flops = _flops(bench, n_layer)
            shares = [100 * flops / t / rate for t, rate in zip(times[OURS], times[PRODUCT], strict=True)]
            figures = {OURS: Spread.of([flops / t / 1e9 for t in times[OURS]]), PRODUCT: Spread.of(times[PRODUCT])}
            figures[PRODUCT] = figures[PRODUCT].scaled(1e-9)
            what = f"share of the {'bf16' if bf16 else 'fp32'} product peak in a step, L = {n_layer}"
            yield Result("peak", what, Spread.of(shares), "%", Target(75, "at least"), figures, "GFLOP/s")


def depth(bench: Bench) -> Iterator[Outcome]:
    """How well a line fits step time by number of layers; every round times all depths."""
    depths = bench.workload.depths
    if len(set(depths)) < 3:
        yield Skipped("depth", "the row", f"a line through the depths {depths} always fits; at least three are needed")
        return
    with bench.steppers({f"L = {n_layer}": bench.spec(OURS, n_layer) for n_layer in depths}) as steps:
        figures = {name: Spread.of(times) for name, times in interleaved(steps, bench.rounds).items()}
    what = "step time by depth, R² of a line"
    line = Spread.of([linearity(depths, [*figures.values()])])
    yield Result("depth", what, line, "", Target(0.99, "at least"), figures, "s")


def compiled(bench: Bench) -> Iterator[Outcome]:
    """A training step with compiled blocks vs. without; the first round, which compiles, is discarded.

    The system's C++ compiler makes the code on a CPU, Triton on a GPU.
    """
    n_layer = bench.workload.depths[-1]
    for bf16 in (False, True) if bench.bf16_reason is None else (False,):
        plain, faster = (peers.build(bench.spec(OURS, n_layer, bf16)) for _ in range(2))
        assert isinstance(faster.model, GPT)
        blocks = CompiledBlocks(faster.model)

        def compiled_step(subject: Subject = faster, blocks: CompiledBlocks = blocks) -> float:
            with blocks.training():
                return subject.timed_step()

        try:
            times = interleaved({"plain": plain.timed_step, "compiled": compiled_step}, bench.rounds)
        except BackendCompilerFailed as error:
            yield Skipped("compile", "the row", f"torch cannot compile on this machine: {str(error).splitlines()[0]}")
            return
        what = f"step with compiled blocks, {'bf16' if bf16 else 'fp32'}, L = {n_layer}, vs. plain"
        figures = {name: Spread.of(found) for name, found in times.items()}
        yield Result("compile", what, ratio(times["compiled"], times["plain"]), "x", None, figures, "s")


def _skipped(row: str, bench: Bench) -> Iterator[Skipped]:
    for project, reason in bench.missing.items():
        yield Skipped(row, f"vs. {project}", reason)


def _versus(
    row: str, what: str, times: dict[str, list[float]], peer: str, target: Target | None, bench: Bench
) -> Result:
    speeds = {name: Spread.of([bench.workload.tokens / t for t in times[name]]) for name in (OURS, peer)}
    return Result(row, what, ratio(times[peer], times[OURS]), "x", target, speeds, "tokens/s")


def _flops(bench: Bench, n_layer: int) -> float:
    """FLOPs of the matrix products in our training step, by formula."""
    with torch.device("meta"):
        model = peers.gpt(bench.spec(OURS, n_layer))
    return training_flops_per_token(model, bench.workload.time) * bench.workload.tokens
