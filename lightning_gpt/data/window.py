"""The start of a window of rows, and the digest by which a changed source is found out."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from xxhash import xxh3_64_hexdigest, xxh3_64_intdigest

from lightning_gpt.data.sources.base import SourceBase
from lightning_gpt.errors import WorkError


@dataclass
class Window:
    """The start of a window of rows in its source: ``offset`` tokens into document ``document``."""

    index: int = 0
    document: int = 0
    offset: int = 0
    tokens_before: int = 0
    """Tokens of this pass that precede the window."""
    digest: str = ""
    """A hash of the documents that it lies in (empty before they are known), to detect that a source has changed."""

    def check(self, digest: str, source: SourceBase) -> None:
        """Take over the digest of the documents of ``source`` that were found.

        Raises:
            WorkError: It is another one than before.
        """
        if self.digest not in ("", digest):
            place = next((document.origin for document in source.documents(self.document)), "its end")
            raise WorkError(
                f"source {source.name!r} has changed since the checkpoint was saved: its text differs from "
                f"document {self.document} ({place}, token {self.offset}) onwards"
            )
        self.digest = digest


class FoundAgain(NamedTuple):
    """A document that was found again."""

    length: int
    """Its tokens."""
    hash: int
    """The hash of them, 64 bits."""
    tokens: np.ndarray | None
    """They, ``(length,)``; None if an index finds them at any time."""


def hash_of(tokens: np.ndarray) -> int:
    """The hash of a document's tokens, 64 bits."""
    return xxh3_64_intdigest(np.ascontiguousarray(tokens).data)


def digest_of(hashes: np.ndarray) -> str:
    """The digest of documents by their hashes, ``(documents,)`` uint64, in order."""
    return xxh3_64_hexdigest(np.ascontiguousarray(hashes, dtype=np.uint64).data)
