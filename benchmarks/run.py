"""A complete benchmark run: measures the rows in order, prints their lines and writes the files."""

import gc
from pathlib import Path

from benchmarks import machine
from benchmarks.bench import OURS, Bench
from benchmarks.report import Outcome, line, write
from benchmarks.rows import ROWS
from benchmarks.step_profile import profile_step
from benchmarks.workload import Device, Workload
from lightning_gpt.console import console, say
from lightning_gpt.errors import CallError
from lightning_gpt.whole_file import create_output

_PROFILE_N_LAYER = 4


def run_rows(
    names: list[str] | None,
    workload: Workload,
    device: Device,
    rounds: int,
    peer_dir: str | None,
    litgpt_python: str | None,
    profile: bool,
    folder: Path,
    checkpoint: str | None = None,
) -> None:
    """Measure the rows ``names`` (all if None), print each outcome to standard output and write the files.

    The files are written after each row, so a failing row does not lose earlier results.
    """
    for name in names or ():
        if name not in ROWS:
            raise CallError(f"rows has {name!r}; allowed: {', '.join(ROWS)}")
    create_output(str(folder))
    bench = Bench(workload, device, rounds, peer_dir, litgpt_python, checkpoint)
    gc.freeze()  # the collections between measurements need not look through the modules each time
    with console.status("measuring the machine's limits"):
        description = machine.describe(bench.torch_device, rounds)
    for name, value in {**description, "rounds": rounds}.items():
        print(f"{name}: {value}", flush=True)
    outcomes: list[Outcome] = []
    for name in names or ROWS:
        with console.status(f"measuring {name}"):
            for outcome in ROWS[name](bench):
                outcomes.append(outcome)
                print(line(outcome), flush=True)
        write(folder, {**description, "rounds": rounds}, outcomes)
    if profile:
        _profile(bench, folder)
    say(f"table written to {folder / 'bench.json'} and {folder / 'bench.md'}")


def _profile(bench: Bench, folder: Path) -> None:
    for name in ("fp32", "bf16") if bench.bf16_reason is None else ("fp32",):
        with console.status(f"profiling a step in {name}"):
            table = profile_step(bench.spec(OURS, _PROFILE_N_LAYER, name == "bf16"), folder, name)
        print(f"\na training step in {name}, L = {_PROFILE_N_LAYER}\n{table}", flush=True)
