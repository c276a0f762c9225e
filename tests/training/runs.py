"""What tests of interrupted and shared runs read from a run's folder, and how they wait for it."""

import time
from pathlib import Path

import torch

from tests.processes import scalars


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The weights in ``last.ckpt``."""
    state: dict[str, torch.Tensor] = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return state


def assert_same_series(part: Path, whole: Path) -> None:
    """Every value that ``part`` logged is the one that ``whole`` logged at that step."""
    expected = scalars(whole)
    logged = scalars(part)
    assert logged, f"{part} logged nothing"
    assert {key: expected.get(key) for key in logged} == logged


def wait_for_saves(path: Path, saves: int, seconds: float = 180) -> None:
    """Wait until ``path`` was written ``saves`` times."""
    end, seen = time.monotonic() + seconds, set()
    while len(seen) < saves:
        assert time.monotonic() < end, f"{path} was written {len(seen)} times in {seconds} s"
        if path.exists():
            seen.add(path.stat().st_mtime_ns)
        time.sleep(0.001)
