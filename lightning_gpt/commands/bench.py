"""``lightning-gpt bench``: ours beside other projects, beside the machine's limits, and a profile of a step."""

from pathlib import Path

from benchmarks.workload import Device, Workload
from lightning_gpt.commands.call import parse_function_call
from lightning_gpt.errors import CallError

_QUICK_ROUNDS = 2


def bench(
    rows: str = "all",
    peer_dir: str | None = None,
    litgpt_python: str | None = None,
    threads: int | None = None,
    rounds: int = 7,
    device: Device = "cpu",
    quick: bool = False,
    profile: bool = False,
    output: str = "bench",
    workload: Workload = Workload(),
) -> None:
    """Measure rows of the table, each printed when it is known, and write OUTPUT/bench.json and OUTPUT/bench.md.

    Args:
        rows: Which rows, with commas between: step, step_bf16, peak, depth, compile, papers, memory, checkpointing,
            fit, generate, generate_batch, position, attention, window, help, start; or all.
        peer_dir: A folder that holds nanoGPT/model.py and minGPT/mingpt/model.py: their clones side by side.
        litgpt_python: Python of an environment with litgpt, which cannot be installed beside this package.
        threads: Threads that everyone computes with; torch's choice when omitted.
        rounds: Rounds that count; one more before them is thrown away.
        device: Where the models run.
        quick: Two rounds, for a first look.
        profile: Also profile a training step at fp32 (and bf16 where it is fast): a table and a trace file each.
        output: Folder for the files.
        workload: Sizes of the models and their work.
    """
    import torch

    from benchmarks.run import run_rows

    if threads is not None and threads < 1:
        raise CallError(f"threads is {threads}; it must be at least 1")
    if rounds < 1:
        raise CallError(f"rounds is {rounds}; it must be at least 1")
    if peer_dir is not None and not Path(peer_dir).is_dir():
        raise CallError(f"peer_dir is {peer_dir!r}, which is no folder")
    if litgpt_python is not None and not Path(litgpt_python).is_file():
        raise CallError(f"litgpt_python is {litgpt_python!r}, which is no file")
    if device == "cuda" and not torch.cuda.is_available():
        raise CallError("device is 'cuda' and torch finds no CUDA device; allowed here: 'cpu'")
    if threads is not None:
        torch.set_num_threads(threads)
    run_rows(
        names=None if rows == "all" else [name.strip() for name in rows.split(",")],
        workload=workload,
        device=device,
        rounds=_QUICK_ROUNDS if quick else rounds,
        peer_dir=peer_dir,
        litgpt_python=litgpt_python,
        profile=profile,
        folder=Path(output),
    )


def run(args: list[str]) -> None:
    """Parse ``args`` and measure."""
    options = parse_function_call(bench, "bench", args)
    bench(**{**options, "workload": Workload(**vars(options["workload"]))})
