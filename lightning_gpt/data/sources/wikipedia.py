"""Wikipedia XML dumps as prose: gensim reads the dump and strips most markup; this module removes the rest."""

import bz2
import re
from collections.abc import Iterator
from pathlib import Path

_TABLE_MARK = re.compile(r"\{\||\|\}")
_WHOLE_ELEMENTS = re.compile(r"<(gallery|timeline|score|syntaxhighlight|source|math)\b[^>]*>.*?</\1>", re.S | re.I)
_LINK_TO_FILE = re.compile(r"\[\[(?:File|Image):", re.I)
_APPARATUS = re.compile(
    r"(references|notes|footnotes|citations|notes and references|external links|see also|further reading|sources|"
    r"bibliography|works cited|gallery|cited literature)",
    re.I,
)
_HEADING = re.compile(r"\s*(={2,6})\s*(.*?)\s*=+\s*$")
_QUOTES = re.compile(r"'{2,5}")
_LIST_MARK = re.compile(r"^[\s*#:;]+")
_EMPTIED_PARENTHESIS = re.compile(r"[ \t]*\((?:[\s,;:–—/-]|(?:or|and|also|from|lit\.)\s)*\)")
_PARENTHESIS_START = re.compile(r"\((?:\s*[,;:]\s*|\s+)+")
_PARENTHESIS_END = re.compile(r"(?:\s*[,;:]\s*|\s+)+\)")
_REPEATED_COMMA = re.compile(r"([,;])(?:\s*[,;])+")
_SPACE_BEFORE_MARK = re.compile(r"[ \t]+([,.;:!?)])(?=\s|$)")
_SPACES = re.compile(r"[ \t\u00a0\u2000-\u200b]+")
_MINIMUM_CHARACTERS = 200


def _without_nested(text: str, mark: re.Pattern[str], opens: str) -> str:
    """Drop every span between an opening mark and its closing mark, at any nesting depth."""
    kept, depth, position = [], 0, 0
    for match in mark.finditer(text):
        if match.group() == opens:
            if depth == 0:
                kept.append(text[position : match.start()])
            depth += 1
        elif depth:
            depth -= 1
            position = match.end()
    kept.append(text[position:] if depth == 0 else "")
    return "".join(kept)


def _without_file_links(text: str) -> str:
    """Drop ``[[File:…]]`` including links inside the caption, which is meaningless without its picture."""
    kept, position = [], 0
    for match in _LINK_TO_FILE.finditer(text):
        if match.start() < position:
            continue
        depth, end = 0, match.start()
        for bracket in re.compile(r"\[\[|\]\]").finditer(text, match.start()):
            depth += 1 if bracket.group() == "[[" else -1
            end = bracket.end()
            if depth == 0:
                break
        kept.append(text[position : match.start()])
        position = end
    kept.append(text[position:])
    return "".join(kept)


def _clean_line(line: str) -> str:
    """A line of stripped text without list marks, quotes and the gaps left by removed templates."""
    line = _QUOTES.sub("", _SPACES.sub(" ", line))
    line = _LIST_MARK.sub("", line)
    line = _EMPTIED_PARENTHESIS.sub("", line)
    line = _PARENTHESIS_START.sub("(", line)
    line = _PARENTHESIS_END.sub(")", line)
    line = _REPEATED_COMMA.sub(r"\1", line)
    line = _SPACE_BEFORE_MARK.sub(r"\1", line)
    return line.strip()


def _is_debris(line: str) -> bool:
    """Whether a line is not prose: no two adjacent letters, or the remains of a table or of picture settings."""
    return not re.search(r"[^\W\d_]{2}", line) or bool(
        re.match(r"[+|!]|(?:thumb|right|left|style=|colspan)\b|(?:\([^()]*\)\s*)+$", line)
    )


def clean(markup: str) -> str:
    """The prose of an article's wiki markup: paragraphs and headings, separated by blank lines.

    Tables, galleries, pictures with their captions, and the sections that close an article (references, external
    links and the like) are removed. List items are kept as consecutive lines.
    """
    from gensim.corpora.wikicorpus import filter_wiki

    markup = _without_nested(_WHOLE_ELEMENTS.sub("", markup), _TABLE_MARK, "{|")
    paragraphs: list[str] = []
    in_list = False
    pending_headings: list[tuple[int, str]] = []
    skipped_level = 0
    for raw_line in filter_wiki(_without_file_links(markup)).splitlines():
        heading = _HEADING.match(raw_line)
        if heading:
            level, title = len(heading[1]), _clean_line(heading[2])
            if skipped_level and level > skipped_level:
                continue
            skipped_level = level if _APPARATUS.fullmatch(title) else 0
            # a heading is kept only if text follows it
            pending_headings = [(above, name) for above, name in pending_headings if above < level]
            if not skipped_level and title:
                pending_headings.append((level, title))
            continue
        line = _clean_line(raw_line)
        if skipped_level or not line or _is_debris(line):
            continue
        paragraphs.extend(name for _, name in pending_headings)
        is_item = raw_line.lstrip()[0] in "*#"
        if is_item and in_list and not pending_headings:
            paragraphs[-1] += f"\n{line}"
        else:
            paragraphs.append(line)
        in_list, pending_headings = is_item, []
    return "\n\n".join(paragraphs)


def articles(path: Path) -> Iterator[tuple[str, str]]:
    """Title and text (title and prose) of each article of a ``.xml.bz2`` dump, read as a stream.

    Redirects, pages outside the main namespace and articles with fewer than 200 characters of prose are skipped.
    """
    from gensim.corpora.wikicorpus import extract_pages

    with bz2.open(path) as dump:
        for title, markup, _ in extract_pages(dump, filter_namespaces=("0",)):
            if not markup or markup.lstrip()[:9].upper() == "#REDIRECT":
                continue
            prose = clean(markup)
            if len(prose) >= _MINIMUM_CHARACTERS:
                yield title, f"{title}\n\n{prose}"
