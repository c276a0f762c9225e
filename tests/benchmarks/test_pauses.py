"""What saves and diagnostics cost is measured in each way, on a training that goes on."""

import re
from pathlib import Path

import pytest

from benchmarks.pauses import measure
from lightning_gpt.checkpoint_file import read_checkpoint

SIZE = {"n_layer": 1, "n_head": 1, "dim": 8, "block_size": 8, "vocab_size": 16, "rows": 2}
WAYS = ["before the next step", "in a thread"]


@pytest.mark.parametrize(("what", "ways"), [("saves", ["by torch.save", *WAYS]), ("diagnostics", WAYS)])
def test_each_way_is_measured(what: str, ways: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measure(what, SIZE, every=2, rounds=1, folder=tmp_path)
    said = capsys.readouterr().out
    assert said.startswith(f"{what}, 0.0 million weights, ")
    assert re.findall(r"^  (.*): pause .* later .* whole .* ms, [\d.-]+ x", said, re.MULTILINE) == ways
    if what == "saves":  # the last of 6 saves, before the last 2 of 24 steps
        assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 23
