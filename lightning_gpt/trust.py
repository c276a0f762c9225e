"""``--trust MODULE``: modules of the user's own, imported before a command starts, so that their variants exist.

Only a command line can name such a module. A config or a checkpoint cannot, so running one from elsewhere runs no code
of its author's.
"""

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

from lightning_gpt.errors import CallError, WorkError

_OPTION = "--trust"
_trusted: list[str] = []


def keep_working_folder_out() -> None:
    """Have the Python processes that this one starts find no module in the working folder, unless this one does.

    Raises:
        WorkError: There is no working folder any more.
    """
    try:
        folder = os.getcwd()
    except FileNotFoundError:
        raise WorkError("the working folder has been deleted; change to another one") from None
    if folder not in sys.path:  # it is there for an uninstalled clone that is run from its own folder
        os.environ["PYTHONSAFEPATH"] = "1"


def take_trusted(args: Iterable[str]) -> tuple[list[str], list[str]]:
    """Split a command line into its other arguments and the values of ``--trust``, empty where one is missing."""
    rest, modules, following = [], [], iter(args)
    for argument in following:
        name, equals, value = argument.partition("=")
        if name != _OPTION:
            rest.append(argument)
        else:
            modules.append(value if equals else next(following, ""))
    return rest, modules


def trusted_modules() -> list[str]:
    """The modules that this process was told to trust: dotted names and absolute paths."""
    return list(_trusted)


def trusted_names() -> list[str]:
    """The dotted names of the modules that this process was told to trust."""
    return [Path(module).stem if os.sep in module else module for module in _trusted]


def is_trusted(path: str) -> bool:
    """Whether an import path is that of a trusted module, or of something in it."""
    return any(f"{path}.".startswith(f"{name}.") for name in trusted_names())


def trusted_options() -> list[str]:
    """The options that make another command import the same: ``--trust MODULE`` for each module."""
    return [part for module in _trusted for part in (_OPTION, module)]


class TrustedModules:
    """Unpickled in another process, it imports there what this process trusts: pickle it before what needs that."""

    def __reduce__(self) -> tuple[Callable[[list[str]], None], tuple[list[str]]]:
        return trust, (trusted_modules(),)


def trust(modules: Iterable[str]) -> None:
    """Import each of ``modules``.

    Args:
        modules: Dotted names, found in the working folder or among the installed packages, or paths to ``.py`` files.
            A file's module is named after the file.

    Raises:
        CallError: A module is not found, its name is taken, or importing it fails.
    """
    for module in modules:
        if module.endswith(".py") or os.sep in module:
            path = Path(module).resolve()
            _import_file(module, path)
            module = str(path)  # processes with other working folders may be given it
        else:
            _import_name(module)
        if module not in _trusted:
            _trusted.append(module)


def _import_name(name: str) -> None:
    not_found = f"{_OPTION} {name}: no module of this name is in the working folder or installed"
    if not all(name.split(".")):
        raise CallError(f"{_OPTION} is {name!r}; it must be a dotted module name or a path to a .py file")
    top = name.partition(".")[0]
    with _working_folder_on_path():
        here, found = PathFinder.find_spec(top, [os.getcwd()]), _spec(top)
        if found is None:
            raise CallError(not_found)
        if here is not None and here.origin is not None and here.origin != found.origin:
            raise CallError(
                f"{_OPTION} {name}: the name is taken by {found.origin}; rename {here.origin}, or give another module"
            )
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and f"{name}.".startswith(f"{error.name}."):
                raise CallError(not_found) from None
            raise _failed(name, error) from error
        except (Exception, SystemExit) as error:
            raise _failed(name, error) from error


def _import_file(given: str, path: Path) -> None:
    if path.suffix != ".py" or not path.is_file():
        raise CallError(f"{_OPTION} {given}: there is no such .py file")
    name, spec = path.stem, importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    taken = _spec(name)
    if taken is not None and taken.origin not in (None, str(path)):
        raise CallError(f"{_OPTION} {given}: a module {name!r} exists already ({taken.origin}); rename the file")
    if name in sys.modules and taken is not None and taken.origin == str(path):
        return
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        with _working_folder_on_path():
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _failed(given, error) from error


def _spec(name: str) -> importlib.machinery.ModuleSpec | None:
    """Where a module that is loaded, or could be, comes from."""
    loaded: ModuleType | None = sys.modules.get(name)
    return importlib.util.find_spec(name) if loaded is None else loaded.__spec__


@contextmanager
def _working_folder_on_path() -> Iterator[None]:
    """Inside, modules are also found in the working folder, after all others: no file there can replace a package."""
    folder = os.getcwd()
    if folder in sys.path:
        yield
        return
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _failed(given: str, error: BaseException) -> CallError:
    """What went wrong while a module was imported, with the last line of the module that was running."""
    said = str(error) if isinstance(error, CallError) else f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError) and error.filename:
        return CallError(f"{_OPTION} {given}: {error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_of_import(frame.filename)]
    if frames:
        last = [frame for frame in frames if frame.filename == frames[0].filename][-1]
        said = f"{last.filename}:{last.lineno}: {said}"
    return CallError(f"{_OPTION} {given}: {said}")


def _is_of_import(file: str) -> bool:
    return file.startswith("<frozen") or file in (__file__, importlib.__file__)
