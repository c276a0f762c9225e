"""Exact and near duplicates among documents.

Two documents are *exact* duplicates if their texts are equal. They are *near* duplicates if the Jaccard similarity
J(A, B) = |A ∩ B| / |A ∪ B| of their sets of shingles (five consecutive lower-case words) reaches a threshold. J is
estimated from MinHash signatures, whose entries agree with probability J (Broder 1997, "On the resemblance and
containment of documents"). Locality-sensitive hashing of the signatures selects the pairs to compare (Indyk & Motwani
1998, "Approximate nearest neighbors"). Where a hash of the text decides the split, exact duplicates are always in the
same one; near duplicates may be in different ones. A document that is split by position counts as several, one for each
split.
"""

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_args
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_128_digest

from lightning_gpt.data.split import SplitName
from lightning_gpt.options import Range

SPLITS: tuple[SplitName, ...] = get_args(SplitName)
PERMUTATIONS = 64
SHINGLE_WORDS = 5
Threshold = Annotated[float, Range(0.5, 0.95)]
"""A similarity of near duplicates. Within this range 64 permutations give at least two bands."""

_SCHEME, _SEED = "affine32", 1
# every candidate pair is checked afterwards, so a false positive only costs time, but a false negative is lost
_FALSE_POSITIVE_WEIGHT, _FALSE_NEGATIVE_WEIGHT = 0.1, 0.9
_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Place:
    """Which document: its source, its number there, its split and its origin."""

    source: str
    number: int
    split: SplitName
    origin: str


@dataclass(frozen=True)
class Duplicate:
    """A document, the one it duplicates, and whether it is removed."""

    document: Place
    twin: Place
    similarity: float
    exact: bool
    removed: bool

    @property
    def across(self) -> bool:
        """Whether the two are in different splits."""
        return self.document.split != self.twin.split


@dataclass(frozen=True)
class Search:
    """The result of :func:`search`."""

    duplicates: list[Duplicate]
    """In document order."""

    removed: list[np.ndarray]
    """For each part, the numbers of the documents to remove."""

    digest: str
    """SHA-256 of the hashes and splits of the remaining documents, in order."""


@dataclass(frozen=True)
class Finding:
    """Document ``document`` duplicates document ``twin``; both are positions in the whole corpus."""

    document: int
    twin: int
    similarity: float
    exact: bool


def document_metadata(
    numbers: Sequence[int], splits: Sequence[SplitName], texts: Sequence[str], origins: Sequence[str], near: bool
) -> dict[str, np.ndarray]:
    """What :func:`search` needs to know of documents, so that it does not need their texts.

    Args:
        numbers: The documents' numbers in their source.
        splits: Their splits.
        texts: Their texts.
        origins: Their origins.
        near: Whether to compute the signatures that a search for near duplicates needs.

    Returns:
        Arrays with one entry or row per document: ``numbers``, ``labels`` (indices into :data:`SPLITS`), ``bytes``
        (UTF-8 length), ``hashes``, ``origins`` and, if ``near``, ``signatures``.
    """
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    return {
        "numbers": np.array(numbers, dtype=np.int64),
        "labels": np.array([SPLITS.index(split) for split in splits], dtype=np.int64),
        "bytes": np.array([len(text) for text in encoded], dtype=np.int64),
        "hashes": text_hashes(encoded),
        "origins": np.array(origins, dtype=np.str_),
        **({"signatures": signatures(encoded)} if near else {}),
    }


def metadata_bytes(metadata: dict[str, np.ndarray]) -> bytes:
    """The metadata in the format that :func:`read_metadata` reads."""
    buffer = io.BytesIO()
    np.savez(buffer, **metadata)  # type: ignore[arg-type]
    return buffer.getvalue()


def read_metadata(file: Path, *names: str) -> tuple[np.ndarray, ...]:
    """The arrays ``names`` of a part's metadata."""
    with np.load(file) as metadata:
        return tuple(metadata[name] for name in names)


def search(parts: Sequence[tuple[str, Path]], threshold: float | None, remove: bool) -> Search:
    """Find the duplicates among all documents of a corpus.

    Args:
        parts: For each part the name of its source and its metadata file.
        threshold: Lowest similarity of near duplicates; None to find exact duplicates only.
        remove: Whether to mark training documents that duplicate another document for removal.
    """
    names = ("labels", "hashes", *(() if threshold is None else ("signatures",)))
    metadata = [read_metadata(file, *names) for _, file in parts]
    labels, hashes, *signed = (np.concatenate(each) for each in zip(*metadata, strict=True))
    ends = np.cumsum([len(of_part) for of_part, *_ in metadata])
    findings = find_duplicates(hashes, labels == SPLITS.index("train"), signed[0] if signed else None, threshold)
    gone = np.zeros(len(labels), dtype=bool)
    gone[[each.document for each in findings if remove and SPLITS[labels[each.document]] == "train"]] = True
    places: dict[int, Place] = {}
    wanted = np.unique([number for each in findings for number in (each.document, each.twin)]).astype(np.int64)
    removed = []
    for (source, file), start, end in zip(parts, [0, *ends], ends, strict=False):
        numbers, origins = read_metadata(file, "numbers", "origins")
        removed.append(numbers[gone[start:end]])
        for document in wanted[(start <= wanted) & (wanted < end)].tolist():
            at = document - start
            places[document] = Place(source, int(numbers[at]), SPLITS[labels[document]], str(origins[at]))
    duplicates = [
        Duplicate(places[each.document], places[each.twin], each.similarity, each.exact, bool(gone[each.document]))
        for each in findings
    ]
    kept = np.column_stack([hashes[~gone], labels[~gone].astype(np.uint64)])
    return Search(duplicates, removed, hashlib.sha256(kept.astype("<u8").tobytes()).hexdigest())


def text_hashes(texts: Sequence[bytes]) -> np.ndarray:
    """The 128-bit XXH3 hash of each UTF-8 text, ``(texts, 2)`` uint64."""
    return np.frombuffer(b"".join(map(xxh3_128_digest, texts)), dtype="<u8").reshape(-1, 2)


def signatures(texts: Sequence[bytes]) -> np.ndarray:
    """The MinHash signature of each UTF-8 text, ``(texts, PERMUTATIONS)`` uint32.

    Vectorised over all texts, which is many times faster than one text at a time.
    """
    whole = pa.array(texts, pa.binary()).view(pa.string())
    words = pc.ascii_split_whitespace(pc.ascii_trim_whitespace(pc.ascii_lower(whole)))
    different = words.values.dictionary_encode()
    hashes = np.array([crc32(word) for word in different.dictionary.view(pa.binary()).to_pylist()], dtype=np.uint64)
    # a text shorter than a shingle is padded to one shingle
    counts = np.diff(words.offsets.to_numpy())
    lengths = np.maximum(counts, SHINGLE_WORDS)
    ends = lengths.cumsum()
    hashed = np.zeros(ends[-1], dtype=np.uint64)
    filled = np.repeat((lengths - counts).cumsum() - (lengths - counts), counts)
    hashed[np.arange(len(filled)) + filled] = hashes[different.indices.to_numpy()]
    count = len(hashed) - SHINGLE_WORDS + 1
    shingles = (_combined(hashed[n : n + count] for n in range(SHINGLE_WORDS)) >> np.uint64(32)).astype(np.uint32)
    # every second segment holds the shingles that cross the boundary between two texts, and is dropped
    borders = np.stack([ends - lengths, ends - SHINGLE_WORDS + 1], axis=1).ravel()[:-1]
    result = np.empty((len(texts), PERMUTATIONS), dtype=np.uint32)
    for number, (a, b) in enumerate(_permutations()):
        result[:, number] = np.minimum.reduceat(shingles * a + b, borders)[::2]
    return result


def _combined(columns: Iterable[np.ndarray]) -> np.ndarray:
    """One hash per row of the columns; its high bits are the best mixed."""
    total = np.uint64(0)
    for column in columns:
        total = (total + column) * _ODD  # type: ignore[assignment]
    return np.asarray(total)


@cache
def _permutations() -> list[tuple[np.uint32, np.uint32]]:
    """The permutations h ↦ a h + b (mod 2³²) with odd a; a signature is the minimum of each over the shingles.

    They equal those of ``datasketch.MinHash``, which is not used here because every worker would spend most of a second
    importing it.
    """
    draw = np.random.RandomState(_SEED)
    a = draw.randint(0, 1 << 31, PERMUTATIONS, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    b = draw.randint(0, 1 << 32, PERMUTATIONS, dtype=np.uint32)
    return list(zip(a, b, strict=True))


def find_duplicates(
    hashes: np.ndarray, in_train: np.ndarray, signatures: np.ndarray | None, threshold: float | None
) -> list[Finding]:
    """At most one finding per document; the training documents among them may be removed.

    - A document with the same text as another duplicates the first validation or test document with that text, or if
      there is none, the first document with it.
    - A validation or test document near an earlier validation or test document duplicates the most similar of those.
    - A training document near a validation or test document, earlier or later, duplicates the most similar of those.
    - Any other training document near earlier training documents duplicates the most similar of those without a
      finding of their own.

    Args:
        hashes: Hashes of the texts in corpus order, ``(documents, 2)`` uint64.
        in_train: Which documents are in the training split, ``(documents,)``.
        signatures: ``(documents, PERMUTATIONS)`` uint32; None to find exact duplicates only.
        threshold: Lowest similarity of near duplicates; None to find exact duplicates only.
    """
    held_out_first = np.argsort(in_train, kind="stable")
    _, first, group = np.unique(hashes[held_out_first].view("V16")[:, 0], return_index=True, return_inverse=True)
    first = held_out_first[first][group][np.argsort(held_out_first)]
    distinct = first == np.arange(len(hashes))
    findings = [Finding(int(document), int(first[document]), 1.0, True) for document in np.flatnonzero(~distinct)]
    if signatures is not None and threshold is not None:
        findings += _find_near(signatures, distinct, in_train, threshold)
    return sorted(findings, key=lambda finding: finding.document)


def _find_near(signatures: np.ndarray, distinct: np.ndarray, in_train: np.ndarray, threshold: float) -> list[Finding]:
    from datasketch import LeanMinHash, MinHashLSH

    index = MinHashLSH(threshold, PERMUTATIONS, weights=(_FALSE_POSITIVE_WEIGHT, _FALSE_NEGATIVE_WEIGHT))
    suspects = np.flatnonzero(distinct & _sharing_a_band(signatures, index.b, index.r))
    findings = []
    # index validation and test documents first, so that every training document is compared with all of them
    for document in suspects[np.argsort(in_train[suspects], kind="stable")]:
        minhash = LeanMinHash(seed=_SEED, hashvalues=signatures[document], scheme=_SCHEME)
        near = [
            (bool(in_train[other]), -similarity, int(other))
            for other, similarity in _similarities(signatures, document, index.query(minhash))
            if similarity >= threshold
        ]
        if near:
            _, similarity, twin = min(near)
            findings.append(Finding(int(document), twin, -similarity, False))
        if not near or not in_train[document]:
            index.insert(int(document), minhash)
    return findings


def _similarities(signatures: np.ndarray, document: int, others: list[Any]) -> Iterable[tuple[int, float]]:
    if not others:
        return ()
    equal = signatures[others] == signatures[document]
    return zip(others, equal.mean(axis=1).tolist(), strict=True)


def _sharing_a_band(signatures: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """Which documents share a band with another, ``(documents,)``; the others have no near duplicate to be found.

    Only the sharing ones are indexed: the index keeps kilobytes of Python objects per document, and in most corpora
    few documents resemble another.
    """
    sharing = np.zeros(len(signatures), dtype=bool)
    for band in range(bands):
        columns = signatures[:, band * rows : (band + 1) * rows].T.astype(np.uint64)
        _, which, counts = np.unique(_combined(columns), return_inverse=True, return_counts=True)
        sharing |= counts[which] > 1
    return sharing
