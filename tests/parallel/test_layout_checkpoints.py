"""The short form of the table of checkpoints: saved under each layout, loaded under each other."""

import re
from pathlib import Path

from tests.processes import run_forked


def test_the_next_losses_and_weights_are_those_of_one_process(tmp_path: Path) -> None:
    done = run_forked("benchmarks.layout_checkpoints", "--short", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    pairs = re.findall(r"^values, muon \| (.*) → (.*?) \|.* holds$", done.stdout, re.M)
    layouts = {"one process", "shard 2", "shard 2 × tensor 2 + sequence"}
    assert sorted(pairs) == sorted((saved, loaded) for saved in layouts for loaded in layouts)
