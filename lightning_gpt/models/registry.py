"""Variants of a part by name: one line of YAML can swap a norm, an attention or a feed-forward network."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from typing import Any, Generic, NoReturn, TypeVar

from lightning_gpt.errors import CallError
from lightning_gpt.options import check_option, shown

T = TypeVar("T")

Given = str | dict[str, Any] | None
"""A variant as a user writes it: a name or ``{kind: name, option: value, ...}``; None to omit an optional part."""

GivenByLayer = Given | list[Any] | tuple[Any, ...]
"""One variant for all layers, or a pattern to repeat down the layers: ``[window, window, full]``."""


class Choice(dict[str, Any]):
    """A parsed variant: its kind and *all* its options, with defaults filled in. Immutable.

    It is a mapping ``{kind: ..., option: ...}``, so it can be stored as plain values. Two choices are equal if they
    build the same part. Only :meth:`Registry.read` creates one.
    """

    def __init__(self, kind: str, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        super().__init__({"kind": kind, **options})
        self._changed = {name: value for name, value in options.items() if value != defaults.get(name, ...)}

    @property
    def kind(self) -> str:
        """The name the variant is registered under."""
        return str(self["kind"])

    @property
    def options(self) -> dict[str, Any]:
        """Every option of the variant, by name."""
        return {name: value for name, value in self.items() if name != "kind"}

    def __str__(self) -> str:
        """The kind, and the options that differ from their defaults."""
        changed = ", ".join(f"{name} {value}" for name, value in self._changed.items())
        return f"{self.kind} ({changed})" if changed else self.kind

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozen(self))

    def __deepcopy__(self, memo: Any) -> "Choice":
        return self

    def __reduce__(self) -> Any:
        return _as_read, (dict(self), dict(self._changed))

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("a Choice cannot be changed; write a new one in the config")

    __setitem__ = __delitem__ = update = pop = popitem = clear = setdefault = __ior__ = _refuse


def _as_read(content: dict[str, Any], changed: dict[str, Any]) -> Choice:
    options = {name: value for name, value in content.items() if name != "kind"}
    return Choice(content["kind"], options, {name: value for name, value in options.items() if name not in changed})


def frozen(value: Any) -> Hashable:
    """``value`` with mappings and lists converted to tuples, so that it can be compared and used as a key."""
    if isinstance(value, Mapping):
        return tuple(sorted((name, frozen(each)) for name, each in value.items()))
    return tuple(frozen(each) for each in value) if isinstance(value, list | tuple) else value


def plain(value: Any) -> Any:
    """``value`` with choices converted to plain mappings and tuples to lists, ready to be written to a file."""
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


class UnknownVariant(CallError):  # noqa: N818
    """A config names a variant or a model that is not registered.

    Args:
        what: The part and the name: ``norm 'peak'``.
        message: What was given and what is allowed.
    """

    def __init__(self, what: str, message: str) -> None:
        super().__init__(what, message)
        self.what = what

    def __str__(self) -> str:
        return str(self.args[1])


def readable(value: Any) -> str:
    """A config field as messages show it.

    A choice is shown as its kind and the options that differ from their defaults, a pattern of several choices as a
    list, and an omitted part as ``none``.
    """
    if isinstance(value, list | tuple):
        each = [readable(one) for one in value]
        return each[0] if len(each) == 1 else f"[{', '.join(each)}]"
    return "none" if value is None else str(value)


def differences(was: Mapping[str, Any], now: Mapping[str, Any], may_differ: Collection[str]) -> str:
    """The fields in which two configs differ, as messages show them; empty if only those of ``may_differ`` do."""
    differing = [key for key in {**was, **now} if key not in may_differ and was.get(key) != now.get(key)]
    return ", ".join(f"{key} is {readable(was.get(key))} there and {readable(now.get(key))} here" for key in differing)


class Registry(Generic[T]):
    """The variants of one part, each a class registered under its name.

    A variant's constructor receives those *context* values (model settings such as ``dim`` and ``n_head``) that it
    names; its other arguments are options that a config can set, of the type and in the range that their annotations
    state (:mod:`lightning_gpt.options`). If it passes ``**`` arguments on to its base class, the base class's arguments
    count too.

    Args:
        part: Name of the part in configs, used in messages.
        context: Names of the values the model can pass.
        optional: Whether a model can omit the part: ``none`` or ``null`` in a config.
    """

    def __init__(self, part: str, *context: str, optional: bool = False) -> None:
        self.part = part
        self.context = context
        self.optional = optional
        self._classes: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator that registers a variant under ``name``, its name in configs.

        Raises:
            CallError: If another class is registered under this name.
        """

        def add(variant: type[T]) -> type[T]:
            taken = self._classes.get(name)
            if taken is not None:
                where = f"{taken.__module__}.{taken.__qualname__}"
                raise CallError(f"{self.part} {name!r} is already registered by {where}; choose another name")
            if self.optional and name == "none":
                raise CallError(f"{self.part} 'none' is reserved for omitting the part; choose another name")
            self._classes[name] = variant
            return variant

        return add

    @property
    def names(self) -> list[str]:
        """All names, sorted; includes ``none`` if the part is optional."""
        return sorted([*self._classes, "none"] if self.optional else self._classes)

    def get(self, kind: str, field: str | None = None) -> type[T]:
        """The class registered as ``kind``.

        Args:
            kind: Its name.
            field: The config's field, for messages; the part's name if None.

        Raises:
            UnknownVariant: If there is none.
        """
        if not isinstance(kind, str) or kind not in self._classes:
            known = ", ".join(self.names)
            raise UnknownVariant(
                f"{field or self.part} {shown(kind)}",
                f"{field or self.part} is {shown(kind)}; it must be one of {known}, or from a --trust module",
            )
        return self._classes[kind]

    def options(self, kind: str) -> dict[str, inspect.Parameter]:
        """The options that a config can set for the variant ``kind``, by name."""
        return {name: given for name, given in _arguments(self.get(kind)).items() if name not in self.context}

    def read(self, given: Given, field: str | None = None) -> Choice | None:
        """Parse a choice into its canonical form: its kind with every option.

        Args:
            given: The choice.
            field: The config's field, for messages; the part's name if None.

        Raises:
            CallError: If ``given`` names no variant, has an option the variant lacks, omits a required option, or has a
                value that the option's annotation does not allow.
        """
        if self.optional and (given is None or given == "none" or given == {"kind": "none"}):
            return None
        if isinstance(given, str):
            given = {"kind": given}
        field = field or self.part
        if not isinstance(given, dict) or "kind" not in given:
            raise CallError(f"{field} is {shown(given)}; it must be a name or a mapping with 'kind' and its options")
        kind = given["kind"]
        self.get(kind, field)
        known = self.options(kind)
        for option in given:
            if option != "kind" and option not in known:
                allowed = f"its options are {', '.join(known)}" if known else "it has none"
                raise CallError(f"{field} {kind!r} has no option {shown(option)}; {allowed}")
            if option != "kind":
                check_option(f"{field} {option}", given[option], known[option].annotation)
        defaults = {name: option.default for name, option in known.items() if option.default is not option.empty}
        for name in known:
            if name not in given and name not in defaults:
                raise CallError(f"{field} {kind!r} needs the option {name!r}: {{kind: {kind}, {name}: ...}}")
        return Choice(kind, {name: given.get(name, defaults.get(name)) for name in known}, defaults)

    def require(self, given: Given, field: str | None = None) -> Choice:
        """As :meth:`read`, but the part cannot be omitted."""
        choice = self.read(given, field)
        if choice is None:
            raise CallError(f"{self.part} is {given!r}; it must be one of {', '.join(sorted(self._classes))}")
        return choice

    def pattern(self, given: GivenByLayer) -> tuple[Choice | None, ...]:
        """The choices of a pattern to repeat down the layers; a single choice gives a pattern of one.

        Raises:
            CallError: As :meth:`read`; also for an empty list.
        """
        pattern = list(given) if isinstance(given, list | tuple) else [given]
        if not pattern:
            raise CallError(f"{self.part} is an empty list; give at least one of {', '.join(self.names)}")
        return tuple(self.read(each) for each in pattern)

    def make(self, given: Given, **context: Any) -> T:
        """Build the variant ``given`` from its options and the values of ``context`` that its constructor names.

        The layer's ``made_with`` records its kind, its options and the plain values of the context.
        """
        choice = self.require(given)
        variant = self.get(choice.kind)
        taken = {name: value for name, value in context.items() if name in _arguments(variant)}
        made = variant(**taken, **choice.options)
        plain = {name: value for name, value in taken.items() if isinstance(value, bool | int | float | str)}
        made.made_with = frozen([self.part, choice, plain])  # type: ignore[attr-defined]
        return made

    def make_if_chosen(self, given: Given, **context: Any) -> T | None:
        """As :meth:`make`; None if the part is omitted."""
        return None if self.read(given) is None else self.make(given, **context)


class Models(Generic[T]):
    """Models and the classes of their configs, by name."""

    def __init__(self) -> None:
        self._classes: dict[str, tuple[type[T], type]] = {}

    def register(self, name: str, config: type) -> Callable[[type[T]], type[T]]:
        """Class decorator: the model's name in checkpoints, and the frozen dataclass it is built from."""

        def add(model: type[T]) -> type[T]:
            if name in self._classes:
                raise CallError(f"a model {name!r} is already registered; choose another name")
            model.name, model.class_name = name, model.__name__  # type: ignore[attr-defined]
            self._classes[name] = model, config
            return model

        return add

    def build(self, described: Mapping[str, Any]) -> T:
        """A model with fresh weights from its name and config, as returned by ``describe``.

        Raises:
            UnknownVariant: If the model, or a variant named in its config, is not registered.
            CallError: If the config is invalid.
        """
        model, _ = self._known(described)
        return model(self.config(described))  # type: ignore[call-arg]

    def config(self, described: Mapping[str, Any]) -> Any:
        """The config of the model that :meth:`build` would create.

        Raises:
            CallError: As :meth:`build`.
        """
        _, config = self._known(described)
        return config(**described["config"])

    def _known(self, described: Mapping[str, Any]) -> tuple[type[T], type]:
        name = described.get("name")
        if name not in self._classes:
            known = ", ".join(sorted(self._classes))
            raise UnknownVariant(f"model {name!r}", f"the model is {name!r}; it must be one of {known}")
        return self._classes[name]


def find_variants(package: str, path: Iterable[str]) -> None:
    """Import every module of a folder, which registers its variants; call this in the folder's ``__init__``."""
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")


def _arguments(variant: type) -> dict[str, inspect.Parameter]:
    """The named constructor arguments of ``variant``, including those it passes on as ``**`` to its base class."""
    arguments: dict[str, inspect.Parameter] = {}
    for base in variant.__mro__:
        constructor = vars(base).get("__init__")
        if constructor is None:
            continue
        try:
            signature = inspect.signature(constructor, eval_str=True)
        except NameError as error:
            raise CallError(
                f"{variant.__qualname__}: {error} in an annotation of its constructor; import it also at run time"
            ) from None
        given = [parameter for name, parameter in signature.parameters.items() if name != "self"]
        named = {p.name: p for p in given if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        arguments = {**arguments, **{name: p for name, p in named.items() if name not in arguments}}
        if not any(p.kind == p.VAR_KEYWORD for p in given):
            break
    return arguments


def as_read(pattern: GivenByLayer) -> tuple[Choice | None, ...]:
    """A config's pattern field, typed as parsed: the config parses its patterns when it is created."""
    assert isinstance(pattern, tuple)
    return pattern


def at_layer(pattern: GivenByLayer, layer: int) -> Choice | None:
    """The choice of a parsed pattern for ``layer``: with ``[window, window, full]`` every third layer is ``full``."""
    choices = as_read(pattern)
    return choices[layer % len(choices)]
