"""Training a tiny GPT in a layout and in one process, and comparing them."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.training.expert_balance import ExpertBalance
from lightning_gpt.training.optim import Optimization, optimizer

VOCAB, BLOCK, ROWS, STEPS = 61, 16, 8, 4
SIZES = {"n_layer": 4, "n_head": 4, "dim": 32, "block_size": BLOCK, "vocab_size": VOCAB}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {
        "norm": "rms",
        "position": "rotary",
        "bias": False,
        "tie_embeddings": False,
        "ffn": {"kind": "swiglu", "hidden": 40},
        "attention": {"kind": "grouped", "n_kv_head": 2},
    },
    "moe": {
        "norm": "rms",
        "position": "rotary",
        "attention": {"kind": "grouped", "n_kv_head": 2},
        "ffn": {"kind": "moe", "n_expert": 4, "top_k": 2, "hidden": 24, "balance_rate": 0.1, "z_loss": 0.01},
    },
    "value_residual": {"attention": "value_residual", "position": "rotary"},
}


def model_of(name: str, **more: Any) -> GPT:
    """The model called ``name``, in float64, with the same weights in every process."""
    torch.manual_seed(0)
    return GPT(GPTConfig(**{**SIZES, **MODELS[name], **more})).double()


@dataclass(frozen=True)
class Rows:
    """The rows of one optimizer step, ``(rows, time)``."""

    ids: Tensor
    targets: Tensor
    documents: Tensor | None

    def part(self, number: int, of: int) -> "Rows":
        """One of ``of`` equal parts."""
        ids, targets = self.ids.chunk(of)[number], self.targets.chunk(of)[number]
        return Rows(ids, targets, None if self.documents is None else self.documents.chunk(of)[number])


def steps(documents: bool = False, rows: int = ROWS) -> list[Rows]:
    """The rows of each step; a few targets do not count."""
    generator, found = torch.Generator().manual_seed(1), []
    for _ in range(STEPS):
        tokens = torch.randint(0, VOCAB, (rows, BLOCK + 1), generator=generator)
        tokens = tokens // 8 * (1 + tokens % 3) % VOCAB  # uneven, so that there is something to learn
        targets = tokens[:, 1:].contiguous()
        targets[0, :5] = -100
        ids = tokens[:, :-1].contiguous()
        found.append(Rows(ids, targets, (ids % 7 == 0).cumsum(1) if documents else None))
    return found


@dataclass
class Outcome:
    """What a training left."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    nll: Tensor | None = None

    def difference(self, other: "Outcome") -> dict[str, float]:
        """The largest difference of each figure."""
        assert self.weights.keys() == other.weights.keys(), self.weights.keys() ^ other.weights.keys()
        assert self.nll is not None
        assert other.nll is not None
        return {
            "losses": max(abs(a - b) for a, b in zip(self.losses, other.losses, strict=True)),
            "norms": max((abs(a - b) for a, b in zip(self.norms, other.norms, strict=True)), default=0.0),
            "weights": max(float((w - other.weights[name]).abs().max()) for name, w in self.weights.items()),
            "nll": float((self.nll - other.nll).abs().max()),
            "learned": self.losses[0] - self.losses[-1],
        }


def optimizer_of(model: nn.Module, fused: bool = True) -> torch.optim.Optimizer:
    """AdamW, as a training has it."""
    return optimizer(model, Optimization(lr=1e-2), fused)  # type: ignore[arg-type]


def one_process(name: str, parts: int = 1, documents: bool = False, clip: float = 1e9, **more: Any) -> Outcome:
    """The training in one process, which reads the rows of a step in ``parts`` micro-batches."""
    model, outcome = model_of(name, **more), Outcome()
    stepper, balance = optimizer_of(model), ExpertBalance(model, lambda x: x)
    for rows in steps(documents):
        counted, total = (rows.targets >= 0).sum(), 0.0
        for number in range(parts):
            part = rows.part(number, parts)
            share = (part.targets >= 0).sum().double() / counted
            loss = model.loss(part.ids, part.targets, part.documents, z_loss=1e-3)
            # losses of the parts of the model are those of a micro-batch, and micro-batches weigh the same
            (loss * share).backward()
            total += float(loss.detach() * share)
        outcome.losses.append(total)
        outcome.norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), clip)))
        balance.end_step()
        stepper.step()
        stepper.zero_grad()
    return finished(outcome, model.state_dict(), model, documents)


def finished(outcome: Outcome, weights: dict[str, Tensor], model: GPT, documents: bool) -> Outcome:
    """The outcome with the trained weights and the likelihoods that they give the first rows."""
    rows = steps(documents)[0]
    model.eval()
    with torch.no_grad():
        outcome.nll = model.token_nll(rows.ids, rows.targets, rows.documents)
    outcome.weights = {key: weight.detach().clone() for key, weight in weights.items()}
    return outcome


def whole(tensor: Tensor) -> Tensor:
    """All parts of a tensor; every process must call it."""
    return tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def of_all_stages(model: nn.Module, group: dist.ProcessGroup) -> dict[str, Tensor]:
    """The state dicts of all stages of a pipeline, joined; copies must be equal."""
    own = {key: whole(value) for key, value in model.state_dict().items()}
    found: list[Any] = [None] * group.size()
    dist.all_gather_object(found, own, group=group)
    joined: dict[str, Tensor] = {}
    for state in found:
        for key, value in state.items():
            assert key not in joined or torch.equal(joined[key], value), f"copies of {key} differ"
            joined[key] = value
    return joined
