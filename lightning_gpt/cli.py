"""The console script ``lightning-gpt``. Heavy libraries are imported by the command that needs them, not here."""

import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress

from lightning_gpt.commands import COMMANDS
from lightning_gpt.errors import CallError, Stopped, WorkError, shortened
from lightning_gpt.hardware import incomplete_teams
from lightning_gpt.system_error import described, discard_output, is_of_call, open_standard_streams
from lightning_gpt.trust import take_trusted, trust

_HELP = f"""usage: lightning-gpt COMMAND [OPTIONS]

Train, monitor and inspect GPT language models.

commands:
{chr(10).join(f"  {name:<11} {summary}" for name, (_, summary) in COMMANDS.items())}

options of every command:
  --help          list the command's options
  --trust MODULE  import a module of your own first, to register its variants: a dotted name or a .py file; may be
                  repeated
  --debug         show the traceback of an error

--version prints the version and the commit.

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
        _require_alone(args)
        print(_HELP, end="")
        return 0 if args else 2
    if args[0] == "--version":
        _require_alone(args)
        from lightning_gpt.version import described_version

        print(f"lightning-gpt {described_version()}")
        return 0
    try:
        os.getcwd()
    except FileNotFoundError:
        raise WorkError("the working folder has been deleted; change to another one") from None
    if args[0] not in COMMANDS:
        raise CallError(f"unknown command {args[0]!r}; the commands are {', '.join(COMMANDS)}")
    incomplete = incomplete_teams()
    if incomplete is not None and args[0] != "doctor":  # which reports it
        raise CallError(incomplete)
    trust(trusted)
    if not trusted:  # a module of the user's own may want what is hidden
        from lightning_gpt.fewer_imports import hide_extras

        hide_extras()
    module = importlib.import_module(f"lightning_gpt.commands.{COMMANDS[args[0]][0]}")
    module.run(args if module.__name__.endswith(".train") else args[1:])
    return 0


def _require_alone(args: list[str]) -> None:
    """Refuse what follows ``--help`` or ``--version``."""
    if len(args) > 1:
        given = shortened(args[1], 80)
        raise CallError(f"unexpected argument {given!r} after {args[0]}; COMMAND --help lists a command's options")


def _report(error: BaseException) -> int:
    """Say in one line what went wrong; returns the exit status."""
    if isinstance(error, BrokenPipeError):  # the reader of our output has gone: nothing to say, nobody to say it to
        discard_output()
        return 1
    known = _known_cause(error)
    # torch wraps an error of a loader process: its own text first, our message last
    message = str(known).rpartition(f"\nlightning_gpt.errors.{type(known).__name__}: ")[2]
    status = 2 if isinstance(known, CallError) else 1
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
