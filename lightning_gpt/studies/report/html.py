"""A report as one self-contained HTML page."""

import base64
from collections.abc import Mapping, Sequence
from html import escape

from lightning_gpt.studies.report.document import Findings, Heading, Lead, Picture, Table, Text, Written

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 62rem; margin: 2rem auto;
  padding: 0 1.2rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin-bottom: .3rem; }
p.lead { font-size: 1.12rem; line-height: 1.6; margin: 1.1rem 0; }
h2 { font-size: 1.3rem; margin-top: 2.6rem; border-bottom: 1px solid #ccc; padding-bottom: .25rem; }
ul.findings { border-left: 4px solid #0072b2; padding: .4rem 1rem .4rem 2rem; background: #f3f8fc; }
ul.findings li { margin: .35rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: .5rem 0; }
p.caption { color: #444; font-size: .9em; margin: 1.4em 0 .3em; }
th, td { padding: .3rem .75rem; text-align: right; border-bottom: 1px solid #ddd; vertical-align: top; }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td.words { text-align: left; white-space: normal; }
thead th { border-bottom: 2px solid #888; }
.theirs { background: #f4efe6; font-style: italic; }
figure { margin: 1rem 0; }
figure img { max-width: 100%; height: auto; }
figcaption { color: #444; font-size: .9em; }
@page { size: A4; margin: 16mm; }
@media print {
  body { font-size: 9.5pt; line-height: 1.4; max-width: none; margin: 0; padding: 0; }
  h1 { font-size: 15pt; } h2 { font-size: 12pt; margin-top: 1.4rem; } p.lead { font-size: 10.5pt; }
  h2, p.caption { break-after: avoid; }
  figure, tr, ul.findings li { break-inside: avoid; }
  figure img { width: auto; } /* its own size: that of a column, or of the page where it has several plots */
  .scroll { overflow: visible; }
  table { font-size: 8pt; } th, td { padding: .15rem .4rem; }
  td:first-child { white-space: normal; }
  thead { display: table-header-group; }
}
"""
_ON_SCREEN = 1.35
"""Plots are as much larger on a screen as in print."""
_LONG = 40


def to_html(title: str, blocks: Sequence[Written], svgs: Mapping[str, bytes]) -> str:
    """The page; ``svgs`` holds the pictures by name, which are embedded."""
    body = "\n".join(_block(block, svgs) for block in blocks)
    return f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{body}
</body>
</html>
"""


def _block(block: Written, svgs: Mapping[str, bytes]) -> str:
    match block:
        case Heading(text):
            return f"<h2>{escape(text)}</h2>"
        case Lead(text):
            return f'<p class="lead">{escape(text)}</p>'
        case Text(text):
            return f"<p>{escape(text)}</p>"
        case Findings(sentences):
            items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
            return f'<ul class="findings">{items}</ul>'
        case Picture(name, chart, caption):
            data = base64.b64encode(svgs[name]).decode()
            width = round(96 * _ON_SCREEN * chart.figure.get_figwidth())
            image = f'<img width="{width}" src="data:image/svg+xml;base64,{data}" alt="{escape(caption)}">'
            return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"
        case Table():
            return _table(block)


def _table(table: Table) -> str:
    head = "".join(f"<th{_mark(table, column)}>{escape(text)}</th>" for column, text in enumerate(table.header))
    rows = "\n".join(
        "<tr>" + "".join(f"<td{_mark(table, i, text)}>{escape(text)}</td>" for i, text in enumerate(row)) + "</tr>"
        for row in table.rows
    )
    caption = f'<p class="caption">{escape(table.caption)}</p>\n' if table.caption else ""
    return f'{caption}<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'


def _mark(table: Table, column: int, text: str = "") -> str:
    if column in table.theirs:
        return ' class="theirs"'
    return ' class="words"' if len(text) > _LONG else ""
