"""The process that ``lightning-gpt`` and ``python -m lightning_gpt`` start."""

import sys

# python -m puts the working folder first on the path, where any file of it could replace a package. It must go before
# the other imports. An uninstalled clone that is run from its own folder needs it.
if __name__ == "__main__" and not sys.flags.safe_path and not __file__.startswith(f"{sys.path[0]}/lightning_gpt/"):
    del sys.path[0]

import atexit
import os
import signal

from lightning_gpt.errors import Stopped
from lightning_gpt.stopping import on_stop, restore, status_of_stop, stop_at_once
from lightning_gpt.trust import keep_working_folder_out


def main() -> int:
    """Run the command line; returns its exit status, which is that of a stop wherever the process is asked to stop."""
    try:
        atexit.register(_ignore_stops)  # the last thing that the interpreter does before it forgets all handlers
        on_stop(stop_at_once)
        keep_working_folder_out()
        from lightning_gpt.cli import main as run

        status = run()
        return status_of_stop() if status == 130 else status
    except Stopped as stopped:  # before or after the command itself
        print(stopped, file=sys.stderr)
        return status_of_stop()
    finally:
        # nothing is left to stop but the interpreter, which would answer with a traceback
        on_stop(lambda *_: os._exit(status_of_stop()))


def _ignore_stops() -> None:
    restore(dict.fromkeys(on_stop(stop_at_once), signal.SIG_IGN))


if __name__ == "__main__":
    sys.exit(main())
