"""``inspect`` as it is typed: tables, files and the change in loss of ablations. The page has its own tests."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_gpt.analysis import page
from lightning_gpt.analysis.interventions import Part, ablated_loss, text_loss
from lightning_gpt.checkpoint import MODEL_KEY
from lightning_gpt.commands.inspect import inspect
from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig, LanguageModel
from tests.models.helpers import randomise
from tests.processes import must_run, run_command

TEXT = "abc def, ghi $x_1$ </script>"


def save(model: LanguageModel, tokenizer: Tokenizer, path: Path) -> Path:
    """A checkpoint of the entries that fit writes and ``inspect`` reads."""
    weights = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    described = {MODEL_KEY: model.describe(), "state_dict": weights}
    torch.save({**described, "TextData": {"tokenizer": tokenizer.state_dict()}}, path)
    return path


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer("bytes", {bytes([b]): b for b in range(256)})


@pytest.fixture(scope="module")
def model() -> GPT:
    config = GPTConfig(n_layer=2, n_head=2, dim=16, block_size=64, vocab_size=257)
    return randomise(GPT(config)).eval()


@pytest.fixture(scope="module")
def checkpoint(model: GPT, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(model, tokenizer, tmp_path_factory.mktemp("inspect") / "last.ckpt")


def ids_of(tokenizer: Tokenizer) -> torch.Tensor:
    return torch.from_numpy(tokenizer.encode(TEXT)).long()[None]


def test_it_shows_and_saves_the_three_matrices(model: GPT, tokenizer: Tokenizer, checkpoint: Path) -> None:
    call = ("--checkpoint", "last.ckpt", "--text", "abc def", "--layer", "1", "--head", "1", "--output", "look")
    done = must_run("inspect", *call, cwd=checkpoint.parent, fresh=True)
    for title in ("causal mask", "scaled scores", "softmax, layer 1, head 1"):
        assert title in done.stdout
    saved = np.load(checkpoint.parent / "look/attention.npz")
    ids = torch.from_numpy(tokenizer.encode("abc def")).long()[None]
    with torch.no_grad(), model.record() as trace:
        model(ids)
    for layer in range(2):
        for name in ("scores", "pattern"):
            recorded = trace[f"attention.{name}", layer][0].numpy()
            np.testing.assert_allclose(saved[name][layer], recorded, atol=1e-6)
        for head in range(2):
            assert saved["mask"][layer, head].tolist() == np.tril(np.ones((7, 7), dtype=bool)).tolist()
    printed = saved["pattern"][1, 1][-1]
    assert all(f"{value:.3f}" in done.stdout for value in printed)
    for picture in ("heads.png", "layer1_head1.png"):
        assert (checkpoint.parent / "look" / picture).read_bytes().startswith(b"\x89PNG")
    assert (checkpoint.parent / "look/index.html").read_text().startswith("<!doctype html>")
    assert done.stdout.splitlines()[-1] == "page:     look/index.html"


def test_without_checkpoint_it_shows_a_fresh_head_near_uniform(tmp_path: Path) -> None:
    must_run("inspect", "--text", "The city was founded", cwd=tmp_path)
    pattern = np.load(tmp_path / "inspect/attention.npz")["pattern"][0, 0]
    for row in range(len(pattern)):
        np.testing.assert_allclose(pattern[row, : row + 1], 1 / (row + 1), rtol=0.2)


def call(checkpoint: Path, tmp_path: Path, **options: Any) -> None:
    text = {} if "ids" in options else {"text": TEXT}
    inspect(**{"checkpoint": str(checkpoint), **text, "output": str(tmp_path / "look"), **options})


@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_ablating_parts_says_the_change_in_loss(
    kind: Any, model: GPT, tokenizer: Tokenizer, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(checkpoint, tmp_path, ablate="1.0,0.ffn", ablation=kind)
    said = capsys.readouterr().out
    ids = ids_of(tokenizer)
    before = text_loss(model, ids)
    assert f"loss on the text: {before:.6f} nats" in said
    for name, parts in {
        "1.0": [Part(1, 0)],
        "0.ffn": [Part(0, None)],
        "1.0 + 0.ffn": [Part(1, 0), Part(0, None)],
    }.items():
        after = ablated_loss(model, ids, parts, kind)
        values = f"{after:.6f}  {after - before:+.6f}"
        assert re.search(rf"^  {re.escape(name)} +{re.escape(values)}$", said, re.M)


def test_ablating_all_gives_a_table_a_picture_and_a_file(
    model: GPT, tokenizer: Tokenizer, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(checkpoint, tmp_path, ablate="all")
    said = capsys.readouterr().out
    with (tmp_path / "look/ablation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["part"] for row in rows] == ["0.0", "0.1", "0.ffn", "1.0", "1.1", "1.ffn"]
    ids = ids_of(tokenizer)
    for row in rows:
        change = ablated_loss(model, ids, [Part.parse(row["part"])]) - text_loss(model, ids)
        assert float(row["change_in_loss"]) == pytest.approx(change, abs=1e-12)
        assert f"{change:+.3f}" in said
    assert (tmp_path / "look/ablation.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("n_layer", [2, 6])
def test_ablating_all_shows_each_figure_beside_its_layer(
    n_layer: int, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every second layer has no FFN."""
    config = GPTConfig(n_layer=n_layer, n_head=2, dim=16, block_size=64, vocab_size=257, ffn=["gelu", "none"])
    call(save(randomise(GPT(config)), tokenizer, tmp_path / "last.ckpt"), tmp_path, ablate="all")
    with (tmp_path / "look/ablation.csv").open() as file:
        change = {row["part"]: float(row["change_in_loss"]) for row in csv.DictReader(file)}
    assert len(change) == 5 * n_layer // 2
    parts = [[f"{layer}.{name}" for name in ("0", "1", "ffn")] for layer in range(n_layer)]
    said = capsys.readouterr().out.partition("change in loss (nats)")[2].splitlines()[1:]
    assert said[0].split() == ["layer", "0", "1", "ffn"]
    for layer, names in enumerate(parts):
        cells = [f"{change[name]:+.3f}" if name in change else "–" for name in names]
        assert said[1 + layer].split() == [str(layer), *cells]
    data = re.search(r'id="data">(.*?)</script>', (tmp_path / "look/index.html").read_text())
    assert data
    assert json.loads(data[1])["ablated"]["change"] == [[change.get(name) for name in names] for names in parts]


def test_files_that_no_inspect_has_written_are_not_replaced(checkpoint: Path, tmp_path: Path) -> None:
    look = tmp_path / "look"
    look.mkdir()
    for name in ("index.html", "heads.png", "attention.npz", "ablation.csv"):
        (look / name).write_text("mine")
        with pytest.raises(
            CallError, match=rf"{name}' exists and does not bear the mark of inspect; choose another output"
        ):
            call(checkpoint, tmp_path, ablate="all")
        assert [file.read_text() for file in look.iterdir()] == ["mine"]
        (look / name).unlink()
    call(checkpoint, tmp_path, ablate="all", page_layers=[])
    call(checkpoint, tmp_path, ablate="all")
    call(checkpoint, tmp_path, layer=1, ablate="all")
    (look / "index.html").write_text("mine")
    with pytest.raises(CallError, match=r"index.html' exists and does not bear the mark of inspect"):
        call(checkpoint, tmp_path)
    call(checkpoint, tmp_path, page_layers=[])
    assert (look / "index.html").read_text() == "mine"


def test_the_columns_that_are_printed_are_whole(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    call(checkpoint, tmp_path, page_layers=[])
    said = capsys.readouterr().out
    assert "…" not in said
    shown = re.search(r"the first 12 rows and (\d+) columns of 28 x 28 are shown; the files contain all", said)
    assert shown
    assert 3 <= int(shown[1]) < 12


def test_page_layers_choose_what_the_page_holds_or_leave_it_out(checkpoint: Path, tmp_path: Path) -> None:
    call(checkpoint, tmp_path, page_layers=[])
    assert not (tmp_path / "look/index.html").exists()
    call(checkpoint, tmp_path, page_layers=[1])
    assert '"layers": [1]' in (tmp_path / "look/index.html").read_text()


def test_the_page_names_the_width_that_scores_are_divided_by(tokenizer: Tokenizer, tmp_path: Path) -> None:
    latent = {"kind": "latent", "kv_rank": 4, "head_dim": 6, "rope_dim": 4}
    config = GPTConfig(n_layer=1, n_head=2, dim=16, block_size=64, vocab_size=257, attention=latent, position="rotary")
    call(save(GPT(config), tokenizer, tmp_path / "last.ckpt"), tmp_path)
    assert '"headDim": 10' in (tmp_path / "look/index.html").read_text()


def test_attention_without_scores_is_refused_in_a_line(tokenizer: Tokenizer, tmp_path: Path) -> None:
    pattern = ["full", "delta_net"]
    config = GPTConfig(n_layer=2, n_head=2, dim=16, block_size=64, vocab_size=257, attention=pattern)
    with pytest.raises(CallError, match="layers without softmax attention: 1; they have no mask, scores and softmax"):
        call(save(GPT(config), tokenizer, tmp_path / "last.ckpt"), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 2}, r"layer is 2; this model has 2 layers \(allowed: 0 to 1\)"),
        ({"head": -1}, r"head is -1; this model has 2 heads \(allowed: 0 to 1\)"),
        (
            {"ablate": "2.0"},
            r"the model has no part 2.0; it has 2 layers with 2 heads \(allowed: 0.0 to 1.1, or LAYER.ffn\)",
        ),
        ({"ablate": "0.0,all"}, r"'all' is not a part of a model"),
        ({"ablate": "0.0", "ids": [7]}, r"the text has 1 token and a loss needs 2"),
        ({"ids": []}, r"ids is \[\]; give at least one token id, or a text"),
        ({"ids": [300]}, r"id 300 is outside the vocabulary of 257"),
        ({"text": "x" * 65}, r"65 tokens .* 64"),
        ({"text": "x", "ids": [7, 8]}, r"text 'x' changes nothing with ids: leave text out"),
        ({"seed": 1}, r"seed 1 changes nothing with a checkpoint: leave seed out"),
        ({"ablation": "mean"}, r"ablation 'mean' changes nothing with no ablate: leave ablation out"),
        ({"ablate": "0.0,1.0,0.0"}, r"ablate has 0.0 twice: leave one of them out"),
        ({"page_layers": [0, 0]}, r"page_layers has 0 twice: leave one of them out"),
        ({"text": "caf\udce9"}, r"text is not UTF-8 text \(character 4\)"),
        ({"output": ""}, r"output is ''; it must be the name of a folder"),
        ({"page_layers": [0, 2]}, r"page_layers has 2; this model has 2 layers \(allowed: 0 to 1\)"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_is_written(
    options: dict[str, Any], message: str, checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(CallError, match=message):
        call(checkpoint, tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_would_be_too_large_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "MOST_BYTES", 20_000)  # a layer is 4 · 2 · 28² + 2 · 7 · 28 · 16
    with pytest.raises(CallError, match="choose at most 1 with page_layers"):
        call(checkpoint, tmp_path)
    call(checkpoint, tmp_path, page_layers=[1])


def test_the_output_that_is_a_file_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "look").write_text("")
    with pytest.raises(CallError, match=r"output '.*look' cannot be used as a folder: File exists"):
        call(checkpoint, tmp_path)


def test_an_unknown_kind_of_ablation_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    done = run_command("inspect", "--ablate", "0.0", "--ablation", "median", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: ablation is 'median'; allowed: 'zero', 'mean'"


def test_a_part_with_a_head_of_two_digits_is_not_read_as_a_number(tmp_path: Path) -> None:
    done = run_command("inspect", "--ablate", "3.10", cwd=tmp_path)
    assert "the model has no part 3.10;" in done.stderr
