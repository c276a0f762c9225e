"""The console script ``lightning-gpt``. Heavy libraries are imported by the command that needs them, not here."""

import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress

from lightning_gpt.errors import CallError, Stopped, WorkError, shortened
from lightning_gpt.system_error import described, discard_output, is_of_call, open_standard_streams
from lightning_gpt.trust import take_trusted, trust

_COMMANDS = {
    "fit": ("train", "train a model: every option in YAML (--config FILE, several may be given) or as a flag"),
    "validate": ("train", "loss and perplexity of a checkpoint on the validation split"),
    "test": ("train", "loss and perplexity of a checkpoint on the test split"),
    "predict": ("train", "write a checkpoint's loss and likeliest token at every position of the test split"),
    "plan": ("plan", "what a config costs on which devices, and the fastest layout that fits"),
    "prepare": ("prepare", "tokenise a config's documents into a folder that training maps into memory"),
    "tokenizer": ("tokenizer", "train a byte-level BPE vocabulary on a config's training documents"),
    "serve": ("serve", "answer OpenAI's HTTP requests from a checkpoint, many at once"),
    "generate": ("generate", "continue a prompt, or many, from a checkpoint"),
    "evaluate": ("evaluate", "perplexity and bits per byte of a text, or tasks of lm-evaluation-harness"),
    "convert": ("convert", "turn a published model's folder into a checkpoint, or a checkpoint into such a folder"),
    "study": ("study", "run a grid of trainings (depth, width, any key; seeds) and report on it"),
    "inspect": ("inspect", "show a text's attention, logit lens and next tokens; ablate heads"),
    "doctor": ("doctor", "find what is wrong with the installation, the machine, a config or a checkpoint"),
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


_LONGEST = 300


def main() -> int:
    """Run the command that the process was called with; returns its exit status.

    0: done. 1: the work failed. 2: the call was wrong. 130: stopped by Ctrl-C, SIGTERM or SIGHUP.
    """
    open_standard_streams()
    debug = "--debug" in sys.argv[1:]
    args, trusted = take_trusted(argument for argument in sys.argv[1:] if argument != "--debug")
    sys.argv[1:] = args
    try:
        try:
            return _run(args, trusted)
        finally:
            sys.stdout.flush()  # here, an output that cannot be written is an error like any other
    except SystemExit:
        raise
    except BaseException as error:
        if debug:
            traceback.print_exc()
        return _report(error)


def _run(args: list[str], trusted: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(_HELP, end="")
        return 0 if args else 2
    if args[0] == "--version":
        from lightning_gpt import __version__

        print(f"lightning-gpt {__version__}")
        return 0
    try:
        os.getcwd()
    except FileNotFoundError:
        raise WorkError("the working folder has been deleted; change to another one") from None
    if args[0] not in _COMMANDS:
        raise CallError(f"unknown command {args[0]!r}; the commands are {', '.join(_COMMANDS)}")
    trust(trusted)
    module = importlib.import_module(f"lightning_gpt.commands.{_COMMANDS[args[0]][0]}")
    module.run(args if module.__name__.endswith(".train") else args[1:])
    return 0


def _report(error: BaseException) -> int:
    """Say in one line what went wrong; returns the exit status."""
    if isinstance(error, BrokenPipeError):  # the reader of our output has gone: nothing to say, nobody to say it to
        discard_output()
        return 1
    known = _known_cause(error)
    message, status = str(known), 2 if isinstance(known, CallError) else 1
    if known is None:
        refused = next((cause for cause in _causes(error) if described(cause)), error)
        message = described(refused) or f"{type(error).__name__}: {error or 'no message'} (--debug shows where)"
        status = 2 if is_of_call(refused, sys.argv[1:]) else 1
    if isinstance(known, Stopped):
        status = 130
    else:
        message = f"error: {shortened(message, _LONGEST - len('error: '))}"
    with suppress(OSError):  # standard error is closed or on a full disk
        sys.stderr.write(f"{message}\n")  # in one call, so that lines of several processes do not run into each other
    discard_output()
    return status


def _known_cause(error: BaseException) -> CallError | WorkError | Stopped | None:
    """The error of ours that ``error`` is, or was raised from: the config parser wraps what a constructor raises."""
    return next((cause for cause in _causes(error) if isinstance(cause, CallError | WorkError | Stopped)), None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


if __name__ == "__main__":
    sys.exit(main())
