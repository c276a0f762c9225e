"""Reading a command's options, and saying in one line what is wrong with them."""

import re
import sys
from argparse import Action, ArgumentError
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace, _loaders_dumpers, set_loader
from jsonargparse._actions import _ActionConfigLoad

from lightning_gpt.commands.known_code import (
    allow_known_code_only,
    class_refused,
    function_refused,
    require_known_functions,
)
from lightning_gpt.errors import CallError, shortened
from lightning_gpt.options import check_options, shown
from lightning_gpt.safe_yaml import UnreadableYaml, parse_yaml, read_yaml

_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "dict": "a mapping",
}
_MOST_SHOWN = 60
_MOST_KEYS = 16
_EXPECTED = re.compile(r"(?:Expected a|Not a valid subclass of) (.+?)(?:\. Got value: (.*))?$")
_OF_DOCUMENTS = ("", "help", "sources", "val_share", "test_share", "split_by")
"""The options of the data section that say which documents a split has."""
_NOT_IN_CONFIGS = ("config", "help", "print_config")


def _load(text: str, path: str = "") -> Any:
    """Read YAML for jsonargparse: a config file where ``path`` is given, otherwise a value from a command line."""
    value = parse_yaml(text)
    is_text = not path and isinstance(value, dict) and ":" not in text.strip().removesuffix(":")
    return text if is_text else value  # "Note:" and "{name}" are text there, not mappings to null


set_loader("yaml", _load, (UnreadableYaml,))
_loaders_dumpers.yaml_load = _load  # values of numbers and text are read with it directly


class StrictParser(ArgumentParser):
    """A parser that refuses a section that is not a mapping, and names the config file that an error is in."""

    def parse_path(self, path: Any, **options: Any) -> Namespace:
        """Parse a config file.

        Raises:
            CallError: Something is wrong in it; the message names the file and the key.
        """
        file = f"config file {str(path)!r}"
        known = sorted({name.partition(".")[0] for name in option_names(self)} - set(_NOT_IN_CONFIGS))
        for key, value in read_yaml(Path(path), "config file").items():
            if key not in known:
                raise CallError(f"{file}: {unknown_key(key, known)}")
            _check_classes(value, key, file)
        try:
            parsed: Namespace = super().parse_path(path, **options)
            return parsed
        except (ArgumentError, TypeError) as error:
            raise CallError(f"{file}: {one_line(str(error), option_names(self))}") from None

    def _check_value_key(self, action: Action, value: Any, key: str, *args: Any, **options: Any) -> Any:
        # jsonargparse drops such a section without a word
        if isinstance(action, _ActionConfigLoad) and not isinstance(value, dict | Namespace | str):
            raise TypeError(f"Parser key \"{key}\":\nExpected a <class 'dict'>. Got value: {_as_yaml(value)}")
        return super()._check_value_key(action, value, key, *args, **options)


def _check_classes(value: Any, key: str, file: str) -> None:
    """Refuse a ``class_path`` that is not text and ``init_args`` that are not a mapping, at any depth of a section."""
    if isinstance(value, list):
        for number, part in enumerate(value):
            _check_classes(part, f"{key}.{number}", file)
    elif isinstance(value, dict):
        for name, part in value.items():
            for special, kind, allowed in (("class_path", str, "text"), ("init_args", dict, "a mapping")):
                if name == special and not isinstance(part, kind):
                    given = shortened(_as_yaml(part), _MOST_SHOWN)
                    raise CallError(f"{file}: {key}.{name} is {given!r}; allowed: {allowed}")
            _check_classes(part, f"{key}.{name}", file)


def _as_yaml(value: Any) -> str:
    return "null" if value is None else str(value)


def parse_function_call(
    function: Callable[..., Any], command: str, args: list[str], skip: Collection[str] = ()
) -> dict[str, Any]:
    """The keyword arguments that ``args`` give for ``function``, whose signature and docstring are the options.

    Parameters named in ``skip`` are no options.
    """
    parser = StrictParser(prog=f"lightning-gpt {command}", exit_on_error=False)
    parser.add_function_arguments(function, skip=set(skip))
    options = dict(vars(parser.instantiate(parse(parser, args))))
    check_options(function, options)
    return options


def refuse_unused(
    function: Callable[..., Any], given: Mapping[str, Any], used: Mapping[str, Collection[str]], form: str
) -> None:
    """Refuse options that would change nothing in the form in which a command is called.

    Args:
        function: The command's function, whose defaults stand for options that were left out.
        given: Its arguments.
        used: For each form of the command, the options that it reads, of those that not all forms read.
        form: The form in which it is called.

    Raises:
        CallError: There is one.
    """
    parameters = signature(function).parameters
    for name in parameters:
        if name in used[form] or not any(name in options for options in used.values()):
            continue
        if given[name] != parameters[name].default:
            raise CallError(f"{name} {shown(given[name])} changes nothing with {form}: leave {name} out")


def refuse_unread_flags(args: Iterable[str], command: str, also_read: Collection[str] = ()) -> None:
    """Refuse options of the data section that a command does not read. In a config file, which runs share, they may be.

    Args:
        args: The command line, after it was parsed.
        command: The command, which reads the documents of the splits only.
        also_read: What it reads besides.

    Raises:
        CallError: There is one.
    """
    for argument in args:
        name = argument.partition("=")[0].removeprefix("--").removesuffix("+")
        section, _, option = name.partition(".")
        if (
            argument.startswith("--")
            and section == "data"
            and option.partition(".")[0] not in (*_OF_DOCUMENTS, *also_read)
        ):
            raise CallError(f"{name} changes nothing with {command}: leave {name} out")


def require_single(option: str, values: Sequence[Any]) -> None:
    """Refuse a list that names the same thing twice.

    Raises:
        CallError: It does.
    """
    for place, value in enumerate(values):
        if value in values[:place]:
            raise CallError(f"{option} has {value} twice: leave one of them out")


def require_output(output: str) -> None:
    """Refuse an empty name of the folder that a command writes to, which would be the working folder.

    Raises:
        CallError: It is empty.
    """
    if not output:
        raise CallError("output is ''; it must be the name of a folder (. for this one)")


def parse(parser: ArgumentParser, args: list[str], known: Iterable[str] = ()) -> Namespace:
    """Parse ``args``. Only known and trusted code can be named in them, and in the config files that they name.

    Args:
        parser: The parser.
        args: The options as typed.
        known: The options that exist, to suggest the one that was meant; those of ``parser`` if empty.

    Raises:
        CallError: They are wrong; the message is one line.
    """
    allow_known_code_only()
    try:
        parsed = parser.parse_args(args)
    except ArgumentError as error:
        followed = re.search(r"argument (--\S+): expected one argument", str(error))
        value = "" if followed is None else dict(pairwise(args)).get(followed[1], "")
        if followed is not None and value.startswith("-") and not value.startswith("--"):
            given = shortened(f"{followed[1]}={value}", _MOST_SHOWN)
            raise CallError(f"{followed[1]} has no value; one that begins with - is given as {given}") from None
        raise CallError(one_line(str(error), known or option_names(parser))) from None
    except OverflowError:  # the parser converts whole numbers to floating point without a look at their size
        raise CallError(f"{_option_with_long_number(args)} has a number too large for floating point") from None
    subcommand = parsed.get("subcommand")
    require_known_functions(parsed if subcommand is None else parsed[subcommand])
    return parsed


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
        if name in ("--config", "-c") and (equals or position + 1 < len(args)):
            read_yaml(Path(value if equals else args[position + 1]), "config file")


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
    refused = re.search(r"(?:given class_path '([^']+)':\s+)?Importing '([^']+)' is not allowed", message)
    if refused:
        of_function = "expects a function or a callable class: Importing" in message
        given = refused[1] or (_given(lines) if of_function else refused[2])
        defined = "" if given == refused[2] else f" ({refused[2]})"
        return f"{key} is {given}{defined}" + (function_refused if of_function else class_refused)(refused[2])
    of_callable = "Callable" in message and ("Spaces not allowed" in message or "Expected a dot import" in message)
    if "Unexpected import path format" in message or of_callable:
        return f"{key} is {_given(lines)[:80]!r}; it must be an import path, such as package.module.name"
    missing = re.search(r"arguments are required: (.*)", message)
    if missing:
        names = [name.partition(".")[2] or name for name in missing[1].split(", ")]  # fit.model is --model
        return f"required and missing: {', '.join(f'--{name}' for name in names)}"
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
        owner = path[-1].rpartition(".")[2] if path else ""
        section = "" if key == unknown[1] else key.removesuffix(f".{unknown[1]}")
        what = f"unknown key {unknown[1]!r} under {section or 'the top'}"
        if owner and len(accepted) > _MOST_KEYS:
            close = get_close_matches(unknown[1], accepted, n=1)
            meant = f"did you mean {close[0]}? " if close else ""
            return f"{what}; {meant}--{section}.help {owner} lists the keys of {owner}"
        return f"{what}; the keys{owner and f' of {owner}'} are {', '.join(accepted)}"
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
    expected = [found for line in lines for found in _EXPECTED.findall(line)]
    expected = [(kind, given) for kind, given in expected if kind != "<class 'NoneType'>" and "path but" not in kind]
    if expected:
        given = next((value for _, value in expected if value), "") or _given(lines)
        allowed = list(dict.fromkeys(_type_name(kind) for kind, _ in expected))
        return f"{key} is {shown(given)}; allowed: {' or '.join(allowed)}"
    section = re.search(r"Unable to load config '(.*)'", message)
    if section:
        given = shortened(section[1], _MOST_SHOWN)
        return f"{key} is {given!r}; allowed: a mapping of options to values, or a YAML file that holds one"
    first = re.sub(r'^Parser key "[^"]+":\s*', "", " ".join(lines))
    return f"{key}: {first}" if key else first


def _given(lines: list[str]) -> str:
    return next((line.removeprefix("Given value: ") for line in lines if line.startswith("Given value: ")), "")


def _type_name(kind: str) -> str:
    simple = re.fullmatch(r"<class '([\w.]+)'>", kind)
    if simple:
        return _TYPES.get(simple[1], simple[1].rpartition(".")[2])
    literal = re.search(r"Literal\[(.*)\]", kind)
    if literal:
        return literal[1]
    return f"{kind} (a class name, or a mapping with class_path and init_args)" if kind.isidentifier() else kind


def unknown_key(key: Any, known: Iterable[str]) -> str:
    """What to say about a key of a config file that is none of ``known``."""
    close = get_close_matches(str(key), known, n=1)
    return f"unknown key {key!r}; " + (f"did you mean {close[0]}?" if close else f"the keys are {', '.join(known)}")


def _did_you_mean(name: str, known: Iterable[str], dashes: str = "") -> str:
    close = get_close_matches(name, known, n=2, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(dashes + option for option in close)}?"
    return "; --help lists the options"


def class_at(path: str) -> type:
    """A class that the parser has imported; the path is part of a message, so it is not imported because of it."""
    module, _, name = path.rpartition(".")
    found: type = getattr(sys.modules.get(module), name)
    return found


def _options_of(class_path: str) -> list[str]:
    try:
        names = ArgumentParser().add_class_arguments(class_at(class_path), "x")
    except (ValueError, ImportError, AttributeError):
        return []
    return list(dict.fromkeys(name.split(".")[1] for name in names))


def _allowed_classes(message: str) -> str:
    base = re.search(r"Subtypes: \[(?:list\[|<class ')([\w.]+)", message)
    if not base:
        return ""
    known = sorted(subclass.__name__ for subclass in _subclasses(class_at(base[1])))
    return f"; known are {', '.join(known)}, or a dotted import path"


def _subclasses(base: type[Any]) -> Iterator[type[Any]]:
    for subclass in type.__subclasses__(base):
        yield subclass
        yield from _subclasses(subclass)
