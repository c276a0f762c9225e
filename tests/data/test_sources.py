"""Sources give every document once, in a fixed order, from any position."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from lightning_gpt.data.sources import Files, Hub, PythonReference, Source, WikipediaSlice
from lightning_gpt.errors import CallError, WorkError


def of_text(folder: Path) -> Source:
    (folder / "a.txt").write_text("first", encoding="utf-8")
    (folder / "b.txt").write_text("zweites, mit Umlaut: ä", encoding="utf-8")
    (folder / "c.md").write_text("# third")
    return Files(str(folder))


def of_jsonl(folder: Path) -> Source:
    lines = [json.dumps({"text": text}) for text in ("first", "second", "third")]
    (folder / "x.jsonl").write_text("\n".join(lines[:2]) + "\n\n" + lines[2])
    return Files(str(folder / "*.jsonl"))


def of_parquet(folder: Path) -> Source:
    pyarrow.parquet.write_table(pyarrow.table({"body": [f"row {n}" for n in range(700)]}), folder / "x.parquet")
    return Files(str(folder / "x.parquet"), column="body")


def of_parts(folder: Path) -> Source:
    (folder / "x.txt").write_text("one\n\n\ntwo\n\n\n\n\n\nthree")
    return Files([str(folder / "x.txt")], separator="\n\n\n")


MAKERS = [of_text, of_jsonl, of_parquet, of_parts, lambda _: WikipediaSlice(), lambda _: PythonReference()]


@pytest.mark.parametrize("make", MAKERS)
def test_documents_are_the_same_from_any_position(make: Callable[[Path], Source], tmp_path: Path) -> None:
    source = make(tmp_path)
    everything = list(source.documents())
    assert len(everything) >= 3
    assert list(source.documents()) == everything
    for start in (1, len(everything) // 2, len(everything) - 1, len(everything)):
        assert list(source.documents(start)) == everything[start:]
    assert len({document.origin for document in everything}) == len(everything)


def test_texts_come_as_they_are(tmp_path: Path) -> None:
    assert [document.text for document in of_text(tmp_path).documents()] == [
        "first",
        "zweites, mit Umlaut: ä",
        "# third",
    ]


def test_separator_cuts_and_drops_empty_parts(tmp_path: Path) -> None:
    assert [document.text for document in of_parts(tmp_path).documents()] == ["one", "two", "three"]


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
    from lightning_gpt.data import sources

    monkeypatch.setattr(sources, "_SLICE_NAME", "not-there.bz2")
    sources._wikipedia_slice.cache_clear()
    with pytest.raises(WorkError, match=r"lacks its Wikipedia slice \(not-there.bz2\): install a full wheel"):
        list(WikipediaSlice().documents())
    sources._wikipedia_slice.cache_clear()


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_are_positive(weight: float) -> None:
    with pytest.raises(CallError, match="weight"):
        WikipediaSlice(weight=weight)


def test_hub_reads_the_column_through_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub itself is out of reach in tests; `datasets`' own stream over local records stands for it."""
    import datasets
    import huggingface_hub

    asked = {}

    def load(path: str, subset: str | None, **options: object) -> datasets.IterableDataset:
        asked.update(path=path, subset=subset, **options)
        return datasets.Dataset.from_dict({"text": ["a", "b", "c"]}).to_iterable_dataset()

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", load)
    source = Hub("wikimedia/wikipedia", subset="20231101.en", revision="abc")
    assert [document.text for document in source.documents()] == ["a", "b", "c"]
    assert [document.text for document in source.documents(2)] == ["c"]
    assert asked == {
        "path": "wikimedia/wikipedia",
        "subset": "20231101.en",
        "split": "train",
        "revision": "abc",
        "streaming": True,
    }
    with pytest.raises(CallError, match="no field 'body'; it has 'text'"):
        list(Hub("wikimedia/wikipedia", column="body").documents())
