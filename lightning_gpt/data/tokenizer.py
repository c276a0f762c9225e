"""Byte-pair tokenizers that need no network: GPT-2's table, a ranks file, or a vocabulary trained here.

Each wraps a :class:`tiktoken.Encoding` with one special token, ``<|endoftext|>``, which has the highest id. Text is
pre-tokenised as in GPT-2, or as in ``cl100k_base`` or ``o200k_base`` if the ranks file has that name.
``tiktoken.get_encoding`` is not used because it downloads its tables.
"""

import base64
import binascii
import errno
import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
import tiktoken

from lightning_gpt.errors import CallError, WorkError, invalid_unicode, shortened
from lightning_gpt.options import Range, check_option
from lightning_gpt.system_error import refused_path

if TYPE_CHECKING:
    from lightning_gpt.data.published_tokenizer import PublishedTokenizer

END_OF_TEXT = "<|endoftext|>"
_LONG_SPACE = 100_000  # with ten times as much the search for words runs out of its stack
GPT2_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
TrainedVocabSize = Annotated[int, Range(257, 2**20)]
"""Number of tokens to train: the 256 bytes, ``<|endoftext|>``, and merges."""

# GPT-2's pre-tokenisation (Radford et al. 2019, released code): contractions, letters, digits, symbols, spaces.
_GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

# The pre-tokenisation and the id of <|endoftext|> of later encodings, as published in tiktoken_ext.openai_public.
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
            raise CallError(f"{origin}, line {number}: {line[:40]!r} is not a base64 token and a rank") from None
    if sorted(ranks.values()) != list(range(len(ranks))) or not all(bytes([b]) in ranks for b in range(256)):
        raise CallError(f"{origin} is not a table of byte-pair ranks: it needs all 256 bytes and the ranks 0, 1, 2, …")
    return ranks


class Tokenizer:
    """Converts text to token ids and back.

    Args:
        name: Name in reports; ``cl100k_base`` and ``o200k_base`` also select the pre-tokenisation of those encodings.
        ranks: The mergeable byte sequences with their ranks, which are also their ids.
    """

    start: tuple[int, ...] = ()
    """The ids that a prompt begins with."""

    def __init__(self, name: str, ranks: dict[bytes, int]) -> None:
        self.name = name
        self.ranks = ranks
        self.pattern, self.end_of_text = _PUBLISHED.get(name, (_GPT2_PATTERN, len(ranks)))
        self.ends: tuple[int, ...] = (self.end_of_text,)
        self.vocab_size = self.end_of_text + 1
        self.encoding = tiktoken.Encoding(
            name, pat_str=self.pattern, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: self.end_of_text}
        )

    @classmethod
    def gpt2(cls) -> Self:
        """GPT-2's tokenizer: a table of 50,256 ranks, included in the package and checked by its SHA-256."""
        table = resources.files("lightning_gpt.data").joinpath("assets/gpt2.tiktoken").read_bytes()
        if hashlib.sha256(table).hexdigest() != GPT2_SHA256:
            raise WorkError("the packaged gpt2.tiktoken is damaged (its SHA-256 differs): reinstall lightning-gpt")
        return cls("gpt2", _parse_ranks(table, "gpt2.tiktoken"))

    @classmethod
    def named(cls, name: str) -> "Tokenizer":
        """The tokenizer that an option names: ``gpt2``, or a file for :meth:`from_file` or :meth:`from_checkpoint`."""
        if name == "gpt2":
            return cls.gpt2()
        return cls.from_checkpoint(name) if name.endswith(".ckpt") else cls.from_file(name)

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> "Tokenizer":
        """The tokenizer that a checkpoint's model was trained with.

        Raises:
            CallError: The checkpoint cannot be read, or has none.
        """
        from lightning_gpt.checkpoint_folder import read_saved  # imports torch, which workers do without

        state = read_saved(path).get("TextData", {}).get("tokenizer")
        if state is None:
            raise CallError(f"tokenizer {str(path)!r} is a checkpoint without a tokenizer")
        return cls.from_state_dict(state)

    @classmethod
    def from_file(cls, path: str | Path) -> "Tokenizer":
        """Read a ranks file in tiktoken's text format: one base64 token and its rank per line.

        The file's name without suffix becomes the tokenizer's name. A file that ends with ``.json`` is read as a
        :class:`~lightning_gpt.data.published_tokenizer.PublishedTokenizer`.

        Raises:
            CallError: The file cannot be read, or is not a complete table of ranks.
            WorkError: The process may open no further file.
        """
        file = Path(path)
        try:
            if file.exists() and not file.is_file() and not file.is_dir():  # a pipe or a device may never end
                raise OSError(errno.EINVAL, "it is not a regular file")
            table = file.read_bytes()
        except OSError as error:
            allowed = "allowed: gpt2, a ranks file, a tokenizer.json, a checkpoint, or a vocabulary size such as 4096"
            raise refused_path(f"tokenizer {shortened(str(path), 100)!r} cannot be read", error, allowed) from None
        if file.suffix == ".json":
            return cls._published().from_text(table, file)
        return cls(file.stem, _parse_ranks(table, str(path)))

    @staticmethod
    def _published() -> "type[PublishedTokenizer]":
        from lightning_gpt.data.published_tokenizer import PublishedTokenizer  # it derives from this class

        return PublishedTokenizer

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Self:
        """Train a byte-level BPE vocabulary on ``texts``; a small corpus may yield fewer than ``vocab_size`` tokens.

        Sennrich et al. 2016 (1508.07909), on bytes as in GPT-2. The ``tokenizers`` library does the training.

        Raises:
            CallError: The vocabulary is too small for the 256 bytes, or there is no text.
        """
        from tokenizers import Tokenizer as Trainable
        from tokenizers import models, pre_tokenizers, trainers

        check_option("vocab_size", vocab_size, TrainedVocabSize)
        model = Trainable(models.BPE())
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 1, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
        )
        texts = iter(texts)
        first = next(texts, None)
        if first is None:
            raise CallError("there is no training text to train a vocabulary on")
        model.train_from_iterator(chain([first], texts), trainer)
        ids = model.get_vocab()
        ranks = {_to_bytes(token): rank for rank, token in enumerate(sorted(ids, key=ids.__getitem__))}
        return cls(f"bpe-{len(ranks) + 1}", ranks)

    @property
    def token_type(self) -> Literal["uint16", "int32"]:
        """The smallest array type that holds every id, by the name that numpy and Arrow share."""
        return "uint16" if self.vocab_size <= 1 << 16 else "int32"

    @property
    def file_name(self) -> str:
        """The name of the file that :meth:`save` writes."""
        return f"{self.name}.tiktoken"

    @cached_property
    def table(self) -> str:
        """The content of that file: the ranks in tiktoken's text format."""
        ordered = sorted(self.ranks, key=self.ranks.__getitem__)
        return "".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(ordered))

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of the table and the pre-tokenisation; tokenizers with equal fingerprints give equal ids."""
        split = "" if self.pattern == _GPT2_PATTERN else self.pattern
        return hashlib.sha256((self.table + split).encode()).hexdigest()[:16]

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """Length in bytes of each id's text, ``(vocab_size,)`` int64; 0 for ``<|endoftext|>`` and unused ids."""
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, rank in self.ranks.items():
            lengths[rank] = len(token)
        return lengths

    def save(self, folder: Path) -> Path:
        """Write the file for :meth:`from_file` into ``folder``; returns its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.file_name
        path.write_text(self.table)
        return path

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint; without the ranks for GPT-2's table, which the package includes."""
        packaged = self.fingerprint == GPT2_SHA256[:16]
        return {"name": self.name, "ranks": None if packaged else self.table}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "Tokenizer":
        """The tokenizer with this :meth:`state_dict`."""
        if "files" in state:
            return cls._published()(**state)
        if state["ranks"] is None:
            return cls.gpt2()
        return cls(state["name"], _parse_ranks(state["ranks"].encode(), "the checkpoint's tokenizer"))

    def encode(self, text: str) -> np.ndarray:
        """Token ids of ``text``, ``(tokens,)`` uint32; special tokens in the text are encoded as plain text."""
        # copy, because tiktoken returns a read-only array
        return np.array(self.encoding.encode_to_numpy(text, disallowed_special=()), dtype=np.uint32)

    def encode_document(self, text: str) -> np.ndarray:
        """Token ids of ``text`` followed by ``<|endoftext|>``, ``(tokens + 1,)`` in :attr:`token_type`.

        Raises:
            WorkError: The text is not valid Unicode, or has more spaces in a row than can be read.
        """
        try:
            ids = self.encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError as error:
            raise WorkError(invalid_unicode(error)) from None
        except ValueError:
            longest = max(map(len, re.findall(r"\s+", text)), default=0)
            if longest < _LONG_SPACE:
                raise
            raise WorkError(
                f"{longest:,} spaces, tabs or line ends in a row are more than the tokenizer can read: shorten them"
            ) from None
        document = np.empty(len(ids) + 1, dtype=self.token_type)
        document[:-1] = ids
        document[-1] = self.end_of_text
        return document

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``; invalid UTF-8 becomes the replacement character."""
        return b"".join(self.decode_bytes(token) for token in ids).decode("utf-8", "replace")

    def decode_bytes(self, token: int) -> bytes:
        """The bytes of one token; empty for an unused id, which an untrained model may sample."""
        try:
            return self.encoding.decode_single_token_bytes(int(token))
        except KeyError:
            return b""


def _to_bytes(token: str) -> bytes:
    return bytes(byte_of[character] for character in token)


def _byte_alphabet() -> dict[str, int]:
    """The byte that each character of byte-level BPE stands for: the inverse of GPT-2's ``bytes_to_unicode``."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(others)}


byte_of = _byte_alphabet()
