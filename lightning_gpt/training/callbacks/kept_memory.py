"""Memory of a training step that the next step uses again."""

from contextlib import AbstractContextManager

from lightning_gpt.kept_memory import freed_memory_kept
from lightning_gpt.training.callbacks.around_run import AroundRun


class KeptMemory(AroundRun[AbstractContextManager[None]]):
    """On a CPU, keeps freed memory for the next step: :func:`~lightning_gpt.kept_memory.freed_memory_kept`."""

    def _new_context(self) -> AbstractContextManager[None]:
        return freed_memory_kept()
