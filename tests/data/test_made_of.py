"""A prepared folder is used only with the sources and files that it was made of, wherever they are."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_gpt.data import made_of
from lightning_gpt.data.datamodule import TextData
from lightning_gpt.data.sources.embedded import PythonReference
from lightning_gpt.data.sources.files import Files
from lightning_gpt.errors import CallError
from tests.commands.prepare_helpers import Killed, main_here, prepare_here, words
from tests.processes import write_config

PATHS = ["notes", "more/*.txt", "book.txt"]


def is_long(text: str) -> bool:
    return len(text) > 10


def write_corpus(folder: Path) -> None:
    draw = random.Random(0)
    for name in ("notes/a.txt", "notes/deep/b.txt", "more/c.txt", "book.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("\n\n\n".join(words(9, draw) for _ in range(40)))


def section(**changes: Any) -> dict[str, Any]:
    of_files = {"paths": PATHS, "separator": "\n\n\n", **changes}
    return {"tokenizer": 300, "sources": [{"class_path": "Files", "init_args": of_files}]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and ``ready``, prepared from it."""
    folder = tmp_path_factory.mktemp("made")
    write_corpus(folder)
    write_config(folder / "config.yaml", {"data": section()})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare_here("--config", "config.yaml", "--output", "ready")
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, and the working folder."""
    shutil.copytree(made, tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    return tmp_path / "moved"


def use(*sources: Any, **changes: Any) -> TextData:
    files = Files(**{"paths": PATHS, "separator": "\n\n\n", **changes})
    return TextData(list(sources) or [files], prepared="ready", tokenizer=300, block_size=8)


def edit(name: str, old: str, new: str) -> None:
    Path(name).write_text(Path(name).read_text().replace(old, new))


# what is done to the files, what is changed in the configuration, and what the refusal must say
CHANGES: dict[str, tuple[Callable[[], object], dict[str, Any], str]] = {
    "a longer file": (
        lambda: Path("book.txt").write_text(Path("book.txt").read_text() + "!" * 1000),
        {},
        r"another source 'files': book.txt: [\d,]+ bytes, was [\d,]+; prepare",
    ),
    "another content": (
        lambda: edit("notes/deep/b.txt", "a", "b"),
        {},
        r"'files': deep/b.txt: its content changed \(the size did not\); prepare",
    ),
    "a new file": (lambda: Path("notes/new.md").write_text("new"), {}, r"'files': the file new.md is new; prepare"),
    "a file less": (
        lambda: Path("more/c.txt").rename("more/d.txt"),
        {},
        r"file c.txt is missing; the file d.txt is new",
    ),
    "a path less": (lambda: None, {"paths": PATHS[:2]}, r"'files': the file book.txt is missing; prepare"),
    "another order": (
        lambda: None,
        {"paths": PATHS[::-1]},
        r"'files': the files are in another order, from book.txt on",
    ),
    "a file that is gone": (lambda: Path("book.txt").unlink(), {}, r"data file 'book.txt' does not exist"),
    "another separator": (lambda: None, {"separator": None}, r"'files': separator is null, was \S+; prepare"),
    "another filter": (
        lambda: None,
        {"keep": is_long, "min_characters": 3},
        r"min_characters is 3, was 0; keep is \S+test_made_of.is_long\W, was null",
    ),
    "many new files": (
        lambda: [Path(f"notes/{n}.txt").write_text("x") for n in range(9)],
        {},
        r"the file 0.txt is new; the file 1.txt is new; the file 2.txt is new; and 6 more; prepare",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_files_or_arguments_are_refused(name: str, here: Path) -> None:
    change, arguments, pattern = CHANGES[name]
    use()
    change()
    with pytest.raises(CallError, match=pattern) as refusal:
        use(**arguments)
    assert len(str(refusal.value)) < 300


def test_another_kind_of_source_is_refused(here: Path) -> None:
    with pytest.raises(CallError, match=r"another source 'files': its class is PythonReference, was Files"):
        use(PythonReference(name="files"))


def test_a_moved_corpus_is_the_same_by_any_path(here: Path) -> None:
    use(paths=[str(here / path) for path in PATHS])


def test_without_its_files_it_is_compared_by_its_arguments(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for path in ("notes", "more"):
        shutil.rmtree(path)
    Path("book.txt").unlink()
    data = use()
    assert "files: its files are not on this machine, so they are not compared with ready" in capfd.readouterr().err
    assert data.counts()
    with pytest.raises(CallError, match=r"paths is .*other.txt.*, was .*notes"):
        use(paths=["other.txt"])
    with pytest.raises(CallError, match=r'keep is "\S+is_long", was null'):
        use(keep=is_long)
    with pytest.raises(CallError, match=r"data file 'notes' does not exist"):
        TextData([Files(PATHS)])


def test_a_large_source_is_read_only_where_its_modification_time_changed(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made_of, "ALWAYS_SUMMED", 0)
    stat = os.stat("book.txt")
    os.utime("notes/a.txt")
    use()
    edit("book.txt", "a", "b")
    with pytest.raises(CallError, match=r"book.txt: its content changed"):
        use()
    os.utime("book.txt", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    use()
    monkeypatch.setattr(made_of, "ALWAYS_SUMMED", 2**30)
    with pytest.raises(CallError, match=r"book.txt: its content changed"):
        use()


def test_an_interrupted_prepare_does_not_resume_on_other_files(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise Killed

    call = ("--config", "config.yaml", "--output", "again")
    with monkeypatch.context() as patch:
        patch.setattr("lightning_gpt.data.prepare.corpus._finish", killed)
        with pytest.raises(Killed):
            prepare_here(*call)
    before = Path("book.txt").read_text()
    edit("book.txt", "a", "b")
    status, line = main_here(monkeypatch, "prepare", *call)
    assert status == 2
    assert line.startswith(
        "error: again.partial was started with other files: book.txt: its content changed (the size did not); delete it"
    )
    Path("book.txt").write_text(before)
    assert main_here(monkeypatch, "prepare", *call)[0] == 0


def test_a_file_that_changes_while_it_is_prepared_is_noticed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = Files.documents

    def changing(self: Files, start: int = 0) -> Any:
        yield from documents(self, start)
        Path("more/c.txt").write_text("shorter")

    monkeypatch.setattr(Files, "documents", changing)
    status, line = main_here(monkeypatch, "prepare", "--config", "config.yaml", "--output", "again")
    assert (status, Path("again").exists()) == (1, False)
    assert line.startswith("error: c.txt: 7 bytes, was ")
    assert line.endswith("it changed while it was read; delete again.partial and start over")


def test_a_vocabulary_that_the_text_did_not_fill_is_the_one_that_was_asked_for(here: Path) -> None:
    write_config(Path("large.yaml"), {"data": {**section(), "tokenizer": 50_000}})
    prepare_here("--config", "large.yaml", "--output", "large")
    sources = [Files(PATHS, separator="\n\n\n")]
    data = TextData(sources, prepared="large", tokenizer=50_000)
    assert data.vocab_size == 50_000
    assert data.tokenizer.vocab_size < 50_000
    with pytest.raises(CallError, match=r"has a vocabulary of \d+ tokens, but tokenizer is 40000"):
        TextData(sources, prepared="large", tokenizer=40_000)
