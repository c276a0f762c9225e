"""Tokenizers of published models, as the library ``tokenizers`` stores them: ``tokenizer.json``."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Fast

from lightning_gpt.data.tokenizer import Tokenizer, byte_of
from lightning_gpt.errors import CallError

MAIN, CONFIG = "tokenizer.json", "tokenizer_config.json"
SPECIAL, TEMPLATE = "special_tokens_map.json", "chat_template.jinja"
FILES = (MAIN, CONFIG, SPECIAL, TEMPLATE)
"""The files of a published tokenizer; all but the first are optional."""
_ENDS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>")
_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")


class PublishedTokenizer(Tokenizer):
    """A byte-pair encoding in a ``tokenizer.json``, computed by ``tokenizers`` itself: the same ids.

    Two kinds are read: byte-level ones, such as those of GPT-2, Llama 3, Qwen and SmolLM2, and ones with characters for
    tokens and bytes for what is missing, such as those of Llama 2 and Mistral (SentencePiece).

    Args:
        name: Name in reports.
        files: The content of each file, by its name; kept as they are, to be written again.
        end_of_text: The id that ends a document.
        vocab_size: Number of ids of the model, of which the tokenizer may leave some unused.
        also_ends: Further ids that end a generated text, such as the one that ends a turn of a conversation.

    Raises:
        CallError: ``tokenizer.json`` cannot be read or is of another kind, or has ids that the vocabulary lacks.
    """

    def __init__(
        self, name: str, files: Mapping[str, str], end_of_text: int, vocab_size: int, also_ends: Sequence[int] = ()
    ) -> None:
        self.name, self.files, self.end_of_text, self.vocab_size = name, dict(files), end_of_text, vocab_size
        self.ends = tuple(dict.fromkeys((end_of_text, *also_ends)))
        described = _parsed(files[MAIN], MAIN)
        self.is_byte_level = _is_byte_level(described)
        try:
            self._fast = Fast.from_str(files[MAIN])
        except Exception as error:  # the library raises nothing narrower
            raise CallError(f"{MAIN} is not a tokenizer: {error}") from None
        self._fast.encode_special_tokens = True  # in a text, they are plain text
        self._fast.no_padding()
        self._fast.no_truncation()
        self._bytes = self._table(described)
        last = max(self._bytes, default=-1)
        if last >= vocab_size:
            raise CallError(f"the tokenizer has ids up to {last}, and the model's vocabulary has {vocab_size}")
        if max(self.ends) >= vocab_size:
            raise CallError(f"eos_token_id is {max(self.ends)}, and the model's vocabulary has {vocab_size}")
        self.start = self._start()

    @classmethod
    def from_folder(
        cls, folder: Path, vocab_size: int, end_of_text: int | None, also_ends: Sequence[int] = ()
    ) -> "PublishedTokenizer":
        """The tokenizer of a published model.

        Args:
            folder: The model's folder, with a ``tokenizer.json``.
            vocab_size: The model's.
            end_of_text: The id that ends a document, if the model's config names one.
            also_ends: Further ids that end a generated text.

        Raises:
            CallError: As the class; or none of its tokens is known to end a text.
        """
        texts = {name: (folder / name).read_text("utf-8") for name in FILES if (folder / name).is_file()}
        with _no_tokenizer(folder / MAIN):
            if end_of_text is None:
                end_of_text = _end_of(texts, folder / MAIN)
            return cls(folder.resolve().name, texts, end_of_text, vocab_size, also_ends)

    @classmethod
    def from_text(cls, text: bytes, path: Path) -> "PublishedTokenizer":
        """The tokenizer in a file: one that :meth:`save` wrote, or a ``tokenizer.json`` beside the others.

        Raises:
            CallError: As the class; or none of its tokens is known to end a text.
        """
        try:
            content = _parsed(text.decode(), str(path))
        except UnicodeDecodeError:
            raise CallError(f"{path} is not valid JSON") from None
        if "files" in content:
            with _no_tokenizer(path):
                return cls(**content)
        texts = {MAIN: text.decode()}
        for name in FILES[1:]:
            if (path.parent / name).is_file():
                texts[name] = (path.parent / name).read_text("utf-8")
        with _no_tokenizer(path):
            end = _end_of(texts, path)
            return cls(path.resolve().parent.name, texts, end, max(end, *_ids(content)) + 1)

    def _table(self, described: Mapping[str, Any]) -> dict[int, bytes]:
        table = {}
        for token, number in described["model"]["vocab"].items():
            fallback = None if self.is_byte_level else _FALLBACK.fullmatch(token)
            if fallback is not None:
                table[number] = bytes([int(fallback[1], 16)])
            elif self.is_byte_level and all(character in byte_of for character in token):
                table[number] = bytes(byte_of[character] for character in token)
            else:
                table[number] = token.replace("▁", " ").encode()
        self._special = set()
        for added in described.get("added_tokens") or []:
            table[added["id"]] = added["content"].encode()
            if added.get("special"):
                self._special.add(added["id"])
        return table

    def _start(self) -> tuple[int, ...]:
        """The ids that the tokenizer puts before a text."""
        plain, full = (self._fast.encode("a", add_special_tokens=added).ids for added in (False, True))
        begins = next((at for at in range(len(full)) if full[at : at + len(plain)] == plain), 0)
        return tuple(full[:begins])

    @property
    def chat_template(self) -> str | None:
        """The template that turns messages into a prompt; None if the model came with none."""
        if TEMPLATE in self.files:
            return self.files[TEMPLATE]
        named = _parsed(self.files.get(CONFIG, "{}"), CONFIG).get("chat_template")
        if isinstance(named, list):  # several under names
            named = {each.get("name"): each.get("template") for each in named if isinstance(each, dict)}.get("default")
        return named if isinstance(named, str) else None

    @property
    def special_tokens(self) -> dict[str, str]:
        """The texts of the tokens that have a name, such as ``bos_token``."""
        found = {}
        for name in (SPECIAL, CONFIG):
            for key, token in _parsed(self.files.get(name, "{}"), name).items():
                content = token.get("content") if isinstance(token, dict) else token
                if key.endswith("_token") and isinstance(content, str):
                    found[key] = content
        return found

    def encode_marked(self, text: str) -> np.ndarray:
        """Token ids ``(tokens,)`` of a text in which special tokens are written out, as chat templates do."""
        return np.array(self._marked.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    @cached_property
    def _marked(self) -> Fast:
        """The encoder that takes special tokens in a text for such."""
        fast = Fast.from_str(self.files[MAIN])
        fast.no_padding()
        fast.no_truncation()
        return fast

    @property
    def file_name(self) -> str:
        return f"{self.name}.json"

    @cached_property
    def table(self) -> str:
        """The content of that file: the published files and how the model uses them."""
        return json.dumps(self.state_dict())

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.files[MAIN]}{self.end_of_text},{self.vocab_size}".encode()).hexdigest()[:16]

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for number, content in self._bytes.items():
            lengths[number] = 0 if number in self._special or number == self.end_of_text else len(content)
        return lengths

    def state_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "files": self.files,
            "end_of_text": self.end_of_text,
            "vocab_size": self.vocab_size,
            "also_ends": list(self.ends[1:]),
        }

    def encode(self, text: str) -> np.ndarray:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # a lone surrogate is no text
        return np.array(self._fast.encode(text, add_special_tokens=False).ids, dtype=np.uint32)

    def encode_document(self, text: str) -> np.ndarray:
        return np.append(self.encode(text), self.end_of_text).astype(self.token_type)

    def decode(self, ids: Iterable[int]) -> str:
        if self.is_byte_level:
            return super().decode(ids)
        text: str = self._fast.decode([int(token) for token in ids], skip_special_tokens=False)
        return text  # without the space that is put before a text

    def decode_bytes(self, token: int) -> bytes:
        return self._bytes.get(int(token), b"")


@contextmanager
def _no_tokenizer(path: Path) -> Iterator[None]:
    """Inside the context, content of another form than a tokenizer's is refused.

    Raises:
        CallError: It has.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError):
        raise CallError(f"{path} is not a tokenizer") from None


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        raise CallError(f"{where} is not valid JSON") from None
    if not isinstance(content, dict):
        raise CallError(f"{where} is not a JSON object")
    return content


def _is_byte_level(described: Mapping[str, Any]) -> bool:
    """Whether a token's characters stand for bytes, rather than for themselves.

    Raises:
        CallError: The tokenizer is of a kind that is not read.
    """
    model = described.get("model")
    if not isinstance(model, dict):
        raise CallError(f"{MAIN} is not a tokenizer: it has no model")
    kind = model.get("type", "BPE")
    parts = {part.get("type") for part in _parts(described.get("decoder"))}
    if kind == "BPE" and isinstance(model["vocab"], dict):
        if "ByteLevel" in parts:
            return True
        if "ByteFallback" in parts or "Metaspace" in parts:
            return False
    decoder = ", ".join(sorted(map(str, parts))) or "no decoder"
    raise CallError(
        f"{MAIN} holds a {kind} model with {decoder}; only byte-pair encodings are read, byte-level or with byte "
        f"fallback"
    )


def _parts(component: Any) -> Iterator[Mapping[str, Any]]:
    """The parts of a decoder, out of the sequences that it is made of."""
    if isinstance(component, dict):
        yield component
        for part in component.get("decoders", []):
            yield from _parts(part)


def _ids(described: Mapping[str, Any]) -> list[int]:
    added = [token["id"] for token in described.get("added_tokens") or []]
    return [*described["model"]["vocab"].values(), *added]


def _end_of(texts: Mapping[str, str], path: Path) -> int:
    """The id that ends a text: what ``tokenizer_config.json`` says, or a token of a usual name."""
    described, config = _parsed(texts[MAIN], str(path)), _parsed(texts.get(CONFIG, "{}"), CONFIG)
    _is_byte_level(described)  # what is no such tokenizer at all is not asked for its tokens
    named = config.get("eos_token")
    named = named.get("content") if isinstance(named, dict) else named
    of_content = {token["content"]: token["id"] for token in described.get("added_tokens") or []}
    found = [of_content[name] for name in ([named] if named else _ENDS) if name in of_content]
    if not found:
        raise CallError(f"no token of {path} is known to end a text: name the eos_token in a {CONFIG} beside it")
    return int(found[0])
