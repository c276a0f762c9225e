"""Sources that come with the installed packages and need neither files nor a network."""

import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from lightning_gpt.data.sources.base import Document, NamedFile, Source
from lightning_gpt.data.sources.wikipedia import articles
from lightning_gpt.errors import WorkError


class WikipediaSlice(Source):
    """English Wikipedia articles (titles A to Au), from the slice of a dump that gensim's wheel contains."""

    default_name = "wikipedia-slice"

    def documents(self, start: int = 0) -> Iterator[Document]:
        yield from _wikipedia_slice()[start:]

    def input_files(self) -> list[NamedFile] | None:
        file = _slice_file()
        return [(file.name, file)] if file.is_file() else None


class PythonReference(Source):
    """The Python Language Reference that comes with Python (``pydoc_data.topics``); it differs between releases."""

    default_name = "python-reference"

    def documents(self, start: int = 0) -> Iterator[Document]:
        from pydoc_data.topics import topics

        for topic in sorted(topics)[start:]:
            lines = topics[topic].splitlines()
            # drop the lines that underline section titles
            kept = [line for line in lines if len(set(line)) != 1 or line[0] not in "*=-~^"]
            yield Document("\n".join(kept).strip(), f"pydoc_data.topics[{topic!r}]")

    def input_files(self) -> list[NamedFile] | None:
        import pydoc_data.topics

        file = Path(pydoc_data.topics.__file__)
        return [("pydoc_data/topics.py", file)] if file.is_file() else None


_SLICE_NAME = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
_SLICE_SHA256 = "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d"


def _slice_file() -> Path:
    import gensim

    return Path(gensim.__file__).parent / "test" / "test_data" / _SLICE_NAME


@cache
def _wikipedia_slice() -> tuple[Document, ...]:
    """The embedded articles, parsed once per process (2 s)."""
    file = _slice_file()
    remedy = "install a full wheel (pip install --force-reinstall 'gensim>=4.4,<5') or use your own files"
    if not file.is_file():
        raise WorkError(f"this build of gensim lacks its Wikipedia slice ({_SLICE_NAME}): {remedy}")
    if hashlib.sha256(file.read_bytes()).hexdigest() != _SLICE_SHA256:
        raise WorkError(f"gensim's Wikipedia slice ({_SLICE_NAME}) has an unknown SHA-256: {remedy}")
    return tuple(Document(text, f"Wikipedia: {title}") for title, text in articles(file))
