"""Reading YAML. Everything that a user gives as YAML is read here, within limits.

The limits keep a small or strange text from taking all memory or never ending: the size of a file, the number of
values once aliases are expanded, and the depth of nesting. Only plain values are made (mappings, lists, text, numbers,
booleans and null). A key that is given twice is an error.
"""

import re
import stat
from collections.abc import Collection, Hashable
from pathlib import Path
from typing import Any

import yaml

from lightning_gpt.errors import CallError
from lightning_gpt.system_error import refused_path

_MOST_BYTES = 4 * 2**20
_MOST_VALUES = 100_000
_MOST_LEVELS = 100

_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")
_FLOAT = (
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
)
_FLOAT += r"|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)"
_INT = r"(?=.{1,100}$)[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)"  # a longer one is text


class UnreadableYaml(yaml.YAMLError):
    """A text is not YAML, or exceeds a limit.

    Args:
        problem: What is wrong.
        line: The line where it was found, from 1.
    """

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem if line is None else f"line {line}: {problem}")
        self.problem = problem
        self.line = line


class TaggedText(str):
    """A value that a YAML text marks with a tag, as text."""


def parse_yaml(text: str, tags: Collection[str] = ()) -> Any:
    """The value of a YAML text. Values marked with one of ``tags`` become :class:`TaggedText`.

    Two things differ from YAML 1.1, as in most tools of today: ``1e-3`` is a number, and dates and times such as
    ``2026-01-31`` and ``00:12:00:00`` are text.

    Raises:
        UnreadableYaml: It is not valid YAML, holds a key twice or a value that is not plain, or exceeds a limit.
    """
    try:
        _check_size(text)
        return _loader(tags)(text).get_single_data()
    except UnreadableYaml:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = None if mark is None else mark.line + 1
        raise UnreadableYaml(error.problem or error.context or "unknown", line) from None
    except yaml.reader.ReaderError as error:
        raise UnreadableYaml(str(error.reason), text.count("\n", 0, error.position) + 1) from None
    except ValueError as error:  # such as !!int x
        raise UnreadableYaml(str(error).partition(";")[0]) from None


def read_yaml(path: Path, what: str, tags: Collection[str] = ()) -> dict[str, Any]:
    """The mapping in a YAML file.

    Args:
        path: The file, in UTF-8.
        what: What the file is, for messages, such as ``config file``.
        tags: As in :func:`parse_yaml`.

    Raises:
        CallError: The file cannot be read, is too large, or does not hold a mapping; or as :func:`parse_yaml`.
        WorkError: The process may open no further file.
    """
    name = f"{what} {str(path)!r}"
    try:
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):  # a pipe or a device may never end
            raise CallError(f"{name} cannot be read: it is not a regular file")
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise CallError(f"{name} is too large: {path.stat().st_size:,} bytes (allowed: at most {_MOST_BYTES:,})")
        value = parse_yaml(content.decode("utf-8-sig"), tags)
    except OSError as error:
        raise refused_path(f"{name} cannot be read", error) from None
    except UnreadableYaml as error:
        line = "" if error.line is None else f", line {error.line}"
        raise CallError(f"{name}{line} is not valid YAML: {error.problem}") from None
    except UnicodeDecodeError:
        raise CallError(f"{name} cannot be read: it is not UTF-8") from None
    except ValueError as error:  # a path with a null character
        raise CallError(f"{name} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise CallError(f"{name} does not contain a mapping of options to values")
    return value


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Makes plain values only, and refuses a key that is given twice."""

    yaml_constructors = {
        tag: make
        for tag, make in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in _PLAIN
    }
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in ("null", "bool", "merge")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """As the base class does, without a key that is there twice."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise UnreadableYaml(f"the key {key.value!r} is given twice", key.start_mark.line + 1)
                seen.add(key.value)
        made: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return made


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"(?:{_FLOAT})$"), list("-+0123456789."))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(f"(?:{_INT})$"), list("-+0123456789"))


def _loader(tags: Collection[str]) -> type[_Loader]:
    """The loader that reads values with these tags as text."""
    if not tags:
        return _Loader

    class Tagging(_Loader):
        """Has constructors of its own, so that the class above keeps its."""

    for tag in tags:
        Tagging.add_constructor(tag, lambda loader, node: TaggedText(loader.construct_scalar(node)))
    return Tagging


def _check_size(text: str) -> None:
    """Count values and levels, with aliases expanded, from the parser's events: nothing is built yet."""
    open_nodes: list[tuple[str | None, int]] = []  # anchor and the count where it starts
    sizes: dict[str, int | None] = {}  # by anchor; None while its own node is open
    count = 0
    for event in yaml.parse(text, Loader=_Loader):
        mark = event.start_mark
        line = None if mark is None else mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            size = sizes.get(event.anchor or "", 1)  # an unknown one is refused by the loader
            if size is None:
                raise UnreadableYaml(f"the alias *{event.anchor} is inside the value it stands for", line)
            count += size
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, start = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = count - start
        elif isinstance(event, yaml.NodeEvent):
            count += 1
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((event.anchor, count - 1))
            if event.anchor is not None:
                sizes[event.anchor] = None if isinstance(event, yaml.CollectionStartEvent) else 1
        if count > _MOST_VALUES:
            raise UnreadableYaml(f"it holds more than {_MOST_VALUES:,} values with aliases expanded", line)
        if len(open_nodes) > _MOST_LEVELS:
            raise UnreadableYaml(f"it is nested more than {_MOST_LEVELS} levels deep", line)
