"""A trained model: a training step as a share of the machine's peak, and generation."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from benchmarks import machine, peers
from benchmarks.bench import PRODUCT, Bench
from benchmarks.report import Outcome
from benchmarks.result import Result, Skipped
from benchmarks.rounds import Spread, interleaved
from benchmarks.subject import Subject
from lightning_gpt.loading import load
from lightning_gpt.models import LanguageModel
from lightning_gpt.models.decoding.int8 import int8
from lightning_gpt.planning.flops import training_flops_per_token
from lightning_gpt.training.optim import adamw


def trained(bench: Bench) -> Iterator[Outcome]:
    """The model of ``--checkpoint``: a step in fp32 and, where it is fast, bf16; one prompt continued greedily."""
    if bench.checkpoint is None:
        yield Skipped("trained", "the row", "--checkpoint is not given")
        return
    for bf16 in (False, True) if bench.bf16_reason is None else (False,):
        yield _step(bench, bf16)
    yield from _generation(bench)


def _model(bench: Bench) -> LanguageModel:
    assert bench.checkpoint is not None
    return load(bench.checkpoint).float().to(bench.torch_device)


def _subject(bench: Bench, model: LanguageModel, bf16: bool, trains: bool) -> Subject:
    work = replace(bench.workload, vocab_size=model.config.vocab_size)
    spec = replace(bench.spec("ours", len(model.block_views()), bf16), workload=work)
    optimizer = adamw(model, peers.LR, peers.WEIGHT_DECAY, peers.BETAS) if trains else None
    return Subject(spec, model, optimizer, model.loss, peers.greedy(model))


def _step(bench: Bench, bf16: bool) -> Outcome:
    model, dtype = _model(bench).train(), torch.bfloat16 if bf16 else torch.float32
    subject = _subject(bench, model, bf16, trains=True)
    product = {PRODUCT: lambda: machine.product_flops(bench.torch_device, dtype, 1)}
    times = interleaved({"step": subject.timed_step, **product}, bench.rounds)
    work, name = bench.workload, "bf16" if bf16 else "fp32"
    flops = work.tokens * training_flops_per_token(model, work.time)
    shares = [100 * flops / t / rate for t, rate in zip(times["step"], times[PRODUCT], strict=True)]
    what = f"share of the {name} product peak in a step of {bench.checkpoint}, {work.batch} x {work.time} tokens"
    figures = {"step": Spread.of([work.tokens / t for t in times["step"]])}
    return Result("trained", what, Spread.of(shares), "%", None, figures, "tokens/s")


def _generation(bench: Bench) -> Iterator[Outcome]:
    makers: dict[str, Callable[[Bench], LanguageModel]] = {
        "fp32": _model,
        "bf16": lambda bench: _model(bench).bfloat16(),
        "int8": lambda bench: int8(_model(bench)),
    }
    subjects = {name: _subject(bench, make(bench), False, trains=False) for name, make in makers.items()}

    def generating(subject: Subject) -> Callable[[], float]:
        return lambda: subject.timed_generate(1)

    calls = {name: generating(subject) for name, subject in subjects.items()}
    work = bench.workload
    speeds = {
        name: Spread.of([work.new_tokens / t for t in found])
        for name, found in interleaved(calls, bench.rounds).items()
    }
    what = f"{work.new_tokens} tokens after {work.prompt} by {bench.checkpoint}, one prompt, in fp32"
    yield Result("trained", what, speeds["fp32"], "tokens/s", None, speeds, "tokens/s")
