"""Reading the data section of config files, for commands that need a corpus and no model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_gpt.commands.call import StrictParser, check_config_files, parse, unknown_key
from lightning_gpt.errors import CallError, shortened
from lightning_gpt.options import check_options
from lightning_gpt.safe_yaml import read_yaml

if TYPE_CHECKING:
    from lightning_gpt.data.datamodule import TextData


RUN_KEYS = (
    *(
        "averaging",
        "checkpoints",
        "ckpt_path",
        "data",
        "diagnostics",
        "grow",
        "heartbeat",
        "model",
        "name",
        "non_finite",
        "parallel",
    ),
    *("samples", "seed_everything", "spikes", "trainer", "upcycle", "weights", "weights_only"),
)
"""The keys of a run's config, as ``fit`` allows them."""


def parse_data_call(
    function: Callable[..., None], command: str, args: list[str], required: bool = True
) -> tuple["TextData", dict[str, Any]]:
    """Parse ``args`` into the data and the other keyword arguments of ``function``.

    A config file may belong to a whole run: only its data section is used.

    Args:
        function: A function whose first parameter is ``data``; its other parameters become options.
        command: The command's name, for its help.
        args: The command line after the command's name.
        required: Whether the help says that a config file must be given.

    Raises:
        CallError: An option or a config file is wrong, or no config file has a data section.
    """
    check_config_files(args)
    # importing Lightning takes seconds, so check the files first
    from lightning_gpt.data.datamodule import TextData

    parser = StrictParser(prog=f"lightning-gpt {command}", exit_on_error=False)
    parser.add_argument(
        "--config", action="append", required=required, type=str, help="YAML file with a data section; may be repeated."
    )
    parser.add_function_arguments(function, skip={"data"})
    parser.add_class_arguments(TextData, "data")
    parsed = parse(parser, _with_data_of_configs(args))
    options = {name: value for name, value in vars(parsed).items() if name not in ("config", "data")}
    check_options(function, options)
    parsed.data.prepared = None  # a run's config may name the folder that this command is about to make
    return parser.instantiate_classes(parsed).data, options


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
        sections.append(_data_of(file))
        result.append(f"--data={json.dumps(sections[-1])}")
    if sections and not any(sections):
        raise CallError("no config file has a data section; give one with the key 'data'")
    return result


def _data_of(file: str) -> dict[str, Any]:
    """The data section of a config file; empty if it has none."""
    content = read_yaml(Path(file), "config file")
    for key in content:
        if key not in RUN_KEYS:
            raise CallError(f"config file {file!r}: {unknown_key(key, RUN_KEYS)}")
    section = content.get("data", {})
    if not isinstance(section, dict):
        given = "null" if section is None else str(section)
        raise CallError(f"config file {file!r}: data is {shortened(given, 60)!r}; allowed: a mapping")
    return section
