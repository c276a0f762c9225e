"""``lightning-gpt doctor``: what is wrong with the installation, the machine, a config or a checkpoint."""

import argparse
import io
import json
import os
import shutil
import sys
import textwrap
from collections import Counter
from typing import NoReturn

from lightning_gpt.doctor.finding import Check, CheckResult, examine
from lightning_gpt.errors import CallError, WorkError

_DESCRIPTION = """\
Check the installation and the machine, and, if given, a run's config and a
checkpoint. Prints one line per check, and what to do where something is wrong.
"""
_EPILOG = """\
exit status: 0 if no problem was found, 1 if one was, 2 if the call is wrong
A warning is something that is slower or less safe than it could be.
"""
_COLOURS = {"ok": "32", "warning": "33", "problem": "31"}
_LEVEL_WIDTH, _NAME_WIDTH = 9, 13


# argparse of the standard library, because the packages that the other commands parse with may be what is broken
class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CallError(f"{message}; --help lists the options")


def options_parser() -> argparse.ArgumentParser:
    """The parser of the doctor's options."""
    parser = _Parser(
        prog="lightning-gpt doctor",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        action="append",
        default=[],
        help="Check a config as fit would read it: options, model size and memory, data, steps. May be repeated.",
    )
    parser.add_argument("--checkpoint", metavar="FILE", help="Check that a checkpoint is whole, and what it holds.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    parser.add_argument("--offline", action="store_true", help="Do not try to reach the Hugging Face Hub.")
    return parser


def _checks(options: argparse.Namespace) -> dict[str, Check]:
    """The checks to run, by the name that the table shows, in its order."""
    from lightning_gpt.doctor import installation, machine, storage, surroundings

    checks: dict[str, Check] = {
        "python": installation.python,
        "packages": installation.packages,
        "extras": installation.extras,
        "duplicates": installation.duplicates,
        "torch": installation.torch_build,
        "devices": machine.devices,
        "threads": machine.threads,
        "load": machine.load,
        "precision": machine.precision,
        "memory": machine.memory,
        "disk": storage.runs,
        "file system": storage.file_system,
        "temporary": storage.temporary_files,
        "limits": surroundings.limits,
        "shared memory": surroundings.shared_memory,
        "encoding": surroundings.encoding,
        "home": surroundings.home,
    }
    if not options.offline:
        checks["network"] = surroundings.network
    if options.config or options.checkpoint:
        checks |= _checks_of_run(options)
    return checks


def _checks_of_run(options: argparse.Namespace) -> dict[str, Check]:
    from lightning_gpt.commands.doctor_run import RunCheck

    run = RunCheck(options.config, options.checkpoint)
    checks: dict[str, Check] = {}
    if options.config:
        checks |= {"config": run.config, "model": run.model, "data": run.data}
    if options.checkpoint:
        checks["checkpoint"] = run.saved
    return checks


def run(args: list[str]) -> None:
    """Parse ``args``, run the checks and print what they find.

    Raises:
        CallError: If an option is wrong.
        WorkError: If a check found a problem.
    """
    options = options_parser().parse_args(args)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # paths may hold what the terminal's encoding does not
    findings = []
    for name, finding in examine(_checks(options)):
        findings.append((name, finding))
        if not options.json:
            print(_row(name, finding), flush=True)
    counts = Counter(finding.level for _, finding in findings)
    if options.json:
        entries = [{"check": name, **vars(finding)} for name, finding in findings]
        print(json.dumps({"problems": counts["problem"], "warnings": counts["warning"], "findings": entries}, indent=2))
    summary = f"{_count(counts['problem'], 'problem')}, {_count(counts['warning'], 'warning')}"
    if counts["problem"]:
        raise WorkError(f"the doctor found {summary}")
    if not options.json:
        print(f"\n{summary}")


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


def _row(name: str, finding: CheckResult) -> str:
    """A finding as lines of the table, at most as wide as the terminal."""
    indent = " " * (_LEVEL_WIDTH + _NAME_WIDTH + 1)
    width = max(len(indent) + 20, shutil.get_terminal_size().columns)
    start = f"{finding.level:<{_LEVEL_WIDTH}}{name:<{_NAME_WIDTH}} "
    lines = _wrapped(f"{start}{finding.text}", width, "", indent)
    if finding.remedy:
        lines += _wrapped(f"fix: {finding.remedy}", width, indent, f"{indent}     ")
    text = "\n".join(lines)
    if sys.stdout is not None and sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        text = text.replace(finding.level, f"\033[{_COLOURS[finding.level]}m{finding.level}\033[0m", 1)
    return text


def _wrapped(text: str, width: int, first: str, following: str) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=following,
        break_on_hyphens=False,
        break_long_words=False,
    )
