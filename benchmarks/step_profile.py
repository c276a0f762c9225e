"""Where the time of a training step goes: torch's profiler over a few steps of our model."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks import peers
from benchmarks.subject import Subject
from benchmarks.workload import Spec

_STEPS, _ROWS = 3, 20


def profile_step(spec: Spec, folder: Path, name: str) -> str:
    """Write ``profile-NAME.txt`` (a table) and ``trace-NAME.json`` (for chrome://tracing or Perfetto) to ``folder``.

    Returns:
        The table: operators sorted by their own time (without the operators they call), over a few steps.
    """
    subject = peers.build(spec)
    with subject.around():
        return _profile(subject, folder, name)


def _profile(subject: Subject, folder: Path, name: str) -> str:
    for _ in range(2):
        subject.step()
    device = subject.spec.device
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities, record_shapes=True) as profiled:
        for _ in range(_STEPS):
            with record_function("training step"):
                subject.step()
        if device == "cuda":
            torch.cuda.synchronize()
    order = "self_cuda_time_total" if device == "cuda" else "self_cpu_time_total"
    averages = profiled.key_averages()
    table: str = averages.table(sort_by=order, row_limit=_ROWS, max_name_column_width=60)
    (folder / f"profile-{name}.txt").write_text(table + "\n", encoding="utf-8")
    profiled.export_chrome_trace(str(folder / f"trace-{name}.json"))
    return table
