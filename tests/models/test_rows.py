"""Texts that join and leave a batch at any token: each gets the logits that it would get alone."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_gpt.models import GPT
from lightning_gpt.models.decoding.rows import JoiningRows, SeparateRows, SharedRows, rows_for
from tests.models.helpers import random_ids
from tests.models.variants import CONFIGS, build, name_of

CLOSE = {"rtol": 1e-9, "atol": 1e-10}
MOST, LONGEST = 4, 20


def shares_passes(changes: dict[str, Any]) -> bool:
    """Memory is in segments, and routing keeps other tokens in each row, unless the layer keeps sums of them."""
    routed = changes.get("token_routing", "none") != "none"
    kept_as_sums = changes.get("attention") in ("linear", "delta_net")
    return changes.get("memory", "none") == "none" and (not routed or kept_as_sums)


class _Texts:
    """Random texts read through ``rows``; every logit is compared with a pass over the text alone."""

    def __init__(self, model: GPT, rows: JoiningRows, seed: int) -> None:
        self.model, self.rows, self.chance = model, rows, random.Random(seed)
        self.texts = [random_ids(17, LONGEST, seed=100 + number) for number in range(8)]
        self.wanted = [model(text[None])[0] for text in self.texts]
        self.continued: list[list[int]] = []  # [text, tokens read] of each row
        self.begun: list[int] | None = None
        self.left = list(range(len(self.texts)))
        self.fed = self.copied = 0

    def begin(self) -> None:
        self.begun = [self.left.pop(), 0]
        self.rows.begin()

    def read(self) -> None:
        assert self.begun is not None
        text, read = self.begun
        end = min(LONGEST - 1, read + self.chance.randint(1, 7))
        self.check(self.rows.read(self.texts[text][read:end]), [[text, end]])
        self.begun[1] = end
        if end >= LONGEST - 1 or self.chance.random() < 0.5:
            self.rows.join()
            self.continued.append(self.begun)
            self.begun = None
            row = self.chance.randrange(len(self.continued))
            if len(self.continued) < MOST and self.rows.shares_passes:
                self.rows.join_copy(row)
                self.continued.append(list(self.continued[row]))
                self.copied += 1

    def feed(self) -> None:
        tokens = torch.stack([self.texts[text][read] for text, read in self.continued])
        logits = self.rows.feed(tokens)
        for row in self.continued:
            row[1] += 1
        self.check(logits, self.continued)
        self.fed += len(self.continued) > 1

    def leave(self) -> None:
        for row in reversed(range(len(self.continued))):
            if self.continued[row][1] == LONGEST or self.chance.random() < 0.08:
                self.rows.leave(row)
                last = self.continued.pop()
                if row < len(self.continued):
                    self.continued[row] = last

    def check(self, logits: Tensor, read: list[list[int]]) -> None:
        torch.testing.assert_close(logits, torch.stack([self.wanted[text][end - 1] for text, end in read]), **CLOSE)
        assert self.rows.n_row == len(self.continued)

    def run(self) -> None:
        while self.left or self.begun or self.continued:
            if self.begun is None and self.left and len(self.continued) < MOST:
                self.begin()
            if self.begun is not None:
                self.read()
            self.leave()
            if self.continued:
                self.feed()
            self.leave()


@pytest.mark.parametrize("changes", CONFIGS, ids=name_of)
def test_every_variant_reads_each_text_as_if_it_were_alone(changes: dict[str, Any]) -> None:
    model = build(changes)
    with torch.no_grad():
        rows = rows_for(model, MOST, LONGEST)
        texts = _Texts(model, rows, seed=3)
        texts.run()
        kept = rows.n_bytes
        more = _Texts(model, rows, seed=4)
        more.left = more.left[:2]
        more.run()
    shares = shares_passes(changes)
    assert isinstance(rows, SharedRows if shares else SeparateRows)
    assert texts.fed > 5, "several rows of different lengths were never read together"
    assert (texts.copied > 0) == shares
    assert rows.n_bytes == kept, "more memory was taken for further texts"
    assert (kept is not None) == shares


@pytest.mark.parametrize(
    "changes",
    [
        {"convolution": "canon"},
        {"convolution": {"kind": "canon", "places": "AC"}, "attention": "linear"},
        {"attention": [{"kind": "window", "window": 5}, {"kind": "sink_window", "window": 5}]},
        {"attention": [{"kind": "window", "window": 5, "rotary_base": base} for base in (100.0, 1000.0)]},
        {"attention": {"kind": "window", "window": 5}, "position": "t5"},
    ],
    ids=str,
)
def test_layers_that_keep_equally_much_do_not_mix_up_what_they_hold(changes: dict[str, Any]) -> None:
    """A prompt that is read in pieces longer than what a layer keeps."""
    model, text = build({**changes, "block_size": 96}), random_ids(17, 80)
    with torch.no_grad():
        wanted = model(text[None])[0]
        rows = rows_for(model, MOST, 96)
        assert isinstance(rows, SharedRows)
        rows.begin()
        for start, end in ((0, 33), (33, 70), (70, 71)):
            torch.testing.assert_close(rows.read(text[start:end])[0], wanted[end - 1], **CLOSE)
        rows.join()
        for place in range(71, 80):
            torch.testing.assert_close(rows.feed(text[place : place + 1])[0], wanted[place], **CLOSE)


def test_rows_go_on_after_a_pass_that_failed() -> None:
    model = build({"attention": [{"kind": "window", "window": 5}, "linear"]})
    with torch.no_grad():
        rows = rows_for(model, MOST, LONGEST)
        for length in (4, 7):
            rows.begin()
            rows.read(random_ids(17, length))
            rows.join()
        block, model.blocks[1].ffn.forward = model.blocks[1].ffn.forward, _fails  # type: ignore[union-attr]
        with pytest.raises(RuntimeError, match="out of memory"):
            rows.feed(torch.tensor([1, 2]))
        model.blocks[1].ffn.forward = block  # type: ignore[union-attr]
        rows.clear()
        _Texts(model, rows, seed=5).run()


def _fails(*_: Any) -> Tensor:
    raise RuntimeError("out of memory")
