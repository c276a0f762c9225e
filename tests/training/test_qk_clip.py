"""QK-clip: each head's largest score of a step is what the formula gives, and beyond τ it is brought back to τ."""

import math
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, LanguageModel
from lightning_gpt.models.adapters import LoRA
from lightning_gpt.models.record import record
from lightning_gpt.training.after_step import AfterStep
from lightning_gpt.training.callbacks import Spikes
from lightning_gpt.training.module import GPTModule, SingleHeadModule
from lightning_gpt.training.optim import Optimization
from lightning_gpt.training.qk_clip import QKClip
from tests.models.helpers import random_ids, randomise

SIZES: dict[str, Any] = {"n_layer": 2, "n_head": 4, "dim": 16, "block_size": 12, "vocab_size": 17}
STILL = 1e-30  # a learning rate that moves nothing
DOCUMENTS = torch.tensor([[0] * 5 + [1] * 7, [0] * 9 + [1] * 3, [0] * 12, [0] * 1 + [1] * 11])


def module_of(tau: float | None, lr: float = STILL, **config: Any) -> GPTModule:
    """Scores of a size that differs between heads."""
    module = GPTModule(Optimization(lr=lr, weight_decay=0.0, warmup=0.0, qk_clip=tau), **{**SIZES, **config})
    randomise(module.model, std=0.8).double()
    return module


def largest(model: LanguageModel, ids: Tensor, documents: Tensor | None = None) -> list[Tensor]:
    """By layer: each head's largest score, from the whole matrices, before any bias."""
    found = []
    with torch.no_grad(), record(model, ["*attention.q", "*attention.k", "*attention.mask"]) as trace:
        model(ids, documents)
    for layer in range(len(model.block_views())):
        q, k, mask = (trace[f"blocks.{layer}.attention.{name}"] for name in ("q", "k", "mask"))
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        scores = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(q.shape[-1])
        found.append(scores.masked_fill(~mask, -torch.inf).amax(dim=(0, 2, 3)))
    return found


def batches(ids: Tensor, rows: int, documents: Tensor | None = None) -> DataLoader[dict[str, Tensor]]:
    items = [{"ids": row, "targets": row.roll(-1)} for row in ids]
    if documents is not None:
        items = [{**item, "documents": each} for item, each in zip(items, documents, strict=True)]
    return DataLoader(items, batch_size=rows)  # type: ignore[arg-type]


def fit(module: GPTModule, loader: Any, folder: Path, *callbacks: L.Callback, **flags: Any) -> None:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"enable_checkpointing": False, "accelerator": "cpu", "devices": 1, "precision": "64-true"}
    L.Trainer(default_root_dir=folder, max_epochs=1, callbacks=list(callbacks), **{**quiet, **flags}).fit(
        module, loader
    )


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["rows", "documents"])
@pytest.mark.parametrize(
    "config",
    [
        {"position": "rotary"},
        {"attention": {"kind": "grouped", "n_kv_head": 2}, "position": "rotary", "bias": False},
        {"attention": [{"kind": "window", "window": 3}, "gated"], "position": "alibi"},
        {"attention": ["differential", {"kind": "full", "softcap": 2.0}], "checkpointing": "block"},
        {"convolution": "canon"},
    ],
    ids=str,
)
def test_heads_beyond_the_threshold_are_brought_to_it_and_no_other_changes(
    config: dict[str, Any], documents: Tensor | None, tmp_path: Path
) -> None:
    """A step that moves nothing, over several micro-batches: the largest score is that of all of them."""
    module, ids = module_of(1.0, **config), random_ids(17, 4, 12)
    before = _first_layer(module.model, ids, documents)
    tau = float(before.sort().values[1:3].mean())  # two heads above, two below
    module.optimization = Optimization(lr=STILL, weight_decay=0.0, warmup=0.0, qk_clip=tau)
    fit(module, batches(ids, 1, documents), tmp_path, accumulate_grad_batches=4)
    after = _first_layer(module.model, ids, documents)
    assert (before > tau).sum() == 2
    np.testing.assert_allclose(after.numpy(), before.clamp(max=tau).numpy(), rtol=1e-10)


def _first_layer(model: LanguageModel, ids: Tensor, documents: Tensor | None) -> Tensor:
    """The scores of the first layer, whose input no clip changes."""
    if isinstance(model, GPT) and model.config.attention[0].kind == "differential":  # the larger of two halves
        with torch.no_grad(), record(model, ["blocks.0.attention.[qkm]*"]) as trace:
            model(ids, documents)
        q, k, mask = (trace[f"blocks.0.attention.{name}"] for name in ("q", "k", "mask"))
        halves = [a @ b.mT / math.sqrt(a.shape[-1]) for a, b in zip(q.chunk(2, -1), k.chunk(2, -1), strict=True)]
        return torch.maximum(*halves).masked_fill(~mask, -torch.inf).amax(dim=(0, 2, 3))
    return largest(model, ids, documents)[0]


def test_the_weights_of_a_head_take_the_root_each_and_shared_keys_nothing(tmp_path: Path) -> None:
    ids = random_ids(17, 2, 12)
    for n_kv_head in (4, 2):
        module = module_of(0.01, attention={"kind": "full", "n_kv_head": n_kv_head})
        attention = module.model.blocks[0].attention
        before, scores = attention.qkv.weight.detach().clone(), largest(module.model, ids)[0]
        fit(module, batches(ids, 2), tmp_path)
        q, k, v = torch.split(attention.qkv.weight.detach() / before, list(attention.qkv.pieces.values()))
        factor = (0.01 / scores).repeat_interleave(4)[:, None]
        np.testing.assert_allclose(q, (factor.sqrt() if n_kv_head == 4 else factor).expand_as(q), rtol=1e-10)
        np.testing.assert_allclose(k, factor.sqrt().expand_as(k) if n_kv_head == 4 else 1.0, rtol=1e-10)
        assert torch.equal(v, torch.ones_like(v))


def test_it_follows_training_step_by_step_and_leaves_a_skipped_step_alone(tmp_path: Path) -> None:
    """Each step's factor is of that step's rows alone; of a step left out nothing is clipped, nor kept for the next."""
    ids = random_ids(17, 6, 12)
    tau, clipped = 0.5, module_of(0.5, position="rotary")
    fit(clipped, batches(ids, 2), tmp_path, Spikes(skip_steps=[(2, 2)]))
    by_hand = module_of(None, position="rotary").model
    for rows in (ids[:2], ids[4:]):
        factors = [(tau / scores).clamp(max=1.0) for scores in largest(by_hand, rows)]
        for block, factor in zip(by_hand.blocks, factors, strict=True):
            block.attention.scale_scores(factor)
    for ours, theirs in zip(clipped.model.parameters(), by_hand.parameters(), strict=True):
        np.testing.assert_allclose(ours.detach(), theirs.detach(), rtol=1e-10)


@pytest.mark.parametrize(("scale", "is_taken"), [(2.0, True), (2.0**60, False)])
def test_a_step_that_overflows_in_fp16_moves_nothing(scale: float, is_taken: bool, tmp_path: Path) -> None:
    """The scaler leaves the step out after its gradients have been found."""
    ffn = {"kind": "moe", "n_expert": 4, "balance": "bias"}
    module = module_of(0.01, ffn=ffn)
    module.model.float()
    attention, router = module.model.blocks[0].attention, module.model.blocks[0].ffn.router
    weight, bias = attention.qkv.weight.detach().clone(), router.bias.clone()
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))
    fit(module, batches(random_ids(17, 4, 12), 4), tmp_path, plugins=[precision], precision=None)
    assert torch.equal(attention.qkv.weight, weight) != is_taken
    assert torch.equal(router.bias, bias) != is_taken


def test_the_largest_of_all_processes_counts_and_what_is_not_finite_does_not() -> None:
    model = module_of(1.0).model
    before = model.blocks[0].attention.qkv.weight.detach().clone()
    seen: list[Tensor] = []

    def of_two(own: Tensor) -> Tensor:
        seen.append(own.clone())
        return torch.tensor([4.0, torch.inf, torch.nan, 0.5, *[0.0] * 4]).to(own)

    clip = QKClip(model, 1.0, of_two)
    model.train()(random_ids(17, 2, 12))
    clip.end_step(taken=True)
    assert seen[0].isfinite().all()
    q = torch.split(model.blocks[0].attention.qkv.weight / before, 16)[0]
    np.testing.assert_allclose(q.detach()[:, 0].view(4, 4)[:, 0], [0.5, 1, 1, 1], rtol=1e-10)


def test_without_it_no_score_is_looked_at() -> None:
    module = module_of(None)
    module.model.train()(random_ids(17, 2, 12))
    assert all(block.attention.largest_scores is None for block in module.model.blocks)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"qk_norm": "rms"}, "the scores of MultiHeadAttention in layer 0 do not follow them"),
        ({"attention": ["full", "linear"]}, "the scores of LinearAttention in layer 1 do not follow them"),
        ({"attention": "delta_net", "position": "none"}, "GatedDeltaNet in layer 0"),
        ({"attention": {"kind": "latent", "kv_rank": 6}}, "LatentAttention in layer 0"),
        ({"lora": LoRA(rank=2)}, "model.lora and optimization.qk_clip cannot be combined"),
    ],
    ids=str,
)
def test_what_has_no_such_weights_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CallError) as refused:
        GPTModule(Optimization(qk_clip=100.0), **{**SIZES, **config})
    assert message in str(refused.value)


def test_a_single_head_and_a_layout_are_refused() -> None:
    with pytest.raises(CallError, match=r"optimization\.qk_clip is for a GPT; this model is a single_head"):
        SingleHeadModule(Optimization(qk_clip=1.0), dim=8, vocab_size=17)
    with pytest.raises(CallError, match=r"optimization\.qk_clip and parallel cannot be combined"):
        AfterStep(module_of(1.0).model, Optimization(qk_clip=1.0), lambda own: own, is_spread=True)
