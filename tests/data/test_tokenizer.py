"""Tokenizers: GPT-2's table offline, ranks files, and vocabularies trained here."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gpt.data.sources.embedded import PythonReference
from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.errors import CallError, WorkError
from tests.data.helpers import in_hugging_face


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return Tokenizer.gpt2()


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return Tokenizer.train((document.text for document in PythonReference().documents()), 1000)


def test_gpt2_has_its_published_size_and_ids(gpt2: Tokenizer) -> None:
    assert gpt2.vocab_size == 50257
    assert gpt2.end_of_text == 50256
    # the ids that GPT-2's own release gives these words
    assert gpt2.encode("Hello world").tolist() == [15496, 995]
    assert gpt2.encode(" The quick brown fox jumps over the lazy dog.").tolist() == [
        *(383, 2068, 7586, 21831, 18045, 625, 262, 16931, 3290, 13)
    ]


def test_gpt2_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert Tokenizer.gpt2().encode("offline").size > 0


@given(text=st.text())
def test_decoding_gives_the_text_back(text: str) -> None:
    tokenizer = Tokenizer("bytes", {bytes([byte]): byte for byte in range(256)})
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_trained_vocabulary_loses_nothing(trained: Tokenizer, text: str) -> None:
    assert trained.decode(trained.encode(text)) == text


def test_special_tokens_inside_a_text_are_plain_text(gpt2: Tokenizer) -> None:
    ids = gpt2.encode("a<|endoftext|>b")
    assert gpt2.end_of_text not in ids
    assert gpt2.decode(ids) == "a<|endoftext|>b"


def test_training_is_repeatable_and_gives_the_size_asked_for(trained: Tokenizer) -> None:
    again = Tokenizer.train((document.text for document in PythonReference().documents()), 1000)
    assert trained.vocab_size == 1000
    assert again.fingerprint == trained.fingerprint


def test_trained_vocabulary_encodes_as_tokenizers_does(trained: Tokenizer) -> None:
    """The same table in Hugging Face's own BPE gives the same ids for every document of the corpus."""
    reference = in_hugging_face(trained)
    for document in PythonReference().documents():
        assert trained.encode(document.text).tolist() == reference.encode(document.text).ids, document.origin


def test_a_small_text_gives_fewer_tokens_and_says_so() -> None:
    tokenizer = Tokenizer.train(["aaaa bbbb"], 4096)
    assert 257 < tokenizer.vocab_size < 300
    assert tokenizer.end_of_text == tokenizer.vocab_size - 1


def test_saved_and_loaded_it_is_the_same(trained: Tokenizer, tmp_path: Path) -> None:
    again = Tokenizer.from_file(trained.save(tmp_path / "tokenizer"))
    assert again.fingerprint == trained.fingerprint
    assert again.encode("def f(x): return x").tolist() == trained.encode("def f(x): return x").tolist()


def test_state_for_a_checkpoint_is_plain_and_small(trained: Tokenizer, gpt2: Tokenizer) -> None:
    state = json.loads(json.dumps(trained.state_dict()))
    assert Tokenizer.from_state_dict(state).fingerprint == trained.fingerprint
    assert len(json.dumps(gpt2.state_dict())) < 100, "GPT-2's table is in the package and need not be copied"
    assert Tokenizer.from_state_dict(gpt2.state_dict()).fingerprint == gpt2.fingerprint


@pytest.mark.parametrize("table", [b"", b"YQ== 0\n", b"no table", b"YQ== x\n"])
def test_a_file_that_is_no_table_is_refused(table: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.tiktoken").write_bytes(table)
    with pytest.raises(CallError, match=r"x\.tiktoken"):
        Tokenizer.from_file(tmp_path / "x.tiktoken")


@pytest.mark.parametrize(("name", "end_of_text"), [("cl100k_base", 100257), ("o200k_base", 199999)])
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_later_encodings_split_words_as_tiktoken_does(
    trained: Tokenizer, tmp_path_factory: pytest.TempPathFactory, name: str, end_of_text: int, text: str
) -> None:
    """Over a small table under their name, since theirs cannot be had offline."""
    import tiktoken
    from tiktoken_ext import openai_public

    file = tmp_path_factory.getbasetemp() / f"{name}.tiktoken"
    file.write_text(trained.table)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: trained.ranks)
        published = tiktoken.Encoding(**getattr(openai_public, name)())
    tokenizer = Tokenizer.from_file(file)
    assert tokenizer.end_of_text == published.eot_token == end_of_text
    for example in (text, "I'LL pay 12345 euros,\n\n  it's DonE/ \r\n now" + text):
        assert tokenizer.encode(example).tolist() == published.encode_ordinary(example)
    again = Tokenizer.from_state_dict(tokenizer.state_dict())
    assert again.fingerprint == tokenizer.fingerprint != trained.fingerprint
    assert again.end_of_text == end_of_text


def test_ids_that_the_table_does_not_use_are_no_text(trained: Tokenizer) -> None:
    assert trained.decode([*trained.encode("abc"), 5000]) == "abc"


def test_more_spaces_in_a_row_than_can_be_read_are_told_with_their_number() -> None:
    with pytest.raises(WorkError, match=r"1,200,000 spaces, tabs or line ends in a row are more than"):
        Tokenizer.gpt2().encode_document("a" + 1_200_000 * " " + "b")
