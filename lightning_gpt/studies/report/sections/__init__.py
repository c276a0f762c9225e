"""The sections that a report may have, by the names that a study's YAML file gives them."""

import dataclasses
from importlib import import_module
from typing import Any

from lightning_gpt.errors import CallError
from lightning_gpt.studies.report.sections.base import Section
from lightning_gpt.studies.report.sections.compare import Compare
from lightning_gpt.studies.report.sections.coordinates import Coordinates
from lightning_gpt.studies.report.sections.curves import Curves
from lightning_gpt.studies.report.sections.fit import Fit
from lightning_gpt.studies.report.sections.flow import Flow
from lightning_gpt.studies.report.sections.gain import Gain
from lightning_gpt.studies.report.sections.layers import Layers
from lightning_gpt.studies.report.sections.table import SettingsTable
from lightning_gpt.studies.report.sections.trend import Trend
from lightning_gpt.trust import is_trusted

SECTIONS: dict[str, type[Section]] = {
    "table": SettingsTable,
    "curves": Curves,
    "trend": Trend,
    "fit": Fit,
    "compare": Compare,
    "gain": Gain,
    "layers": Layers,
    "flow": Flow,
    "coordinates": Coordinates,
}


_VERDICTS = "lightning_gpt.studies.verdicts."
"""Sections of shipped studies that answer only their own question."""


def make_section(name: str, options: dict[str, Any]) -> Section:
    """The section called ``name`` with its options.

    Args:
        name: One of :data:`SECTIONS`, or the import path of a :class:`Section` that is a dataclass: ``module.Class``.
        options: Its fields, by name.

    Raises:
        CallError: The section does not exist, has no such option, or lacks an option that it needs.
    """
    section = SECTIONS[name] if name in SECTIONS else _imported(name)
    fields = list(dataclasses.fields(section))  # type: ignore[arg-type]
    known = [field.name for field in fields]
    for option in options:
        if option not in known:
            raise CallError(f"report: {name} has no option {option!r}; it has {', '.join(known) or 'none'}")
    for field in fields:
        if field.name not in options and field.default is dataclasses.MISSING:
            raise CallError(f"report: {name} needs the option {field.name!r}")
    for option, value in options.items():
        if not isinstance(value, str):
            raise CallError(f"report: option {option} of {name} is {value!r}; it must be text")
    return section(**options)


def _imported(path: str) -> type[Section]:
    """The section class at an import path in this package's verdicts or in a trusted module."""
    module, _, name = path.rpartition(".")
    if not module:
        raise CallError(f"report: unknown section {path!r}; known are {', '.join(SECTIONS)}, or an import path")
    if not module.startswith(_VERDICTS) and not is_trusted(module):
        raise CallError(f"report: {path!r} is not a known section; to use it, add --trust {module}")
    try:
        section = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise CallError(f"report: section {path!r} cannot be imported: {error}") from None
    if not (isinstance(section, type) and issubclass(section, Section) and dataclasses.is_dataclass(section)):
        raise CallError(
            f"report: {path!r} is not a section: it must be a dataclass that derives from {Section.__name__}"
        )
    return section
