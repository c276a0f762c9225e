"""The first look at a device: its bookkeeping, with looks that need none."""

from pathlib import Path

import pytest

from benchmarks import gpu_check
from benchmarks.gpu_check import DeviceLook, check, looks


def test_what_fails_hangs_or_is_not_reached_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [
        DeviceLook("good", ("-c", "print('seen')"), 0.5),
        DeviceLook("bad", ("-c", "raise SystemExit(3)"), 0.5),
        DeviceLook("hangs", ("-c", "import time; time.sleep(600)"), 0.9),
        DeviceLook("late", ("-c", "print('never')"), 0.5),
    ]
    monkeypatch.setattr(gpu_check, "looks", lambda peer_dir: chosen)
    assert not check(tmp_path / "out", 0.1, None, None)
    rows = [line.split("|")[1:3] for line in (tmp_path / "out" / "summary.md").read_text().splitlines()[2:]]
    results = {name.strip(): result.strip() for name, result in rows}
    assert results["good"] == "ok"
    assert results["bad"] == "exit status 3"
    assert results["hangs"].startswith("stopped after")
    assert results["late"] == "not reached"
    assert (tmp_path / "out" / "good.txt").read_text() == "seen\n"


def test_its_looks_share_the_time() -> None:
    assert sum(look.share for look in looks(None)) == pytest.approx(1.0)
    assert "peers" in str(looks("peers"))
