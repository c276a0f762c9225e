"""Wiki markup to prose."""

import bz2
from pathlib import Path

from lightning_gpt.data.sources.wikipedia import articles, clean


def test_marks_of_bold_italic_links_and_headings_go() -> None:
    markup = (
        "'''Albedo''' is ''[[reflection (physics)|reflected]]'' light.\n\n== History ==\nIt was [[Lambert]]'s word."
    )
    assert clean(markup) == "Albedo is reflected light.\n\nHistory\n\nIt was Lambert's word."


def test_tables_nest_and_go() -> None:
    markup = "Before.\n\n{| class=x\n| a\n{| \n| inner\n|}\n| b\n|}\n\nAfter."
    assert clean(markup) == "Before.\n\nAfter."


def test_pictures_go_with_their_captions() -> None:
    assert clean("One.\n\n[[File:x.jpg|thumb|A [[town]] in ''spring'']]\nTwo.") == "One.\n\nTwo."


def test_closing_apparatus_goes_with_all_below_it() -> None:
    markup = "Text.\n\n== See also ==\n* [[Other]]\n\n=== Deeper ===\n* more\n\n== Legacy ==\nKept."
    assert clean(markup) == "Text.\n\nLegacy\n\nKept."


def test_headings_over_nothing_go() -> None:
    assert clean("Text.\n\n== Empty ==\n\n=== Also empty ===\n\n== Full ==\nWords.") == "Text.\n\nFull\n\nWords."


def test_lists_stay_as_lines() -> None:
    assert clean("Kinds:\n* red\n* green\n*\n# blue") == "Kinds:\n\nred\ngreen\nblue"


def test_holes_of_removed_templates_close() -> None:
    markup = "Achilles ({{lang|grc}}; , ''Akhilleus'', {{x}}) was a hero ({{y}}) , and more."
    assert clean(markup) == "Achilles (Akhilleus) was a hero, and more."


def test_redirects_other_namespaces_and_stubs_are_left_out(tmp_path: Path) -> None:
    def page(title: str, namespace: int, text: str) -> str:
        return (
            f"<page><title>{title}</title><ns>{namespace}</ns><id>1</id>"
            f"<revision><id>2</id><text>{text}</text></revision></page>"
        )

    long = "A sentence of an article that is long enough. " * 8
    dump = (
        '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">'
        + page("Kept", 0, long)
        + page("Redirect", 0, "#REDIRECT [[Kept]]")
        + page("Talk:Kept", 1, long)
        + page("Stub", 0, "Too short.")
        + "</mediawiki>"
    )
    path = tmp_path / "dump.xml.bz2"
    path.write_bytes(bz2.compress(dump.encode()))
    assert [title for title, _ in articles(path)] == ["Kept"]
