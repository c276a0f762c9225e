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
    those names; its other arguments are its options, which a config may give.

    Args:
        part: What the variants are of, for messages: the config's key.
        context: The names that the model can give.
    """

    def __init__(self, part: str, *context: str) -> None:
        self.part = part
        self.context = context
        self._classes: dict[str, Callable[..., T]] = {}

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

    def get(self, choice: Choice) -> Callable[..., T]:
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
        parameters = inspect.signature(self._classes[kind]).parameters
        collecting = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return {
            name: given
            for name, given in parameters.items()
            if name not in self.context and given.kind not in collecting
        }

    def make(self, choice: Choice, **context: Any) -> T:
        """Build the variant that ``choice`` names, from its options and what it takes of ``context``."""
        variant = self.get(choice)
        taken = inspect.signature(variant).parameters
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


def at_layer(choices: LayerChoice, layer: int) -> Choice:
    """What a pattern chooses for ``layer``: ``[window, window, full]`` gives every third layer ``full``."""
    return choices[layer % len(choices)] if isinstance(choices, list) else choices
