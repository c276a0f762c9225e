"""The versions that CI installs: each dependency has one, within the range that pyproject.toml gives."""

import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
NAMED = [
    Requirement(text) for text in (*PROJECT["dependencies"], *(each for extra in EXTRAS.values() for each in extra))
]
LOCKED = {
    canonicalize_name(line.partition("==")[0]): line for line in (ROOT / ".ci/constraints.txt").read_text().split()
}
FREE = {"torch", "pip", "lightning-gpt"}
"""torch is left to its range, because its version names the build; pip comes with the environment; the last is ours."""


def test_each_line_is_one_version() -> None:
    assert LOCKED
    for line in LOCKED.values():
        (specifier,) = Requirement(line).specifier
        assert specifier.operator == "=="
        assert "*" not in specifier.version


@pytest.mark.parametrize("named", NAMED, ids=str)
def test_each_dependency_has_a_version_in_its_range(named: Requirement) -> None:
    name = canonicalize_name(named.name)
    if name in FREE:
        assert name not in LOCKED
        return
    (specifier,) = Requirement(LOCKED[name]).specifier
    assert named.specifier.contains(specifier.version), f"run .ci/lock: {LOCKED[name]} is not {named}"


def test_dependencies_of_dependencies_are_covered() -> None:
    waiting, seen = [(named.name, named.extras) for named in NAMED], set()
    while waiting:
        name, extras = waiting.pop()
        name = canonicalize_name(name)
        if (name, *extras) in seen:
            continue
        seen.add((name, *extras))
        assert name in LOCKED or name in FREE, f"run .ci/lock: {name} is missing"
        if name == "torch":  # what it needs differs by build
            continue
        try:
            needed = [Requirement(text) for text in requires(name) or []]
        except PackageNotFoundError:
            continue  # of an extra that is not installed here
        for each in needed:
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                waiting.append((each.name, each.extras))
                version = LOCKED.get(canonicalize_name(each.name), "").partition("==")[2]
                fits = not version or each.specifier.contains(version, prereleases=True)
                assert fits, f"run .ci/lock: {name} needs {each}, and {version} is locked"
