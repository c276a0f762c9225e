"""The five lines of the data page, as they stand there, in a folder that holds only them and some text."""

import random
import re
import shlex
from pathlib import Path

import pytest

from tests.commands.prepare_helpers import words
from tests.processes import must_run, run_command

PAGE = (Path(__file__).parents[2] / "docs/data.md").read_text()
LINES, COMMAND = re.findall(
    r"^```(?:yaml)?\n(.*?)^```", PAGE.partition("## Your own corpus in five lines")[2], re.M | re.S
)[:2]
# as typed on the page, and then as small as a test needs it
FIT = (
    *shlex.split(COMMAND)[1:],
    *("--model.n_layer", "1", "--model.n_head", "1", "--model.dim", "16", "--trainer.max_steps", "2"),
    *("--trainer.val_check_interval", "2", "--diagnostics.enabled", "false", "--samples.max_new_tokens", "2"),
    *("--trainer.accelerator", "cpu", "--trainer.precision", "32-true"),
)


def write_book(path: Path, seed: int, characters: int = 40_000) -> None:
    draw = random.Random(seed)
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n\n".join(words(40, draw) for _ in range(characters // 160))[:characters])


def write_lines(folder: Path, paths: str) -> None:
    assert LINES.count("\n") == 5
    assert "paths: book.txt" in LINES
    (folder / "own.yaml").write_text(LINES.replace("paths: book.txt", f"paths: {paths}"))


@pytest.mark.parametrize(
    ("paths", "files"),
    [("book.txt", ["book.txt"]), ("[a.txt, b.txt]", ["a.txt", "b.txt"]), ("notes", ["notes/a.md", "notes/b.txt"])],
    ids=["one file", "two files", "a folder"],
)
def test_they_train(paths: str, files: list[str], tmp_path: Path) -> None:
    for seed, file in enumerate(files):
        write_book(tmp_path / file, seed)
    write_lines(tmp_path, paths)
    done = must_run(*FIT, cwd=tmp_path)
    documents = f"{len(files)} document{'s' * (len(files) > 1)}"
    assert f"files: {documents}, too few to split by documents, so each is split by position" in done.stderr
    assert "last validation (step 2)" in done.stderr


@pytest.mark.parametrize(
    ("characters", "pattern"),
    [
        (0, r"source 'files' has no training document: none of the 0 documents read has text"),
        (
            200,
            r"source 'files' has \d+ training tokens, .* block_size 256 needs 257, .* 8 rows 2,056; add text",
        ),
        (1500, r"the corpus has \d training rows, but one optimizer step takes 8 .*: lower batch_size, .* or add text"),
    ],
    ids=["an empty file", "200 bytes", "less than a step"],
)
def test_too_little_text_is_refused_with_what_would_be_enough(characters: int, pattern: str, tmp_path: Path) -> None:
    write_book(tmp_path / "book.txt", 0, characters)
    write_lines(tmp_path, "book.txt")
    done = run_command(*FIT, cwd=tmp_path)
    assert done.returncode == 2
    assert re.match(f"error: .*{pattern}", done.stderr.splitlines()[-1]), done.stderr
    assert not list(tmp_path.glob("runs/**/*.json*")) + list(tmp_path.glob("runs/**/*.ckpt"))


def test_what_a_loader_process_refuses_is_one_line_with_the_sources_name(tmp_path: Path) -> None:
    write_book(tmp_path / "book.txt", 0)
    write_lines(tmp_path, "book.txt, max_passes: 1, weight: 1.0")
    more = ("--data.num_workers", "1", "--trainer.max_steps", "300")
    done = run_command(*FIT, *more, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: source 'files' is used up: all its rows were trained on 1")


def test_a_line_that_is_no_text_is_named_in_fit(tmp_path: Path) -> None:
    lines = ['{"text": "a short text that is read"}'] * 2000
    lines[1234] = '{"text": "half \\ud83d of a character"}'
    (tmp_path / "book.jsonl").write_text("\n".join(lines))
    write_lines(tmp_path, "book.jsonl")
    done = run_command(*FIT, cwd=tmp_path)
    assert done.returncode == 1
    assert "error: book.jsonl, line 1235: invalid Unicode (surrogates not allowed at character 5)" in done.stderr
