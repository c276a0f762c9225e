"""One project's model with its optimizer, as trained and sampled from in a round."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from benchmarks.rounds import seconds
from benchmarks.workload import Spec

Loss = Callable[[Tensor, Tensor], Tensor]
"""The project's mean cross-entropy in nats of ``targets`` given ``ids``, both ``(batch, time)``."""
Generate = Callable[[Tensor, int], object]
"""The project's generation: continues prompts ``(batch, time)`` by a number of tokens."""


class Subject:
    """A project's model on random tokens.

    A training step is the same for all projects: the project's loss, its gradients, clipping to norm 1, the project's
    optimizer, gradients set to None.

    Args:
        spec: The description it was built from.
        model: The project's model, on its device.
        optimizer: The project's optimizer; None for a model that only generates.
        loss: The project's loss.
        generate: The project's generation, if it is measured.
        around: The context in which its training runs, if it is not the usual one.
    """

    def __init__(
        self,
        spec: Spec,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        loss: Loss,
        generate: Generate | None,
        around: Callable[[], AbstractContextManager[None]] | None = None,
    ) -> None:
        self.spec, self.model, self.optimizer, self._around = spec, model, optimizer, around
        self._loss, self._generate = loss, generate
        # on the CPU whatever the default device: a generator can only fill tensors of its own device, and this way the
        # tokens are the same everywhere
        work, chance = spec.workload, torch.Generator("cpu").manual_seed(0)
        ids = torch.randint(work.vocab_size, (work.batch, work.time + 1), generator=chance, device="cpu")
        self.ids, self.targets = (part.contiguous().to(spec.device) for part in (ids[:, :-1], ids[:, 1:]))
        prompts = torch.randint(work.vocab_size, (work.generate_batch, work.prompt), generator=chance, device="cpu")
        self.prompts = prompts.to(spec.device)

    def step(self) -> None:
        """One training step."""
        assert self.optimizer is not None, self.spec.project
        with torch.autocast(self.spec.device, torch.bfloat16, enabled=self.spec.bf16):
            loss = self._loss(self.ids, self.targets)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def generate(self, prompts: int) -> None:
        """Continue the first ``prompts`` prompts."""
        assert self._generate is not None, self.spec.project
        self.model.eval()
        with torch.inference_mode():
            self._generate(self.prompts[:prompts], self.spec.workload.new_tokens)

    def around(self) -> AbstractContextManager[None]:
        """The context in which its training runs. It leaves nothing behind that other projects' steps would find."""
        return nullcontext() if self._around is None else self._around()

    def timed_step(self) -> float:
        """Seconds of one training step among many: where its context matters, after one that is not timed."""
        with self.around():
            if self._around is not None:
                self.step()
            return seconds(self.step, self.torch_device)

    def timed_generate(self, prompts: int) -> float:
        """Seconds of continuing ``prompts`` prompts."""
        return seconds(lambda: self.generate(prompts), self.torch_device)

    @property
    def torch_device(self) -> torch.device:
        """Where the model and its tokens are."""
        return torch.device(self.spec.device)
