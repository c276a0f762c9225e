"""The page's own files: HTML put together from its parts, modules of JavaScript, and style sheets."""

import re
from functools import cache
from importlib import resources

_TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}
_PLACES = ("lightning_gpt.exploring", "lightning_gpt.analysis")
"""The page has files of its own, and shares the others with that of ``inspect``."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
    "img-src 'self' data: blob:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
"""What the page may load: files of this server, and nothing else."""


def asset(name: str) -> tuple[bytes, str] | None:
    """The content and type of a file of the page; None if there is none of that name."""
    if not re.fullmatch(r"[a-z_]+\.(js|css)", name):
        return None
    text = _text(name)
    return None if text is None else (text.encode(), _TYPES[name[name.rindex(".") :]])


@cache
def html() -> str:
    """The page."""
    page = _text("explore.html")
    assert page is not None
    return re.sub(r"\{\{(\w+)\}\}", lambda part: _text(f"{part[1]}.html") or "", page)


def _text(name: str) -> str | None:
    for package in _PLACES:
        file = resources.files(package).joinpath("assets", name)
        if file.is_file():
            return file.read_text("utf-8")
    return None
