"""``fit``, ``validate``, ``test`` and ``predict``: a first look at the call, then LightningCLI.

The look comes before the heavy imports, so that a misspelt file name is answered at once.
"""

import os
import sys
from pathlib import Path

from lightning_gpt.checkpoint_name import located, run_of
from lightning_gpt.commands.call import check_config_files
from lightning_gpt.errors import CallError
from lightning_gpt.launch import by_torchrun
from lightning_gpt.stopping import end_with
from lightning_gpt.trust import trusted_options
from lightning_gpt.whole_file import is_missing, previous_of

_FIRST_PROCESS = "LIGHTNING_GPT_FIRST_PROCESS"


def run(args: list[str]) -> None:
    """Run the subcommand that ``args``, the process's own command line, starts with."""
    _end_with_the_first_process()
    checkpoint = _value_of(args, "--ckpt_path")
    path = None if checkpoint is None else located(checkpoint)
    if path is not None and is_missing(path) and is_missing(previous_of(path)):
        raise CallError(f"checkpoint {checkpoint!r} does not exist")
    if path is not None and _value_of(args, "--config") is None and _value_of(args, "-c") is None:
        args = _with_config_of_checkpoint(args, path)
    check_config_files(args)
    sys.argv[1:] = [*args, *trusted_options()]  # Lightning starts the other processes of a run with it
    from lightning_gpt.commands.lightning_cli import TrainCLI

    TrainCLI(args)


def _end_with_the_first_process() -> None:
    """Lightning starts the other processes of a run from the first, without which they would wait for half an hour.

    torchrun starts and ends all of them itself, and may have been called by a process that has trained before.
    """
    if by_torchrun():
        return
    first = os.environ.get(_FIRST_PROCESS)
    if first is not None and os.environ.get("LOCAL_RANK", "0") != "0":
        end_with(int(first))
    else:
        os.environ[_FIRST_PROCESS] = str(os.getpid())


def _value_of(args: list[str], option: str) -> str | None:
    """What was typed for ``option``, as two arguments or one with ``=``; None where it was not."""
    for position, argument in enumerate(args):
        name, equals, value = argument.partition("=")
        if name == option:
            return value if equals else next(iter(args[position + 1 :]), None)
    return None


def _with_config_of_checkpoint(args: list[str], checkpoint: Path) -> list[str]:
    """Where only a checkpoint is named, its run's ``config.yaml`` says the rest."""
    config = run_of(checkpoint) / "config.yaml"
    if not os.path.isfile(config):  # False also where that cannot be known
        return args
    print(f"config: {config} (the checkpoint's own)", file=sys.stderr)
    return [args[0], "--config", str(config), *args[1:]]
