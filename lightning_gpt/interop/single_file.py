"""One file of code out of this package's sources: the definitions that some classes need, and no others.

A definition is a class, a function or a constant at the top of a module. It is needed if a needed definition names it.
Of a class, a method is needed if its name occurs in what is needed; constructors, fields and what Python itself calls
are needed with the class. Names are all that is looked at, so more may be kept than runs, and no less.
Comments are left out, as the code is written from its syntax tree; docstrings stay.
"""

import ast
import builtins
import copy
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from lightning_gpt.errors import CallError

_PACKAGE = __name__.partition(".")[0]
_BUILTIN = frozenset(vars(builtins))

Place = tuple[str, str]
"""A definition: its module and its name."""


@dataclass
class _Module:
    """The definitions and imports at the top of a module."""

    definitions: dict[str, ast.stmt] = field(default_factory=dict)
    own: dict[str, Place] = field(default_factory=dict)
    """Names imported from this package."""
    foreign: dict[str, ast.stmt] = field(default_factory=dict)
    """Names imported from elsewhere, each with its import."""


def source_of(module: str) -> Path:
    """The file of a module of this package.

    Raises:
        CallError: It is of another package.
    """
    spec = importlib.util.find_spec(module) if module.partition(".")[0] == _PACKAGE else None
    if spec is None or spec.origin is None:
        raise CallError(f"the code of {module} is not part of {_PACKAGE} and cannot be exported with the model")
    return Path(spec.origin)


@cache
def _read(module: str) -> _Module:
    made = _Module()
    for statement in ast.parse(source_of(module).read_text("utf-8")).body:
        if isinstance(statement, ast.ImportFrom | ast.Import):
            _add_import(statement, made)
        elif isinstance(statement, ast.ClassDef | ast.FunctionDef):
            made.definitions[statement.name] = statement
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            for target in (name for each in targets for name in ast.walk(each) if isinstance(name, ast.Name)):
                made.definitions[target.id] = statement
    return made


def _add_import(statement: ast.ImportFrom | ast.Import, made: _Module) -> None:
    for alias in statement.names:
        name = alias.asname or alias.name.partition(".")[0]
        if isinstance(statement, ast.Import):
            made.foreign[name] = ast.Import([alias])
        elif statement.module is not None and statement.module.partition(".")[0] == _PACKAGE:
            made.own[name] = statement.module, alias.name
        else:
            made.foreign[name] = ast.ImportFrom(statement.module, [alias], 0)


def _parts(node: ast.AST) -> Iterator[ast.AST]:
    """What occurs in code, but not the annotations of functions, which nothing reads but those of constructors."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("returns", "annotation") and isinstance(node, ast.FunctionDef | ast.arg):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _parts(child)
    if isinstance(node, ast.FunctionDef) and node.name == "__init__":
        for argument in _arguments(node):
            if argument.annotation is not None:
                yield from _parts(argument.annotation)


def _arguments(function: ast.FunctionDef) -> list[ast.arg]:
    given = function.args
    single = [each for each in (given.vararg, given.kwarg) if each is not None]
    return [*given.posonlyargs, *given.args, *given.kwonlyargs, *single]


def _names(node: ast.AST) -> Iterator[str]:
    """Every variable that occurs in code."""
    return (each.id for each in _parts(node) if isinstance(each, ast.Name))


def _attributes(node: ast.AST) -> Iterator[str]:
    return (each.attr for each in _parts(node) if isinstance(each, ast.Attribute))


class _Needed:
    """What is needed so far."""

    def __init__(self) -> None:
        self.places: dict[Place, None] = {}
        self.foreign: dict[str, ast.stmt] = {}
        self.names: set[str] = set()
        self._methods: dict[str, list[tuple[str, ast.stmt]]] = {}  # of needed classes, not needed yet
        self._kept: set[int] = set()

    def add(self, module: str, name: str) -> None:
        """Add a name as it is seen in a module, and what it needs in turn."""
        read = _read(module)
        if name in read.own:
            return self.add(*read.own[name])
        if name in read.foreign:
            self.foreign.setdefault(name, read.foreign[name])
            if ast.dump(self.foreign[name]) != ast.dump(read.foreign[name]):
                raise CallError(
                    f"{name} means something different in {module} and in a module before it, and one file "
                    f"cannot hold both"
                )
        if name not in read.definitions or (module, name) in self.places:
            return None
        self.places[module, name] = None
        definition = read.definitions[name]
        if not isinstance(definition, ast.ClassDef):
            return self._use(module, definition)
        for part in (*definition.bases, *definition.keywords, *definition.decorator_list):
            self._use(module, part)
        for statement in definition.body:
            if isinstance(statement, ast.FunctionDef) and not _is_always_needed(statement):
                self._methods.setdefault(statement.name, []).append((module, statement))
                if statement.name in self.names:
                    self._keep(statement.name)
            else:
                self._kept.add(id(statement))
                self._use(module, statement)
                for method in _names(statement):  # such as another name for a method
                    self.want(method)
        return None

    def _use(self, module: str, code: ast.AST) -> None:
        for name in _attributes(code):
            if name not in self.names:
                self.want(name)
        for name in _names(code):
            self.add(module, name)

    def _keep(self, method: str) -> None:
        for module, statement in self._methods.pop(method, []):
            self._kept.add(id(statement))
            self._use(module, statement)

    def want(self, name: str) -> None:
        """Say that a method or attribute of this name is used from outside."""
        self.names.add(name)
        self._keep(name)

    def code(self, place: Place) -> ast.stmt:
        """A definition without the methods that are not needed."""
        module, name = place
        definition = _read(module).definitions[name]
        if not isinstance(definition, ast.ClassDef):
            return definition
        body = [statement for statement in definition.body if id(statement) in self._kept]
        trimmed = ast.ClassDef(**{key: getattr(definition, key) for key in definition._fields})
        trimmed.body = body or [ast.Pass()]
        return trimmed


def _is_always_needed(method: ast.FunctionDef) -> bool:
    return method.name.startswith("__") and method.name.endswith("__")


def as_one_file(classes: Iterable[Place], used: Iterable[str]) -> str:
    """The code that some classes need, in an order in which it can run.

    Args:
        classes: The classes, by module and name.
        used: Names of methods and attributes that are used from outside.

    Raises:
        CallError: A class is not of this package, or two modules mean different things by one name.
    """
    needed = _Needed()
    for name in used:
        needed.want(name)
    for place in classes:
        needed.add(*place)
    taken: dict[str, str] = {}
    for module, name in needed.places:
        first = taken.setdefault(name, module)
        if first != module and _written(needed, (module, name)) != _written(needed, (first, name)):
            raise CallError(f"{module} and {taken[name]} both define {name}, which one file cannot hold")
    imports = sorted({ast.unparse(statement) for statement in needed.foreign.values()})
    parts: dict[str, None] = {}
    for place in _in_order(needed):
        parts[_written(needed, place)] = None
    return "\n".join([*imports, "", ""]) + "\n\n\n".join(parts) + "\n"


def _written(needed: _Needed, place: Place) -> str:
    """A definition as text, without annotations that name what is not needed."""
    known = {*needed.foreign, *(name for _, name in needed.places), *_BUILTIN}
    code = _Annotations(known).visit(copy.deepcopy(needed.code(place)))
    return ast.unparse(ast.fix_missing_locations(code))


class _Annotations(ast.NodeTransformer):
    """Drops annotations that name what is not known, and makes text of those that nothing reads."""

    def __init__(self, known: set[str]) -> None:
        self.known = known

    def visit_FunctionDef(self, function: ast.FunctionDef) -> ast.AST:
        self.generic_visit(function)
        is_read = function.name == "__init__"
        function.returns = self._told(function.returns, is_read)
        for argument in _arguments(function):
            argument.annotation = self._told(argument.annotation, is_read)
        return function

    def visit_AnnAssign(self, statement: ast.AnnAssign) -> ast.AST:
        if self._told(statement.annotation, True) is not None:
            return statement
        return ast.Pass() if statement.value is None else ast.Assign([statement.target], statement.value)

    def _told(self, annotation: ast.expr | None, is_read: bool) -> ast.expr | None:
        if annotation is None:
            return None
        text = annotation.value if isinstance(annotation, ast.Constant) else None
        told = ast.parse(text, mode="eval").body if isinstance(text, str) else annotation
        if not self.known.issuperset(each.id for each in ast.walk(told) if isinstance(each, ast.Name)):
            return None
        return annotation if is_read or isinstance(text, str) else ast.Constant(ast.unparse(annotation))


def _in_order(needed: _Needed) -> list[Place]:
    """Definitions after those that they need when they are defined: bases, decorators, defaults, constants."""
    done: dict[Place, None] = {}
    by_name = {name: place for place in needed.places for name in [place[1]]}

    def place_first(place: Place, above: frozenset[Place]) -> None:
        if place in done or place in above:
            return
        for name in _names_at_definition(needed.code(place)):
            if name in by_name:
                place_first(by_name[name], above | {place})
        done[place] = None

    for place in needed.places:
        place_first(place, frozenset())
    return list(done)


def _names_at_definition(definition: ast.stmt) -> Iterator[str]:
    if isinstance(definition, ast.FunctionDef):
        read = [each.annotation for each in _arguments(definition)] if definition.name == "__init__" else []
        for part in (definition.args, *definition.decorator_list, *read):
            if part is not None:
                yield from _names(part)
    elif isinstance(definition, ast.ClassDef):
        for base in (*definition.bases, *definition.keywords, *definition.decorator_list):
            yield from _names(base)
        for statement in definition.body:
            yield from _names_at_definition(statement)
    else:
        yield from _names(definition)


def modules_of(classes: Iterable[type]) -> Mapping[type, Place]:
    """The places of classes of this package; classes of other packages are left out."""
    return {
        each: (each.__module__, each.__qualname__) for each in classes if each.__module__.partition(".")[0] == _PACKAGE
    }
