"""Reading the data section of config files, for commands that need a corpus and no model."""

import json
from argparse import ArgumentError
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jsonargparse import ArgumentParser

from lightning_gpt.commands.call import check_config_files, one_line, option_names
from lightning_gpt.commands.known_code import allow_known_code_only, require_known_functions
from lightning_gpt.errors import CallError

if TYPE_CHECKING:
    from lightning_gpt.data.datamodule import TextData

# source arguments that decide how training uses a source; they do not change its documents
_OF_TRAINING = ("weight", "max_tokens", "max_passes")


@dataclass(frozen=True)
class DataSection:
    """A parsed data section."""

    data: "TextData"
    sources: list[dict[str, Any]]
    """Name, class and arguments of each source, as plain values."""


def parse_data_call(function: Callable[..., None], command: str, args: list[str]) -> tuple[DataSection, dict[str, Any]]:
    """Parse ``args`` into a data section and the other keyword arguments of ``function``.

    A config file may belong to a whole run: only its data section is used.

    Args:
        function: A function whose first parameter is ``section``; its other parameters become options.
        command: The command's name, for its help.
        args: The command line after the command's name.

    Raises:
        CallError: An option or a config file is wrong, or no config file has a data section.
    """
    check_config_files(args)
    # importing Lightning takes seconds, so check the files first
    from lightning_gpt.data.datamodule import TextData

    allow_known_code_only()
    parser = ArgumentParser(prog=f"lightning-gpt {command}", exit_on_error=False)
    parser.add_argument(
        "--config", action="append", required=True, type=str, help="YAML file with a data section; may be repeated."
    )
    parser.add_function_arguments(function, skip={"section"})
    parser.add_class_arguments(TextData, "data")
    try:
        parsed = parser.parse_args(_with_data_of_configs(args))
    except ArgumentError as error:
        raise CallError(one_line(str(error), option_names(parser))) from None
    require_known_functions(parsed)
    given = [source.as_dict().get("init_args", {}) for source in parsed.data.sources or []]
    parsed.data.prepared = None  # a run's config may name the folder that this command is about to make
    data = parser.instantiate_classes(parsed).data
    sources = [
        {"name": source.name, "class": type(source).__name__, "arguments": _documents_only(arguments)}
        for source, arguments in zip(data.sources, given or [{}] * len(data.sources), strict=True)
    ]
    options = {name: value for name, value in vars(parsed).items() if name not in ("config", "data")}
    return DataSection(data, sources), options


def _with_data_of_configs(args: list[str]) -> list[str]:
    """The arguments, each config file followed by its data section as an option."""
    result, sections = [], []
    for position, argument in enumerate(args):
        result.append(argument)
        name, equals, value = argument.partition("=")
        if name == "--config" and equals:
            file = value
        elif position and args[position - 1] == "--config":
            file = argument
        else:
            continue
        sections.append(yaml.safe_load(Path(file).read_text(encoding="utf-8")).get("data"))
        result.append(f"--data={json.dumps(sections[-1] or {}, default=str)}")
    if sections and not any(sections):
        raise CallError("no config file has a data section; give one with the key 'data'")
    return result


def _documents_only(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that decide a source's documents, as JSON values; a function becomes its import path."""
    chosen = {name: value for name, value in arguments.items() if name not in _OF_TRAINING}
    as_json = json.dumps(chosen, default=lambda function: f"{function.__module__}.{function.__qualname__}")
    return dict(json.loads(as_json))
