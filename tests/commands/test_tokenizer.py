"""``tokenizer``: the vocabulary that fit would train, in a file, encoding as Hugging Face's ``tokenizers`` does."""

import random
import re
from pathlib import Path

import pytest

from lightning_gpt.data.datamodule import TextData
from lightning_gpt.data.sources.embedded import PythonReference, WikipediaSlice
from lightning_gpt.data.sources.files import Files
from lightning_gpt.data.tokenizer import Tokenizer
from tests.commands.prepare_helpers import config_of, main_here
from tests.data.helpers import in_hugging_face
from tests.processes import must_run, tiny_corpus


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_corpus(tmp_path / "corpus.jsonl")
    config_of(tmp_path / "config.yaml", "corpus.jsonl", tokenizer="gpt2")
    (tmp_path / "empty.jsonl").write_text('{"text": "a single document"}\n')
    config_of(tmp_path / "single.yaml", "empty.jsonl", val_share=0.0)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(output: str, vocab_size: int | str = 300, config: str = "config.yaml") -> tuple[str, ...]:
    return ("tokenizer", "--config", config, "--vocab_size", str(vocab_size), "--output", output)


def test_it_is_the_vocabulary_of_fit(folder: Path) -> None:
    done = must_run(*call("vocabularies"), cwd=folder, fresh=True)
    written = Tokenizer.from_file(folder / "vocabularies/bpe-300.tiktoken")
    data = TextData([Files("corpus.jsonl")], tokenizer=300, val_share=0.1, test_share=0.1)
    data.setup("fit")
    assert written.fingerprint == data.tokenizer.fingerprint
    texts = list(data.texts("val"))
    measured = sum(len(text.encode()) for text in texts) / sum(len(written.encode(text)) for text in texts)
    assert done.stdout == (
        f"vocabularies/bpe-300.tiktoken: 300 tokens, {measured:.3f} bytes per token on {len(texts)} validation "
        f"documents\n"
    )


@pytest.mark.parametrize("size", [257, 258, 270])
def test_small_vocabularies(folder: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    status, line = main_here(monkeypatch, *call("x", size))
    assert status == 0
    measured = re.fullmatch(rf"x/bpe-{size}.tiktoken: {size} tokens, (\d\.\d{{3}}) bytes per token on \d+ .*", line)
    assert measured
    assert (float(measured[1]) == 1) == (size == 257)
    assert Tokenizer.from_file(folder / f"x/bpe-{size}.tiktoken").vocab_size == size


def test_a_small_corpus_gives_a_smaller_vocabulary_named_for_what_it_has(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _, line = main_here(monkeypatch, *call("x", 5000, "single.yaml"))
    assert "the text yields no more tokens than that; 5,000 were asked for" in capfd.readouterr().err
    found = re.fullmatch(
        r"x/bpe-(\d+).tiktoken: (\d+) tokens, no validation documents to measure bytes per token on", line
    )
    assert found
    assert found[1] == found[2]
    assert Tokenizer.from_file(folder / f"x/bpe-{found[1]}.tiktoken").vocab_size == int(found[1])


# what is typed, and a pattern that the one line must hold
CASES = {
    "too small": (call("x", 256), r"vocab_size is 256; it must be a whole number from 257 to 1,048,576"),
    "no name for the output": (call(""), r"output is ''; it must be the name of a folder"),
    "the section's tokenizer": (
        (*call("x"), "--data.tokenizer", "500"),
        r"data.tokenizer changes nothing with tokenizer: leave data.tokenizer out",
    ),
    "prepared data": ((*call("x"), "--data.prepared=y"), r"data.prepared changes nothing with tokenizer"),
    "text for a size": (call("x", "many"), r"vocab_size is 'many'; allowed: a whole number"),
    "no size": (("tokenizer", "--config", "config.yaml", "--output", "x"), r"required and missing: --vocab_size"),
    "no output": (("tokenizer", "--config", "config.yaml", "--vocab_size", "300"), r"required and missing: --output"),
    "missing config": (call("x", config="nope.yaml"), r"config file 'nope.yaml' cannot be read: No such file"),
    "no text": (call("x", config="void.yaml"), r"'void' has no training document: none of the 1 documents read"),
    "existing smaller file": (
        call("there", 5000, "small.yaml"),
        r"the text yields only 262 tokens, and there/bpe-262.tiktoken exists; delete it first",
    ),
    "existing file": (call("there"), r"there/bpe-300.tiktoken exists; choose another output, or delete it"),
}


@pytest.mark.parametrize("name", CASES)
def test_wrong_call(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "there").mkdir()
    for size in (262, 300):
        (folder / f"there/bpe-{size}.tiktoken").touch()
    (folder / "void.jsonl").write_text('{"text": ""}\n')
    config_of(folder / "void.yaml", "void.jsonl")
    (folder / "small.txt").write_text("abcabcabc abcabc")
    config_of(folder / "small.yaml", "small.txt", val_share=0.0, test_share=0.0)
    args, pattern = CASES[name]
    status, line = main_here(monkeypatch, *args)
    assert status == 2
    assert re.search(pattern, line), line
    assert not (folder / "x").exists()


def test_an_output_that_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, line = main_here(monkeypatch, *call("corpus.jsonl"))
    assert (status, line) == (2, "error: output 'corpus.jsonl' cannot be used as a folder: File exists")


def test_ten_thousand_documents_are_encoded_as_tokenizers_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "embedded.yaml").write_text("data:\n  batch_size: 8\n")
    assert main_here(monkeypatch, *call("x", 2000, "embedded.yaml"))[0] == 0
    trained = Tokenizer.from_file(tmp_path / "x/bpe-2000.tiktoken")
    draw = random.Random(0)
    corpus = [document.text for source in (WikipediaSlice(), PythonReference()) for document in source.documents()]
    documents = []
    for _ in range(9_000):
        text = draw.choice(corpus)
        start = draw.randrange(len(text))
        documents.append(text[start : start + draw.randint(1, 400)])
    planes = [(0x20, 0x7F), (0xA0, 0x24F), (0x300, 0x36F), (0x600, 0x6FF), (0x2000, 0x20CF), (0x4E00, 0x9FFF)]
    planes += [(0xE000, 0xFFFF), (0x1F300, 0x1F6FF), (0x20000, 0x2A6DF), (0x00, 0x1F)]
    for _ in range(1_000):
        low, high = draw.choice(planes)
        documents.append("".join(chr(draw.randint(low, high)) + draw.choice(["", " ", "\n", "'s"]) for _ in range(60)))
    expected = in_hugging_face(trained).encode_batch(documents)
    for document, encoding in zip(documents, expected, strict=True):
        assert trained.encode(document).tolist() == encoding.ids, repr(document)
