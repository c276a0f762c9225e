"""Byte-pair tokenizers that need no network: GPT-2's table, a ranks file, or a vocabulary trained here.

All of them are :class:`tiktoken.Encoding` objects with one special token, ``<|endoftext|>``, whose id is the last, and
GPT-2's pre-tokenisation; a ranks file named ``cl100k_base`` or ``o200k_base`` has that of those encodings.
``tiktoken.get_encoding`` is not used: it downloads its tables.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import tiktoken

from lightning_gpt.errors import CallError, WorkError

END_OF_TEXT = "<|endoftext|>"
GPT2_VOCAB_SIZE = 50257
GPT2_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
SMALLEST_VOCAB_SIZE = 257  # the 256 bytes and <|endoftext|>

# GPT-2's split into words (Radford et al. 2019, released code): contractions, letters, digits, marks, spaces.
_GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

# The split and the id of <|endoftext|> of later encodings, as tiktoken publishes them (tiktoken_ext.openai_public).
_WORD_START = r"[^\r\n\p{L}\p{N}]?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_PUBLISHED = {
    "cl100k_base": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
        r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
        100257,
    ),
    "o200k_base": (
        rf"{_WORD_START}{_UPPER}*{_LOWER}+{_CONTRACTION}|{_WORD_START}{_UPPER}+{_LOWER}*{_CONTRACTION}"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        199999,
    ),
}


def _parse_ranks(table: bytes, origin: str) -> dict[bytes, int]:
    ranks = {}
    for number, line in enumerate(table.splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise CallError(f"{origin}, line {number}: {line[:40]!r} is not a base64 token and its rank") from None
    if sorted(ranks.values()) != list(range(len(ranks))) or not all(bytes([b]) in ranks for b in range(256)):
        raise CallError(f"{origin} is no table of byte-pair ranks: it must hold all 256 bytes and ranks 0, 1, 2, …")
    return ranks


class Tokenizer:
    """Text to token ids and back.

    Args:
        name: What it is called in reports; one named ``cl100k_base`` or ``o200k_base`` splits words as those do.
        ranks: The mergeable byte sequences and their ranks, which are their ids.
    """

    def __init__(self, name: str, ranks: dict[bytes, int]) -> None:
        self.name = name
        self.ranks = ranks
        self.pattern, self.end_of_text = _PUBLISHED.get(name, (_GPT2_PATTERN, len(ranks)))
        self.vocab_size = self.end_of_text + 1
        self.encoding = tiktoken.Encoding(
            name, pat_str=self.pattern, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: self.end_of_text}
        )

    @classmethod
    def gpt2(cls) -> Self:
        """GPT-2's table of 50,256 ranks, kept in the package and checked by its hash."""
        table = resources.files("lightning_gpt.data").joinpath("assets/gpt2.tiktoken").read_bytes()
        if hashlib.sha256(table).hexdigest() != GPT2_SHA256:
            raise WorkError("the packaged gpt2.tiktoken is damaged (its SHA-256 differs): reinstall lightning-gpt")
        return cls("gpt2", _parse_ranks(table, "gpt2.tiktoken"))

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """A ranks file in tiktoken's text format: one base64 token and its rank a line; its name is the tokenizer's."""
        try:
            table = Path(path).read_bytes()
        except OSError as error:
            raise CallError(
                f"tokenizer {str(path)!r} cannot be read ({error.strerror}); allowed: gpt2, the path of a ranks file, "
                f"or a vocabulary size to train, such as 4096"
            ) from None
        return cls(Path(path).stem, _parse_ranks(table, str(path)))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Self:
        """Learn a byte-level BPE from ``texts``; a small corpus may give fewer tokens than asked for.

        Sennrich et al. 2016 (1508.07909), on bytes as in GPT-2. The training is that of ``tokenizers``.
        """
        from tokenizers import Tokenizer as Trainable
        from tokenizers import models, pre_tokenizers, trainers

        check_vocab_size(vocab_size)
        model = Trainable(models.BPE())
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 1, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
        )
        model.train_from_iterator(texts, trainer)
        ids = model.get_vocab()
        ranks = {_to_bytes(token): rank for rank, token in enumerate(sorted(ids, key=ids.__getitem__))}
        return cls(f"bpe-{len(ranks) + 1}", ranks)

    @property
    def token_type(self) -> Literal["uint16", "int32"]:
        """The smallest type of an array that holds every id, as both numpy and Arrow call it."""
        return "uint16" if self.vocab_size <= 1 << 16 else "int32"

    @cached_property
    def table(self) -> str:
        """The ranks in tiktoken's text format."""
        ordered = sorted(self.ranks, key=self.ranks.__getitem__)
        return "".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(ordered))

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of the table and the split into words: two tokenizers with the same one give the same ids."""
        split = "" if self.pattern == _GPT2_PATTERN else self.pattern
        return hashlib.sha256((self.table + split).encode()).hexdigest()[:16]

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """Bytes of text of each id, ``(vocab_size,)`` int64; 0 for ``<|endoftext|>`` and unused ids."""
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, rank in self.ranks.items():
            lengths[rank] = len(token)
        return lengths

    def save(self, folder: Path) -> Path:
        """Write ``<folder>/<name>.tiktoken``, which :meth:`from_file` reads; returns its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.tiktoken"
        path.write_text(self.table)
        return path

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint; GPT-2's table is in the package and only named."""
        packaged = self.fingerprint == GPT2_SHA256[:16]
        return {"name": self.name, "ranks": None if packaged else self.table}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Self:
        """The tokenizer that :meth:`state_dict` described."""
        if state["ranks"] is None:
            return cls.gpt2()
        return cls(state["name"], _parse_ranks(state["ranks"].encode(), "the checkpoint's tokenizer"))

    def encode(self, text: str) -> np.ndarray:
        """Token ids of ``text``, ``(tokens,)`` uint32; special tokens inside it are read as plain text."""
        # a copy, because the array that tiktoken returns cannot be written to
        return np.array(self.encoding.encode_to_numpy(text, disallowed_special=()), dtype=np.uint32)

    def encode_document(self, text: str) -> np.ndarray:
        """Token ids of ``text`` and the ``<|endoftext|>`` that closes it, ``(tokens + 1,)`` in :attr:`token_type`."""
        ids = self.encoding.encode_to_numpy(text, disallowed_special=())
        document = np.empty(len(ids) + 1, dtype=self.token_type)
        document[:-1] = ids
        document[-1] = self.end_of_text
        return document

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``; bytes that are no UTF-8 become the replacement character."""
        return b"".join(self.decode_bytes(token) for token in ids).decode("utf-8", "replace")

    def decode_bytes(self, token: int) -> bytes:
        """The bytes of one token; none for an id that the table does not use, which an untrained model may draw."""
        try:
            return self.encoding.decode_single_token_bytes(int(token))
        except KeyError:
            return b""


def check_vocab_size(vocab_size: int) -> None:
    """Refuse a vocabulary too small for the 256 bytes and ``<|endoftext|>``."""
    if vocab_size < SMALLEST_VOCAB_SIZE:
        raise CallError(f"tokenizer is a vocabulary size of {vocab_size}; the smallest is {SMALLEST_VOCAB_SIZE}")


def _to_bytes(token: str) -> bytes:
    return bytes(_BYTE_OF[character] for character in token)


def _byte_alphabet() -> dict[str, int]:
    """The visible character that byte-level BPE writes for each byte (GPT-2's ``bytes_to_unicode``)."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
