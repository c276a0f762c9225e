"""Docstrings name other objects as ``:class:`~lightning_gpt.models.gpt.GPT```; on the site these become links."""

import re
from typing import Any

from griffe import Alias, Extension, Module, Object

_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`(~?)([\w.]+)`")
_CODE = re.compile(r"``(.+?)``", re.S)


class Roles(Extension):
    """Replaces the roles in all docstrings of a package once it is loaded."""

    def on_package(self, *, pkg: Module, **_: Any) -> None:
        """Go through a package."""
        self._through(pkg, pkg)

    def _through(self, each: Object, package: Module) -> None:
        if each.docstring is not None:
            text = _CODE.sub(r"`\1`", each.docstring.value)
            each.docstring.value = _ROLE.sub(lambda role: _link(role[1], role[2], each, package), text)
        for member in each.members.values():
            if not isinstance(member, Alias):
                self._through(member, package)


def _link(short: str, name: str, here: Object, package: Module) -> str:
    shown = name.rpartition(".")[2] if short else name
    try:
        path = name if name.startswith(f"{package.path}.") else here.resolve(name)
        found = package[path.removeprefix(f"{package.path}.")]
        target = found.final_target if isinstance(found, Alias) else found
    except Exception:  # of another package, or not to be found: the name alone
        return f"`{shown}`"
    private = any(part.startswith("_") for part in target.path.split("."))
    described = target.has_docstring or isinstance(target, Module)
    return f"`{shown}`" if private or not described else f"[`{shown}`][{target.path}]"
