"""``lightning-gpt completion``: a script with which a shell completes commands, options and their values."""

import argparse
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any, Literal, get_args, get_origin

from jsonargparse import ArgumentParser, capture_parser

from lightning_gpt.commands import COMMANDS
from lightning_gpt.commands.call import parse_function_call
from lightning_gpt.errors import CallError

_FIT = ("fit", "validate", "test", "predict")
_OF_EVERY_COMMAND = (
    ("--trust", "import a module of your own first"),
    ("--debug", "show the traceback of an error"),
)
_NUMBERS = (int, float)


def completion(shell: Literal["bash", "zsh", "tcsh"] = "bash") -> None:
    """Print a script that completes commands, options and their values; it starts no Python while you type.

    For bash: lightning-gpt completion > ~/.local/share/bash-completion/completions/lightning-gpt

    Args:
        shell: The shell that reads the script.
    """
    try:
        import shtab
    except ImportError:
        raise CallError("completion needs the package shtab: pip install -e '.[completion]'") from None
    top = argparse.ArgumentParser(prog="lightning-gpt")
    top.add_argument("--version", action="store_true", help="print the version and the commit")
    of_command = top.add_subparsers()
    fit = list(_actions("fit"))
    for name, (_, summary) in COMMANDS.items():
        parser = of_command.add_parser(name, help=summary, conflict_handler="resolve")
        own = _actions(name) if name not in _FIT else fit
        for action in (*own, *(fit if name == "plan" else ())):
            _add(parser, action, shtab.FILE)
        for option, summary in _OF_EVERY_COMMAND:
            takes: dict[str, Any] = {"action": "store_true"} if option == "--debug" else {}
            file = parser.add_argument(option, help=summary, **takes)
            if not takes:
                file.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(top, shell))


def _actions(command: str) -> Iterator[argparse.Action]:
    """The options of a command."""
    if command == "completion":
        yield from capture_parser(run, [])._actions
        return
    if command == "doctor":
        from lightning_gpt.commands.doctor import options_parser

        yield from options_parser()._actions
        return
    module = import_module(f"lightning_gpt.commands.{'train' if command == 'fit' else command}")
    if command != "fit":
        yield from capture_parser(module.run, [])._actions
        return
    whole = capture_parser(module.run, ["fit"])
    subparsers: Iterable[Any] = (action.choices for action in whole._actions if isinstance(action.choices, dict))
    yield from next(each["fit"] for each in subparsers if "fit" in each)._actions
    yield from _options_of_the_model()


def _options_of_the_model() -> Iterator[argparse.Action]:
    """Those of the default model: the parser learns them only from the class that a call names."""
    from lightning_gpt.training.module import GPTModule

    parser = ArgumentParser(add_help=False)
    parser.add_class_arguments(GPTModule, "model")
    yield from parser._actions


def _add(parser: argparse.ArgumentParser, action: argparse.Action, file: dict[str, str]) -> None:
    options = [option for option in action.option_strings if option.startswith("--") and option != "--help"]
    if not options or action.help == argparse.SUPPRESS:
        return
    about = (action.help or "").partition(". ")[0].replace("%", "%%")
    if action.nargs == 0:
        parser.add_argument(*options, action="store_true", help=about)
        return
    hint = getattr(action, "_typehint", action.type)
    values = _values(hint)
    added = parser.add_argument(*options, choices=values or None, help=about)
    if not values and hint not in _NUMBERS:
        added.complete = file  # type: ignore[attr-defined]


def _values(hint: Any) -> list[str]:
    """The values that an option of this type may have, if they can be counted."""
    for each in (hint, *get_args(hint)):
        if get_origin(each) is Literal:
            return [str(value) for value in get_args(each)]
        if each is bool:
            return ["true", "false"]
    return []


def run(args: list[str]) -> None:
    """Parse ``args`` and print the script."""
    completion(**parse_function_call(completion, "completion", args))
