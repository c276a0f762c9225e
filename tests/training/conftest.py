"""What tests of interrupted and shared runs hold theirs against."""

from pathlib import Path

import pytest

from tests.processes import must_run


@pytest.fixture(scope="module")
def alone(config: Path) -> Path:
    """The run of the module's ``config`` that was left alone."""
    folder = config.parent / "alone"
    folder.mkdir()
    must_run("fit", "--config", str(config), cwd=folder)
    return folder / "runs/tiny/version_0"
