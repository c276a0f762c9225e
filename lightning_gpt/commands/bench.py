"""``lightning-gpt bench``: compares this package with other projects and with the machine's limits; profiles a step."""

from pathlib import Path
from typing import Annotated

from benchmarks.workload import Device, Workload
from lightning_gpt.commands.call import parse_function_call, require_output, require_single
from lightning_gpt.errors import CallError
from lightning_gpt.options import Processes, Range

_ROUNDS, _QUICK_ROUNDS = 7, 2


def bench(
    rows: str | None = None,
    checkpoint: str | None = None,
    peer_dir: str | None = None,
    litgpt_python: str | None = None,
    threads: Processes | None = None,
    rounds: Annotated[int, Range(1, 1000)] | None = None,
    device: Device = "cpu",
    quick: bool = False,
    profile: bool = False,
    output: str = "bench",
    workload: Workload = Workload(),
) -> None:
    """Measure rows of the benchmark table; print each result and write OUTPUT/bench.json and OUTPUT/bench.md.

    Args:
        rows: Rows to measure, separated by commas: step, step_bf16, peak, depth, compile, papers, gpu_step, memory,
            checkpointing, fit, busy, generate, generate_batch, position, attention, window, trained, help,
            start; or all, which is the default without a checkpoint.
        checkpoint: A trained model to measure in the row trained: its training step and its generation.
        peer_dir: Folder with the clones nanoGPT and minGPT (nanoGPT/model.py, minGPT/mingpt/model.py).
        litgpt_python: Python of an environment with litgpt, whose dependencies conflict with this package's.
        threads: Number of threads for all projects; torch's default if omitted.
        rounds: Number of measured rounds, 7 if omitted; one more comes first and is discarded.
        device: Where the models run.
        quick: Measure only two rounds, for a first impression.
        profile: Also profile a training step in fp32 (and bf16 if it is fast): a table and a trace for each.
        output: Folder for the files.
        workload: Sizes of the models and batches.
    """
    import torch

    from benchmarks.run import run_rows

    if rows is None:
        rows = "all" if checkpoint is None else "trained"
    names = None if rows == "all" else [name.strip() for name in rows.split(",")]
    require_single("rows", names or [])
    require_output(output)
    if quick and rounds is not None:
        raise CallError(f"rounds {rounds} changes nothing with quick: leave one of them out")
    if checkpoint is not None and not Path(checkpoint).exists():
        raise CallError(f"checkpoint is {checkpoint!r}, which does not exist")
    if peer_dir is not None and not Path(peer_dir).is_dir():
        raise CallError(f"peer_dir is {peer_dir!r}, which is not a folder")
    if litgpt_python is not None and not Path(litgpt_python).is_file():
        raise CallError(f"litgpt_python is {litgpt_python!r}, which is not a file")
    if device == "cuda" and not torch.cuda.is_available():
        raise CallError("device is 'cuda', but torch finds no CUDA device; allowed on this machine: 'cpu'")
    if threads is not None:
        torch.set_num_threads(threads)
    run_rows(
        names=names,
        workload=workload,
        device=device,
        rounds=_QUICK_ROUNDS if quick else rounds or _ROUNDS,
        peer_dir=peer_dir,
        litgpt_python=litgpt_python,
        profile=profile,
        folder=Path(output),
        checkpoint=checkpoint,
    )


def run(args: list[str]) -> None:
    """Parse ``args`` and run the benchmarks."""
    bench(**parse_function_call(bench, "bench", args))
