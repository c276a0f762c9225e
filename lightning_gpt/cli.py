"""The console script ``lightning-gpt``. Heavy libraries are imported by the command that needs them, not here."""

import importlib
import os
import sys
import traceback

from lightning_gpt.errors import CallError, Stopped, WorkError
from lightning_gpt.trust import keep_working_folder_out, take_trusted, trust

_COMMANDS = {
    "fit": ("train", "train a model: every option in YAML (--config FILE, several may be given) or as a flag"),
    "validate": ("train", "loss and perplexity of a checkpoint on the validation split"),
    "test": ("train", "loss and perplexity of a checkpoint on the test split"),
    "predict": ("train", "write a checkpoint's loss and likeliest token at every position of the test split"),
    "prepare": ("prepare", "tokenise a config's documents into a folder that training maps into memory"),
    "tokenizer": ("tokenizer", "train a byte-level BPE vocabulary on a config's training documents"),
    "generate": ("generate", "continue a prompt from a checkpoint"),
    "study": ("study", "run a grid of trainings (depth, width, any key; seeds) and report on it"),
    "inspect": ("inspect", "show a text's attention, logit lens and next tokens; ablate heads"),
    "bench": ("bench", "measure speed and memory beside other projects and the machine's limits"),
}

_HELP = f"""usage: lightning-gpt COMMAND [OPTIONS]

Train, watch and look into GPT language models.

commands:
{chr(10).join(f"  {name:<10} {summary}" for name, (_, summary) in _COMMANDS.items())}

options of every command:
  --help          list the command's options
  --trust MODULE  first import a module of your own, so that its variants exist: a dotted name or a .py file; may be
                  repeated
  --debug         show the traceback of an error

Start with: lightning-gpt fit --config configs/quickstart.yaml
"""


def main() -> int:
    """Run the command that the process was called with; returns its exit status.

    0: done. 1: the work failed. 2: the call was wrong. 130: stopped by Ctrl-C or SIGTERM.
    """
    debug = "--debug" in sys.argv[1:]
    args, trusted = take_trusted(argument for argument in sys.argv[1:] if argument != "--debug")
    sys.argv[1:] = args
    if not args or args[0] in ("-h", "--help"):
        print(_HELP, end="")
        return 0 if args else 2
    if args[0] == "--version":
        from lightning_gpt import __version__

        print(f"lightning-gpt {__version__}")
        return 0
    keep_working_folder_out()
    try:
        if args[0] not in _COMMANDS:
            raise CallError(f"unknown command {args[0]!r}; the commands are {', '.join(_COMMANDS)}")
        trust(trusted)
        module = importlib.import_module(f"lightning_gpt.commands.{_COMMANDS[args[0]][0]}")
        module.run(args if module.__name__.endswith(".train") else args[1:])
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        if debug:
            traceback.print_exc()
        return _report(error)
    return 0


def _report(error: BaseException) -> int:
    """Say in one line what went wrong; returns the exit status."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, BrokenPipeError):  # the reader of our output has gone: nothing to say, nobody to say it to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    known = _known_cause(error)
    if isinstance(known, Stopped):
        print(str(known), file=sys.stderr)
        return 130
    message = " ".join(str(known or error).split())
    if known is None:
        message = f"{type(error).__name__}: {message or 'no message'} (--debug shows where)"
    print(f"error: {message}", file=sys.stderr)
    return 2 if isinstance(known, CallError) else 1


def _known_cause(error: BaseException | None) -> CallError | WorkError | Stopped | None:
    """The error of ours that ``error`` is, or was raised from: the config parser wraps what a constructor raises."""
    while error is not None and not isinstance(error, CallError | WorkError | Stopped):
        error = error.__cause__
    return error


if __name__ == "__main__":
    sys.exit(main())
