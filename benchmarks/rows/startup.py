"""How long the command takes to respond and to begin training."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

import torch

from benchmarks.bench import Bench
from benchmarks.report import Outcome
from benchmarks.result import Result, Target
from benchmarks.rounds import Spread, interleaved, ratio, seconds
from lightning_gpt.errors import WorkError

_COMMAND = [sys.executable, "-m", "lightning_gpt"]
_LIBRARIES_OF_FIT = "import lightning_gpt.commands.lightning_cli"


def help_(bench: Bench) -> Iterator[Outcome]:
    """``--help``, and ``fit --help`` relative to importing lightning."""
    times = interleaved(
        {
            "--help": _process(*_COMMAND, "--help"),
            "fit --help": _process(*_COMMAND, "fit", "--help"),
            "import lightning": _process(sys.executable, "-c", "import lightning"),
        },
        bench.rounds,
    )
    target = Target(1.0, "at most")
    yield Result("help", "lightning-gpt --help", Spread.of(times["--help"]), "s", target)
    figures = {name: Spread.of(times[name]) for name in ("fit --help", "import lightning")}
    what, value = "fit --help vs. import lightning", ratio(times["fit --help"], times["import lightning"])
    yield Result("help", what, value, "x", Target(1.3, "at most"), figures, "s")


def start(bench: Bench) -> Iterator[Outcome]:
    """From the start of ``fit`` on the embedded corpus to its first training step, minus importing its libraries.

    The optional validation before training is disabled.
    """
    callback = "benchmarks.first_step.EndAtFirstStep"
    flags = ("--trainer.max_steps", "1", "--trainer.num_sanity_val_steps", "0")
    times = interleaved(
        {
            "fit": _process(*_COMMAND, "fit", *flags, "--trainer.callbacks+", callback),
            "import": _process(sys.executable, "-c", _LIBRARIES_OF_FIT),
        },
        bench.rounds,
    )
    over = [fit - imported for fit, imported in zip(times["fit"], times["import"], strict=True)]
    figures = {name: Spread.of(found) for name, found in times.items()}
    what = "start of fit on the embedded corpus to its first step, minus importing its libraries"
    yield Result("start", what, Spread.of(over), "s", Target(3, "at most"), figures, "s")


def _process(*command: str) -> Callable[[], float]:
    """Measures a process from start to exit, in an empty folder, in seconds."""

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no error output"])[-1]
            raise WorkError(f"{' '.join(command[1:])} failed: {last}")

    return lambda: seconds(run, torch.device("cpu"))
