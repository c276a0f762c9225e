"""Local files: every document once, in a fixed order, from any position, and one line for what is broken."""

import bz2
import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gpt.data.sources import files
from lightning_gpt.data.sources.files import Files, without_licence
from lightning_gpt.errors import CallError, WorkError


def as_jsonl(texts: list[str], column: str = "text") -> bytes:
    lines = [json.dumps({column: text}) for text in texts]
    return "\n".join([*lines[:2], "", "  ", *lines[2:]]).encode()  # blank lines are no documents


def zstd(raw: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(raw)
    return sink.getvalue().to_pybytes()


def write_parquet(path: Path, texts: list[Any], column: str = "text", **options: Any) -> None:
    table = pyarrow.table({"id": list(range(len(texts))), column: texts})
    pyarrow.parquet.write_table(table, path, **options)


def dump_of(titles: list[str]) -> bytes:
    prose = "A sentence of an article that is long enough. " * 8
    pages = [
        f"<page><title>{title}</title><ns>0</ns><id>1</id><revision><id>2</id><text>{prose}</text></revision></page>"
        for title in titles
    ]
    namespace = "http://www.mediawiki.org/xml/export-0.10/"
    return bz2.compress(f'<mediawiki xmlns="{namespace}">{"".join(pages)}</mediawiki>'.encode())


def of_text(folder: Path) -> Files:
    (folder / "a.txt").write_text("first", encoding="utf-8")
    (folder / "b.txt").write_text("  \n ")  # no document
    (folder / "c.txt").write_text("zweites, mit Umlaut: ä", encoding="utf-8")
    (folder / "d.md").write_text("# third")
    return Files(str(folder))


def of_parts(folder: Path) -> Files:
    (folder / "x.txt").write_text("one\n\n\ntwo\n\n\n\n\n\nthree")
    (folder / "y.txt").write_text("four\n\n\n  ")
    return Files([str(folder / "x.txt"), str(folder / "y.txt")], separator="\n\n\n")


def of_jsonl(folder: Path) -> Files:
    (folder / "x.jsonl").write_bytes(as_jsonl(["first", "second", "third"]))
    (folder / "y.jsonl").write_bytes(b"")
    (folder / "z.jsonl").write_bytes(as_jsonl(["fourth"]))
    return Files(str(folder / "*.jsonl"))


def of_compressed(folder: Path) -> Files:
    (folder / "x.jsonl.gz").write_bytes(gzip.compress(as_jsonl(["first", "second", "third"])))
    # two members, as `cat a.gz b.gz` leaves them
    (folder / "y.jsonl.gz").write_bytes(
        gzip.compress(as_jsonl(["fourth"]) + b"\n") + gzip.compress(as_jsonl(["fifth"]))
    )
    (folder / "z.jsonl.zst").write_bytes(zstd(as_jsonl(["sixth", "seventh", "eighth"])))
    return Files(str(folder))


def of_parquet(folder: Path) -> Files:
    write_parquet(folder / "x.parquet", [f"row {n}" for n in range(700)], "body", row_group_size=300)
    write_parquet(folder / "y.parquet", [], "body")
    write_parquet(folder / "z.parquet", [f"last {n}" for n in range(3)], "body")
    return Files(str(folder), column="body")


def of_dump(folder: Path) -> Files:
    (folder / "x.xml.bz2").write_bytes(dump_of(["One", "Two", "Three"]))
    return Files(str(folder / "x.xml.bz2"))


def of_everything(folder: Path) -> Files:
    for make in (of_text, of_jsonl, of_compressed, of_dump):
        make(folder)
    write_parquet(folder / "p.parquet", [f"row {n}" for n in range(10)], row_group_size=4)
    return Files(str(folder))


@pytest.mark.parametrize(
    "make",
    [of_text, of_parts, of_jsonl, of_compressed, of_parquet, of_dump, of_everything],
    ids=lambda make: make.__name__,
)
def test_documents_are_the_same_from_any_position(make: Callable[[Path], Files], tmp_path: Path) -> None:
    source = make(tmp_path)
    everything = list(source.documents())
    assert len(everything) >= 3
    assert list(source.documents()) == everything
    starts = range(len(everything) + 2) if len(everything) < 50 else (1, 255, 256, 299, 300, 301, 600, 700, 702, 703)
    for start in starts:
        assert list(source.documents(start)) == everything[start:], start
    assert len({document.origin for document in everything}) == len(everything)


@given(
    contents=st.lists(
        st.tuples(
            st.sampled_from([".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"]), st.lists(st.text(max_size=6))
        ),
        min_size=1,
        max_size=4,
    ),
    start=st.integers(0, 30),
    group=st.integers(1, 4),
    separator=st.sampled_from([None, "a", "\n"]),
)
def test_any_mix_of_files_from_any_position(
    contents: list[tuple[str, list[str]]],
    start: int,
    group: int,
    separator: str | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("mix")
    expected = []
    for number, (suffix, texts) in enumerate(contents):
        path = folder / f"{number}{suffix}"
        if suffix == ".txt":
            text = "".join(texts).encode("utf-8", "replace").decode()
            path.write_bytes(text.encode())
            expected += [piece for piece in ([text] if separator is None else text.split(separator)) if piece.strip()]
            continue
        expected += texts
        if suffix == ".parquet":
            write_parquet(path, texts, row_group_size=group)
        else:
            compress = {".jsonl": bytes, ".jsonl.gz": gzip.compress, ".jsonl.zst": zstd}[suffix]
            path.write_bytes(compress(as_jsonl(texts)))
    source = Files(str(folder), separator=separator)
    assert [document.text for document in source.documents(start)] == expected[start:]


def test_texts_come_as_they_are(tmp_path: Path) -> None:
    texts = [document.text for document in of_text(tmp_path).documents()]
    assert texts == ["first", "zweites, mit Umlaut: ä", "# third"]


def test_separator_cuts_and_drops_empty_parts(tmp_path: Path) -> None:
    assert [document.text for document in of_parts(tmp_path).documents()] == ["one", "two", "three", "four"]


def test_origins_name_the_file_and_the_place_in_it(tmp_path: Path) -> None:
    origins = [document.origin for document in of_everything(tmp_path).documents()]
    ends = [origin.removeprefix(f"{tmp_path}/") for origin in origins]
    assert "a.txt" in ends
    assert "p.parquet, row 10" in ends
    assert "x.jsonl, line 5" in ends, "blank lines count as lines"
    assert "z.jsonl.zst, line 5" in ends
    assert "x.xml.bz2, article 'Three'" in ends


def test_what_is_passed_over_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the JSON of lines nor the row groups of Parquet files that stand before the start."""
    lines = [f'{{"text": "line {n}"}}' for n in range(6)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines[:3], "{broken", *lines[4:]]))
    write_parquet(tmp_path / "b.parquet", [f"row {n}" for n in range(10)], row_group_size=4)
    read: list[list[int]] = []
    iter_batches = pyarrow.parquet.ParquetFile.iter_batches

    def watched(self: Any, *, row_groups: list[int], **options: Any) -> Any:
        read.append(row_groups)
        return iter_batches(self, row_groups=row_groups, **options)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", watched)
    source = Files(str(tmp_path))
    assert [document.text for document in source.documents(11)] == ["row 5", "row 6", "row 7", "row 8", "row 9"]
    assert read == [[1, 2]]
    assert [document.text for document in source.documents(5)][:2] == ["line 5", "row 0"]
    with pytest.raises(WorkError, match="line 4: invalid JSON"):
        list(source.documents(3))


@pytest.mark.parametrize("compress", [gzip.compress, zstd], ids=["gz", "zst"])
def test_a_compressed_file_cut_short_anywhere_is_named(compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / f"x.jsonl.{'gz' if compress is gzip.compress else 'zst'}"
    draw = random.Random(0)
    texts = ["".join(draw.choices("abcdefgh ", k=200)) for _ in range(2000)]
    whole = compress(as_jsonl(texts))
    for cut in (0, 1, 5, 20, len(whole) // 2, len(whole) - 8, len(whole) - 1):
        path.write_bytes(whole[:cut])
        read = []
        with pytest.raises(WorkError, match=rf"{path.name}' cannot be read( after line \d+)?: ") as refused:
            read.extend(Files(str(path)).documents())
        assert [document.text for document in read] == texts[: len(read)]
        if cut > len(whole) // 2:
            assert "after line" in str(refused.value)
            assert "Truncated" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl.gz", b"no gzip at all", r"x.jsonl.gz' cannot be read: .*incorrect header"),
        ("x.jsonl.zst", b"no zstd at all", r"x.jsonl.zst' cannot be read: .*ZSTD decompress failed"),
        ("x.jsonl.gz", gzip.compress(b'{"text": "a"}\n{"text": oops}', mtime=0), r"x.jsonl.gz, line 2: invalid JSON"),
        ("x.jsonl.zst", zstd(b'{"text": "a"}\n{"text": "b\xe9d"}'), r"x.jsonl.zst, line 2: invalid UTF-8"),
        ("x.jsonl", b'["text"]', r"x.jsonl, line 1 has no field 'text'; its fields: none"),
        ("x.jsonl", b'{"n": ' + b"9" * 5000 + b"}", r"x.jsonl, line 1: JSON beyond Python's limits \(.*digits"),
        ("x.jsonl", b"[" * 100_000, r"x.jsonl, line 1: JSON beyond Python's limits \(.*recursion"),
        ("x.jsonl", b'{"text": null}', r"x.jsonl, line 1: 'text' holds NoneType, not text"),
        ("x.txt", b"a good line\na b\xe9d line", r"x.txt, line 2: invalid UTF-8 \(byte 0xe9"),
        ("x.parquet", b"nope", r"x.parquet cannot be read as Parquet: "),
        ("x.parquet", b"", r"x.parquet cannot be read as Parquet: "),
        ("x.xml.bz2", b"", r"x.xml.bz2 cannot be read as a Wikipedia dump"),
        ("x.xml.bz2", b"nope", r"x.xml.bz2 cannot be read as a Wikipedia dump"),
        ("x.xml.bz2", bz2.compress(b"<mediawiki><page>"), r"x.xml.bz2 cannot be read as a Wikipedia dump"),
        ("x.xml.bz2", dump_of(["One"])[:-20], r"x.xml.bz2 cannot be read as a Wikipedia dump"),
    ],
    ids=lambda value: "content" if isinstance(value, bytes) else value,  # a compressor's bytes are no name
)
def test_a_broken_file_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises((WorkError, CallError), match=message):
        list(Files(str(tmp_path)).documents())


def test_a_parquet_file_with_broken_bytes_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    draw = random.Random(0)
    texts = ["".join(draw.choices("abcdefgh ", k=50)) for _ in range(500)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)
    whole = path.read_bytes()
    for place in range(200, len(whole) - 2000, 1500):
        path.write_bytes(whole[:place] + b"\xff" * 64 + whole[place + 64 :])
        with pytest.raises(WorkError, match=r"x\.parquet cannot be read as Parquet"):
            list(Files(str(path)).documents())


def test_parquet_rows_without_text_are_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", ["a", None])
    with pytest.raises(WorkError, match=r"x.parquet, row 2: 'text' holds NoneType, not text"):
        list(Files(str(tmp_path)).documents())
    with pytest.raises(CallError, match=r"x.parquet has no field 'body'; its fields: 'id', 'text'"):
        list(Files(str(tmp_path), column="body").documents())


@pytest.mark.parametrize("suffix", list(files._READERS))
@pytest.mark.parametrize("instead", ["nothing", "a folder"])
def test_a_file_that_is_gone_when_it_is_read_is_named(suffix: str, instead: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"")
    source = Files(str(path))
    path.unlink()
    if instead == "a folder":
        path.mkdir()
    with pytest.raises(WorkError, match=rf"x{suffix}'? cannot be read.*: ") as refused:
        list(source.documents())
    assert "No such file" in str(refused.value) or instead != "nothing"


def test_an_empty_separator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CallError, match="empty separator"):
        Files(str(tmp_path), separator="")


def test_no_paths_are_refused() -> None:
    with pytest.raises(CallError, match="source 'files' was given no paths"):
        Files([])


HEADER = """\ufeffThe Project Gutenberg eBook of The Clockmaker's Garden, by Ada N. Author

This eBook is for the use of anyone anywhere in the United States and
most other parts of the world at no cost and with almost no restrictions
whatsoever. You may copy it, give it away or re-use it under the terms
of the Project Gutenberg License included with this eBook or online at
www.gutenberg.org.

Title: The Clockmaker's Garden
Author: Ada N. Author
Release Date: March 1, 2004 [eBook #99999]
Language: English
Character set encoding: UTF-8

"""
BODY = """Produced by A. Volunteer

    THE CLOCKMAKER'S GARDEN

Chapter I

It was a quiet morning.

        ***

The end of the Project was near. "End of the line," he said."""
LICENCE = (
    """
Updated editions will replace the previous one--the old editions will
be renamed.

*** START: FULL LICENSE ***

THE FULL PROJECT GUTENBERG LICENSE
PLEASE READ THIS BEFORE YOU DISTRIBUTE OR USE THIS WORK
"""
    + "Section 1. General Terms of Use and Redistributing Project Gutenberg-tm works. " * 230
)
SMALL_PRINT = """**The Project Gutenberg Etext of The Clockmaker's Garden**

***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***
Why is this "Small Print!" statement here?  You know: lawyers.
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            HEADER + "*** START OF THE PROJECT GUTENBERG EBOOK THE CLOCKMAKER'S GARDEN ***\n\n\n",
            "\n\n*** END OF THE PROJECT GUTENBERG EBOOK THE CLOCKMAKER'S GARDEN ***\n" + LICENCE,
        ),
        (
            HEADER + "*** START OF THIS PROJECT GUTENBERG EBOOK THE CLOCKMAKER'S GARDEN ***\n\n\n",
            "\n\n\nEnd of the Project Gutenberg EBook of The Clockmaker's Garden, by Ada N. Author\n\n"
            "*** END OF THIS PROJECT GUTENBERG EBOOK THE CLOCKMAKER'S GARDEN ***\n\n" + LICENCE,
        ),
        (
            HEADER + "***START OF THE PROJECT GUTENBERG EBOOK THE CLOCKMAKER'S GARDEN, WITH ALL\nITS PLATES***\n\n",
            "\n***END OF THE PROJECT GUTENBERG EBOOK THE CLOCKMAKER'S GARDEN, WITH ALL\nITS PLATES***\n" + LICENCE,
        ),
        (
            SMALL_PRINT + "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n\n",
            "\n\n\nEnd of Project Gutenberg's The Clockmaker's Garden, by Ada N. Author\n\n",
        ),
        (
            SMALL_PRINT + "*END THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n"
            "\n*** START OF THE PROJECT GUTENBERG EBOOK, THE CLOCKMAKER'S GARDEN ***\n",
            "\n\nEnd of The Project Gutenberg Etext of The Clockmaker's Garden\n",
        ),
        ("", "\n\nEnd of Project Gutenberg's The Clockmaker's Garden\n"),
        (HEADER + "*** START OF THE PROJECT GUTENBERG EBOOK 99999 ***\n", ""),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_project_gutenbergs_licence_is_left_out(before: str, after: str, newline: str, tmp_path: Path) -> None:
    book = (before + BODY + after).replace("\n", newline)
    body = BODY.replace("\n", newline)
    assert without_licence(book) == body
    (tmp_path / "book.txt").write_bytes(book.encode())
    (tmp_path / "book.md").write_bytes(book.encode())
    whole, cut = Files([str(tmp_path / "book.md"), str(tmp_path / "book.txt")]).documents()
    assert whole.text == book.removeprefix("\ufeff"), "only .txt files are Project Gutenberg's"
    assert cut.text == body


def test_books_that_follow_each_other_are_all_kept() -> None:
    def book(title: str) -> str:
        start = f"*** START OF THE PROJECT GUTENBERG EBOOK {title} ***"
        end = f"*** END OF THE PROJECT GUTENBERG EBOOK {title} ***"
        return f"{HEADER}{start}\n{title} begins. {'word ' * 20_000}{title} ends.\n{end}\n{LICENCE}\n"

    text = without_licence(book("ONE") + book("TWO"))
    assert text.startswith("ONE begins.")
    assert "ONE ends." in text
    assert "TWO begins." in text
    assert text.endswith("TWO ends.")
    assert "Gutenberg" not in text


def test_a_mark_never_takes_more_than_a_licence_with_it() -> None:
    """The volumes of some old etexts follow each other with an end mark between them, and no start mark."""
    volume = "A long volume. " * 4000
    assert (
        without_licence(f"{volume}\nEnd of Project Gutenberg's Book, Vol. 1\n{volume}").count("A long volume.") == 8000
    )


@given(text=st.text() | st.text(alphabet="*END OF\nTHIS PROJECT"))
def test_a_text_without_marks_is_untouched(text: str) -> None:
    assert without_licence(text) == text


def test_a_text_about_project_gutenberg_is_untouched() -> None:
    text = "I read it at Project Gutenberg.\nThe start of the Project Gutenberg ebook was odd.\n  *** THE END ***\n"
    assert without_licence(text) == text


def test_half_a_character_in_json_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine \\ud83d\\ude00"}\n{"text": "half \\ud83d"}\n')
    read = Files([str(tmp_path)]).documents()
    assert next(read).text == "fine 😀"
    with pytest.raises(WorkError, match=r"a\.jsonl, line 2: invalid Unicode \(surrogates not allowed at character 5\)"):
        next(read)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    (tmp_path / "a.txt").write_bytes(mark + b"one")
    (tmp_path / "b.jsonl").write_bytes(mark + b'{"text": "two"}\n{"text": "three"}\n')
    assert [document.text for document in Files([str(tmp_path)]).documents()] == ["one", "two", "three"]


def test_linked_folders_are_read_and_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    for name in ("data", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.txt").write_text(name)
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data")
    assert [document.text for document in Files([str(tmp_path / "data")]).documents()] == ["data", "elsewhere"]
    (tmp_path / "data" / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    with pytest.raises(CallError, match=r"gone\.txt' is a link to '.*nowhere\.txt', which does not exist"):
        Files([str(tmp_path / "data")])
    (tmp_path / "data" / "gone.txt").unlink()
    (tmp_path / "data" / "disk").symlink_to(tmp_path / "not mounted")
    with pytest.raises(CallError, match=r"data/disk' is a link to '.*not mounted', which does not exist"):
        Files([str(tmp_path / "data")])


def test_a_folder_and_a_link_to_it_are_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text.txt").write_text(name)
    (tmp_path / "a" / "link").symlink_to(tmp_path / "b")
    source = Files([str(tmp_path)])
    source.check()
    assert [name for name, _ in source.input_files() or []] == ["a/text.txt", "b/text.txt"]


def test_a_wrong_byte_after_a_mark_is_named_by_its_place(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfline one\nabc\xffdef")
    with pytest.raises(WorkError, match=r"a\.txt, line 2: invalid UTF-8 \(byte 0xff at offset 15\)"):
        list(Files([str(tmp_path)]).documents())
