"""The sections that a report may have, by the names that a study's YAML gives them."""

import dataclasses
from typing import Any

from lightning_gpt.errors import CallError
from lightning_gpt.studies.report.sections.accounts import Accounts
from lightning_gpt.studies.report.sections.base import Section
from lightning_gpt.studies.report.sections.compare import Compare
from lightning_gpt.studies.report.sections.coordinates import Coordinates
from lightning_gpt.studies.report.sections.curves import Curves
from lightning_gpt.studies.report.sections.fit import Fit
from lightning_gpt.studies.report.sections.flow import Flow
from lightning_gpt.studies.report.sections.initialisation import Initialisation
from lightning_gpt.studies.report.sections.layers import Layers
from lightning_gpt.studies.report.sections.table import SettingsTable
from lightning_gpt.studies.report.sections.trend import Trend

SECTIONS: dict[str, type[Section]] = {
    "table": SettingsTable,
    "curves": Curves,
    "trend": Trend,
    "fit": Fit,
    "compare": Compare,
    "layers": Layers,
    "flow": Flow,
    "coordinates": Coordinates,
    "initialisation": Initialisation,
    "accounts": Accounts,
}


def make_section(name: str, options: dict[str, Any]) -> Section:
    """The section called ``name`` with its options.

    Raises:
        CallError: Where there is no such section, or it has no such option, or one that it needs is missing.
    """
    if name not in SECTIONS:
        raise CallError(f"report: unknown section {name!r}; known are {', '.join(SECTIONS)}")
    fields = list(dataclasses.fields(SECTIONS[name]))  # type: ignore[arg-type]
    known = [field.name for field in fields]
    for option in options:
        if option not in known:
            raise CallError(f"report: {name} has no option {option!r}; it has {', '.join(known) or 'none'}")
    for field in fields:
        if field.name not in options and field.default is dataclasses.MISSING:
            raise CallError(f"report: {name} needs the option {field.name!r}")
    for option, value in options.items():
        if not isinstance(value, str):
            raise CallError(f"report: {name} has {option} {value!r}; it must be text")
    return SECTIONS[name](**options)
