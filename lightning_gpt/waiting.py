"""How threads wait for each other: spinning while the cores are free, sleeping while other programs take them.

Every operation of torch ends when the last of its threads does. GNU's OpenMP lets the others spin for milliseconds,
which is the fastest way of waiting on a free machine. Beside another program they may spin on the core that the last
one needs, and a step takes up to 18 times as long. Asleep they leave it the core.

The number of threads decides in which order sums are added, so it stays as it is, and so do results, to the bit.
"""

import ctypes
import os
import threading
import time
from pathlib import Path
from types import TracebackType

import torch

from lightning_gpt.hardware import cores

_WINDOW, _TRIAL = 0.25, 0.1
"""Seconds that are looked at together, and that spinning is tried for."""
_CROWDED, _FREE = 0.15, 0.05
"""Shares of the time for which a thread had work and no core. Spinning threads on a free machine show 0.01, beside a
program of the lowest priority 0.04, beside one of their own 0.3 to 0.5; sleeping threads on a free machine 0.01."""
_WINDOWS = 2  # that have to agree
_FIRST_PAUSE, _LONGEST_PAUSE = 5.0, 60.0  # seconds between trials
_HELD = 2.0  # seconds that a choice has lasted when it is told
_TOLD = 3  # changes that are told
_SET_BY_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_LARGE = 1 << 17  # numbers, of which torch adds more than one thread's share


class SpinOrSleep:
    """Whether threads should sleep, from how long they waited for cores.

    A sleeping thread waits for a core beside any program, also beside one that would give way to a spinning thread. So
    spinning is tried again from time to time, for a tenth of a second.
    """

    def __init__(self) -> None:
        self.sleeps = False
        self._trial = False
        self._agreeing = 0
        self._pause, self._next_trial = _FIRST_PAUSE, 0.0

    @property
    def window(self) -> float:
        """Seconds to look at next."""
        return _TRIAL if self._trial else _WINDOW

    def take(self, share: float, now: float) -> None:
        """Take in what a window showed.

        Args:
            share: Part of the window for which the thread that fared worst had work and no core.
            now: Seconds on any clock that only goes forward.
        """
        if self._trial:
            self._trial = False
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            if share > _CROWDED:
                self._set(True, now)
            return
        self._agreeing = self._agreeing + 1 if (share < _FREE if self.sleeps else share > _CROWDED) else 0
        if self._agreeing == _WINDOWS:
            self._pause = _FIRST_PAUSE
            self._set(not self.sleeps, now)
        elif self.sleeps and now >= self._next_trial:
            self._trial = True
            self._set(False, now)

    def _set(self, sleeps: bool, now: float) -> None:
        self.sleeps, self._agreeing = sleeps, 0
        self._next_trial = now + self._pause


class Waiting:
    """Inside the context, threads sleep while they wait for each other whenever other programs take their cores.

    It looks four times a second at how long the threads of this process have waited for cores. Nothing is done where it
    cannot choose: see :func:`cannot_choose`.
    """

    def __init__(self) -> None:
        self._choice, self._ended = SpinOrSleep(), threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._told = (False, 0)  # the choice that was told last, and how many were
        self._since, self._share = 0.0, 0.0  # of a choice that is not that one

    def __enter__(self) -> "Waiting":
        library = _gnu_openmp() if cannot_choose() is None else None
        if library is not None:
            self._thread = threading.Thread(target=self._watch, args=(library,), daemon=True, name="waiting")
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def watches(self) -> bool:
        """Whether it can choose here, and does."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def sleeps(self) -> bool:
        """Whether threads sleep while they wait."""
        return self._choice.sleeps

    def news(self) -> str | None:
        """What was chosen and why, once, as soon as it has lasted two seconds; the first three times only."""
        with self._lock:
            sleeps, (told, times) = self._choice.sleeps, self._told
            if sleeps == told or times == _TOLD or not self._since or time.monotonic() - self._since < _HELD:
                return None
            self._told = (sleeps, times + 1)
            last = "; further changes are not reported" if times + 1 == _TOLD else ""
            if not sleeps:
                return f"the cores are free again: threads spin while they wait for each other{last}"
            return (
                f"other programs take cores (a thread had none for {self._share:.0%} of the time): the "
                f"{torch.get_num_threads()} threads sleep while they wait for each other; results stay the same{last}"
            )

    def _watch(self, library: ctypes.CDLL) -> None:
        # the thread's delays are what makes steps slow, whatever a step is; looking at those of 9 threads takes 0.2 ms
        spare: _SpareTeam | None = None
        before, last = _delays(), time.monotonic()
        while not self._ended.wait(self._choice.window):
            delays, now = _delays(), time.monotonic()
            share = max((delay - before.get(thread, delay) for thread, delay in delays.items()), default=0.0)
            with self._lock:
                before, was = delays, self._choice.sleeps
                self._choice.take(share / (now - last), now)
                if self._choice.sleeps == self._told[0]:
                    self._since = 0.0
                elif not self._since:
                    self._since, self._share = now, share / (now - last)
            last = now
            if self._choice.sleeps and spare is None:
                spare = _SpareTeam(library)
            elif spare is not None and not self._choice.sleeps:
                spare.end()
                spare = None
            if was != self._choice.sleeps:  # what comes before threads wait otherwise does not count
                before, last = _delays(), time.monotonic()
        if spare is not None:
            spare.end()


class _SpareTeam:
    """Threads that do nothing.

    With more threads than cores, GNU's OpenMP checks 100 times, instead of 300,000 times, what it waits for before it
    sleeps (https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html). It reads its environment only once, so
    this is how to choose while a process runs.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._ended, ready = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._hold, args=(library, ready), daemon=True, name="spare team")
        self._thread.start()
        ready.wait()

    def _hold(self, library: ctypes.CDLL, ready: threading.Event) -> None:
        # torch sets the number of a thread's team when it first asks for it; after that it is this thread's own
        size = max(2, cores() - torch.get_num_threads() + 2)
        library.omp_set_num_threads(size)
        torch.ones(_LARGE).add_(1)
        ready.set()
        self._ended.wait()

    def end(self) -> None:
        """End the threads."""
        self._ended.set()
        self._thread.join()


def cannot_choose() -> str | None:
    """Why this process cannot choose how its threads wait; None if it can."""
    given = next((name for name in _SET_BY_USER if os.environ.get(name)), None)
    if given is not None:
        return f"{given} is {os.environ[given]!r}"
    if torch.get_num_threads() == 1:
        return "one thread waits for nobody"
    if not Path("/proc/thread-self/schedstat").exists():
        return "the system does not say how long threads wait for cores"
    if _gnu_openmp() is None:
        return "torch does not use GNU's OpenMP"
    return None


def _gnu_openmp() -> ctypes.CDLL | None:
    """The OpenMP library that torch has loaded, if it is GNU's and the only one that it can be."""
    mapped = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    files = {Path(line.split(maxsplit=5)[5]) for line in mapped if line.count("/")}
    loaded = {file for file in files if file.name.startswith(("libgomp", "libomp", "libiomp"))}
    loaded = {file for file in loaded if file.is_relative_to(Path(torch.__file__).parent)} or loaded
    if len(loaded) != 1 or not (file := loaded.pop()).name.startswith("libgomp"):
        return None
    return ctypes.CDLL(str(file))


def _delays() -> dict[str, float]:
    """For how many seconds each thread of this process has had work and no core."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            found[task.name] = int((task / "schedstat").read_text(encoding="ascii").split()[1]) / 1e9
        except OSError:
            continue  # it has ended
    return found
