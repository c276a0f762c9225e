"""A byte tokenizer, sources from lists, batches put together again, and a table in Hugging Face's BPE."""

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers import models, pre_tokenizers
from torch.utils.data import DataLoader

from lightning_gpt.data.batches import SizedTrainBatches
from lightning_gpt.data.sources.base import Document, Source
from lightning_gpt.data.split import Split
from lightning_gpt.data.stream import Stream
from lightning_gpt.data.tokenizer import Tokenizer, _byte_alphabet

BYTES = Tokenizer("bytes", {bytes([byte]): byte for byte in range(256)})
EVERYTHING = Split(val=0.0, test=0.0)


class Listed(Source):
    """Documents from a list."""

    def __init__(self, texts: Sequence[str], name: str = "listed", weight: float | None = None) -> None:
        super().__init__(name, weight)
        self.texts = texts

    def documents(self, start: int = 0) -> Iterator[Document]:
        for number, text in enumerate(self.texts[start:], start):
            yield Document(text, f"{self.name}, {number}")


def tokens_of(texts: Sequence[str]) -> list[int]:
    return [token for text in texts if text for token in [*BYTES.encode(text).tolist(), BYTES.end_of_text]]


def batches(
    stream: Stream, *, rows: int, world: int, workers: int, steps: int, accumulate: int, cursor: dict | None = None
) -> list[list[list[int]]]:
    """The global batch of each step of an epoch's rest, put together from the processes' and workers' parts."""
    parts = []
    for rank in range(world):
        dataset = SizedTrainBatches(stream, rows // world // accumulate, rank, world, steps, accumulate, cursor=cursor)
        parts.append(_through_workers(dataset, workers))
    micro = [[row for rank in range(world) for row in parts[rank][m]] for m in range(len(parts[0]))]
    return [list(chain.from_iterable(micro[i : i + accumulate])) for i in range(0, len(micro), accumulate)]


def _through_workers(dataset: SizedTrainBatches, workers: int) -> list[list[list[int]]]:
    return [
        np.concatenate([batch["ids"].numpy(), batch["targets"].numpy()[:, -1:]], axis=1).tolist()
        for batch in DataLoader(dataset, batch_size=None, num_workers=workers)
    ]


def in_hugging_face(tokenizer: Tokenizer) -> HuggingFaceTokenizer:
    """The same table in Hugging Face's own BPE, with GPT-2's pre-tokenisation."""
    alphabet = {bytes([byte]): character for character, byte in _byte_alphabet().items()}
    spelled = {token: "".join(alphabet[bytes([byte])] for byte in token) for token in tokenizer.ranks}
    merged = [
        _parents(token, tokenizer.ranks) for token in sorted(tokenizer.ranks, key=tokenizer.ranks.__getitem__)[256:]
    ]
    vocabulary = {spelled[token]: rank for token, rank in tokenizer.ranks.items()}
    reference = HuggingFaceTokenizer(models.BPE(vocab=vocabulary, merges=[(spelled[a], spelled[b]) for a, b in merged]))
    reference.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return reference


def _parents(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that were merged into ``token``: what is left of its bytes after all earlier merges."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [(ranks.get(parts[i] + parts[i + 1], len(ranks)), i) for i in range(len(parts) - 1)]
        rank, index = min(pair for pair in pairs if pair[0] < ranks[token])
        assert rank < ranks[token]
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    return parts[0], parts[1]
