"""Many prompts as JSON lines, and what became of them as JSON lines."""

import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from lightning_gpt.commands.text_file import read_text_file
from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.errors import CallError, shortened
from lightning_gpt.inference.batch import Continuation, TextRequest
from lightning_gpt.inference.chat import chat_ids
from lightning_gpt.inference.prompts import checked_ids, prompt_ids, require_utf8
from lightning_gpt.json_text import to_json
from lightning_gpt.models import LanguageModel
from lightning_gpt.models.decoding.sampling import NewTokens, Sampling
from lightning_gpt.options import Seed, TokenId, check_option, shown

PROMPTS = {"prompt": str, "messages": list, "ids": list[TokenId]}
"""What a line continues, one of these, and its type."""
_OPTIONS = {"seed": Seed, "max_new_tokens": NewTokens, "stop": list[str]}


@dataclass(frozen=True)
class RequestLine:
    """A line of the file of prompts.

    Args:
        content: The object as written.
        options: The options that it sets for itself.
        chat: Whether its prompt is a user's message.
    """

    content: Mapping[str, Any]
    options: Mapping[str, Any]
    chat: bool
    place: str = ""
    """Where it stands, for messages; empty for one that was typed."""


def read_lines(
    file: str, chat: bool, sampling: Mapping[str, Any], unread: Collection[str] = (), form: str = ""
) -> list[RequestLine]:
    """The requests of a file; every line is checked before the first is continued.

    Args:
        file: The file.
        chat: Whether a prompt is a user's message.
        sampling: The options of sampling for lines that do not set their own.
        unread: Options that change nothing in ``form``, as which messages name how the command is called.
        form: See ``unread``.

    Raises:
        CallError: The file cannot be read or is empty, or a line is wrong; names the line.
    """
    lines = []
    for number, line in enumerate(read_text_file("prompts", file).split("\n"), 1):
        if line.strip():
            place = f"prompts {file!r}, line {number}: "
            try:
                lines.append(RequestLine(*_read(line, sampling, unread, form), chat, place))
            except CallError as error:
                raise CallError(f"{place}{error}") from None
    if not lines:
        raise CallError(f"prompts {file!r} has no lines")
    return lines


def _read(
    line: str, sampling: Mapping[str, Any], unread: Collection[str], form: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The object of a line, and the options that it sets."""
    try:
        content = json.loads(line, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        raise CallError(f"{shortened(line, 40)!r} is not valid JSON") from None
    if not isinstance(content, dict):
        raise CallError(f"{shortened(line, 40)!r} is not a JSON object")
    known = [name for name in (*PROMPTS, "id", *_OPTIONS, *sampling) if name not in unread]
    for name, value in content.items():
        if name in unread:
            raise CallError(f"{name} {shown(value)} changes nothing with {form}: leave {name} out")
        if name not in known:
            raise CallError(f"unknown key {shortened(name, 40)!r}; the keys are {', '.join(known)}")
        _require_utf8(name, value)
    given = [name for name in PROMPTS if name in content]
    if len(given) != 1:
        said = " and ".join(given) if given else f"none of {', '.join(PROMPTS)}"
        raise CallError(f"it has {said}; give one")
    check_option(given[0], content[given[0]], PROMPTS[given[0]])
    options = {name: value for name, value in content.items() if name in (*_OPTIONS, *sampling)}
    for name, hint in _OPTIONS.items():
        if name in content:
            check_option(name, content[name], hint)
    if "stop" in options:
        if "" in options["stop"]:
            raise CallError("stop has an empty text; leave it out")
        options["stop"] = tuple(options["stop"])
    if "rules" in options:
        check_option("rules", options["rules"], list)
        options["rules"] = tuple(options["rules"])
    Sampling(**{**sampling, **{name: value for name, value in options.items() if name in sampling}})
    return content, options


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, whose keys must differ."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise CallError(f"the key {shortened(name, 40)!r} is given twice")
        found[name] = value
    return found


def _require_utf8(name: str, value: Any) -> None:
    """Refuse half a character, which an escape can name, at any depth of a value."""
    if isinstance(value, str):
        require_utf8(name, value)
    elif isinstance(value, list):
        for number, part in enumerate(value):
            _require_utf8(f"{name}.{number}", part)
    elif isinstance(value, dict):
        for key, part in value.items():
            require_utf8(f"a key of {name}", key)
            _require_utf8(f"{name}.{key}", part)


def ids_of(line: RequestLine, model: LanguageModel, tokenizer: Tokenizer) -> torch.Tensor:
    """The ids ``(time,)`` of what a line continues.

    Raises:
        CallError: They do not fit the model, there are none, or the tokenizer has no chat template.
    """
    try:
        if "messages" in line.content:
            return chat_ids(model, tokenizer, line.content["messages"])
        if "prompt" in line.content:
            prompt = line.content["prompt"]
            if line.chat:
                return chat_ids(model, tokenizer, [{"role": "user", "content": prompt}])
            return prompt_ids(model, tokenizer, prompt)
        if not line.content["ids"]:
            raise CallError("ids is []; give at least one token id")
        return checked_ids(model, torch.tensor(line.content["ids"], dtype=torch.long))
    except CallError as error:
        raise CallError(f"{line.place}{error}") from None


def as_json(text: Continuation, tokenizer: Tokenizer) -> dict[str, Any]:
    """What a line of the output says of a continuation."""
    said: dict[str, Any] = {"text": text.text, "tokens": text.tokens, "finish": text.finish}
    if text.request.logprobs is not None:
        said["logprobs"] = [
            {
                **_token(each.token, each.logprob, tokenizer),
                "top": [_token(token, value, tokenizer) for token, value in each.top],
            }
            for each in text.logprobs
        ]
    return said


def _token(token: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    return {"token": token, "text": tokenizer.decode([token]), "logprob": logprob}


def write_lines(
    lines: Sequence[RequestLine],
    requests: Sequence[TextRequest],
    continued: Callable[[list[TextRequest]], Sequence[dict[str, Any]]],
    output: str | None,
    batch_size: int,
) -> None:
    """Continue the prompts batch by batch, and write a line for each: the line as it was and what ``continued`` says.

    Raises:
        CallError: The output exists or cannot be made.
    """
    with _opened(output) as file:
        for start in range(0, len(lines), batch_size):
            batch = slice(start, start + batch_size)
            for line, said in zip(lines[batch], continued(list(requests[batch])), strict=True):
                file.write(to_json({**line.content, **said}) + "\n")
            file.flush()


@contextmanager
def _opened(output: str | None) -> Iterator[TextIO]:
    if output is None:
        yield sys.stdout
        return
    path = Path(output)
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        raise CallError(f"output {output!r} exists; choose another one, or delete it") from None
    except OSError as error:
        raise CallError(f"output {output!r} cannot be made: {error.strerror}") from None
    with path.open("w", encoding="utf-8") as file:
        yield file
