"""The work that every project does."""

from dataclasses import dataclass, field
from typing import Any, Literal

from lightning_gpt.errors import CallError
from lightning_gpt.options import Depth, Heads, Length, Rows, VocabSize, Width, check_options

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Sizes of the model and its batch, the same for all projects.

    Args:
        dim: Width of the residual stream.
        n_head: Number of attention heads.
        time: Length of a training sequence and the models' longest context, in tokens.
        batch: Sequences per training step.
        vocab_size: Number of token ids.
        depths: Numbers of layers at which training steps are measured.
        checkpoint_depth: Number of layers at which activation checkpointing is measured.
        generate_depth: Number of layers of the model that generates.
        prompt: Length of a prompt, in tokens.
        new_tokens: Tokens generated after the prompt.
        generate_batch: Prompts continued at once.
        attention_time: Sequence length at which attention alone is measured; windows also at twice this length.
        window: Size of the attention window, in tokens.
    """

    dim: Width = 256
    n_head: Heads = 4
    time: Length = 256
    batch: Rows = 8
    vocab_size: VocabSize = 50257
    depths: list[Depth] = field(default_factory=lambda: [2, 4, 8, 12])
    checkpoint_depth: Depth = 12
    generate_depth: Depth = 8
    prompt: Length = 10
    new_tokens: Length = 200
    generate_batch: Rows = 8
    attention_time: Length = 4096
    window: Length = 256

    def __post_init__(self) -> None:
        check_options(Workload.__init__, vars(self), "workload.")
        if not self.depths:
            raise CallError("workload.depths is empty; it must have one number of layers or more")

    @property
    def tokens(self) -> int:
        """Tokens per training step."""
        return self.batch * self.time


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One model of one project, as plain values that can be sent to another process.

    Args:
        project: A key of :data:`~benchmarks.peers.PROJECTS`.
        n_layer: Number of transformer blocks.
        workload: The other sizes.
        device: Device of the model.
        bf16: Whether the forward pass runs under bf16 autocast.
        compiled: Whether it is compiled, ours as ``fit`` does it on a GPU.
        peer_dir: Folder with the clones of projects that are not on a package index.
        options: Further fields of our model's config.
    """

    project: str
    n_layer: int
    workload: Workload
    device: Device = "cpu"
    bf16: bool = False
    compiled: bool = False
    peer_dir: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> "Spec":
        """The inverse of :func:`dataclasses.asdict`."""
        return cls(**{**values, "workload": Workload(**values["workload"])})
