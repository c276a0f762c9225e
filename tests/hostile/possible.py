"""Which surroundings a test can make on this machine, as this user."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _may(*command: str) -> bool:
    """Whether this user may run a command, which needs to be root."""
    return shutil.which(command[0]) is not None and subprocess.run(command, check=False).returncode == 0


def _is_open(folder: Path) -> bool:
    """Whether every user can read what is in a folder."""
    return all(each.stat().st_mode & stat.S_IXOTH for each in (folder, *folder.parents))


def skip_unless_possible(changes: str) -> None:
    """Skip a test whose changes (:mod:`tests.hostile.surrounded`) cannot be made here."""
    if "mount=" in changes and not _may("unshare", "-m", "true"):
        pytest.skip("only root can mount a file system")
    if "user=" in changes:
        if os.geteuid() != 0:
            pytest.skip("only root can become another user")
        for folder in (Path(sys.prefix), ROOT):
            if not _is_open(folder):
                pytest.skip(f"another user could not read {folder}, which this test needs")
