"""What holds for every test: one thread, no deadlines, every signal heard, and no core idle at the end."""

import gc
import os
import signal
import sys

import hypothesis
import pytest
import torch

from tests.shared_server import offer_server

# the tests run a process a core and one more, and threads that wait for one only cost time
os.environ.setdefault("OMP_NUM_THREADS", "1")
# torch has read it already where the tests run in this process (-n0): sums must not differ from those of the commands
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"].partition(",")[0]))

# whatever the environment says: dozens of processes would each compile the package anew
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# under nohup the commands of the tests would not hear it
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# a busy machine is no failure
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--device cuda`` runs the tests of models on a device."""
    parser.addoption("--device", default="cpu", help="default device of tensors: cpu, cuda or mps")


def pytest_configure(config: pytest.Config) -> None:
    """Make tensors on the chosen device unless a test says otherwise, and let workers share a fork server."""
    device = config.getoption("--device")
    if device != "cpu":  # as a default it would cost every call of torch a little
        torch.set_default_device(device)
    if config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput"):
        offer_server()


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: tests that start processes wait for half of their time."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1) + 1


def pytest_collection_finish() -> None:
    """What is imported and collected stays to the end: no collection of garbage looks through it again."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules that start processes come first: they are the long ones, and the short fill up the end."""
    items.sort(key=lambda item: not _starts_processes(item))
    if torch.get_default_device().type == "cpu":
        return
    for item in items:
        mark = item.get_closest_marker("cpu")
        if mark is not None:
            item.add_marker(pytest.mark.skip(reason=mark.args[0]))


_STARTERS = ("tests.processes", "tests.parallel.world", "benchmarks.chaos.case", "benchmarks.plan_errors")


def _starts_processes(item: pytest.Item) -> bool:
    names = vars(item.getparent(pytest.Module).obj).values()  # type: ignore[union-attr]
    return any(getattr(value, "__module__", None) in _STARTERS for value in names)
