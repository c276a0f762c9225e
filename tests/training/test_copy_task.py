"""A letter comes back once in every segment, and a segment never holds two: only memory can tell which one it is.

Real training on lanes over documents of 4 to 16 segments of 4 tokens, then 64 documents of 16 segments that are new.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from lightning_gpt.data.batches import EvalLanes, SizedTrainBatches
from lightning_gpt.data.lanes import LaneStream
from lightning_gpt.data.reader import Reader
from lightning_gpt.data.sources.base import Document, Source
from lightning_gpt.data.split import Split
from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.evaluating import evaluating
from lightning_gpt.models.memory.gpt import gpt_with
from lightning_gpt.training.optim import adamw
from lightning_gpt.training.recurrence import lane_states, remembering

SEGMENT, LETTERS = 4, "abcdefgh"
BYTES = Tokenizer("bytes", {bytes([byte]): byte for byte in range(256)})


class Texts(Source):
    def __init__(self, texts: Sequence[str]) -> None:
        super().__init__("texts", None)
        self.texts = texts

    def documents(self, start: int = 0) -> Iterator[Document]:
        for number, text in enumerate(self.texts[start:], start):
            yield Document(text, f"text {number}")


def document(letter: str, segments: int) -> str:
    return ((letter + "...") * segments)[:-1]


def trained(memory: Any, block_size: int, rows: int, steps: int, lr: float, size: float) -> GPT:
    """A GPT of two layers after ``steps`` steps; the blocks' matrices start ``size`` times as large as they do."""
    draw = random.Random(0)
    texts = [document(draw.choice(LETTERS), draw.randint(4, 16)) for _ in range(2000)]
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_layer": 2, "n_head": 2, "dim": 32, "block_size": block_size, "vocab_size": 257}
    model = gpt_with(memory, GPTConfig(**sizes, position="rotary"))
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            parameter *= size if parameter.ndim == 2 else 1
    reader = Reader(Texts(texts), Split(val=0.0, test=0.0), "train", BYTES)
    stream = LaneStream((reader,), (1.0,), block_size, 4096, 0, "lanes", rows)
    lanes, optimizer = lane_states(model), adamw(model, lr=lr, weight_decay=0.01)
    for batch in SizedTrainBatches(stream, rows, 0, 1, steps, 1):
        optimizer.zero_grad()
        with remembering(lanes, batch):
            model.loss(batch["ids"], batch["targets"]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


def recalled(model: GPT) -> float:
    """How often the letter is foretold, of all segments but the first."""
    draw = random.Random(1)
    documents = [BYTES.encode_document(document(draw.choice(LETTERS), 16)) for _ in range(64)]
    lanes, right = lane_states(model), []
    with evaluating(model):
        for batch in EvalLanes(documents, model.config.block_size, 64, 0, 1, BYTES.end_of_text):
            with remembering(lanes, batch):
                found = model(batch["ids"]).argmax(dim=-1) == batch["targets"]
            first_of_segments = found[:, ::SEGMENT]
            right.append(first_of_segments[:, 1:] if batch["starts"].all() else first_of_segments)
    return float(torch.cat(right, dim=1).float().mean())


def test_without_memory_the_letter_is_a_guess() -> None:
    assert recalled(trained("none", SEGMENT, rows=64, steps=120, lr=5e-3, size=5)) < 0.3


def test_segments_remember_the_letter() -> None:
    memory = {"kind": "segment", "length": SEGMENT}
    assert recalled(trained(memory, SEGMENT, rows=64, steps=120, lr=5e-3, size=5)) > 0.95


def test_memory_tokens_learn_what_to_write_and_remember_it_over_rows() -> None:
    memory = {"kind": "tokens", "n_memory": 2, "segment": SEGMENT}
    assert recalled(trained(memory, 4 * SEGMENT, rows=16, steps=500, lr=1e-2, size=1)) > 0.9
