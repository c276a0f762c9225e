"""The rows of the table: each is a function that measures and yields its outcomes one by one."""

from collections.abc import Callable, Iterator

from benchmarks.bench import Bench
from benchmarks.report import Outcome
from benchmarks.rows import attention, busy, fit, generation, gpu, memory, startup, trained, training

ROWS: dict[str, Callable[[Bench], Iterator[Outcome]]] = {
    "step": training.step,
    "step_bf16": training.step_bf16,
    "peak": training.peak,
    "depth": training.depth,
    "compile": training.compiled,
    "papers": gpu.papers,
    "gpu_step": gpu.step,
    "memory": memory.memory,
    "checkpointing": memory.checkpointing,
    "fit": fit.fit,
    "busy": busy.busy,
    "generate": generation.one_prompt,
    "generate_batch": generation.batch,
    "position": generation.position,
    "attention": attention.memory,
    "window": attention.window,
    "trained": trained.trained,
    "help": startup.help_,
    "start": startup.start,
}
"""Every row by its name in ``--rows``, in the order of the table."""
