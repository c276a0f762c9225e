"""Each wrong call ends with one line and its exit status, and leaves the working folder as it was."""

import atexit
import os
import re
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator

from lightning_gpt.checkpoint import MODEL_KEY
from lightning_gpt.checkpoint_file import read_checkpoint, write_checkpoint
from lightning_gpt.cli import main
from lightning_gpt.commands.unsupported import check_accelerator, check_precision
from lightning_gpt.errors import CallError
from tests.hostile.calls import FIT, GROUPS, Call, fit
from tests.hostile.possible import skip_unless_possible
from tests.processes import must_run, run_forked, tiny_config, tiny_corpus, write_config

SECONDS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working folder of all calls."""
    folder = tmp_path_factory.mktemp("hostile")
    config = tiny_config(tiny_corpus(folder / "corpus.jsonl"), max_steps=2, val_check_interval=2)
    write_config(folder / "tiny.yaml", config)
    write_config(folder / "base.yaml", config)
    must_run(*FIT, cwd=folder)
    (folder / "runs/tiny/version_0/checkpoints/last.ckpt").rename(folder / "last.ckpt")
    content = read_checkpoint(folder / "last.ckpt")
    described = content[MODEL_KEY]
    for name, model in (
        ("layers", {**described, "config": {**described["config"], "n_layer": 300_000}}),
        ("misfit", {**described, "config": {**described["config"], "n_layer": 3}}),
        ("unknown", {**described, "config": {**described["config"], "nope": 3}}),
        ("list", [3]),
        ("empty", {}),
    ):
        write_checkpoint({**content, MODEL_KEY: model}, folder / f"{name}.ckpt")
    for name, text in (
        ("list.yaml", b"- 3\n"),
        ("bad.yaml", b"model: [3\n"),
        ("latin.txt", b"a good line\na b\xe9d line\n"),
    ):
        (folder / name).write_bytes(text)
    for name in ("pipe", "pipe.txt"):
        os.mkfifo(folder / name)
    (folder / "loop").symlink_to("loop")
    (folder / "zero.txt").symlink_to("/dev/zero")
    for name in ("void", "r", "locked", "closed", "half/closed", "public"):
        (folder / name).mkdir(parents=True)
    (folder / "half/text.txt").write_text("text")
    for name in ("secret.yaml", "secret.ckpt", "secret.txt", "secret.tiktoken", "secret.py", "closed/last.ckpt"):
        (folder / name).write_text("")
        (folder / name).chmod(0)
    (folder / "locked").chmod(0o555)
    folder.chmod(0o755)  # other users, too, may read the rest, and write into one folder
    (folder / "public").chmod(0o777)
    for name in ("closed", "half/closed"):
        (folder / name).chmod(0)
    return folder


def content_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file in a folder and of the folder of every run; no other folder counts."""
    files = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]
    files += folder.rglob("version_*")
    return {str(file): (file.lstat().st_size, file.lstat().st_mtime_ns) for file in files}


def run_here(call: Call, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Call the command in this process; returns its exit status and standard error."""
    monkeypatch.setattr(sys, "argv", ["lightning-gpt", *call.args])
    monkeypatch.setattr(sys, "path", [*sys.path])
    at_end: list[Callable[[], object]] = []
    register = atexit.register

    def registered(function: Callable[..., object], *args: Any, **options: Any) -> Callable[..., object]:
        if not function.__module__.startswith("lightning_gpt."):
            return register(function, *args, **options)
        at_end.append(partial(function, *args, **options))
        return function

    monkeypatch.setattr(atexit, "register", registered)
    previous = signal.signal(signal.SIGALRM, lambda *_: pytest.fail(f"it took more than {SECONDS} s"))
    signal.alarm(SECONDS)
    try:
        status = main()
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        signal.alarm(0)
        for function in reversed(at_end):
            function()
        signal.signal(signal.SIGALRM, previous)
    return status, capfd.readouterr().err


def run_apart(call: Call, folder: Path) -> tuple[int, str]:
    """Call the command in a process of its own; returns its exit status and standard error."""
    surrounded = ("tests.hostile.surrounded", *call.changes, "--") if call.changes else ("lightning_gpt",)
    done = run_forked(
        *surrounded,
        *call.args,
        cwd=folder,
        timeout=SECONDS,
        env=call.env,
        limits=call.limits,
        out=call.out,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("group", "name"), [pytest.param(group, name, id=f"{group}: {name}") for group in GROUPS for name in GROUPS[group]]
)
def test_wrong_call(
    group: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    call = GROUPS[group][name]
    skip_unless_possible(" ".join(call.changes))
    monkeypatch.chdir(folder)
    for file, content in call.files.items():
        Path(file).write_bytes(content if isinstance(content, bytes) else content.encode())
    before = content_of(folder)
    apart = call.env or call.limits or call.out or call.changes
    status, errors = run_apart(call, folder) if apart else run_here(call, monkeypatch, capfd)
    said = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, errors[-3000:]
    assert errors.splitlines()[-1] == said[0], "the error must be the last line"
    assert "Traceback" not in errors
    assert re.search(call.pattern, said[0]), said[0]
    assert len(said[0]) <= 300
    assert status == call.status, said[0]
    assert content_of(folder) == before, "a wrong call writes nothing"


def test_float64_is_refused_on_an_apple_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for accelerator in ("auto", "gpu", "mps"):
        check_precision("32-true", accelerator)
        with pytest.raises(CallError, match="precision is '64-true', but Apple's GPU"):
            check_precision("64-true", accelerator)
    check_precision("64-true", "cpu")


def test_on_a_machine_with_a_gpu_it_is_allowed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(CUDAAccelerator, "is_available", lambda: True)
    monkeypatch.setattr(MPSAccelerator, "is_available", lambda: False)
    monkeypatch.chdir(folder)
    for given in ("gpu", "cuda", "auto", "cpu"):
        check_accelerator(given)
    status, errors = run_here(fit("--trainer.accelerator", "mps", pattern=""), monkeypatch, capfd)
    assert status == 2
    assert errors.splitlines()[-1] == "error: trainer.accelerator is 'mps'; allowed here: auto, gpu, cpu, cuda"
