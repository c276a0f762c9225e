"""Standard streams that are closed, full or have no reader: the command ends with its status and no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import COMMAND, environment

UNKNOWN = "error: unknown command 'nope'; the commands are fit, validate"
HELP = "usage: lightning-gpt COMMAND"

STREAMS = {
    "nope <&-": (2, "", UNKNOWN),
    "nope >&-": (2, "", UNKNOWN),
    "nope 2>&-": (2, "", ""),
    "nope <&- >&- 2>&-": (2, "", ""),
    "nope 2>/dev/full": (2, "", ""),
    "--help <&-": (0, HELP, ""),
    "--help >&-": (0, "", ""),
    "--help 2>&-": (0, HELP, ""),
    "--help >/dev/full": (1, "", "error: standard output or a file cannot be written: No space left on device"),
    "--help >/dev/full 2>/dev/full": (1, "", ""),
}


@pytest.mark.parametrize("typed", STREAMS)
def test_streams(typed: str, tmp_path: Path) -> None:
    status, output, errors = STREAMS[typed]
    call = f'exec "{sys.executable}" -m lightning_gpt {typed}'
    done = subprocess.run(
        ["sh", "-c", call], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout[: len(HELP)]) == (status, output)
    assert done.stderr.startswith(errors)
    assert done.stderr.count("\n") == (1 if errors else 0)
    assert not list(tmp_path.iterdir())


def test_a_reader_that_has_gone(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*COMMAND, "--help"], cwd=tmp_path, env=environment(), stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")
