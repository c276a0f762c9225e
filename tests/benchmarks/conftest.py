"""A workload that takes milliseconds, and a stand-in for the clones of projects that are on no package index."""

from pathlib import Path

import pytest

from benchmarks.bench import Bench
from benchmarks.workload import Workload
from tests.benchmarks.stand_in import NANO_GPT


@pytest.fixture
def workload() -> Workload:
    return Workload(
        dim=16,
        n_head=2,
        time=32,
        batch=2,
        vocab_size=300,
        depths=[1, 2, 3],
        checkpoint_depth=3,
        generate_depth=1,
        prompt=3,
        new_tokens=4,
        generate_batch=2,
        attention_time=64,
        window=16,
    )


@pytest.fixture
def peer_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "peers"
    (folder / "nanoGPT").mkdir(parents=True)
    (folder / "nanoGPT/model.py").write_text(NANO_GPT)
    return folder


@pytest.fixture
def bench(workload: Workload, peer_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Two rounds of ours beside the stand-in, in one process, without the libraries that take seconds to import."""
    bench = Bench(workload, "cpu", 2, str(peer_dir), None)
    bench.__dict__["missing"] = dict.fromkeys(("minGPT", "Hugging Face", "litgpt"), "left out of tests")
    bench.__dict__["bf16_reason"] = None
    return bench
