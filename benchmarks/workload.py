"""What every contender is asked to do."""

from dataclasses import dataclass, field
from typing import Any, Literal

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The sizes of the model and its batch, the same for all projects.

    Args:
        dim: Width of the residual stream.
        n_head: Number of attention heads.
        time: Length of a training sequence and the models' longest context, in tokens.
        batch: Sequences in a training step.
        vocab_size: Number of token ids.
        depths: Numbers of layers that training steps are measured at.
        checkpoint_depth: Number of layers where activation checkpointing is measured.
        generate_depth: Number of layers that text is generated with.
        prompt: Length of a prompt, in tokens.
        new_tokens: Tokens that are generated after it.
        generate_batch: Prompts that are continued at once.
        attention_time: Length of a sequence where attention alone is measured; windows also at twice of it.
        window: How far a window of attention sees, in tokens.
    """

    dim: int = 256
    n_head: int = 4
    time: int = 256
    batch: int = 8
    vocab_size: int = 50257
    depths: list[int] = field(default_factory=lambda: [2, 4, 8, 12])
    checkpoint_depth: int = 12
    generate_depth: int = 8
    prompt: int = 10
    new_tokens: int = 200
    generate_batch: int = 8
    attention_time: int = 4096
    window: int = 256

    @property
    def tokens(self) -> int:
        """Tokens of a training step."""
        return self.batch * self.time


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One model of one project, as plain values that another process can be told.

    Args:
        project: Which of :data:`~benchmarks.peers.PROJECTS`.
        n_layer: Number of transformer blocks.
        workload: The other sizes.
        device: Where it runs.
        bf16: Whether its forward pass runs under autocast to bf16.
        peer_dir: Where the clones of projects lie that are on no package index.
        options: More fields of our model's config.
    """

    project: str
    n_layer: int
    workload: Workload
    device: Device = "cpu"
    bf16: bool = False
    peer_dir: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> "Spec":
        """The inverse of :func:`dataclasses.asdict`."""
        return cls(**{**values, "workload": Workload(**values["workload"])})
