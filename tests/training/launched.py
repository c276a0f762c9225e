"""torchrun with processes that are forks of this one: its own arguments and its own agent, without seconds of imports.

``python -m tests.training.launched NODES torchrun's arguments -- lightning-gpt's arguments`` starts an agent for each
of NODES nodes on this machine, which meet. It prints the exit status of each.
"""

import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import elastic_launch

from benchmarks.layout_training import free_port


def _worker(args: Sequence[str]) -> None:
    """What ``torchrun -m lightning_gpt`` starts."""
    from lightning_gpt.__main__ import main

    sys.argv[1:] = args
    status = main()
    if status:
        sys.exit(status)


def _agent(options: Sequence[str], args: Sequence[str]) -> NoReturn:
    """Do what ``torchrun`` does, and end."""
    config, _, _ = torchrun.config_from_args(torchrun.parse_args([*options, "-m", "lightning_gpt"]))
    status = 0
    try:
        elastic_launch(dataclasses.replace(config, start_method="fork"), _worker)(list(args))
    except ChildFailedError:
        status = 1
    finally:
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Run the script."""
    nodes, *rest = sys.argv[1:]
    between = rest.index("--")
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{free_port()}", "--rdzv-id", "job"]
    agents = []
    for number in range(int(nodes)):
        agents.append(os.fork())
        if agents[-1] == 0:
            first = ["--rdzv-conf", f"is_host={number == 0},last_call_timeout=1,keep_alive_interval=1"]
            _agent([*meeting, *first, *rest[:between]], rest[between + 1 :])
    print([os.waitstatus_to_exitcode(os.waitpid(agent, 0)[1]) for agent in agents])


if __name__ == "__main__":
    main()
