"""Conversations as prompts, by the chat template that came with a published tokenizer."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import torch
from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lightning_gpt.data.published_tokenizer import PublishedTokenizer
from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.errors import CallError
from lightning_gpt.inference.prompts import checked_ids
from lightning_gpt.models import LanguageModel
from lightning_gpt.options import shown

ROLES = ("system", "user", "assistant", "tool", "developer")


def chat_text(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], answers: bool = True) -> str:
    """The text in which a model reads a conversation and after which it answers, as ``transformers`` renders it.

    A template is a program in a language without access to Python's own objects, files or the network.

    Args:
        tokenizer: A published tokenizer with a template.
        messages: Each with a ``role`` and a ``content``, both text, and whatever else the template reads.
        answers: Whether the text ends where the answer begins.

    Raises:
        CallError: There is no template, a message is malformed, or the template refuses the conversation.
    """
    template = tokenizer.chat_template if isinstance(tokenizer, PublishedTokenizer) else None
    if template is None:
        raise CallError(f"the tokenizer {tokenizer.name!r} has no chat template: give a prompt instead of messages")
    _check(messages)
    assert isinstance(tokenizer, PublishedTokenizer)
    try:
        program = _environment().from_string(template)
        given = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": answers}
        return program.render(**tokenizer.special_tokens, **given)
    except TemplateError as error:
        raise CallError(f"the chat template refuses the messages: {error}") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CallError(f"the chat template fails on the messages: {error}") from None


def chat_ids(model: LanguageModel, tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    """The ids ``(time,)`` of a conversation; the template's special tokens are such.

    Raises:
        CallError: As :func:`chat_text`; or they are too many for the model.
    """
    text = chat_text(tokenizer, messages)
    assert isinstance(tokenizer, PublishedTokenizer)
    return checked_ids(model, torch.from_numpy(tokenizer.encode_marked(text)).long())


def _check(messages: Any) -> None:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise CallError(f"messages is {shown(messages)}; it must be a list of at least one message")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise CallError(f"message {number} is {shown(message)}; it must be an object with role and content")
        if message.get("role") not in ROLES:
            given = shown(message.get("role"))
            raise CallError(f"the role of message {number} is {given}; it must be one of {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str):
            raise CallError(f"the content of message {number} is {shown(message.get('content'))}; it must be text")


def _environment() -> ImmutableSandboxedEnvironment:
    """What templates expect: the blocks, filters and functions that ``transformers`` documents for them."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _as_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


class _Generation(Extension):
    """``{% generation %}``: marks what the model itself says, for training on that alone; the text is the same."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        """The block as a scope of its own."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _as_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)
