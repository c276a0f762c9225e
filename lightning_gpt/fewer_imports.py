"""Start-up without libraries that nobody has asked for, which take a third of it.

Lightning imports torchmetrics, and that imports for metrics of speech, pictures and translation whatever it finds:
transformers, ``scipy.signal`` and matplotlib, two or three seconds of a processor. None of those metrics is used here.
"""

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError
from types import ModuleType
from typing import Any

_ASKING = "torchmetrics"
_HIDDEN = ("transformers", "scipy", "matplotlib")


def hide_extras() -> None:
    """When torchmetrics is imported after this, have it do without what it only looks for.

    Every other import finds these libraries, also later ones in this process.
    """
    if _ASKING not in sys.modules and not any(isinstance(each, _Finder) for each in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds torchmetrics once, and is gone."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _ASKING:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    def __init__(self, own: Loader) -> None:
        self._own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = self._own
        with _not_installed(_HIDDEN):
            self._own.exec_module(module)


@contextmanager
def _not_installed(names: Sequence[str]) -> Iterator[None]:
    """Have the helpers that torchmetrics asks say that ``names`` are not installed; imports still find them."""
    from lightning_utilities.core import imports

    asked = vars(imports)
    # a release without one of them would be asked as it is, and only start more slowly
    own: dict[str, Any] = {name: asked[name] for name in ("package_available", "_version") if name in asked}

    def package_available(name: str) -> bool:
        return name not in names and bool(own["package_available"](name))

    def version(name: str) -> str:
        if name in names:
            raise PackageNotFoundError(name)
        return str(own["_version"](name))

    changed = {"package_available": package_available, "_version": version}
    asked.update({name: changed[name] for name in own})
    try:
        yield
    finally:
        asked.update(own)
        imports.module_available.cache_clear()  # it remembers what was missing
