"""docs/one-head.md does what it says: its blocks run in their order, and the lines of code that it quotes are there."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.processes import must_run

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/one-head.md"
TEXT = PAGE.read_text()


def test_every_quoted_line_of_code_is_in_the_file_that_it_is_said_to_be_in() -> None:
    quotes = re.findall(r"^- In \[`[\w.]+`\]\(([^)]+)\): `(.+)`$", TEXT, re.M)
    assert len(quotes) == TEXT.count("- In [`") >= 8
    for target, line in quotes:
        lines = [found.strip() for found in (PAGE.parent / target).read_text().splitlines()]
        assert any(found.partition("  #")[0] == line for found in lines), f"{target} has no line {line}"


def test_its_blocks_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shell lines as processes, Python blocks in one namespace; their asserts are what the page claims."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.M | re.S)
    assert {language for language, _ in blocks} == {"bash", "python"}
    said, names = "", {}
    for language, block in blocks:
        if language == "python":
            exec(compile(block, str(PAGE), "exec"), names)
            continue
        for line in block.splitlines():
            command, *arguments = shlex.split(line)
            assert command == "lightning-gpt"
            done = must_run(*arguments, cwd=tmp_path, timeout=600)
            said += done.stdout + done.stderr
    assert re.search(r"initial validation loss 10\.8\d+", said)
    for folder in ("fresh", "trained", "zero", "mean"):
        assert (tmp_path / f"inspect/{folder}/index.html").is_file()
    # the two changes that the last block computes are those that the commands printed
    zero, mean = re.findall(r"^  0\.0 +[\d.]+  ([+-][\d.]+)$", said, re.M)
    assert float(zero) == pytest.approx(names["zero"], abs=1e-5)
    assert float(mean) == pytest.approx(names["mean"], abs=1e-5)
