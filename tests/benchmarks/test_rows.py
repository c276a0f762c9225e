"""Each row measures what it says: with the right contenders, targets and sizes."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.activations import bytes_kept_by, kept_bytes
from benchmarks.bench import OURS, PRODUCT, Bench
from benchmarks.memory import peak_bytes
from benchmarks.report import Outcome
from benchmarks.result import Result, Skipped
from benchmarks.rounds import Spread
from benchmarks.rows import ROWS, attention, busy, generation, gpu, memory, training
from benchmarks.workload import Spec
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.waiting import cannot_choose


def results(outcomes: Iterator[Outcome]) -> list[Result]:
    return [outcome for outcome in outcomes if isinstance(outcome, Result)]


@pytest.fixture
def measured(bench: Bench) -> Bench:
    """A bench that has measured its steps: ours a second a layer, nanoGPT twice of it, the product 1 GFLOP/s."""
    for n_layer in bench.workload.depths:
        ours = [float(n_layer), 2.0 * n_layer]
        times = {OURS: ours, "nanoGPT": [2 * t for t in ours], PRODUCT: [1e9, 1e9]}
        bench._step_times[n_layer, False] = times
        bench._step_times[n_layer, True] = {**times, "nanoGPT fp32": [4 * t for t in ours]}
    return bench


def test_a_ratio_is_of_the_same_round_and_above_one_where_ours_is_faster(measured: Bench) -> None:
    rows = results(training.step(measured))
    assert [row.what for row in rows] == [f"fp32, L = {n}, vs. nanoGPT" for n in (1, 2, 3)]
    assert all(row.value == Spread(2, 2, 2) for row in rows)
    assert rows[0].asked == "at least 1.8 x"
    assert rows[0].figures["ours"] == Spread.of([64.0, 32.0])


def test_bf16_has_both_nanogpts(measured: Bench) -> None:
    rows = {row.what: row for row in results(training.step_bf16(measured))}
    assert rows["bf16, L = 2, vs. nanoGPT under the same autocast"].asked == "at least 1.5 x"
    published = rows["bf16, L = 2, vs. nanoGPT as published (fp32)"]
    assert (published.asked, published.value.median) == ("at least 3.5 x", 4)


def test_who_is_absent_is_skipped(measured: Bench) -> None:
    skipped = [outcome for outcome in training.step(measured) if isinstance(outcome, Skipped)]
    assert {outcome.what for outcome in skipped} == {"vs. minGPT", "vs. Hugging Face", "vs. litgpt"}


def test_where_bf16_is_slow_it_is_not_measured(measured: Bench) -> None:
    measured.__dict__["bf16_reason"] = "bf16 products measured only 0.4 x as fast"
    assert list(training.step_bf16(measured)) == [Skipped("step_bf16", "the row", measured.bf16_reason or "")]
    skipped, *rows = training.peak(measured)
    assert skipped == Skipped("peak", "bf16", measured.bf16_reason or "")
    assert len(rows) == len(measured.workload.depths)


def test_the_share_of_the_peak_is_flops_by_formula(measured: Bench) -> None:
    rows = results(training.peak(measured))
    depths = measured.workload.depths
    kinds = [(name, n) for name in ("fp32", "bf16") for n in depths]
    assert [row.what for row in rows] == [f"share of the {name} product peak in a step, L = {n}" for name, n in kinds]
    row = rows[1]
    work, depth = measured.workload, 2
    weights = 12 * work.dim**2 * depth + work.vocab_size * work.dim
    flops = work.tokens * (6 * weights + 12 * depth * work.dim * work.time)
    assert row.value.most == pytest.approx(100 * flops / depth / 1e9)


@pytest.mark.parametrize(("seconds_of", "is_line"), [({1: 1, 2: 2, 3: 3}, True), ({1: 1, 2: 2, 3: 100}, False)])
def test_a_line_fits_times_that_grow_by_the_layer(
    bench: Bench, seconds_of: dict[int, float], is_line: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fixed(specs: dict[str, Spec]) -> nullcontext[dict[str, Callable[[], float]]]:
        return nullcontext({name: partial(seconds_of.__getitem__, spec.n_layer) for name, spec in specs.items()})

    monkeypatch.setattr(bench, "steppers", fixed)
    (row,) = results(training.depth(bench))
    assert (row.value.median == pytest.approx(1)) == is_line
    assert row.verdict == ("reached" if is_line else "not reached")
    assert row.figures["L = 3"] == Spread.of([float(seconds_of[3])] * bench.rounds)


def test_two_depths_make_any_line_fit_and_so_say_nothing(measured: Bench) -> None:
    measured.workload = replace(measured.workload, depths=[1, 2])
    assert isinstance(next(training.depth(measured)), Skipped)


def test_steps_are_measured_of_everyone_who_is_there(bench: Bench) -> None:
    times = bench.step_times(1, bf16=True)
    assert set(times) == {OURS, "nanoGPT", "nanoGPT fp32", PRODUCT}
    assert all(len(found) == 2 and min(found) > 0 for found in times.values())
    assert bench.step_times(1, bf16=True) is times, "measured once for all rows that need it"


def test_generation_beside_who_can(bench: Bench) -> None:
    rows = list(generation.one_prompt(bench))
    assert rows[0] == Skipped("generate", "vs. Hugging Face", "left out of tests")
    assert isinstance(rows[1], Result)
    assert rows[1].what == "4 tokens after 3, L = 1, one prompt, vs. nanoGPT"
    assert rows[1].asked == "at least 4 x"
    assert [row.what for row in rows[2:] if isinstance(row, Result) and row.asked == ""] == [
        *(f"4 tokens after 3, L = 1, one prompt, ours in {precision}, vs. nanoGPT" for precision in ("bf16", "int8")),
        "4 tokens after 3, L = 1, one prompt, ours in int8, vs. ours in fp32",
    ]
    rounded = next(row for row in results(iter(rows)) if "bf16, vs. ours in fp32" in row.what)
    assert rounded.asked == "at least 1 x"
    bf16, fp32 = rounded.figures["ours in bf16"], rounded.figures["ours"]
    assert bf16.least / fp32.most <= rounded.value.median <= bf16.most / fp32.least


def test_our_generation_is_measured_also_where_nobody_else_is(bench: Bench) -> None:
    bench.__dict__["missing"] = dict.fromkeys(("Hugging Face", "nanoGPT"), "left out")
    (row,) = results(generation.batch(bench))
    assert (row.what, row.unit) == ("4 tokens after 3, L = 1, 2 prompts", "tokens/s")
    assert row.value.median > 0


def test_what_does_not_fit_into_the_context_is_not_measured(bench: Bench) -> None:
    short = replace(bench, workload=replace(bench.workload, time=6))
    for row in (generation.one_prompt, generation.batch, generation.position):
        (skipped,) = row(short)
        assert isinstance(skipped, Skipped)
        assert skipped.what == "the row"


def test_positions_stay_within_the_context(bench: Bench) -> None:
    (row,) = results(generation.position(bench))
    assert "at position 26 vs. position 10" in row.what


def test_window_is_measured_at_twice_the_length(bench: Bench) -> None:
    (row,) = results(attention.window(bench))
    assert list(row.figures) == ["T = 128", "T = 64"]


def test_checkpointing_keeps_less(bench: Bench) -> None:
    rows = {row.what: row for row in results(memory.checkpointing(bench))}
    kept = rows["activations kept, L = 3, checkpointing block vs. none"]
    assert kept.asked == "at most 0.25 x"
    assert kept.value.median < 0.25
    less = rows["activations kept, L = 3, checkpointing attention vs. none"]
    assert kept.value.median < less.value.median < 1


def test_a_checkpointed_block_keeps_its_input_and_nothing_else(bench: Bench) -> None:
    work = bench.workload
    stream = 4 * work.tokens * work.dim
    kept = kept_bytes(bench.spec(OURS, 3, checkpointing="block"))
    # three inputs, and of the final norm its input and each token's mean and deviation
    assert kept == 4 * stream + 2 * 4 * work.tokens


def test_kept_activations_grow_by_the_layer() -> None:
    def kept(n_layer: int) -> int:
        config = GPTConfig(n_layer=n_layer, n_head=2, dim=16, block_size=32, vocab_size=50)
        return bytes_kept_by(GPT(config), torch.zeros(2, 32, dtype=torch.long))

    assert kept(3) - kept(2) == kept(2) - kept(1) > 0


def test_a_step_is_measured_beside_a_busy_process_that_then_ends(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def noted(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(start(*args, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", noted)
    monkeypatch.setattr(busy, "_SETTLE", 0.0)
    monkeypatch.setattr(busy, "_MEASURE", 0.0)
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert list(busy.busy(bench)) == [Skipped("busy", "the row", "one thread waits for nobody")]
        torch.set_num_threads(2)
        if cannot_choose() is not None:
            pytest.skip(f"here nothing can be chosen: {cannot_choose()}")
        rows = results(busy.busy(bench))
    finally:
        torch.set_num_threads(threads)
    assert [(next(iter(row.figures)), row.asked) for row in rows] == [
        ("beside", "at most 1.7 x"),
        ("beside, without", ""),
        ("alone", "at most 1.03 x"),
    ]
    assert len(started) == 2 * (1 + bench.rounds)
    assert all(process.poll() is not None for process in started)


def test_every_row_has_its_name_in_the_help() -> None:
    from lightning_gpt.commands.bench import bench as command

    assert command.__doc__ is not None
    described = command.__doc__.partition("Rows to measure, separated by commas:")[2].partition("; or all")[0]
    assert [name.strip() for name in described.split(",")] == list(ROWS)


class _OnGPU:
    """A project on a device whose clock is this class's: a step of ours takes 2 ms a layer, nanoGPT's twice of it."""

    now = 0.0

    def __init__(self, spec: Spec) -> None:
        self._seconds = 2e-3 * spec.n_layer * (1 if spec.project == OURS else 2)

    def step(self) -> None:
        type(self).now += self._seconds

    @classmethod
    def seconds(cls, work: Callable[[], object], device: torch.device) -> float:
        start = cls.now
        work()
        return cls.now - start


@pytest.fixture
def on_gpu(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    asked: list[Spec] = []

    def peak(spec: Spec) -> int:
        asked.append(spec)
        return 3 * 2**30 if spec.project == OURS else 4 * 2**30

    monkeypatch.setattr(gpu, "seconds", _OnGPU.seconds)
    monkeypatch.setattr(gpu.peers, "build", _OnGPU)
    monkeypatch.setattr(gpu, "peak_flops", lambda *_: 1e15)
    found = replace(bench, device="cuda")
    found.__dict__.update(missing={}, step_peak=peak, asked=asked)
    return found


def test_a_step_on_a_gpu_is_one_of_many_and_nanogpt_has_the_vocabulary_of_its_default(on_gpu: Bench) -> None:
    rows = {row.what: row for row in results(gpu.step(on_gpu))}
    of = "GPT-2 124M, 16,384 tokens"
    assert rows[f"{of}, time of a step"].value.median == pytest.approx(24)
    assert rows[f"{of}, vs. compiled nanoGPT"].value.median == pytest.approx(2)
    assert rows[f"{of}, vs. compiled nanoGPT"].figures[OURS].median == pytest.approx(16384 / 24e-3)
    assert rows[f"{of}, memory"].value.median == 3
    assert rows[f"{of}, memory vs. compiled nanoGPT"].value.median == pytest.approx(3 / 4)
    assert 20 < rows[f"{of}, MFU"].value.median < 80  # 124M parameters, 6 FLOPs each, attention; 1 PFLOP/s
    vocabularies = {spec.project: spec.workload.vocab_size for spec in on_gpu.__dict__["asked"]}
    assert vocabularies == {OURS: 50257, "nanoGPT": 50304}
    assert all(spec.compiled and spec.bf16 for spec in on_gpu.__dict__["asked"])


def test_the_papers_steps_are_of_all_depths_with_their_memory(on_gpu: Bench) -> None:
    rows = {row.what: row for row in results(gpu.papers(on_gpu))}
    two = rows["bf16 step, L = 2 (the papers state 1.2 ms on their hardware)"]
    assert (two.value.median, two.unit) == (pytest.approx(4), "ms")
    assert two.figures[OURS].median == pytest.approx(on_gpu.workload.tokens / 4e-3)
    assert rows["bf16 step, L = 3, memory"].value.median == 3
    assert rows["bf16 step by depth, R² of a line"].value.median == pytest.approx(1)
    assert {spec.compiled for spec in on_gpu.__dict__["asked"]} == {True}


def test_a_peak_on_a_gpu_counts_graphs_that_were_there_as_a_piece_of_work_began(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pools, peaks = iter([30, 30, 500]), iter([900, 700])
    for name in ("reset_peak_memory_stats", "synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: next(peaks))
    monkeypatch.setattr("benchmarks.memory.held_by_graphs", lambda device: next(pools))
    done: list[int] = []
    assert peak_bytes(lambda: done.append(1), "cuda", lambda: done.append(2)) == 700 + 500 - (100 + 30)
    assert done == [1, 2]
