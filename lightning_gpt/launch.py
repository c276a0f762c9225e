"""How this process was launched: by itself or by torchrun or SLURM, for the first time or again."""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_UNNAMED = "none"  # torchrun's name of a run that was given none


def by_torchrun() -> bool:
    """Whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def torchrun_processes() -> tuple[int, int] | None:
    """The number of processes on this node and of nodes, as torchrun has them at present; None without torchrun."""
    if not by_torchrun():
        return None
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    return here, int(os.environ["WORLD_SIZE"]) // here


def restarts_need_another_store() -> bool:
    """Whether torchrun will restart this run with a store in which the processes of before are still written.

    They would then look for processes that have ended, and wait. TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in torchrun's own
    environment gives each restart a new store.
    """
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return by_torchrun() and shared and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"


@dataclass(frozen=True)
class Launch:
    """What started a run, and starts it again where it fails.

    Args:
        run: The name of the job: torchrun's ``--rdzv-id``, or SLURM's number; None if it has none of its own.
        agent: The process that starts it again: its machine, number and time of start; None if there is none.
        again: Whether it is known to be started again.
    """

    run: str | None
    agent: str | None
    again: bool

    @classmethod
    def of_this_process(cls) -> "Launch | None":
        """How this process was launched; None if nothing starts it again."""
        if by_torchrun():
            name = os.environ["TORCHELASTIC_RUN_ID"]
            again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
            return cls(None if name == _UNNAMED else f"torchrun {name}", _parent(), again)
        if "SLURM_JOB_ID" in os.environ:
            again = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
            return cls(f"slurm {os.environ['SLURM_JOB_ID']}", None, again)
        return None

    def is_of(self, record: Mapping[str, Any]) -> bool:
        """Whether this launch continues the run that wrote ``record``.

        The same agent always does. The same job does if it is known to be started again. Under torchrun the first
        process may be on a node that has only now joined the job and does not know: there the same job does as well,
        if the run neither finished nor was stopped on purpose.
        """
        if self.agent is not None and record.get("agent") == self.agent:
            return True
        same_job = self.run is not None and record.get("run") == self.run
        return same_job and (self.again or (by_torchrun() and not record.get("ended", False)))

    def record(self, ended: bool) -> dict[str, Any]:
        """What a run writes down of its launch.

        Args:
            ended: Whether it has finished or was stopped on purpose.
        """
        return {**asdict(self), "ended": ended}


def _parent() -> str:
    """The process that has started this one, by a name that no other has."""
    parent, started = os.getppid(), ""
    with suppress(OSError, IndexError):  # not on Linux
        started = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{socket.gethostname()} {parent} {started}"
