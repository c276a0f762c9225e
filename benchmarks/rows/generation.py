"""Generation with the KV cache: compared with other projects, and by position in the sequence."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Literal

import torch

from benchmarks import peers
from benchmarks.bench import OURS, Bench
from benchmarks.report import Outcome
from benchmarks.result import Result, Skipped, Target
from benchmarks.rounds import Spread, interleaved, ratio
from benchmarks.subject import Subject
from lightning_gpt.models import LanguageModel
from lightning_gpt.models.decoding.sampling import Decoder, Sampling, sample
from lightning_gpt.models.evaluating import evaluating
from lightning_gpt.training.device_clock import clock

_EARLY, _LATE, _AROUND = 10, 250, 5


def one_prompt(bench: Bench) -> Iterator[Outcome]:
    """One prompt continued greedily, vs. Hugging Face (with its cache) and nanoGPT (which has no cache and samples).

    Also with our weights in bf16 and int8, while the others stay as published.
    """
    yield from _generation(bench, "generate", 1, {"Hugging Face": 2.0, "nanoGPT": 4.0}, ["bf16", "int8"])


def batch(bench: Bench) -> Iterator[Outcome]:
    """A batch of prompts of equal length, vs. Hugging Face."""
    yield from _generation(bench, "generate_batch", bench.workload.generate_batch, {"Hugging Face": 1.3})


def _generation(
    bench: Bench,
    row: str,
    prompts: int,
    asked: dict[str, float],
    rounded: Sequence[Literal["bf16", "int8"]] = (),
) -> Iterator[Outcome]:
    work = bench.workload
    if work.prompt + work.new_tokens > work.time:
        both = f"a prompt of {work.prompt} tokens and {work.new_tokens} new ones"
        yield Skipped(row, "the row", f"{both} do not fit into workload.time, which is {work.time}")
        return
    for peer in (name for name in asked if name in bench.missing):
        yield Skipped(row, f"vs. {peer}", bench.missing[peer])
    names = [OURS, *(name for name in asked if name not in bench.missing)]
    subjects = {name: peers.build(bench.spec(name, work.generate_depth)) for name in names}
    for precision in rounded:
        subjects[f"{OURS} in {precision}"] = peers.ours_rounded(bench.spec(OURS, work.generate_depth), precision)
    times = interleaved({name: _generating(subject, prompts) for name, subject in subjects.items()}, bench.rounds)
    tokens = prompts * work.new_tokens
    what = f"{work.new_tokens} tokens after {work.prompt}, L = {work.generate_depth}, "
    what += "one prompt" if prompts == 1 else f"{prompts} prompts"
    for peer in names[1:]:
        for ours in (name for name in subjects if name.startswith(OURS)):
            speeds = {name: Spread.of([tokens / t for t in times[name]]) for name in (ours, peer)}
            said = what if ours == OURS else f"{what}, {ours}"
            target = Target(asked[peer], "at least") if ours == OURS else None
            yield Result(row, f"{said}, vs. {peer}", ratio(times[peer], times[ours]), "x", target, speeds, "tokens/s")
    for precision in rounded:
        ours = f"{OURS} in {precision}"
        speeds = {name: Spread.of([tokens / t for t in times[name]]) for name in (ours, OURS)}
        said = f"{what}, {ours}, vs. {OURS} in fp32"
        target = Target(1.0, "at least") if precision == "bf16" else None
        yield Result(row, said, ratio(times[OURS], times[ours]), "x", target, speeds, "tokens/s")
    if len(subjects) == 1:
        yield Result(row, what, Spread.of([tokens / t for t in times[OURS]]), "tokens/s")


def _generating(subject: Subject, prompts: int) -> Callable[[], float]:
    return lambda: subject.timed_generate(prompts)


def position(bench: Bench) -> Iterator[Outcome]:
    """The time per token late in a sequence, relative to one near the start."""
    work = bench.workload
    late = min(_LATE, work.time - _AROUND - 1)
    if late - _EARLY < 2 * _AROUND:
        yield Skipped("position", "the row", f"workload.time {work.time} has no positions far from {_EARLY}")
        return
    subject = peers.build(bench.spec(OURS, work.generate_depth))
    assert isinstance(subject.model, LanguageModel)
    times: dict[str, list[float]] = {"late": [], "early": []}
    for number in range(1 + bench.rounds):
        seconds = _seconds_by_position(subject.model, subject.prompts[:1, :1], late + _AROUND)
        for name, middle in (("late", late), ("early", _EARLY)):
            if number:
                times[name].append(statistics.median(seconds[middle - _AROUND : middle + _AROUND]))
    figures = {f"at {late}": Spread.of(times["late"]), f"at {_EARLY}": Spread.of(times["early"])}
    figures = {name: spread.scaled(1e3) for name, spread in figures.items()}
    what = f"time per generated token at position {late} vs. position {_EARLY}, L = {work.generate_depth}"
    value = ratio(times["late"], times["early"])
    yield Result("position", what, value, "x", Target(1.2, "at most"), figures, "ms")


def _seconds_by_position(model: LanguageModel, prompt: torch.Tensor, tokens: int) -> list[float]:
    """Seconds per new token; the first also reads the prompt ``(1, 1)``."""
    marks = [clock(prompt.device)]
    with evaluating(model):
        for _ in sample(Decoder(model, prompt, None, tokens), tokens, Sampling(temperature=0)):
            marks.append(clock(prompt.device))
    return [after - before for before, after in pairwise(marks)]
