"""What the page of a text holds, read back from its file without a browser."""

import base64
import gzip
import json
import re
from typing import Any

import numpy as np
import pytest

from lightning_gpt.analysis import page as module
from lightning_gpt.analysis.attention import AttentionMaps
from lightning_gpt.analysis.logit_lens import LogitLens
from lightning_gpt.analysis.page import Ablated, Page, layers_of_page
from lightning_gpt.errors import CallError

HOSTILE = ["</script>", "<b>", "'\"", "&amp;", "{{script}}", "\u2028", "<!--", "\ud83d"]


def maps(layers: int = 2, heads: int = 3, time: int = 4, others: int = 0) -> AttentionMaps:
    draw = np.random.default_rng(0)
    shape = (layers, heads, time, time + others)
    mask = np.broadcast_to(np.tril(np.ones(shape[-2:], dtype=bool), others), shape)
    weights = np.where(mask, draw.random(shape), 0).astype(np.float32)
    scores = draw.normal(0, 3, shape).astype(np.float32)
    return AttentionMaps(HOSTILE[:time], mask, scores, weights / weights.sum(-1, keepdims=True))


def page_of(of: AttentionMaps, **changes: Any) -> Page:
    time, depths = len(of.tokens), of.n_layer + 1
    draw = np.random.default_rng(1)
    top = draw.integers(0, 9, (depths, time, 2))
    lens = LogitLens(
        [f"{n}" for n in range(depths)], top, draw.random((depths, time, 2)), draw.random((depths, time - 1))
    )
    fields: dict[str, Any] = {"title": "a </title> page", "facts": {"model": "<GPT>"}, "head_dim": 8, "lens": lens}
    fields |= {
        "layers": range(of.n_layer),
        "ids": list(range(time)),
        "vocabulary": {i: HOSTILE[i % 8] for i in range(9)},
    }
    return Page(maps=of, **{**fields, **changes})


def data_of(text: str) -> dict[str, Any]:
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert len(found) == 1
    read: dict[str, Any] = json.loads(found[0])
    return read


def unpacked(packed: str, kind: str) -> np.ndarray:
    return np.frombuffer(gzip.decompress(base64.b64decode(packed)), np.dtype(kind).newbyteorder("<"))


def test_the_matrices_come_back_as_they_were() -> None:
    of = maps()
    data = data_of(page_of(of).text())
    assert data["type"] == "float32"
    for layer in range(2):
        np.testing.assert_array_equal(unpacked(data["scores"][layer], "float32"), of.scores[layer].ravel())
        np.testing.assert_array_equal(unpacked(data["pattern"][layer], "float32"), of.pattern[layer].ravel())
        for head in range(3):
            mask = unpacked(data["masks"][data["maskOfHead"][layer][head]], "uint8")
            np.testing.assert_array_equal(mask, of.mask[layer, head].ravel())
    assert len(data["masks"]) == 1, "one mask that all heads share is kept once"


def test_the_lens_comes_back_as_it_was() -> None:
    page = page_of(maps())
    lens = data_of(page.text())["lens"]
    np.testing.assert_array_equal(unpacked(lens["top"], "int32"), page.lens.top.ravel())
    np.testing.assert_allclose(unpacked(lens["probability"], "float32"), page.lens.probability.ravel(), rtol=1e-6)
    np.testing.assert_allclose(unpacked(lens["nll"], "float32"), page.lens.nll.ravel(), rtol=1e-6)


def test_heads_that_see_other_things_have_other_masks() -> None:
    of = maps()
    mask = of.mask.copy()
    mask[1, 2, 3, 0] = False
    data = data_of(page_of(AttentionMaps(of.tokens, mask, of.scores, of.pattern)).text())
    assert data["maskOfHead"] == [[0, 0, 0], [0, 0, 1]]
    np.testing.assert_array_equal(unpacked(data["masks"][1], "uint8"), mask[1, 2].ravel())


def test_a_page_of_some_layers_holds_those_only() -> None:
    of = maps(layers=4)
    data = data_of(page_of(of, layers=[1, 3]).text())
    assert (data["layers"], data["layerCount"], len(data["scores"])) == ([1, 3], 4, 2)
    np.testing.assert_array_equal(unpacked(data["scores"][1], "float32"), of.scores[3].ravel())


def test_no_text_can_leave_the_element_that_holds_it() -> None:
    text = page_of(maps(time=8)).text()
    data = data_of(text)
    assert data["tokens"] == HOSTILE
    assert data["title"] == "a </title> page"
    assert text.count("</script>") == 2, "the data's end and the script's"
    assert text.count("<!--") == 0
    assert text.encode("utf-8")  # also with half a surrogate pair in it


def test_the_same_page_has_the_same_bytes_and_nothing_from_elsewhere() -> None:
    text = page_of(maps()).text()
    assert text == page_of(maps()).text()
    assert "{{" not in text.replace("{{script}}", "")
    assert not re.findall(r"https?://|src=|<link|@import|url\(", text)
    assert "default-src 'none'" in text


def test_large_pages_keep_float16_and_scores_beyond_it_stay_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EXACT_BYTES", 100)
    of = maps()
    data = data_of(page_of(of).text())
    assert data["type"] == "float16"
    np.testing.assert_allclose(unpacked(data["pattern"][1], "float16"), of.pattern[1].ravel(), rtol=5e-4)
    beyond = AttentionMaps(of.tokens, of.mask, of.scores * 1e6, of.pattern)
    assert data_of(page_of(beyond).text())["type"] == "float32"


def test_an_ablation_that_is_no_number_is_null() -> None:
    change = np.array([[0.5, np.nan], [np.inf, -1.0]])
    ablated = Ablated("zero", ["0", "ffn"], change)
    assert data_of(page_of(maps(), ablated=ablated).text())["ablated"] == {
        "kind": "zero",
        "parts": ["0", "ffn"],
        "change": [[0.5, None], [None, -1.0]],
    }
    assert data_of(page_of(maps()).text())["ablated"] is None


def test_layers_of_a_page_are_all_or_those_that_exist() -> None:
    of = maps(layers=3)
    assert layers_of_page(of, None) == [0, 1, 2]
    assert layers_of_page(of, [2, 0, 2]) == [0, 2]
    assert layers_of_page(of, []) == []
    with pytest.raises(CallError, match=r"page_layers has 3; this model has 3 layers \(allowed: 0 to 2\)"):
        layers_of_page(of, [3])


def test_a_page_that_is_too_large_is_refused_with_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    of = maps(layers=3, heads=3, time=4)  # 3 layers of 3 · 16 · 4 = 192 bytes
    monkeypatch.setattr(module, "MOST_BYTES", 3 * 192)
    assert layers_of_page(of, None) == [0, 1, 2]
    monkeypatch.setattr(module, "MOST_BYTES", 3 * 192 - 1)
    with pytest.raises(
        CallError, match=r"\(3 layers, 3 heads, 4 tokens\).*choose at most 2 with page_layers.*page_layers \[\]"
    ):
        layers_of_page(of, None)
    assert layers_of_page(of, [0, 2]) == [0, 2]
    monkeypatch.setattr(module, "MOST_BYTES", 191)
    with pytest.raises(CallError, match=r"use a text of at most 3 tokens"):
        layers_of_page(of, [0])
