"""Perplexity of texts beside the recipe of transformers' documentation and beside whole passes; the command."""

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_gpt.checkpoint import Checkpoint
from lightning_gpt.cli import main
from lightning_gpt.errors import CallError
from lightning_gpt.evaluation.perplexity import ReadingOptions, TextScores, score_texts
from lightning_gpt.evaluation.windows import windows_of
from lightning_gpt.models import GPT, GPTConfig
from tests.inference.published import convert, publish
from tests.interop.published_tokenizers import CORPUS

TEXT = CORPUS[3][:1500]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("evaluated")
    convert(publish(made / "theirs"), made / "ours")
    (made / "text.txt").write_text(TEXT)
    return made


@pytest.fixture(scope="module")
def ours(folder: Path) -> Any:
    read = Checkpoint.read(folder / "ours/model.ckpt")
    return read.build(), read.tokenizer()


def recipe(folder: Path, text: str, max_length: int, stride: int) -> float:
    """Perplexity as transformers' documentation computes it ("Perplexity of fixed-length models")."""
    model = AutoModelForCausalLM.from_pretrained(folder / "theirs").eval()
    encodings = AutoTokenizer.from_pretrained(folder / "theirs")(text, return_tensors="pt")
    seq_len = encodings.input_ids.size(1)
    nll_sum, n_tokens, prev_end_loc = 0.0, 0, 0
    for begin_loc in range(0, seq_len, stride):
        end_loc = min(begin_loc + max_length, seq_len)
        trg_len = end_loc - prev_end_loc
        input_ids = encodings.input_ids[:, begin_loc:end_loc]
        target_ids = input_ids.clone()
        target_ids[:, :-trg_len] = -100
        with torch.no_grad():
            neg_log_likelihood = model(input_ids, labels=target_ids).loss
        num_loss_tokens = (target_ids != -100).sum().item() - target_ids.size(0)
        nll_sum += neg_log_likelihood.item() * num_loss_tokens
        n_tokens += num_loss_tokens
        prev_end_loc = end_loc
        if end_loc == seq_len:
            break
    return math.exp(nll_sum / n_tokens)


@pytest.mark.parametrize(("window", "stride"), [(48, 16), (48, 48), (256, 100), (20, 5), (33, 32)])
def test_the_recipe_of_transformers_gives_the_same(window: int, stride: int, folder: Path, ours: Any) -> None:
    found = score_texts(*ours, [TEXT], ReadingOptions(window, stride, batch_size=3), CPU)
    expected = recipe(folder, TEXT, window, stride)
    assert found.window_mean_perplexity == pytest.approx(expected, rel=1e-5)
    if window == stride:  # then it counts each token once, as we do
        assert found.perplexity == pytest.approx(expected, rel=1e-5)
    else:
        assert found.perplexity == pytest.approx(expected, rel=0.02)
        assert found.perplexity != pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("stride", [1, 7, 20])
@pytest.mark.parametrize("length", [1, 2, 19, 20, 21, 60])
def test_each_token_with_something_before_it_is_scored_once(length: int, stride: int) -> None:
    ids = torch.arange(length)
    windows = list(windows_of(ids, 20, stride))
    scored = [token for each in windows for token in each.ids[len(each.ids) - each.scored :].tolist()]
    without = {0} if stride < 20 else set(range(0, length, 20))
    assert scored == [token for token in range(length) if token not in without]
    assert sum(each.new for each in windows) == length
    assert all(len(each.ids) <= 20 for each in windows)


def test_stride_1_predicts_each_token_from_the_full_context(ours: Any) -> None:
    model, words = ours
    ids = torch.from_numpy(words.encode(TEXT[:200]).astype("int64"))
    expected = 0.0
    with torch.no_grad():
        for place in range(1, len(ids)):
            before = ids[max(0, place - 11) : place]
            expected -= float(model(before[None])[0, -1].double().log_softmax(dim=-1)[ids[place]])
    found = score_texts(model, words, [TEXT[:200]], ReadingOptions(12, 1, batch_size=5), CPU)
    assert found.nll == pytest.approx(expected, rel=1e-5)
    assert (found.scored, found.tokens) == (len(ids) - 1, len(ids))


def test_documents_apart_and_joined_and_what_comes_before_them(ours: Any) -> None:
    model, words = ours
    texts = [TEXT[:90], "é", TEXT[90:160]]
    each = [words.encode(text).tolist() for text in texts]

    def nll(ids: list[int]) -> float:
        with torch.no_grad():
            logp = model(torch.tensor([ids]))[0].double().log_softmax(dim=-1)
        return -float(logp[:-1].gather(1, torch.tensor(ids[1:])[:, None]).sum())

    end = words.end_of_text
    joined = [*each[0], end, *each[1], end, *each[2]]
    cases = [
        ({}, sum(nll(ids) for ids in each), sum(map(len, each)) - 3, sum(map(len, each))),
        ({"first_token": True}, sum(nll([end, *ids]) for ids in each), sum(map(len, each)), sum(map(len, each))),
        ({"documents": "joined"}, nll(joined), len(joined) - 1, len(joined)),
        ({"documents": "joined", "first_token": True}, nll([end, *joined]), len(joined), len(joined)),
    ]
    for options, expected, scored, tokens in cases:
        found = score_texts(model, words, texts, ReadingOptions(200, 100, **options), CPU)
        assert found.nll == pytest.approx(expected, rel=1e-5), options
        assert (found.documents, found.scored, found.tokens) == (3, scored, tokens)
        size = sum(len(text.encode()) for text in texts)
        assert (found.bytes, found.words) == (size, sum(len(text.split()) for text in texts))
        assert found.bits_per_byte == pytest.approx(expected / scored / math.log(2) * tokens / size, rel=1e-5)
        assert math.log(found.word_perplexity) == pytest.approx(expected / scored * tokens / found.words, rel=1e-5)


def test_a_tokenizer_s_own_start_is_read_first_and_not_scored(ours: Any) -> None:
    model, words = ours
    plain = score_texts(model, words, [TEXT[:90]], ReadingOptions(200, 100, first_token=True), CPU)
    words.start = (words.end_of_text,)
    try:
        for first in (True, False):
            assert score_texts(model, words, [TEXT[:90]], ReadingOptions(200, 100, first_token=first), CPU) == plain
    finally:
        words.start = ()


def test_what_cannot_be_read_is_refused(ours: Any) -> None:
    model, words = ours
    with pytest.raises(CallError, match="stride is 9 and window 8; a longer stride would skip tokens"):
        score_texts(model, words, [TEXT], ReadingOptions(8, 9), CPU)
    with pytest.raises(CallError, match="no token to score: 1 documents have 1 tokens"):
        score_texts(model, words, ["a"], ReadingOptions(8, 4), CPU)
    learned = GPT(GPTConfig(n_layer=1, n_head=1, dim=8, block_size=16, vocab_size=words.vocab_size)).eval()
    with pytest.raises(CallError, match="window is 17; the model's learned positions end at block_size 16"):
        score_texts(learned, words, [TEXT], ReadingOptions(17, 4), CPU)
    small = GPT(GPTConfig(n_layer=1, n_head=1, dim=8, block_size=16, vocab_size=300)).eval()
    with pytest.raises(CallError, match="outside the vocabulary of 300"):
        score_texts(small, words, [TEXT], ReadingOptions(16, 8), CPU)


def test_progress_is_reported_after_each_batch(ours: Any) -> None:
    seen: list[int] = []
    scores = score_texts(*ours, [TEXT], ReadingOptions(32, 16, batch_size=4), CPU, lambda now: seen.append(now.scored))
    assert seen == sorted(seen)
    assert seen[-1] == scores.scored
    assert len(seen) > 3


def test_huge_losses_are_infinite_perplexities() -> None:
    scores = TextScores(documents=1, words=1, bytes=4, tokens=4, scored=3, nll=3000.0, weighted=3000.0, weights=3)
    assert scores.perplexity == scores.word_perplexity == scores.window_mean_perplexity == math.inf


# --- the command -----------------------------------------------------------------------------------------------


def call(*args: str) -> int:
    sys.argv = ["lightning-gpt", *args]
    return main()


def test_the_command_prints_a_table_or_json(folder: Path, ours: Any, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(folder)
    options = ("evaluate", "--checkpoint", "ours/model.ckpt", "--text", "text.txt", "--window", "48", "--stride", "16")
    assert call(*options, "--json", "true") == 0
    said = json.loads(capsys.readouterr().out)
    expected = score_texts(*ours, [TEXT], ReadingOptions(48, 16), CPU)
    assert said["perplexity"] == pytest.approx(expected.perplexity)
    assert (said["window"], said["stride"], said["scored"]) == (48, 16, expected.scored)
    (folder / "marked.txt").write_text("\ufeff" + TEXT)
    assert call(*("marked.txt" if each == "text.txt" else each for each in options), "--json", "true") == 0
    assert json.loads(capsys.readouterr().out) == said, "a byte-order mark is no text"
    assert call(*options) == 0
    table = capsys.readouterr().out
    assert f"perplexity per token          {expected.perplexity:,.4f}" in table
    assert f"{expected.scored:,} of {expected.tokens:,} tokens; 1 had nothing before it" in table
    assert "1 document, " in table
    assert "48 tokens, a new one every 16; before a text: nothing" in table
    assert call(*options, "--precision", "bf16", "--json", "true") == 0
    rounded = json.loads(capsys.readouterr().out)["loss"]
    assert rounded == pytest.approx(expected.loss, rel=0.02)
    assert rounded != pytest.approx(expected.loss, rel=1e-6)
    assert call(*options, "--first_token", "true", "--json", "true") == 0
    assert json.loads(capsys.readouterr().out)["scored"] == expected.scored + 1


def test_a_text_of_white_space_has_no_perplexity_per_word(folder: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(folder)
    (folder / "white.txt").write_text(" \n" * 9)
    assert call("evaluate", "--checkpoint", "ours/model.ckpt", "--text", "white.txt") == 0
    assert "perplexity per word           none: the text has no words\n" in capsys.readouterr().out


def test_no_vocabulary_is_trained_where_the_checkpoint_has_one(folder: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(folder)
    (folder / "few.jsonl").write_text("\n".join(json.dumps({"text": f"{number} {TEXT[:90]}"}) for number in range(30)))
    source = "{class_path: Files, init_args: {paths: [few.jsonl]}}"
    (folder / "few.yaml").write_text(f"data: {{tokenizer: 300, val_share: 0.4, sources: [{source}]}}")
    options = ("evaluate", "--checkpoint", "ours/model.ckpt", "--config", "few.yaml", "--json", "true")
    assert call(*options) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["documents"] > 0
    assert "vocabulary" not in said.err
    assert call("prepare", "--config", "few.yaml", "--output", "prepared") == 0
    assert "vocabulary" in capsys.readouterr().err
    assert call(*options, "--data.prepared", "prepared") == 0
    assert capsys.readouterr().out == said.out, "a prepared folder has the same texts"


def test_the_command_reads_the_documents_of_a_config(folder: Path, ours: Any, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(folder)
    lines = [json.dumps({"text": f"{number}. {TEXT[number * 20 : number * 20 + 60]}"}) for number in range(60)]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    source = "{class_path: Files, init_args: {paths: [corpus.jsonl]}}"
    (folder / "data.yaml").write_text(f"data: {{val_share: 0.2, test_share: 0.1, sources: [{source}]}}")
    options = ("evaluate", "--checkpoint", "ours/model.ckpt", "--config", "data.yaml", "--json", "true")
    found = {}
    for split in ("train", "val", "test"):
        assert call(*options, "--split", split) == 0
        found[split] = json.loads(capsys.readouterr().out)
    assert found["train"]["documents"] > found["val"]["documents"] > 0
    assert found["test"]["loss"] != found["val"]["loss"]
    assert sum(each["documents"] for each in found.values()) == 60
    assert call(*options, "--documents", "joined") == 0
    joined = json.loads(capsys.readouterr().out)
    assert joined["tokens"] == found["val"]["tokens"] + found["val"]["documents"] - 1


WRONG = {
    ("--text", "ours"): "text 'ours' cannot be read: it is not a regular file",
    ("--text", "text.txt", "--shots", "-1"): "shots is -1; it must be a whole number from 0 to 1,000",
    ("--text", "text.txt", "--limit", "3"): "limit 3 changes nothing with --text: leave limit out",
    ("--text", "text.txt", "--task_code", "true"): "task_code True changes nothing with --text: leave task_code out",
    ("--text", "text.txt", "--split", "test"): "split 'test' changes nothing with --text: leave split out",
    ("--text", "none.txt"): "text 'none.txt' cannot be read: No such file",
    ("--text", "empty.txt"): "text 'empty.txt' is empty",
    ("--text", "latin.txt"): r"text 'latin.txt' is not UTF-8 text \(byte 1\)",
    ("--text", "text.txt", "--stride", "300"): "stride is 300 and window 256",
    ("--text", "text.txt", "--window", "0"): "window is 0; it must be a whole number",
    ("--text", "text.txt", "--device", "cuda:7"): "device is 'cuda:7'; allowed on this machine: cpu",
    ("--text", "text.txt", "--tasks", "[a]"): "--text and --tasks given; give one of",
    (): "nothing to evaluate; give one of --text, --config or --tasks",
    ("--config", "data.yaml", "--data.eval_tokens", "9"): "data.eval_tokens changes nothing with evaluate: leave",
    ("--config", "data.yaml", "--data.packing=lanes"): "data.packing changes nothing with evaluate: leave data.packing",
    ("--config", "none.yaml"): "config file 'none.yaml' cannot be read",
}


@pytest.mark.parametrize("options", WRONG, ids=" ".join)
def test_wrong_calls_are_refused_in_a_line(
    options: tuple[str, ...], folder: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(folder)
    (folder / "empty.txt").write_text("")
    (folder / "data.yaml").write_text("data: {batch_size: 2}")
    (folder / "latin.txt").write_bytes("né".encode("latin-1"))
    status = call("evaluate", "--checkpoint", "ours/model.ckpt", *options)
    said = capsys.readouterr().err
    assert status == 2
    assert len(said.splitlines()) == 1
    assert re.search(WRONG[options], said), said
