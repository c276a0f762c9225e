"""Weights on the unit sphere: at the start, after every step that is taken, and in no other place."""

import copy
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from lightning_gpt.errors import CallError
from lightning_gpt.models import LanguageModel
from lightning_gpt.models.adapters import LoRA
from lightning_gpt.training.after_step import AfterStep
from lightning_gpt.training.callbacks import Spikes
from lightning_gpt.training.module import GPTModule, SingleHeadModule
from lightning_gpt.training.mup import MuP
from lightning_gpt.training.optim import Optimization, optimizer
from tests.models.helpers import random_ids
from tests.models.variants import NGPT, SIZES

OPTIONS: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.0, "warmup": 0.0, "schedule": "constant"}
READS = {"qkv": 1, "up": 1, "token_embedding": 1, "linear": 1, "w_o": 0, "down": 0}
"""The dimension of each matrix, by the end of its name, along which its vectors meet the stream."""


def module_of(**config: Any) -> GPTModule:
    L.seed_everything(1)
    module = GPTModule(Optimization(**OPTIONS, unit_weights=True), **{**SIZES, **NGPT, **config})
    return module.double()


def matrices(model: LanguageModel) -> dict[str, tuple[torch.Tensor, int]]:
    named = {name.removesuffix(".weight"): weight for name, weight in model.named_parameters() if weight.ndim == 2}
    return {name: (weight, READS[name.rpartition(".")[2]]) for name, weight in named.items()}


def fit(module: GPTModule, folder: Path, *callbacks: L.Callback) -> None:
    ids = random_ids(17, 6, 12)
    loader = DataLoader([{"ids": row, "targets": row.roll(-1)} for row in ids], batch_size=2)  # type: ignore[arg-type]
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"enable_checkpointing": False, "accelerator": "cpu", "devices": 1, "precision": "64-true"}
    L.Trainer(default_root_dir=folder, max_epochs=1, callbacks=list(callbacks), **quiet).fit(module, loader)


def test_it_is_an_optimizer_step_and_then_the_norms(tmp_path: Path) -> None:
    module = module_of()
    model = copy.deepcopy(module.model).train()
    found = matrices(model)
    assert len(found) == 2 + 2 * 4
    made = optimizer(model, module.optimization)
    for rows in random_ids(17, 6, 12).split(2):
        for weight, dimension in found.values():
            torch.testing.assert_close(weight.norm(dim=dimension), torch.ones_like(weight.norm(dim=dimension)))
        made.zero_grad()
        model.loss(rows, rows.roll(-1, 1)).backward()
        made.step()
        with torch.no_grad():
            for weight, dimension in found.values():
                weight.copy_(F.normalize(weight, dim=dimension))
    fit(module, tmp_path)
    for ours, theirs in zip(module.model.parameters(), model.parameters(), strict=True):
        np.testing.assert_allclose(ours.detach(), theirs.detach(), rtol=1e-9, atol=1e-12)


def test_weights_of_another_length_are_refused_before_the_first_step(tmp_path: Path) -> None:
    class Loaded(L.Callback):
        factor = 0.9  # as in a mean of unit vectors

        def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
            pl_module.model.blocks[1].attention.w_o.weight.data.mul_(self.factor)

    fit(module_of(), tmp_path, Loaded())
    Loaded.factor = 2.2
    with pytest.raises(CallError, match=r"blocks\.1\.attention\.w_o\.weight has one of length 2\.2: .* with unit_"):
        fit(module_of(), tmp_path, Loaded())


def test_a_step_that_is_not_taken_changes_no_bit(tmp_path: Path) -> None:
    module = module_of(convolution="canon")
    before = copy.deepcopy(module.model.state_dict())
    fit(module, tmp_path, Spikes(skip_steps=[(1, 3)]))
    assert all(torch.equal(before[name], value) for name, value in module.model.state_dict().items())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"bias": True}, "without biases, and blocks.0.attention.qkv.bias is one: set model.bias to false"),
        (
            {"token_routing": {"kind": "mixture_of_depths", "every": 1}, "residual": "pre"},
            "without biases, and blocks.0.router.predictor.up.bias is one: leave out the part that has it",
        ),
        (
            {"zero_projections": True, "residual": "pre"},
            "w_o.weight has one of length 0: leave out what starts weights at 0 (zero_projections, grow), or",
        ),
        ({"lora": LoRA(rank=2)}, "model.lora and optimization.unit_weights cannot be combined"),
    ],
    ids=str,
)
def test_what_does_not_suit_it_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CallError) as refused:
        GPTModule(Optimization(unit_weights=True), **{**SIZES, **NGPT, **config})
    assert message in str(refused.value)


def test_it_is_for_whole_models_that_nothing_else_scales() -> None:
    with pytest.raises(CallError, match="leave one of them out"):
        Optimization(unit_weights=True, mup=MuP(base_dim=8))
    with pytest.raises(CallError, match="qk_clip shortens vectors and unit_weights sets their lengths: leave one of"):
        Optimization(unit_weights=True, qk_clip=100.0)
    with pytest.raises(CallError, match=r"unit_weights is for a GPT; this model is a single_head"):
        SingleHeadModule(Optimization(unit_weights=True), dim=8, vocab_size=17)
    with pytest.raises(CallError, match=r"optimization\.unit_weights and parallel cannot be combined"):
        AfterStep(module_of().model, Optimization(unit_weights=True), lambda own: own, is_spread=True)
