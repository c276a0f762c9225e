"""Published tokenizers in, and ours out, beside the library's own, on texts made to break them."""

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_gpt.checkpoint import Checkpoint
from lightning_gpt.data.published_tokenizer import PublishedTokenizer
from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.errors import CallError
from lightning_gpt.inference import prompt_ids
from lightning_gpt.interop.tokenizers import published_files
from lightning_gpt.models import GPT, GPTConfig
from tests.inference.published import publish
from tests.interop.published import make
from tests.interop.published_tokenizers import CORPUS, FUZZ, byte_level, save
from tests.processes import must_run, run_command

KINDS = ["gpt2", "smollm2", "llama3", "qwen", "fallback", "gemma"]


@pytest.fixture(scope="module", params=KINDS)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer of each kind, as transformers saves it."""
    return save(request.param, tmp_path_factory.mktemp("tokenizers") / request.param)


def test_ids_and_text_are_the_published_ones(published: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(published)
    ours = Tokenizer.from_file(published / "tokenizer.json")
    assert ours.end_of_text == theirs.eos_token_id
    for text in FUZZ:
        ids = ours.encode(text).tolist()
        assert ids == theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids, repr(text)
        expected = theirs.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        decoded = ours.decode(ids)
        assert decoded == expected, repr(text)
        assert ours.end_of_text not in ids
        assert sum(ours.byte_lengths[ids]) == len(b"".join(map(ours.decode_bytes, ids)))
        if published.name in ("gpt2", "smollm2", "llama3"):  # without a normaliser, nothing is lost
            assert decoded == text
        if published.name == "qwen":
            assert decoded == unicodedata.normalize("NFC", text)


def test_a_tokenizer_comes_back_out_of_every_place_that_keeps_it(published: Path, tmp_path: Path) -> None:
    first = Tokenizer.from_file(published / "tokenizer.json")
    others = [Tokenizer.from_state_dict(first.state_dict()), Tokenizer.named(str(first.save(tmp_path)))]
    for other in others:
        assert isinstance(other, PublishedTokenizer)
        assert other.fingerprint == first.fingerprint
        assert other.state_dict() == first.state_dict()
        document = other.encode_document("a b c")
        assert document[-1] == first.end_of_text
        assert document.dtype == first.token_type
    files = published_files(first)
    assert {name: text for name, text in files.items() if (published / name).read_text() != text} == {}


def test_a_prompt_begins_as_the_published_model_expects(published: Path) -> None:
    tokenizer = Tokenizer.from_file(published / "tokenizer.json")
    theirs = AutoTokenizer.from_pretrained(published)
    model = GPT(GPTConfig(n_layer=1, dim=16, vocab_size=tokenizer.vocab_size))
    assert prompt_ids(model, tokenizer, "a b").tolist() == theirs("a b").input_ids
    begin = list(tokenizer.start)
    assert prompt_ids(model, tokenizer, "").tolist() == (begin or [tokenizer.end_of_text])
    assert bool(begin) == (published.name in ("llama3", "fallback", "gemma"))


@pytest.mark.parametrize("kind", ["gpt2", "trained", "cl100k_base"])
def test_our_tokenizers_are_the_same_in_transformers(kind: str, tmp_path: Path) -> None:
    trained = Tokenizer.train(CORPUS, 700)
    ours = {"gpt2": Tokenizer.gpt2, "trained": lambda: trained, "cl100k_base": lambda: Tokenizer(kind, trained.ranks)}
    tokenizer = ours[kind]()
    for name, text in published_files(tokenizer).items():
        (tmp_path / name).write_text(text, "utf-8")
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.eos_token, theirs.eos_token_id) == ("<|endoftext|>", tokenizer.end_of_text)
    for text in FUZZ:
        ids = tokenizer.encode(text).tolist()
        assert theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids == ids, repr(text)
        assert theirs.decode(ids, clean_up_tokenization_spaces=False) == text


def test_the_command_takes_the_tokenizer_along_both_ways(tmp_path: Path) -> None:
    """Also where the model has more ids than the tokenizer, as most published ones have."""
    published = save("smollm2", tmp_path / "smollm2")
    folder = make("llama", tmp_path / "there", vocab_size=760)
    for file in published.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    must_run("convert", "--source", "there", "--output", "ours", cwd=tmp_path)
    out = ["convert", "--source", "ours/model.ckpt", "--output", "back", "--compare", "false"]
    must_run(*out, cwd=tmp_path, fresh=True)
    tokenizer = Checkpoint.read(tmp_path / "ours" / "model.ckpt").tokenizer()
    assert tokenizer.vocab_size == 760
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (published / name).read_bytes()
    out[out.index("back")] = "without"
    must_run(*out, "--tokenizer", "false", cwd=tmp_path)
    assert not any((tmp_path / "without" / file.name).exists() for file in published.iterdir())
    described = json.loads((tmp_path / "without" / "config.json").read_text())
    assert described["eos_token_id"] == tokenizer.end_of_text
    greedy = ["--checkpoint", "ours/model.ckpt", "--prompt", "def f", "--strategy", "greedy", "--max_new_tokens", "9"]
    said = must_run("generate", *greedy, cwd=tmp_path).stdout
    theirs = AutoTokenizer.from_pretrained(tmp_path / "back")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    ids = model.generate(**theirs("def f", return_tensors="pt"), max_new_tokens=9, do_sample=False)
    assert said.rstrip("\n") == theirs.decode(ids[0], skip_special_tokens=True).rstrip("\n")


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_a_text_ends_at_every_token_that_the_model_names(file: str, tmp_path: Path) -> None:
    """As the chats of Llama 3 and Qwen do: at the end of a turn, too."""
    folder = publish(tmp_path / "there")
    words, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    read = words("def f", return_tensors="pt")
    beyond = model.generate(**read, max_new_tokens=12, do_sample=False, eos_token_id=None)[0, read.input_ids.shape[1] :]
    turn = int(next(token for place, token in enumerate(beyond) if place > 2 and token not in beyond[:place]))
    described = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**described, "eos_token_id": [words.eos_token_id, turn]}))
    if file == "config.json":
        (folder / "generation_config.json").unlink()
    must_run("convert", "--source", "there", "--output", "ours", cwd=tmp_path)
    must_run("convert", "--source", "ours", "--output", "back", cwd=tmp_path)
    for place in ("there", "back"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / place).eval()
        theirs = model.generate(**read, max_new_tokens=12, do_sample=False)[0]
        assert theirs[-1] == turn
        assert len(theirs) < read.input_ids.shape[1] + 12
    greedy = ["--checkpoint", "ours/model.ckpt", "--prompt", "def f", "--strategy", "greedy", "--max_new_tokens", "12"]
    assert must_run("generate", *greedy, cwd=tmp_path).stdout == words.decode(theirs[:-1]) + "\n"
    tokenizer = Checkpoint.read(tmp_path / "ours/model.ckpt").tokenizer()
    assert (tokenizer.end_of_text, tokenizer.ends) == (words.eos_token_id, (words.eos_token_id, turn))


def test_a_converted_model_is_validated_with_the_config_beside_it(tmp_path: Path) -> None:
    """There is no training in it to resume."""
    published = save("smollm2", tmp_path / "smollm2")
    folder = make("llama", tmp_path / "there", vocab_size=760)
    for file in published.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(CORPUS[:6]):
        (tmp_path / "texts" / f"{number}.txt").write_text(text[:3000])
    must_run("convert", "--source", "there", "--output", "ours", "--compare", "false", cwd=tmp_path)
    source = json.dumps([{"class_path": "Files", "init_args": {"paths": "texts/*.txt"}}])
    run = ["--config", "ours/model.yaml", "--ckpt_path", "ours/model.ckpt", "--data.sources", source]
    exact = ["--trainer.precision", "32-true", "--data.split_by", "position", "--trainer.logger", "false"]
    said = must_run("validate", *run, *exact, cwd=tmp_path).stdout
    loss = float(re.search(r"val/loss\s+([\d.]+)", said)[1])
    assert 5.5 < loss < 8  # ln 760 = 6.6: the weights are random
    refused = run_command("fit", *run, cwd=tmp_path)
    assert refused.returncode == 2
    assert "holds only a model, as convert writes it, so there is no run to resume" in refused.stderr


def test_a_tokenizer_without_a_known_end_is_refused(tmp_path: Path) -> None:
    fast = byte_level("gpt2")
    described = json.loads(fast.to_str())
    described["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(CallError, match=r"no token of .* is known to end a text: name the eos_token in a"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    "change",
    [
        lambda described: described.pop("model"),
        lambda described: described["model"].pop("vocab"),
        lambda described: described["model"]["vocab"].update(word="1"),
        lambda described: described.update(added_tokens=["<|endoftext|>"]),
        lambda described: described["added_tokens"][0].pop("content"),
        lambda described: described.update(files={}, name="x"),
    ],
    ids=["no model", "no vocab", "an id that is none", "tokens without ids", "a token without content", "half of ours"],
)
def test_a_file_that_is_no_tokenizer_is_refused_in_one_line(change: Any, tmp_path: Path) -> None:
    described = json.loads(byte_level("smollm2").to_str())
    change(described)
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(CallError, match=r"tokenizer\.json is not a tokenizer") as refused:
        Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert "\n" not in str(refused.value)


def test_a_model_trained_here_with_a_published_tokenizer_goes_out(tmp_path: Path) -> None:
    """From a prepared corpus, which keeps the tokenizer, through a training to a folder of GPT-2's family."""
    published = save("smollm2", tmp_path / "smollm2")
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(CORPUS):
        (tmp_path / "texts" / f"{number}.txt").write_text(text[:2000])
    sources = [{"class_path": "Files", "init_args": {"paths": "texts/*.txt"}}]
    config = {"data": {"sources": sources, "tokenizer": "smollm2/tokenizer.json"}}
    (tmp_path / "data.yaml").write_text(json.dumps(config))
    data = ["--config", "data.yaml"]
    must_run("prepare", *data, "--output", "corpus", cwd=tmp_path)
    sizes = {"n_layer": 1, "n_head": 2, "dim": 16, "block_size": 32}
    model = [part for name, value in sizes.items() for part in (f"--model.{name}", str(value))]
    trained = ["--trainer.max_steps", "2", "--trainer.limit_val_batches", "0", "--name", "here"]
    must_run("fit", *data, "--data.prepared", "corpus", *model, *trained, cwd=tmp_path)
    checkpoint = "runs/here/version_0/checkpoints/last.ckpt"
    said = must_run("convert", "--source", checkpoint, "--output", "out", cwd=tmp_path).stdout
    assert "written as gpt2 (GPT2LMHeadModel)" in said
    assert "100.0% of first choices agree" in said
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (published / "tokenizer.json").read_bytes()
