"""Variants of a part by name: what lets a line of YAML swap a norm, an attention or a feed-forward network."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from lightning_gpt.errors import CallError

T = TypeVar("T")

Choice = str | dict[str, Any]
"""A variant: its name, or ``{kind: name, option: value, ...}`` where it has options."""

LayerChoice = Choice | list[Choice]
"""One variant for all layers, or a pattern of them that is repeated down the layers."""


class Registry(Generic[T]):
    """The variants of one part, each a class under its name.

    A variant's constructor takes what it needs of the *context* (what the model knows: ``dim``, ``n_head``, ...), by
    those names; its other arguments are its options, which a config may give. Where it hands ``**`` on to the class it
    derives from, what that takes counts too.

    Args:
        part: What the variants are of, for messages: the config's key.
        context: The names that the model can give.
    """

    def __init__(self, part: str, *context: str) -> None:
        self.part = part
        self.context = context
        self._classes: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator: the variant's name in configs."""

        def add(variant: type[T]) -> type[T]:
            self._classes[name] = variant
            return variant

        return add

    @property
    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._classes)

    def get(self, choice: Choice) -> type[T]:
        """The class that ``choice`` names.

        Raises:
            CallError: Where it names no variant, or an option that the variant does not have.
        """
        kind, options = self._split(choice)
        if kind not in self._classes:
            raise CallError(f"{self.part} is {kind!r}; it must be one of {', '.join(self.names)}")
        variant = self._classes[kind]
        known = self.options(kind)
        for option in options:
            if option not in known:
                allowed = f"its options are {', '.join(known)}" if known else "it has none"
                raise CallError(f"{self.part} {kind!r} has no option {option!r}; {allowed}")
        missing = [name for name, given in known.items() if given.default is given.empty and name not in options]
        if missing:
            raise CallError(
                f"{self.part} {kind!r} needs the option {missing[0]!r}: {{kind: {kind}, {missing[0]}: ...}}"
            )
        return variant

    def options(self, kind: str) -> dict[str, inspect.Parameter]:
        """What a config may give to the variant ``kind``, by name."""
        return {name: given for name, given in _arguments(self._classes[kind]).items() if name not in self.context}

    def make(self, choice: Choice, **context: Any) -> T:
        """Build the variant that ``choice`` names, from its options and what it takes of ``context``."""
        variant = self.get(choice)
        taken = _arguments(variant)
        _, options = self._split(choice)
        return variant(**{name: value for name, value in context.items() if name in taken}, **options)

    def check(self, choices: LayerChoice) -> None:
        """Refuse a name or option that does not exist, in one choice or in a pattern of them."""
        pattern = choices if isinstance(choices, list) else [choices]
        if not pattern:
            raise CallError(f"{self.part} is an empty list; give at least one of {', '.join(self.names)}")
        for choice in pattern:
            self.get(choice)

    def _split(self, choice: Choice) -> tuple[str, Mapping[str, Any]]:
        if isinstance(choice, str):
            return choice, {}
        if not isinstance(choice, dict) or "kind" not in choice:
            raise CallError(f"{self.part} is {choice!r}; it must be a name or a mapping with 'kind' and its options")
        return choice["kind"], {name: value for name, value in choice.items() if name != "kind"}


def _arguments(variant: type) -> dict[str, inspect.Parameter]:
    """What the constructor of ``variant`` takes by name, also what it hands on as ``**`` to its base class."""
    arguments: dict[str, inspect.Parameter] = {}
    for base in variant.__mro__:
        constructor = vars(base).get("__init__")
        if constructor is None:
            continue
        given = [parameter for name, parameter in inspect.signature(constructor).parameters.items() if name != "self"]
        named = {p.name: p for p in given if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        arguments = {**arguments, **{name: p for name, p in named.items() if name not in arguments}}
        if not any(p.kind == p.VAR_KEYWORD for p in given):
            break
    return arguments


def at_layer(choices: LayerChoice, layer: int) -> Choice:
    """What a pattern chooses for ``layer``: ``[window, window, full]`` gives every third layer ``full``."""
    return choices[layer % len(choices)] if isinstance(choices, list) else choices
