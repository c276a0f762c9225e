"""A run that starts from the weights of a checkpoint: its model and its tokenizer are the checkpoint's too."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from lightning_gpt.checkpoint import Checkpoint
from lightning_gpt.models import SingleHeadModel
from lightning_gpt.models.registry import plain
from lightning_gpt.safe_yaml import read_yaml
from lightning_gpt.training.module import GPTModule, SingleHeadModule
from lightning_gpt.whole_file import is_missing


def start_of(args: list[str]) -> Checkpoint | None:
    """The checkpoint whose weights a run starts from; None if it draws its own.

    A run that is resumed does not need the file any more, so it may be gone.

    Args:
        args: The options as typed.

    Raises:
        CallError: It cannot be read, or a config file cannot.
    """
    path, resumed = _last(args, "weights"), _last(args, "ckpt_path")
    if not isinstance(path, str) or (resumed is not None and is_missing(Path(path))):
        return None
    return Checkpoint.read(path)


def with_model_of(start: Checkpoint | None, args: list[str]) -> list[str]:
    """The options as typed, after those that describe the model and the tokenizer of the checkpoint to start from.

    A resumed run whose start is gone has its tokenizer from the checkpoint that it is resumed from.

    Args:
        start: What :func:`start_of` returned.
        args: The options as typed.

    Raises:
        CallError: The checkpoint describes no model of this version.
    """
    if start is not None:
        return [args[0], *_described(start), *args[1:]]
    resumed = _last(args, "ckpt_path")
    gone = resumed is not None and _last(args, "weights") is not None
    return [*args, "--data.tokenizer", str(resumed)] if gone else args


def _described(checkpoint: Checkpoint) -> list[str]:
    config = checkpoint.config()
    given = {each.name: plain(getattr(config, each.name)) for each in fields(config)}
    given.pop("vocab_size")  # the tokenizer's
    module = SingleHeadModule if checkpoint.model["name"] == SingleHeadModel.name else GPTModule
    options = ["--model", _as_text({"class_path": module.__name__, "init_args": given})]
    return [*options, "--data.tokenizer", str(checkpoint.path)] if checkpoint.has_tokenizer else options


def _as_text(value: dict[str, Any]) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=float("inf"))


def _last(args: list[str], option: str) -> Any:
    """What counts for an option of the first level: the last that is given, on the command line or in a config file."""
    found = None
    for name, value in _options(args):
        if name == f"--{option}":
            found = None if value == "null" else value
        elif name in ("--config", "-c"):
            found = read_yaml(Path(value), "config file").get(option, found)
    return found


def _options(args: list[str]) -> Iterator[tuple[str, str]]:
    for position, argument in enumerate(args):
        name, equals, value = argument.partition("=")
        if equals or position + 1 < len(args):
            yield name, value if equals else args[position + 1]
