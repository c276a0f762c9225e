"""``prepare``: the same folder whatever happens to it on the way, and one line for what cannot be."""

import fcntl
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pytest

from lightning_gpt import cli
from lightning_gpt.commands import prepare as command
from lightning_gpt.data.prepare import parts, workers
from lightning_gpt.data.prepared import open_prepared
from lightning_gpt.data.split import Split
from lightning_gpt.errors import CallError
from tests.commands.prepare_helpers import (
    InThisProcess,
    Killed,
    config_of,
    contents,
    main_here,
    prepare_here,
    words,
    write_texts,
)
from tests.processes import must_run, run_command, write_config


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of four parts whose later documents are longer, with duplicates in all of them."""
    folder = tmp_path_factory.mktemp("large")
    draw = random.Random(0)
    texts = [words(20 if number < 4096 else 150, draw) for number in range(9_000)]
    for _ in range(50):
        texts[draw.randrange(9_000)] = texts[draw.randrange(9_000)]
        texts[draw.randrange(9_000)] = texts[draw.randrange(9_000)] + " end"
    write_texts(folder / "large.jsonl", texts)
    draw.shuffle(texts)
    write_texts(folder / "small.jsonl", texts[:300])
    config_of(folder / "config.yaml", "large.jsonl", "small.jsonl", tokenizer="gpt2")
    return folder


def call(output: str, jobs: int = 2) -> tuple[str, ...]:
    options = ("--remove_duplicates", "true", "--jobs", str(jobs))
    return ("prepare", "--config", "config.yaml", "--output", output, *options)


@pytest.fixture(scope="module")
def undisturbed(large: Path) -> dict[str, str]:
    must_run(*call("undisturbed"), cwd=large, fresh=True)
    assert not (large / "undisturbed.partial").exists()
    return contents(large / "undisturbed")


def command_line(folder: Path, args: tuple[str, ...], largest_file: int | None) -> None:
    """The body of a process that is the command, its output in ``said.txt``."""
    os.chdir(folder)
    sys.stdout = sys.stderr = open("said.txt", "w", buffering=1)  # noqa: SIM115 - until the process ends
    sys.argv = ["lightning-gpt", *args]
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    sys.exit(cli.main())


def start(folder: Path, *args: str, largest_file: int | None = None) -> ForkProcess:
    """Start the command in a process of its own, forked so that it need not import anything first."""
    process = get_context("fork").Process(target=command_line, args=(folder, args, largest_file))
    process.start()
    return process


def finish(process: ForkProcess, folder: Path) -> list[str]:
    """Wait for the end; returns the lines that were printed."""
    process.join(100)
    lines = (folder / "said.txt").read_text().splitlines()
    assert not any("Traceback" in line for line in lines), lines
    return lines


def test_one_process_and_two_give_the_same_folder(large: Path, undisturbed: dict[str, str]) -> None:
    assert sum(name.endswith(".arrow") for name in undisturbed) == 4
    process = start(large, *call("one", jobs=1))
    finish(process, large)
    assert process.exitcode == 0
    assert contents(large / "one") == undisturbed


def test_killed_and_called_again_it_gives_the_same_folder(large: Path, undisturbed: dict[str, str]) -> None:
    moments = random.Random()
    kills: list[float] = []
    while not (large / "killed").exists():
        process = start(large, *call("killed"))
        if len(kills) < 3:
            kills.append(moments.uniform(0.2, 3))
            process.join(kills[-1])
            process.kill()
        finish(process, large)
        if (large / "killed.partial").exists():
            with pytest.raises(CallError, match=r"is unfinished|is not a prepared folder"):
                open_prepared(large / "killed.partial")
    assert contents(large / "killed") == undisturbed, f"killed after {kills} s"


def test_full_disk(large: Path, undisturbed: dict[str, str]) -> None:
    """A limit on the size of a file stands for the disk: the second part is too large for it."""
    first, second = ((large / "undisturbed/0-large" / f"part-0000{n}.arrow").stat().st_size for n in range(2))
    limit = (second + 2_200_000) // 2
    assert first < limit < second
    process = start(large, *call("full", jobs=1), largest_file=limit)
    last = finish(process, large)[-1]
    assert re.search(r"^error: full.partial/0-large/part-0000\d.arrow cannot be written: File too large; .*kept", last)
    assert process.exitcode == 1
    left = {path.name for path in (large / "full.partial/0-large").iterdir()}
    assert "part-00000.json" in left
    assert not any(name.endswith(".tmp") for name in left)
    process = start(large, *call("full", jobs=1))
    assert "large: resuming after document 4,096" in finish(process, large)
    assert process.exitcode == 0
    assert contents(large / "full") == undisturbed


def test_stopped_by_ctrl_c_it_says_how_to_go_on(large: Path) -> None:
    process = start(large, *call("stopped", jobs=1))
    while not list((large / "stopped.partial").glob("0-large/*")):
        time.sleep(0.02)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    assert finish(process, large)[-1] == "stopped; finished parts are kept: run the same command again to resume"
    assert process.exitcode == 130
    assert not (large / "stopped").exists()


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A corpus of two sources in three parts, with duplicates."""
    draw = random.Random(1)
    texts = [words(60, draw) for _ in range(40)]
    write_texts(tmp_path / "a.jsonl", [*texts[:30], texts[2], texts[3] + " more"])
    write_texts(tmp_path / "b.jsonl", [*texts[30:], texts[8], texts[9] + " more"])
    config_of(tmp_path / "config.yaml", "a.jsonl", "b.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parts, "PART_DOCUMENTS", 16)
    return tmp_path


def test_killed_before_any_file_is_named_or_deleted_it_goes_on(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in each run one step later, until a run is through with all of them."""
    monkeypatch.setattr(workers, "ProcessPoolExecutor", InThisProcess)
    section, _ = command.parse_data_call(command.prepare, "prepare", list(call("x")[1:]))

    def prepare_to(output: str) -> dict[str, str]:
        command.prepare(section, output, remove_duplicates=True)
        return contents(small / output)

    expected = prepare_to("undisturbed")
    steps = {"left": 0}

    def mortal(name: str) -> None:
        original = getattr(Path, name)

        def step(self: Path, *args: Any, **options: Any) -> Any:
            steps["left"] -= 1
            if steps["left"] == 0:
                raise Killed
            return original(self, *args, **options)

        monkeypatch.setattr(Path, name, step)

    for name in ("replace", "unlink", "rename"):
        mortal(name)
    kills = 0
    while True:
        output, steps["left"] = f"killed{kills}", 1 + kills
        try:
            found = prepare_to(output)
        except Killed:
            kills, steps["left"] = kills + 1, -1
            done = (small / output).exists()
            assert (contents(small / output) if done else prepare_to(output)) == expected, f"killed at step {kills}"
        else:
            assert found == expected
            break
    assert kills > 20


def test_duplicates_are_reported_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw, split = random.Random(2), Split(0.1, 0.1)
    texts = [words(120, draw) for _ in range(200)]
    by_split = {name: [text for text in texts if split.of(text) == name] for name in ("train", "val", "test")}
    # each with a word more, so that its own hash decides where it is
    leaks = [f"{text} {n}" for text in by_split["val"][:3] + by_split["test"][:3] for n in range(20)]
    leaks = [text for text in leaks if split.of(text) == "train"]
    repeats = [by_split["train"][0], by_split["train"][1], by_split["val"][0]]
    write_texts(tmp_path / "a.jsonl", [*leaks[::2], *texts, *repeats])
    write_texts(tmp_path / "b.jsonl", leaks[1::2])
    config_of(tmp_path / "config.yaml", "a.jsonl", "b.jsonl")

    def train_texts(folder: str) -> list[str]:
        corpus = open_prepared(tmp_path / folder)
        return [
            corpus.tokenizer.decode(tokens[:-1])
            for source in corpus.sources
            for _, part, tokens in source.tokens()
            if part == "train"
        ]

    for folder, removes in (("with", "false"), ("without", "true")):
        prepare_here("--config", "config.yaml", "--output", folder, "--remove_duplicates", removes)
    assert sorted(train_texts("with")) == sorted([*leaks, *by_split["train"], *repeats[:2]])
    assert sorted(train_texts("without")) == sorted(by_split["train"])
    cards = {folder: json.loads((tmp_path / folder / "card.json").read_text()) for folder in ("with", "without")}
    for folder, card in cards.items():
        counts = {(pair["split"], pair["of"]): pair for pair in card["duplicates"]}
        assert counts["train", "val"]["near"] + counts["train", "test"]["near"] == len(leaks)
        exact = {"exact": 2, "near": 0, "removed": 2 if folder == "without" else 0}
        assert counts["train", "train"] == {"split": "train", "of": "train", **exact}
        assert counts["val", "val"] == {"split": "val", "of": "val", "exact": 1, "near": 0, "removed": 0}
        assert len(card["examples_across_splits"]) == 5
        assert re.match(r"near \(\d\.\d\d\): a.jsonl, line 1 \(train\) dup", card["examples_across_splits"][0])
    assert cards["with"]["split_digest"] != cards["without"]["split_digest"]
    a = {folder: card["sources"][0]["splits"] for folder, card in cards.items()}
    assert a["with"]["val"] == a["without"]["val"]
    assert a["without"]["train"]["documents"] == len(by_split["train"])
    assert a["without"]["train"]["bytes"] == sum(len(text) for text in by_split["train"])
    lines = [json.loads(line) for line in (tmp_path / "without/duplicates.jsonl").read_text().splitlines()]
    assert len(lines) == len(leaks) + 3
    assert all(line["removed"] == (line["document"]["split"] == "train") for line in lines)
    # numbers stay those of the source
    corpus = open_prepared(tmp_path / "without")
    assert next(corpus.sources[0].tokens())[0] == len(leaks[::2])
    assert sum(1 for _ in corpus.sources[1].tokens()) == 0


def test_exact_duplicates_alone(small: Path) -> None:
    prepare_here("--config", "config.yaml", "--output", "x", "--near_duplicate_threshold", "null")
    card = json.loads((small / "x/card.json").read_text())
    assert sum(pair["near"] for pair in card["duplicates"]) == 0
    assert sum(pair["exact"] for pair in card["duplicates"]) == 2
    assert "No search for near duplicates was made." in (small / "x/card.md").read_text()


def test_card_counts_what_the_sources_hold(small: Path) -> None:
    prepare_here("--config", "config.yaml", "--output", "x")
    corpus = open_prepared(small / "x")
    texts = [json.loads(line)["text"] for line in (small / "a.jsonl").read_text().splitlines()]
    card = json.loads((small / "x/card.json").read_text())
    for part in ("train", "val", "test"):
        own = [text for text in texts if Split(0.1, 0.1).of(text) == part]
        tokens = sum(len(corpus.tokenizer.encode(text)) for text in own)
        size = sum(len(text.encode()) for text in own)
        found = card["sources"][0]["splits"][part]
        assert (found["documents"], found["tokens"], found["bytes"]) == (len(own), tokens + len(own), size)
        assert found["bytes_per_token"] == (pytest.approx(size / tokens, abs=1e-4) if own else None)
    written = "".join(path.read_text() for path in (small / "x").glob("*.*"))
    assert str(small) not in written
    assert str(os.getpid()) not in json.dumps(card)


def test_a_whole_runs_config_is_taken_and_only_its_data_matters(small: Path) -> None:
    data = {"tokenizer": 300, "sources": [{"class_path": "Files", "init_args": {"paths": "a.jsonl"}}]}
    training = {"block_size": 8, "batch_size": 3, "seed": 5, "shuffle_window": 9, "prepared": "x"}
    write_config(small / "plain.yaml", {"data": data})
    write_config(small / "first.yaml", {"name": "run", "model": {"n_layer": 3}, "data": {"tokenizer": "gpt2"}})
    weighted = [{"class_path": "Files", "init_args": {"paths": "a.jsonl", "weight": 0.5, "max_passes": 7}}]
    write_config(small / "second.yaml", {"trainer": None, "data": {**data, **training, "sources": weighted}})
    prepare_here("--config", "plain.yaml", "--output", "x")
    prepare_here("--config", "first.yaml", "--config=second.yaml", "--output", "y")
    assert contents(small / "x") == contents(small / "y")


def test_another_config_is_refused_and_named(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("lightning_gpt.data.prepare.corpus._finish", killed)
        with pytest.raises(Killed):
            prepare_here(*call("x")[1:])
    config_of(small / "config.yaml", "a.jsonl", "b.jsonl", val_share=0.2)
    status, line = main_here(monkeypatch, *call("x"))
    assert status == 2
    assert re.search(r"x.partial was started with other settings: val_share changed from 0.1 to 0.2; delete it", line)
    config_of(small / "config.yaml", "a.jsonl", "c.jsonl")
    (small / "c.jsonl").write_bytes((small / "b.jsonl").read_bytes())
    _, line = main_here(monkeypatch, *call("x"))
    assert (
        "sources[1].name changed from 'b' to 'c'; sources[1].arguments.paths[0] changed from 'b.jsonl' to 'c.jsonl'"
        in line
    )


def test_what_workers_import_is_light() -> None:
    """Each worker process imports it anew, and Lightning and torch take seconds."""
    check = "import sys, lightning_gpt.data.prepare.workers; print({'torch', 'lightning'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_two_at_once_are_refused(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (small / "x.partial").mkdir()
    other = os.open(small / "x.partial", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    assert main_here(monkeypatch, *call("x")) == (1, "error: another process is already preparing x.partial")
    os.close(other)
    assert main_here(monkeypatch, *call("x"))[0] == 0


CONFIG = ("prepare", "--config", "config.yaml")

# what is typed, the exit status, and a pattern that the one line must hold
CASES: dict[str, tuple[tuple[str, ...], int, str]] = {
    "no output": (CONFIG, 2, r"required and missing: --output$"),
    "no config": (("prepare", "--output", "x"), 2, r"required and missing: --config$"),
    "missing config": (
        ("prepare", "--config", "nope.yaml", "--output", "x"),
        2,
        r"'nope.yaml' cannot be read: No such",
    ),
    "existing output": ((*CONFIG, "--output", "."), 2, r"output '.' exists; choose another folder, or delete it"),
    "no data section": (
        ("prepare", "--config", "model.yaml", "--output", "x"),
        2,
        r"no config file has a data section",
    ),
    "unknown key": (("prepare", "--config", "typo.yaml", "--output", "x"), 2, r"unknown key 'tokenizr'"),
    "unknown option": ((*CONFIG, "--ouput", "x"), 2, r"--ouput; did you mean --output"),
    "no jobs": ((*CONFIG, "--output", "x", "--jobs", "0"), 2, r"jobs is 0; it must be a whole number from 1 to 1,024"),
    "text for jobs": ((*CONFIG, "--output", "x", "--jobs", "two"), 2, r"jobs is 'two'; allowed: a whole number"),
    "threshold": (
        (*CONFIG, "--output", "x", "--near_duplicate_threshold", "2"),
        2,
        r"is 2.0; it must be a number from 0.5 to 0.95, or null",
    ),
    "two sources of a name": (("prepare", "--config", "twice.yaml", "--output", "x"), 2, r"two sources are named 'a'"),
    "empty corpus": (
        ("prepare", "--config", "empty.yaml", "--output", "x"),
        2,
        r"'empty' has no training document: none of the 1 doc",
    ),
    "broken document": (("prepare", "--config", "bad.yaml", "--output", "x"), 1, r"bad.jsonl, line 2: invalid JSON"),
    "output in a file": (
        (*CONFIG, "--output", "a.jsonl/x"),
        2,
        r"a.jsonl/x.partial cannot be created: Not a directory",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_wrong_call(name: str, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(small / "model.yaml", {"model": {"n_layer": 2}})
    write_config(small / "typo.yaml", {"data": {"tokenizr": 300}})
    (small / "empty.jsonl").write_text('{"text": ""}\n')
    (small / "bad.jsonl").write_text('{"text": "fine"}\n{"text": oops}\n')
    config_of(small / "twice.yaml", "a.jsonl", "a.jsonl")
    for source in ("empty", "bad"):
        config_of(small / f"{source}.yaml", f"{source}.jsonl", tokenizer="gpt2")
    args, status, pattern = CASES[name]
    found, line = main_here(monkeypatch, *args)
    assert re.search(pattern, line), line
    assert (found, line[:7], "\n" in line) == (status, "error: ", False)
    assert not (small / "x").exists()


def test_a_wrong_call_of_the_real_command(tmp_path: Path) -> None:
    done = run_command("prepare", "--config", "nope.yaml", "--output", "x", cwd=tmp_path, fresh=True)
    assert done.returncode == 2
    assert done.stderr == "error: config file 'nope.yaml' cannot be read: No such file or directory\n"
