"""The three matrices as they are taken out of a model, and tokens made readable."""

import re
from importlib import resources
from typing import Any

import numpy as np
import pytest
import torch

from lightning_gpt.analysis.attention import attention_maps, readable_tokens
from lightning_gpt.analysis.head_matrices import head_activations
from lightning_gpt.analysis.page_colours import DIVERGING_STOPS, SEQUENTIAL_STOPS
from lightning_gpt.analysis.plots import ablation_grid, heads_grid, three_matrices
from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig, SingleHeadConfig, SingleHeadModel
from tests.models.helpers import random_ids, randomise

IDS = random_ids(11, 5)
TOKENS = [str(token) for token in IDS.tolist()]


def gpt(**options: Any) -> GPT:
    return randomise(GPT(GPTConfig(n_layer=3, n_head=2, dim=8, block_size=6, vocab_size=11, **options)))


@pytest.mark.parametrize(
    "options", [{}, {"position": "alibi"}, {"position": "rotary"}, {"attention": "multi_query"}], ids=str
)
def test_maps_are_what_the_model_recorded(options: dict[str, Any]) -> None:
    model = gpt(**options)
    maps = attention_maps(model, IDS, TOKENS)
    with torch.no_grad(), model.record() as trace:
        model(IDS[None])
    assert (maps.n_layer, maps.n_head, maps.keys) == (3, 2, TOKENS)
    for layer in range(3):
        for name, matrix in (("scores", maps.scores), ("pattern", maps.pattern)):
            np.testing.assert_array_equal(matrix[layer], trace[f"attention.{name}", layer][0].numpy())
    assert (maps.mask == np.tril(np.ones((5, 5), dtype=bool))).all()
    assert maps.mask.shape == maps.scores.shape == maps.pattern.shape == (3, 2, 5, 5)


def test_the_one_head_model_has_one_layer_of_one_head() -> None:
    model = randomise(SingleHeadModel(SingleHeadConfig(dim=8, block_size=6, vocab_size=11)))
    maps = attention_maps(model, IDS, TOKENS)
    with torch.no_grad(), model.record() as trace:
        model(IDS[None])
    assert maps.pattern.shape == (1, 1, 5, 5)
    np.testing.assert_array_equal(maps.pattern[0, 0], trace["attention.pattern"][0].numpy())
    np.testing.assert_array_equal(maps.scores[0, 0], trace["attention.scores"][0].numpy())


class _WithMemory(GPT):
    """Records attention over keys that come before the text's: two more in layer 1, none elsewhere."""

    def hidden(self, ids: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        for layer, others in enumerate((0, 2, 0)):
            attention = self.blocks[layer].attention
            keys = 5 + others
            mask = torch.ones(5, keys, dtype=torch.bool).tril(others)
            attention.see("mask", mask)
            attention.see("scores", torch.full((1, 2, 5, keys), 0.5))
            attention.see("pattern", mask / mask.sum(-1, keepdim=True) * torch.ones(1, 2, 1, 1))
        return super().hidden(ids, *args, **kwargs) if self._watch is None else self.token_embedding(ids)


def test_keys_that_are_no_tokens_come_first_and_fewer_are_filled_up_as_masked() -> None:
    maps = attention_maps(_WithMemory(gpt().config), IDS, TOKENS)
    assert maps.keys == ["key 0", "key 1", *TOKENS]
    assert maps.pattern.shape == (3, 2, 5, 7)
    assert maps.mask[1, 0, 0].tolist() == [True, True, True, False, False, False, False]
    assert maps.mask[0, 0, 0].tolist() == [False, False, True, False, False, False, False]
    np.testing.assert_allclose(maps.pattern.sum(-1), 1, rtol=1e-6)
    assert (maps.pattern[~maps.mask] == 0).all()
    for figure in (heads_grid(maps, "memory"), three_matrices(maps, 1, 0)):
        figure.canvas.draw()


class _WithoutPattern(_WithMemory):
    def hidden(self, ids: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.config.n_layer == 3:  # only layer 2 has a pattern
            for name in ("mask", "scores", "pattern"):
                self.blocks[2].attention.see(name, torch.ones(1, 2, 5, 5))
        return self.token_embedding(ids)


def test_layers_without_softmax_attention_are_named() -> None:
    with pytest.raises(
        CallError, match=r"layers without softmax attention: 0, 1; they have no mask, scores and softmax to show"
    ):
        attention_maps(_WithoutPattern(gpt().config), IDS, TOKENS)


@pytest.mark.parametrize("time", [1, 5, 300])
def test_pictures_of_any_length_can_be_drawn(time: int) -> None:
    config = GPTConfig(n_layer=2, n_head=2, dim=8, block_size=300, vocab_size=11)
    maps = attention_maps(randomise(GPT(config)), random_ids(11, time), ["$_{x}"] * time)
    for figure in (heads_grid(maps, "heads"), three_matrices(maps, 1, 1)):
        figure.canvas.draw()


def test_a_long_text_is_averaged_in_the_grid_of_heads() -> None:
    config = GPTConfig(n_layer=1, n_head=1, dim=8, block_size=384, vocab_size=11)
    maps = attention_maps(randomise(GPT(config)), random_ids(11, 384), [""] * 384)
    picture = heads_grid(maps, "heads").axes[0].images[0].get_array()
    assert picture.shape == (192, 192)
    assert picture[100, 50] == pytest.approx(maps.pattern[0, 0, 200:202, 100:102].mean(), rel=1e-5)
    assert picture.mask[0, 1]
    assert picture[0, 0] == pytest.approx(maps.pattern[0, 0, :2, :2][maps.mask[0, 0, :2, :2]].mean(), rel=1e-5)


def test_pictures_have_the_pages_colours_and_fit_a_screen() -> None:
    script = resources.files("lightning_gpt.analysis").joinpath("assets", "colours.js").read_text("utf-8")
    light = script.partition("light: {")[2].partition("}")[0]
    assert tuple(re.findall(r"#\w{6}", light)) == (*SEQUENTIAL_STOPS, *DIVERGING_STOPS)
    config = GPTConfig(n_layer=1, n_head=32, dim=64, block_size=64, vocab_size=11)
    maps = attention_maps(randomise(GPT(config)), random_ids(11, 64), ["a"] * 64)
    wide = ablation_grid(np.ones((1, 33)), [str(n) for n in range(33)], "")
    for figure in (heads_grid(maps, "heads"), three_matrices(maps, 0, 1), wide):
        assert figure.get_figwidth() * 120 <= 1920


@pytest.mark.parametrize("residual", ["pre", "post", "normed_branches", "parallel"])
def test_the_other_matrices_are_what_the_head_reads_and_writes(residual: str) -> None:
    attention = {"kind": "grouped", "n_kv_head": 1}
    config = GPTConfig(
        n_layer=2, n_head=2, dim=8, block_size=8, vocab_size=11, residual=residual, attention=attention, bias=False
    )
    model = randomise(GPT(config)).double().eval()
    found = head_activations(model, IDS)[1]
    assert found["K"].shape == found["V"].shape == (1, 5, 4)
    assert found["Q"].shape == found["AV"].shape == (2, 5, 4)
    # what the head reads gives its queries, and is the stream where no norm comes before it
    read = torch.from_numpy(found.get("N", found["X"]))
    assert ("N" in found) == (residual in ("pre", "parallel"))
    w_q = model.blocks[1].attention.qkv.weight[:8].float()
    np.testing.assert_allclose((read @ w_q.T).detach().view(5, 2, 4).transpose(0, 1), found["Q"], atol=1e-5)
    pattern = attention_maps(model, IDS, TOKENS).pattern[1]
    np.testing.assert_allclose(pattern @ found["V"], found["AV"], atol=1e-5)
    if residual in ("pre", "parallel"):
        w_o = model.blocks[1].attention.w_o.weight.detach().float().numpy()
        written = found["AV"].transpose(1, 0, 2).reshape(5, 8) @ w_o.T
        np.testing.assert_allclose(found["Y"], found["X"] + written, atol=1e-4)


def test_the_picture_of_ablations_holds_the_changes() -> None:
    changes = np.array([[0.5, -0.25, 1.0]])
    ax = ablation_grid(changes, ["0", "1", "ffn"], "title").axes[0]
    np.testing.assert_array_equal(ax.images[0].get_array(), changes)
    assert [text.get_text() for text in ax.texts] == ["+0.500", "-0.250", "+1.000"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "ffn"]


def test_the_picture_of_ablations_leaves_out_parts_that_a_layer_has_not() -> None:
    changes = np.array([[0.5, -0.25], [1.0, np.nan]])
    ax = ablation_grid(changes, ["0", "ffn"], "title").axes[0]
    assert [text.get_text() for text in ax.texts] == ["+0.500", "-0.250", "+1.000", "–"]
    assert ax.images[0].get_clim() == (-1.0, 1.0)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b", "a·b"),
        ("\n", "⏎"),
        ("\t", "⇥"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\u202e", r"\u202e"),
        ("é", "é"),
        ("</script>", "</script>"),
    ],
)
def test_tokens_are_readable_in_a_line(text: str, shown: str) -> None:
    tokenizer = Tokenizer.gpt2()
    assert "".join(readable_tokens(tokenizer, tokenizer.encode(text).tolist())).startswith(shown[0])
    whole = Tokenizer(
        "whole", {**{bytes([b]): b for b in range(256)}, **({text.encode(): 256} if len(text.encode()) > 1 else {})}
    )
    assert readable_tokens(whole, [256 if len(text.encode()) > 1 else ord(text)]) == [shown]


def test_a_part_of_a_character_and_an_unused_id_have_a_name() -> None:
    tokenizer = Tokenizer("bytes", {bytes([b]): b for b in range(256)})
    assert readable_tokens(tokenizer, [0xC3, 256, 300]) == [r"\xc3", "<|endoftext|>", "⟨300⟩"]
