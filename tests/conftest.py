"""One thread for each test process: the tests run a process a core, and threads that wait for one only cost time."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
