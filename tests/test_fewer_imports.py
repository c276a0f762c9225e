"""What torchmetrics only looks for is hidden from it, and from nothing else."""

import importlib.metadata
import importlib.util
import sys
from pathlib import Path

import pytest

from lightning_gpt import fewer_imports
from lightning_gpt.fewer_imports import hide_extras


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package that does at its import what torchmetrics does, with the same helpers, and a library that it finds."""
    (tmp_path / "found_by_metrics.py").write_text("")
    (tmp_path / "found_by_metrics-3.0.dist-info").mkdir()
    (tmp_path / "found_by_metrics-3.0.dist-info/METADATA").write_text("Name: found_by_metrics\nVersion: 3.0\n")
    (tmp_path / "asks_for_extras.py").write_text(
        "from lightning_utilities.core.imports import RequirementCache, package_available\n"
        "found = [package_available('found_by_metrics'), bool(RequirementCache('found_by_metrics'))]\n"
        "found += [bool(RequirementCache('found_by_metrics>=2')), package_available('yaml')]\n"
        "import found_by_metrics  # as another library may, which needs it\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(fewer_imports, "_ASKING", "asks_for_extras")
    monkeypatch.setattr(fewer_imports, "_HIDDEN", ("found_by_metrics",))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    for name in ("asks_for_extras", "found_by_metrics"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "asks_for_extras"


@pytest.mark.parametrize("hidden", [True, False])
def test_it_is_hidden_from_one_import_alone(stand_in: str, hidden: bool) -> None:
    finders = len(sys.meta_path)
    if hidden:
        hide_extras()
        hide_extras()
        assert len(sys.meta_path) == finders + 1
    asked = importlib.import_module(stand_in)
    assert asked.found == [not hidden, not hidden, not hidden, True]
    assert asked.__spec__ is not None
    assert asked.__loader__ is asked.__spec__.loader
    assert importlib.util.find_spec("found_by_metrics") is not None
    assert importlib.metadata.version("found_by_metrics") == "3.0"
    from lightning_utilities.core.imports import RequirementCache, package_available

    assert package_available("found_by_metrics")
    assert RequirementCache("found_by_metrics>=2")
    hide_extras()  # too late: it is there
    assert len(sys.meta_path) == finders


def test_what_fails_there_leaves_nothing_hidden(stand_in: str, tmp_path: Path) -> None:
    (tmp_path / f"{stand_in}.py").write_text("raise RuntimeError('broken')\n")
    hide_extras()
    with pytest.raises(RuntimeError, match="broken"):
        importlib.import_module(stand_in)
    assert importlib.metadata.version("found_by_metrics") == "3.0"
    assert importlib.import_module("found_by_metrics")


def test_other_helpers_are_asked_as_they_are(stand_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_utilities.core import imports

    (tmp_path / f"{stand_in}.py").write_text(
        "from lightning_utilities.core.imports import package_available\n"
        "found = package_available('found_by_metrics')\n"
    )
    monkeypatch.delattr(imports, "_version")
    hide_extras()
    assert importlib.import_module(stand_in).found is False
    assert not hasattr(imports, "_version")
