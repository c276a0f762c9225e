"""What the layer diagnostics are called, and what they mean."""

from typing import TYPE_CHECKING

from lightning_gpt.errors import CallError

if TYPE_CHECKING:
    from lightning_gpt.analysis.layer_diagnostics import Diagnostic


def diagnostic(name: str) -> "Diagnostic":
    """The diagnostic called ``name``.

    Imports torch, which the study's own process avoids while its cells run.

    Raises:
        CallError: There is no diagnostic of that name.
    """
    from lightning_gpt.analysis.layer_diagnostics import DIAGNOSTICS

    if name not in DIAGNOSTICS:
        raise CallError(f"report: unknown diagnostic {name!r}; known are {', '.join(DIAGNOSTICS)}")
    return DIAGNOSTICS[name]
