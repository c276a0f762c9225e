"""Reading a command's options, and saying in one line what is wrong with them."""

import re
from argparse import ArgumentError
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from lightning_gpt.errors import CallError
from lightning_gpt.options import check_options, shown

_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "dict": "a mapping",
}


def parse_function_call(function: Callable[..., Any], command: str, args: list[str]) -> dict[str, Any]:
    """The keyword arguments that ``args`` give for ``function``, whose signature and docstring are the options."""
    parser = ArgumentParser(prog=f"lightning-gpt {command}", exit_on_error=False)
    parser.add_function_arguments(function)
    options = dict(vars(parser.instantiate(parse(parser, args))))
    check_options(function, options)
    return options


def parse(parser: ArgumentParser, args: list[str], known: Iterable[str] = ()) -> Namespace:
    """Parse ``args``.

    Args:
        parser: The parser.
        args: The options as typed.
        known: The options that exist, to suggest the one that was meant; those of ``parser`` if empty.

    Raises:
        CallError: They are wrong; the message is one line.
    """
    try:
        return parser.parse_args(args)
    except ArgumentError as error:
        raise CallError(one_line(str(error), known or option_names(parser))) from None
    except OverflowError:  # the parser converts whole numbers to floating point without a look at their size
        raise CallError(f"{_option_with_long_number(args)} has a number too large for floating point") from None


def _option_with_long_number(args: list[str]) -> str:
    found = (
        argument.partition("=")[0] if argument.startswith("--") else before
        for before, argument in zip(["", *args], args, strict=False)
        if re.search(r"\d{309}", argument)
    )
    return next(found, "the config")


def option_names(parser: ArgumentParser) -> list[str]:
    """The options of a parser, without their dashes."""
    return [option[2:] for action in parser._actions for option in action.option_strings if option.startswith("--")]


def check_config_files(args: list[str]) -> None:
    """Refuse config files that are missing, unreadable or not valid YAML, naming the file and the line."""
    for position, argument in enumerate(args):
        name, equals, value = argument.partition("=")
        if name not in ("--config", "-c") or not (equals or position + 1 < len(args)):
            continue
        path = Path(value if equals else args[position + 1])
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise CallError(f"config file {str(path)!r} cannot be read: {reason}") from None
        except yaml.MarkedYAMLError as error:
            line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
            raise CallError(f"config file {str(path)!r}{line} is not valid YAML: {error.problem}") from None
        if not isinstance(content, dict):
            raise CallError(f"config file {str(path)!r} does not contain a mapping of options to values")


def one_line(message: str, known: Iterable[str]) -> str:
    """One line out of jsonargparse's explanation: the option, what was given and what is allowed.

    Args:
        message: What the parser said, often over many lines and for every branch of a union.
        known: The options that exist, to suggest the one that was meant.
    """
    message = message.replace("int too large to convert to float", "Expected a <class 'float'>")
    lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
    keys = [key for line in lines for key in re.findall(r'Parser key "([^"]+)"', line)]
    nested = re.search(r"NestedArg\(key='([^']*)', val='([^']*)'\)", message)
    if nested:
        keys = keys if nested[1] in keys else [*keys, nested[1]]
        lines = [line.replace(nested[0], nested[2]) for line in lines]
    key = keys[0] if keys else ""
    for inner in keys[1:]:
        key = inner if inner.startswith(key) else f"{key}.{inner}"
    digits = re.search(r"Exceeds the limit \((\d+) digits\)", message)
    if digits:
        return f"{key} has a number of more than {int(digits[1]):,} digits"
    missing = re.search(r"arguments are required: (.*)", message)
    if missing:
        return f"required and missing: {', '.join(f'--{name}' for name in missing[1].split(', '))}"
    unknown = re.search(r"unrecognized arguments: (\S+)", message)
    if unknown:
        name, dashes = unknown[1].split("=")[0].lstrip("-"), unknown[1].startswith("--")
        what = f"unknown option --{name}" if dashes else f"unexpected argument {unknown[1]!r}"
        return what + (_did_you_mean(name, known, "--") if dashes else "; options start with --")
    unknown = re.search(r"does not accept option '([^']+)'", message)
    if unknown:
        return f"unknown key {unknown[1]!r}" + _did_you_mean(unknown[1], known)
    unknown = re.search(r"Option '([^']+)' is not accepted", message)
    if unknown:
        path = re.findall(r"given class_path '([\w.]+)'", message)
        accepted = _options_of(path[-1]) if path else []
        owner = f" of {path[-1].rpartition('.')[2]}" if path else ""
        return f"unknown key {unknown[1]!r} under {key or 'the top'}; the keys{owner} are {', '.join(accepted)}"
    unknown = re.search(r"Expected a dot import path string: (\S+)", message)
    if unknown:
        return f"{key}: no class is named {shown(unknown[1])}{_allowed_classes(message)}"
    wrong_function = re.search(r"expects a function or a callable class: (.*)", message)
    if wrong_function:
        reason = f"{wrong_function[1].strip():.80}"
        return f"{key}: no function is found at the import path {shown(_given(lines))} ({reason})"
    instance = re.search(r"Not a valid subclass of (\w+)", message)
    if instance:
        return f"{key} is {shown(_given(lines))}; it must be a mapping that describes a {instance[1]}"
    expected = [found for line in lines for found in re.findall(r"Expected a (.+?)(?:\. Got value: (.*))?$", line)]
    expected = [(kind, given) for kind, given in expected if kind != "<class 'NoneType'>" and "path but" not in kind]
    if expected:
        given = next((value for _, value in expected if value), "") or _given(lines)
        allowed = list(dict.fromkeys(_type_name(kind) for kind, _ in expected))
        return f"{key} is {shown(given)}; allowed: {' or '.join(allowed)}"
    first = re.sub(r'^Parser key "[^"]+":\s*', "", " ".join(lines))
    return f"{key}: {first}" if key else first


def _given(lines: list[str]) -> str:
    return next((line.removeprefix("Given value: ") for line in lines if line.startswith("Given value: ")), "")


def _type_name(kind: str) -> str:
    simple = re.fullmatch(r"<class '([\w.]+)'>", kind)
    if simple:
        return _TYPES.get(simple[1], simple[1].rpartition(".")[2])
    literal = re.search(r"Literal\[(.*)\]", kind)
    return literal[1] if literal else kind


def _did_you_mean(name: str, known: Iterable[str], dashes: str = "") -> str:
    close = get_close_matches(name, known, n=2, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(dashes + option for option in close)}?"
    return "; --help lists the options"


def _class_at(path: str) -> type:
    module, _, name = path.rpartition(".")
    found: type = getattr(import_module(module), name)
    return found


def _options_of(class_path: str) -> list[str]:
    try:
        names = ArgumentParser().add_class_arguments(_class_at(class_path), "x")
    except (ValueError, ImportError, AttributeError):
        return []
    return list(dict.fromkeys(name.split(".")[1] for name in names))


def _allowed_classes(message: str) -> str:
    base = re.search(r"Subtypes: \[(?:list\[|<class ')([\w.]+)", message)
    if not base:
        return ""
    known = sorted(subclass.__name__ for subclass in _subclasses(_class_at(base[1])))
    return f"; known are {', '.join(known)}, or a dotted import path"


def _subclasses(base: type[Any]) -> Iterator[type[Any]]:
    for subclass in type.__subclasses__(base):
        yield subclass
        yield from _subclasses(subclass)
