"""Worker processes: they build and train, measure their own memory, and their failures are said in one line."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks.bench import Bench
from benchmarks.remote import RemoteWorker
from benchmarks.workload import Workload
from lightning_gpt.errors import CallError, WorkError


@pytest.fixture(scope="module")
def worker() -> Iterator[RemoteWorker]:
    with RemoteWorker(sys.executable, threads=1) as running:
        yield running


def test_it_takes_steps(worker: RemoteWorker, bench: Bench) -> None:
    worker.ask("build", spec=asdict(bench.spec("ours", 1)))
    assert 0 < worker.ask("step") < 60


def test_it_says_what_it_cannot_build(worker: RemoteWorker) -> None:
    assert worker.ask("missing", project="nanoGPT", peer_dir=None).startswith("--peer_dir is not given")
    assert worker.ask("missing", project="ours", peer_dir=None) is None


def test_its_failure_is_one_line_and_it_goes_on(worker: RemoteWorker, bench: Bench) -> None:
    with pytest.raises(WorkError, match="a benchmark process failed at build: KeyError: 'unheard of'"):
        worker.ask("build", spec=asdict(bench.spec("unheard of", 1)))
    worker.ask("build", spec=asdict(bench.spec("ours", 1)))


def test_more_logits_take_more_memory(worker: RemoteWorker, bench: Bench, workload: Workload) -> None:
    large = replace(workload, vocab_size=20_000, batch=4)
    ours, theirs = (
        worker.ask("step_memory", spec=asdict(replace(bench.spec(project, 1), workload=large)))
        for project in ("ours", "nanoGPT")
    )
    logits = 4 * large.vocab_size * large.tokens
    assert theirs > 2 * logits, "they hold logits and their gradient"
    assert ours < theirs


def test_the_formula_holds_the_square(bench: Bench, workload: Workload) -> None:
    spec = replace(bench.spec("ours", 1, attention_backend="manual"), workload=replace(workload, attention_time=2048))
    square = 4 * workload.n_head * 2048**2
    with RemoteWorker(sys.executable, threads=1) as fresh:  # memory that was freed is reused uncounted
        assert fresh.ask("attention_memory", spec=asdict(spec)) > 2 * square


def test_a_process_that_dies_is_said_to(tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'no torch here' >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(WorkError, match="a benchmark process exited: no torch here"):
        RemoteWorker(str(broken), threads=1)


def test_an_interpreter_that_is_none_is_said_to_be() -> None:
    with pytest.raises(CallError, match="litgpt_python is '/nowhere/python', which cannot be run"):
        RemoteWorker("/nowhere/python", threads=1)


def test_a_peak_is_seen_though_it_is_gone_afterwards() -> None:
    code = "from benchmarks.memory import peak_bytes; print(peak_bytes(lambda: bytearray(200_000_000) and None, 'cpu'))"
    # in this process, what earlier tests freed may be given back meanwhile
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(fresh.stdout) > 190_000_000
