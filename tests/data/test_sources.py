"""What every source does, and the two that come with the package."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from lightning_gpt.commands.known_code import allow_known_code_only
from lightning_gpt.data.datamodule import TextData
from lightning_gpt.data.sources import embedded
from lightning_gpt.data.sources.base import Document, Source
from lightning_gpt.data.sources.embedded import PythonReference, WikipediaSlice
from lightning_gpt.errors import CallError, WorkError
from lightning_gpt.trust import trust


def is_short(text: str) -> bool:
    """A filter as a user would write it, given by its import path."""
    return len(text) < 6


class Listed(Source):
    """A source of a user's own, that takes every argument of the base."""

    def __init__(self, texts: list[str], **common: Any) -> None:
        super().__init__(**common)
        self.texts = texts

    def documents(self, start: int = 0) -> Iterator[Document]:
        for number, text in enumerate(self.texts[start:], start):
            yield Document(text, f"{self.name}, {number}")


@pytest.mark.parametrize("make", [WikipediaSlice, PythonReference])
def test_documents_are_the_same_from_any_position(make: Callable[[], Source]) -> None:
    source = make()
    everything = list(source.documents())
    assert list(source.documents()) == everything
    for start in (1, len(everything) // 2, len(everything) - 1, len(everything), len(everything) + 5):
        assert list(source.documents(start)) == everything[start:]
    assert len({document.origin for document in everything}) == len(everything)


def test_wikipedia_slice_is_prose() -> None:
    documents = list(WikipediaSlice().documents())
    text = "\n".join(document.text for document in documents)
    assert len(documents) == 106
    assert 2_500_000 < len(text) < 3_000_000
    lines = text.splitlines()
    for debris in ("'''", "==", "[[", "]]", "{{", "}}", "{|", "||", "File:", "( ", "()", " ,", "<ref", "&nbsp;"):
        share = sum(debris in line for line in lines) / len(lines)
        assert share < 0.001, f"{debris!r} in {share:.2%} of the lines"
    assert not any(line.startswith(("*", "#", ":", ";", "|", "!")) for line in lines)
    assert sum("stateless" in line for line in lines) > 0, "the article on Anarchism must be there"


def test_python_reference_is_the_book_that_python_carries() -> None:
    documents = list(PythonReference().documents())
    assert len(documents) > 60
    assert sum(len(document.text) for document in documents) > 400_000
    assert any("with" in document.origin and "context manager" in document.text for document in documents)


def test_a_gensim_without_its_slice_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_SLICE_NAME", "not-there.bz2")
    embedded._wikipedia_slice.cache_clear()
    with pytest.raises(WorkError, match=r"lacks its Wikipedia slice \(not-there.bz2\): install a full wheel"):
        list(WikipediaSlice().documents())
    embedded._wikipedia_slice.cache_clear()


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("weight", 0.0, "source 'wikipedia-slice': weight is 0.0; it must be a positive number"),
        ("weight", -1.0, "weight"),
        ("weight", float("nan"), "weight"),
        ("weight", float("inf"), "weight"),
        (
            "max_tokens",
            0,
            "source 'wikipedia-slice': max_tokens is 0; it must be a whole number from 1 to 1,000,000,000,000,000",
        ),
        ("min_characters", -1, "source 'wikipedia-slice': min_characters is -1; it must be a whole number from 0 to"),
        ("max_passes", 0, "source 'wikipedia-slice': max_passes is 0; it must be a whole number from 1 to"),
    ],
)
def test_wrong_numbers_are_refused(argument: str, value: float, message: str) -> None:
    with pytest.raises(CallError, match=message):
        WikipediaSlice(**{argument: value})  # type: ignore[arg-type]


def test_a_source_is_called_what_its_kind_is_or_what_the_user_says() -> None:
    assert WikipediaSlice().name == "wikipedia-slice"
    assert PythonReference().name == "python-reference"
    assert WikipediaSlice(name="mine").name == "mine"
    assert Listed([]).name == "source"


@pytest.mark.parametrize(
    ("arguments", "accepted"),
    [
        ({}, ["ä", "abcd", "abcdef", " "]),
        ({"min_characters": 4}, ["abcd", "abcdef"]),
        ({"keep": str.isascii}, ["abcd", "abcdef", " "]),
        ({"keep": is_short, "min_characters": 2}, ["abcd"]),
        ({"keep": lambda text: False}, []),
    ],
)
def test_what_is_accepted(arguments: dict[str, Any], accepted: list[str]) -> None:
    texts = ["ä", "", "abcd", "abcdef", " "]
    source = Listed(texts, **arguments)
    assert [text for text in texts if source.accepts(text)] == accepted
    assert [document.text for document in source.documents()] == texts, "the numbers of documents stay what they are"


def test_a_filter_never_sees_what_is_too_short_anyway() -> None:
    source = Listed([], min_characters=1, keep=lambda text: text[0] == "a")
    assert not source.accepts("")
    assert source.accepts("ab")


def test_every_source_takes_every_common_argument_from_a_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_gpt.trust._trusted", [])
    trust([__name__])
    allow_known_code_only()
    (tmp_path / "a.txt").write_text("text")
    common = {"name": "mine", "weight": 2.0, "max_tokens": 10, "min_characters": 3, "max_passes": 4}
    keep = f"{__name__}.is_short"
    own: dict[str, dict[str, Any]] = {
        "WikipediaSlice": {},
        "PythonReference": {},
        "Files": {"paths": str(tmp_path)},
        "Hub": {"path": "json", "data_files": ["http://127.0.0.1/a.jsonl"]},
        f"{__name__}.Listed": {"texts": ["a"]},
    }
    given = [{"class_path": kind, "init_args": {**args, **common, "keep": keep}} for kind, args in own.items()]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TextData, "data")
    config = parser.parse_args(["--data.sources", json.dumps(given)])
    assert parser.dump(config).count(f"keep: {keep}") == len(own), "the saved config must name the function"
    for source in parser.instantiate(config).data.sources:
        assert {argument: getattr(source, argument) for argument in common} == common
        assert source.keep is is_short
