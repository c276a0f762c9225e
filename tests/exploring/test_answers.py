"""What the server answers beside the model's own tensors, and what it refuses."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from lightning_gpt.analysis.attribution import direct_logit_attribution
from lightning_gpt.analysis.changes import change_edits, parse_changes
from lightning_gpt.analysis.interventions import Part, ablated_loss, text_loss
from lightning_gpt.analysis.layer_values import layer_values
from lightning_gpt.analysis.logit_lens import logit_lens
from lightning_gpt.analysis.similarity import effective_rank, token_cosine
from lightning_gpt.analysis.streams import residual_streams
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.decoding.sampling import Sampling
from lightning_gpt.models.memory.gpt import gpt_with
from tests.exploring.explored import OTHER, TEXT, app_of, gpt, ids_of, single_head, unpacked

CHANGES = "0.2:zero,1.ffn:mean,1.1:scale:0.5,1.0:patch"
SHOWN: dict[str, Any] = {"text": TEXT, "changes": CHANGES, "other": OTHER}


@pytest.fixture(scope="module")
def model() -> GPT:
    return gpt()


@pytest.fixture(scope="module")
def client(model: GPT) -> Iterator[TestClient]:
    with TestClient(app_of(model, gpt(seed=1), single_head()), base_url="http://127.0.0.1") as opened:
        yield opened


def answer(client: TestClient, route: str, **asked: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    reply = client.post(f"/api/{route}", json=asked)
    assert reply.status_code == 200, reply.text
    return unpacked(reply.content)


def recorded(model: GPT, changes: str = "") -> Any:
    edits = change_edits(model, parse_changes(changes), ids_of(TEXT), ids_of(OTHER))
    with torch.no_grad(), model.record(None, edits) as trace:
        model(ids_of(TEXT))
    return trace


@pytest.mark.parametrize("changes", ["", CHANGES])
def test_every_matrix_is_that_which_was_recorded(changes: str, client: TestClient, model: GPT) -> None:
    trace = recorded(model, changes)
    content, arrays = answer(client, "look", of={**SHOWN, "changes": changes}, layer=1, head=3)
    assert content["ids"] == ids_of(TEXT)[0].tolist()
    nll = torch.nn.functional.cross_entropy(trace["logits"][0, :-1], ids_of(TEXT)[0, 1:], reduction="none")
    assert content["nll"] == pytest.approx(nll.tolist(), rel=1e-5)
    assert content["loss"] == pytest.approx(float(nll.mean()), rel=1e-6)
    of = "blocks.1.attention."
    for name in ("scores", "pattern"):
        np.testing.assert_array_equal(arrays[name], trace[of + name][0].numpy())
    assert arrays["mask"][0].tolist() == np.tril(np.ones((12, 12))).tolist()
    expected = {"X": trace["after_ffn", 0][0], "N": trace["attention_norm", 1][0], "Q": trace[of + "q"][0, 3]}
    expected |= {"K": trace[of + "k"][0, 1], "V": trace[of + "v"][0, 1], "AV": trace[of + "head_output"][0, 3]}
    expected |= {"Y": trace["after_attention", 1][0]}
    for symbol, matrix in expected.items():
        np.testing.assert_array_equal(arrays[symbol], matrix.numpy(), err_msg=symbol)
    thumbnails = arrays["thumbnails"]
    assert thumbnails.shape == (2, 4, 12, 12)
    shares = trace.layers("attention.pattern")[:, 0]
    shares = shares / shares.amax(-1, keepdim=True)
    np.testing.assert_allclose(thumbnails, (255 * shares).numpy(), atol=0.51)


def test_differences_are_of_two_passes_and_can_be_of_two_models(client: TestClient, model: GPT) -> None:
    plain = {"text": TEXT}
    before, after = recorded(model), recorded(model, CHANGES)
    name = "blocks.1.attention.pattern"
    asked = {"of": SHOWN, "against": plain, "show": "difference", "layer": 1, "head": 2}
    content, arrays = answer(client, "look", **asked)
    np.testing.assert_allclose(arrays["pattern"], (after[name] - before[name])[0].numpy(), atol=1e-7)
    np.testing.assert_array_equal(arrays["pattern.shown"], after[name][0].numpy())
    assert content["before"]["loss"] == pytest.approx(text_loss(model, ids_of(TEXT)), rel=1e-6)
    change = (after.layers("attention.pattern") - before.layers("attention.pattern"))[:, 0].numpy()
    np.testing.assert_allclose(arrays["thumbnails"], 128 + 127 * change / np.abs(change).max(), atol=0.51)
    other = {"of": plain, "against": {"text": TEXT, "model": 1}, "show": "difference"}
    _, arrays = answer(client, "layer", **other, layer=0, head=0)
    second = gpt(seed=1)
    with torch.no_grad(), second.record("blocks.0.attention.q") as trace:
        second(ids_of(TEXT))
    expected = before["blocks.0.attention.q"][0, 0] - trace["blocks.0.attention.q"][0, 0]
    np.testing.assert_allclose(arrays["Q"], expected.numpy(), atol=1e-6)
    values, _ = answer(client, "look", of=SHOWN, against=plain)
    assert values["before"]["loss"] == content["before"]["loss"], "the loss is compared where values are shown, too"


def test_two_models_stand_side_by_side_whatever_their_depth(client: TestClient, model: GPT) -> None:
    asked = {"of": SHOWN, "against": {"text": TEXT, "model": 1}, "show": "side", "layer": 1, "head": 2}
    content, arrays = answer(client, "look", **asked)
    second = gpt(seed=1)
    with torch.no_grad(), second.record() as other:
        logits = second(ids_of(TEXT))
    for name in ("scores", "pattern"):
        np.testing.assert_array_equal(arrays[name], recorded(model, CHANGES)["attention." + name, 1][0].numpy())
        np.testing.assert_array_equal(arrays[f"other.{name}"], other["attention." + name, 1][0].numpy())
    assert arrays["other.mask"].tolist() == arrays["mask"].tolist()
    shares = other.layers("attention.pattern")[:, 0]
    np.testing.assert_allclose(arrays["other.thumbnails"], 255 * shares / shares.amax(-1, keepdim=True), atol=0.51)
    nll = torch.nn.functional.cross_entropy(logits[0, :-1], ids_of(TEXT)[0, 1:], reduction="none")
    assert content["before"]["nll"] == pytest.approx(nll.tolist(), rel=1e-5)
    shallow = {"of": {"text": "one"}, "against": {"text": "one", "model": 2}, "show": "side"}
    _, arrays = answer(client, "layer", **shallow, layer=1, head=3)
    single = single_head()
    with torch.no_grad(), single.record("attention.pattern") as trace:
        single(ids_of("one"))
    np.testing.assert_array_equal(arrays["other.pattern"], trace["attention.pattern"].numpy())


def test_models_that_cannot_be_compared_are_refused() -> None:
    config = GPTConfig(n_layer=2, n_head=4, dim=32, block_size=64, vocab_size=257, position="rotary")
    with_memory = gpt_with({"kind": "tokens", "segment": 16, "n_memory": 2}, config).eval()
    models = [gpt(), gpt(n_head=2, attention="full"), with_memory]
    with TestClient(app_of(*models), base_url="http://127.0.0.1") as client:
        for other, show, said in (
            (1, "difference", "heads that differ in number or size cannot be subtracted"),
            (2, "side", "the attention maps have 12 and 14 columns"),
        ):
            asked = {"of": {"text": TEXT}, "against": {"text": TEXT, "model": other}, "show": show}
            reply = client.post("/api/look", json=asked)
            assert reply.status_code == 400, (other, show)
            assert said in reply.json()["error"]["message"]
        changed = {"of": {"text": TEXT}, "against": {"text": OTHER}, "show": "side"}
        said = client.post("/api/look", json=changed).json()["error"]["message"]
        assert said == "the two passes read different tokens, so their matrices cannot be compared"


def test_a_cell_is_followed_from_its_product_to_the_logits(client: TestClient, model: GPT) -> None:
    trace = recorded(model, CHANGES)
    content, arrays = answer(client, "cell", of=SHOWN, layer=1, head=3, row=6, column=2)
    of = "blocks.1.attention."
    q, k, v = trace[of + "q"][0, 3, 6], trace[of + "k"][0, 1, 2], trace[of + "v"][0, 1, 2]
    assert content["product"] == pytest.approx(float(q @ k), rel=1e-5)
    assert content["score"] == trace[of + "scores"][0, 3, 6, 2].item()
    assert content["scaled"] == pytest.approx(content["score"], rel=1e-5)
    assert content["raised"] / content["sum"] == pytest.approx(content["weight"], rel=1e-5)
    assert content["weight"] == trace[of + "pattern"][0, 3, 6, 2].item()
    assert content["allowed"] == 7
    np.testing.assert_allclose(arrays["brought"], (content["weight"] * v).numpy(), rtol=1e-6)
    # the direct effect: what is missing from the attribution of the head when this cell brings nothing along
    written = torch.from_numpy(arrays["brought"]) @ model.block_views()[1].mixer.value_output()[1][3]
    last = trace["after_ffn", 1][0, 6]
    added = model.read_out_share(written, last) @ model.unembedding.T
    target = ids_of(TEXT)[0, 7]
    assert content["effect"]["next"][1] == pytest.approx(float(added[target] - added.mean()), rel=1e-4)
    assert content["effect"]["raised"][0][1] == pytest.approx(float(added.max() - added.mean()), rel=1e-4)
    masked, _ = answer(client, "cell", of=SHOWN, layer=1, head=3, row=2, column=6)
    assert (masked["mask"], masked["weight"]) == (False, 0)


def test_a_cell_claims_no_more_than_its_layer_does() -> None:
    """Attention that is not the softmax of its scores, and branches that are scaled before they are added."""
    models = [gpt(attention="differential"), gpt(residual="layerscale"), gpt(position="alibi", logit_divisor=4.0)]
    with TestClient(app_of(*models), base_url="http://127.0.0.1") as client:
        of_model = [
            answer(client, "cell", of={"text": TEXT, "model": number}, layer=1, head=1, row=6, column=2)[0]
            for number in range(3)
        ]
        assert [content["isSoftmax"] for content in of_model] == [False, True, True]
        assert ["effect" in content for content in of_model] == [False, False, True]
        plain = gpt(position="alibi", logit_divisor=1.0)
        with TestClient(app_of(plain), base_url="http://127.0.0.1") as other:
            whole = answer(other, "cell", of={"text": TEXT}, layer=1, head=1, row=6, column=2)[0]
        assert of_model[2]["effect"]["next"][1] == pytest.approx(whole["effect"]["next"][1] / 4, rel=1e-3)
        assert abs(of_model[2]["score"] - of_model[2]["scaled"]) > 0.1, "ALiBi's bias is a part of the score"


def test_the_lens_shows_the_positions_that_are_asked_for(client: TestClient, model: GPT) -> None:
    expected = logit_lens(model, ids_of(TEXT)[0])
    content, arrays = answer(client, "lens", of={"text": TEXT}, first=8, count=8)
    assert (content["first"], content["count"]) == (8, 4)
    np.testing.assert_array_equal(arrays["top"], expected.top[:, 8:])
    np.testing.assert_allclose(arrays["probability"], expected.probability[:, 8:], rtol=1e-5)
    np.testing.assert_allclose(arrays["nll"], expected.nll[:, 8:], rtol=1e-5)
    assert content["loss"] == pytest.approx(expected.nll[:, 8:].mean(1).tolist(), rel=1e-5)


@pytest.mark.parametrize("rules", [{}, {"temperature": 0.5, "top_k": 5}, {"top_p": 0.6}, {"temperature": 0.0}])
def test_the_distribution_is_cut_as_sampling_cuts_it(rules: dict[str, Any], client: TestClient, model: GPT) -> None:
    with torch.no_grad():
        logits = model(ids_of(TEXT))[0, 5:6]
    after = Sampling(**rules).probabilities(logits)[0]
    content, _ = answer(client, "next", of={"text": TEXT}, row=5, seed=3, **rules)
    ids = content["ids"]
    assert content["probability"] == pytest.approx(logits.softmax(-1)[0, ids].tolist(), rel=1e-5)
    if rules.get("temperature") == 0:
        after = torch.nn.functional.one_hot(logits[0].argmax(), 257).float()
    assert content["after"] == pytest.approx(after[ids].tolist(), rel=1e-5, abs=1e-8)
    assert content["kept"] == int((after > 0).sum())
    assert after[content["drawn"]["id"]] > 0
    again, _ = answer(client, "next", of={"text": TEXT}, row=5, seed=3, **rules)
    assert again["drawn"] == content["drawn"]


def test_depth_and_a_tokens_way_are_those_of_the_analyses(client: TestClient, model: GPT) -> None:
    streams = residual_streams(model, ids_of(TEXT))[:, 0]
    measures = answer(client, "depth", of={"text": TEXT})[0]["measures"]
    assert measures["cosine"] == pytest.approx(token_cosine(streams).tolist(), rel=1e-5)
    assert measures["rank"] == pytest.approx(effective_rank(streams).tolist(), rel=1e-5)
    assert measures["norm"] == pytest.approx(streams.norm(dim=-1).mean(-1).tolist(), rel=1e-5)
    way, _ = answer(client, "way", of={"text": TEXT}, row=4)
    targets = torch.full_like(ids_of(TEXT), int(ids_of(TEXT)[0, 5]))
    found = direct_logit_attribution(model, ids_of(TEXT), targets, by_head=True)
    assert way["parts"] == found.parts
    assert way["values"] == pytest.approx(found.values[:, 0, 4].tolist(), rel=1e-4, abs=1e-6)
    assert sum(way["values"]) == pytest.approx(way["logit"], rel=1e-4)
    assert [step["name"] for step in way["steps"]] == ["embedding", "0.attention", "0.ffn", "1.attention", "1.ffn"]
    assert answer(client, "way", of={"text": TEXT}, row=11)[0]["target"]["actual"] is False


@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_a_layer_and_its_parts_are_worth_what_ablation_says(kind: Any, client: TestClient, model: GPT) -> None:
    content, _ = answer(client, "worth", of=SHOWN, layer=1, kind=kind)
    ids = ids_of(TEXT)
    before = text_loss(model, ids)
    parts = [*(Part(1, head) for head in range(4)), Part(1, None)]
    expected = {str(part): ablated_loss(model, ids, [part], kind) - before for part in parts}
    assert content["parts"] == pytest.approx(expected, abs=1e-9)
    whole = layer_values(model, ids, "mean" if kind == "mean" else "skip")[1]
    assert content["whole"] == pytest.approx(whole, abs=1e-9)


def test_the_single_head_answers_everything_too(client: TestClient) -> None:
    shown = {"text": "one", "model": 2, "changes": "0.0:scale:2"}
    content, arrays = answer(client, "look", of=shown)
    assert (content["layerCount"], content["headCounts"], content["hasFfn"]) == (1, [1], [False])
    assert set(arrays) >= {"X", "N", "Q", "K", "V", "AV", "Y", "scores", "pattern", "mask"}
    np.testing.assert_allclose(
        arrays["Y"] - arrays["X"], arrays["AV"] @ single_head().attention.w_0.weight.detach().numpy().T, atol=1e-5
    )
    assert answer(client, "cell", of=shown, row=2, column=1)[0]["effect"]["next"] is None
    assert answer(client, "way", of=shown, row=1)[0]["parts"] == ["embedding", "0.0", "0.bias", "bias"]
    assert answer(client, "worth", of=shown, layer=0)[0]["parts"].keys() == {"0.0"}


def test_the_code_gives_the_number_and_the_page_stands_alone(client: TestClient, model: GPT) -> None:
    asked = {"of": SHOWN, "layer": 1, "head": 2, "row": 5, "column": 3}
    code = client.post("/api/code", json=asked).text
    said: list[Any] = []
    names = {"models": [model], "print": said.append}
    exec(code, names)
    assert said[0].item() == pytest.approx(
        recorded(model, CHANGES)["attention.pattern", 1][0, 2, 5, 3].item(), rel=1e-6
    )
    page = client.post("/api/page", json={"of": SHOWN, "layer": 1, "head": 2}).text
    assert page.startswith("<!doctype html>")
    assert "1.ffn:mean" in page
    assert "/assets/" not in page


def test_the_code_scales_by_every_digit_of_the_factor(client: TestClient, model: GPT) -> None:
    shown = {"text": TEXT, "changes": "0.1:scale:0.123456789"}
    code = client.post("/api/code", json={"of": shown, "layer": 1, "head": 2, "row": 5, "column": 3}).text
    assert "0.1:scale:0.123456789" in code


def test_tokens_that_were_generated_follow_the_text(client: TestClient) -> None:
    content, _ = answer(client, "look", of={"text": "ab", "more": [99, 100]})
    assert content["tokens"] == ["a", "b", "c", "d"]
    assert content["moreText"] == "cd"


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("look", {"of": {"text": "x" * 41}}, "the text has 41 tokens; this page shows at most 40"),
    ("look", {"of": {"text": "x" * 300_000}}, "of.text is"),
    ("layer", {"of": {"text": TEXT}, "layer": 2}, "layer is 2; this model has 2 (allowed: 0 to 1)"),
    ("layer", {"of": {"text": TEXT}, "head": 4}, "head is 4; layer 0 has 4 (allowed: 0 to 3)"),
    ("cell", {"of": {"text": TEXT}, "row": 12, "column": 0}, "row is 12; the text has 12 tokens (allowed: 0 to 11)"),
    ("cell", {"of": {"text": TEXT}, "row": 0, "column": 12}, "column is 12; the text has 12 keys"),
    ("cell", {"of": {"text": "x"}, "row": 1, "column": 0}, "row is 1; the text has 1 token (allowed: 0)"),
    ("code", {"of": {"text": TEXT}, "row": 999, "column": 0}, "row is 999; the text has 12 tokens (allowed: 0 to 11)"),
    ("code", {"of": {"text": TEXT}, "row": 0, "column": 12}, "column is 12; the text has 12 keys (allowed: 0 to 11)"),
    ("look", {"of": {"text": TEXT, "changes": "0." + "9" * 5000 + ":zero"}}, "is not a part of a model"),
    ("look", {"of": {"text": TEXT, "model": 3}}, "model is 3; there are 3 (allowed: 0 to 2)"),
    ("look", {"of": {"text": TEXT, "changes": "0.1:explode"}}, "'0.1:explode' is not a change; allowed: PART:zero"),
    ("look", {"of": {"text": TEXT, "changes": "9.1:zero"}}, "the model has no part 9.1; it has 2 layers with 4 heads"),
    ("look", {"of": {"text": TEXT, "changes": "0.1:scale:nan"}}, "the factor of '0.1:scale:nan' must be from"),
    ("look", {"of": {"text": TEXT, "changes": "0.1:zero,0.1:mean"}}, "part 0.1 is changed twice"),
    ("look", {"of": {"text": TEXT, "changes": "0.1:patch"}}, "from a second text, and none is given"),
    ("look", {"of": {"text": TEXT, "changes": "0.1:patch", "other": "ab"}}, "the texts have 12 and 2 tokens"),
    ("look", {"of": {"text": TEXT, "changes": "0.1:patch:3", "other": "ab"}}, "position 3 is outside one of the"),
    ("look", {"of": {"text": TEXT, "more": [300]}}, "token id 300 is outside the vocabulary of 257"),
    (
        "look",
        {"of": {"text": "one"}, "against": {"text": "one", "model": 2}, "show": "difference"},
        "a model of 2 layers and one of 1 cannot be subtracted; show them side by side instead",
    ),
    ("look", {"of": {"text": TEXT, "colour": "red"}}, "of.colour is not supported"),
    ("look", {}, "of is missing"),
    ("next", {"of": {"text": TEXT}, "row": 0, "top_p": 0}, "top_p is 0"),
    ("worth", {"of": {"text": "a"}, "layer": 0}, "the text has 1 token and a loss needs 2"),
]


@pytest.mark.parametrize(("route", "asked", "message"), BAD, ids=range(len(BAD)))
def test_what_cannot_be_shown_is_refused_in_a_line(
    route: str, asked: dict[str, Any], message: str, client: TestClient
) -> None:
    reply = client.post(f"/api/{route}", json=asked)
    assert reply.status_code == 400
    said = reply.json()["error"]["message"]
    assert message in said
    assert "\n" not in said


def test_only_this_machine_and_this_page_are_answered(client: TestClient) -> None:
    asked = json.dumps({"of": {"text": TEXT}})
    assert client.post("/api/look", content=asked, headers={"host": "elsewhere.org"}).status_code == 403
    assert client.post("/api/look", content=asked, headers={"content-type": "text/plain"}).status_code == 415
    assert client.post("/api/look", content="{", headers={"content-type": "application/json"}).status_code == 400
    too_long = "x" * 2**21
    assert client.post("/api/look", content=too_long, headers={"content-type": "application/json"}).status_code == 413
    for name in ("../app.py", "explore.html", "nothing.js"):
        assert client.get(f"/assets/{name}").status_code == 404


def test_the_page_and_its_files_come_from_here_alone(client: TestClient) -> None:
    page = client.get("/")
    assert "{{" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    waiting, met = ["explore.js", "explore.css", "page.css"], set()
    while waiting:
        name = waiting.pop()
        met.add(name)
        file = client.get(f"/assets/{name}")
        assert file.status_code == 200, name
        assert not [line for line in file.text.splitlines() if "://" in line and "www.w3.org" not in line], name
        assert len(file.text.splitlines()) <= 400, name
        imported = [line.split('"./')[1].split('"')[0] for line in file.text.splitlines() if line.startswith("import")]
        waiting += [other for other in imported if other not in met]
    assert len(met) > 15
