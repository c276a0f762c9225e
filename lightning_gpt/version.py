"""The version, and the commit that the code is of."""

import os
import subprocess
from pathlib import Path

COMMIT_FILE = "commit.txt"
"""What a wheel or a source distribution holds beside this module: the commit that it was built from."""

DIRTY = "-dirty"
"""What follows a commit whose files had been changed."""

_HERE = Path(__file__).parent
_SECONDS = 10


def described_version() -> str:
    """The version and, where it is known, the commit: ``0.1.0 (commit 0123456789ab)``.

    ``-dirty`` after a commit means that files of it had been changed.
    """
    from lightning_gpt import __version__

    found = commit()
    return __version__ if found is None else f"{__version__} (commit {found})"


def commit() -> str | None:
    """The commit that this code was built from, or that is checked out; None where neither is known."""
    try:
        return (_HERE / COMMIT_FILE).read_text().strip() or None
    except OSError:
        return _checked_out(_HERE.parent)


def _checked_out(folder: Path) -> str | None:
    if not (folder / ".git").exists():  # git would look further up, where another project may be
        return None
    command = ("git", "-C", str(folder), "describe", "--always", f"--dirty={DIRTY}", "--abbrev=12", "--exclude=*")
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired):  # without git there is no commit to name
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
