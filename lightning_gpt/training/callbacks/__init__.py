"""What is logged, checked, saved and reported while a model trains; one callback per file.

Callbacks that log and draw never change what is trained. Those that do are options, off by default: ``Averaging``,
``Spikes``, ``Weights``, ``Grow`` and ``Upcycle``. ``NonFinite`` stops a run by default, and changes only steps that are
not finite.
"""

from lightning_gpt.training.callbacks.averaging import Averaging
from lightning_gpt.training.callbacks.board import Board
from lightning_gpt.training.callbacks.busy_machine import BusyMachine
from lightning_gpt.training.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from lightning_gpt.training.callbacks.cost import Cost
from lightning_gpt.training.callbacks.early_end import EarlyEnd
from lightning_gpt.training.callbacks.experts import ExpertUse
from lightning_gpt.training.callbacks.grow import Grow
from lightning_gpt.training.callbacks.heartbeat import Heartbeat
from lightning_gpt.training.callbacks.initial_loss import InitialLoss
from lightning_gpt.training.callbacks.kept_memory import KeptMemory
from lightning_gpt.training.callbacks.layer_diagnostics import LayerDiagnostics
from lightning_gpt.training.callbacks.metrics_file import MetricsFile
from lightning_gpt.training.callbacks.non_finite import NonFinite
from lightning_gpt.training.callbacks.predictions import Predictions
from lightning_gpt.training.callbacks.progress import RunProgress
from lightning_gpt.training.callbacks.same_start import SameStart
from lightning_gpt.training.callbacks.samples import Samples
from lightning_gpt.training.callbacks.spikes import Spikes
from lightning_gpt.training.callbacks.step_metrics import StepMetrics
from lightning_gpt.training.callbacks.summary import RunSummary
from lightning_gpt.training.callbacks.token_routes import TokenRoutes
from lightning_gpt.training.callbacks.upcycle import Upcycle
from lightning_gpt.training.callbacks.weights import Weights

__all__ = [
    "Averaging",
    "BestCheckpoint",
    "Board",
    "BusyMachine",
    "Cost",
    "EarlyEnd",
    "ExpertUse",
    "Grow",
    "Heartbeat",
    "InitialLoss",
    "KeptMemory",
    "LastCheckpoint",
    "LayerDiagnostics",
    "MetricsFile",
    "NonFinite",
    "Predictions",
    "RunProgress",
    "RunSummary",
    "SameStart",
    "Samples",
    "Spikes",
    "StepMetrics",
    "TokenRoutes",
    "Upcycle",
    "Weights",
]
