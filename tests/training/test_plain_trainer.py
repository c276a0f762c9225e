"""A plain ``lightning.Trainer`` over any loader trains the model that ``lightning-gpt fit`` trains."""

import copy
import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_gpt.data.datamodule import TextData
from lightning_gpt.data.sources.files import Files
from lightning_gpt.errors import CallError
from lightning_gpt.models.ffn.moe.mixture import mixtures
from lightning_gpt.training.callbacks import (
    Cost,
    ExpertUse,
    InitialLoss,
    Spikes,
    StepMetrics,
    TokenRoutes,
    step_metrics,
)
from lightning_gpt.training.module import GPTModule
from lightning_gpt.training.optim import Optimization, optimizer, schedule
from tests.processes import must_run, tiny_config, tiny_corpus, write_config
from tests.training.runs import weights

DOCS = Path(__file__).parents[2] / "docs"
SEED, RATE = 3, 0.01
MOE: dict[str, Any] = {"kind": "moe", "n_expert": 4, "top_k": 2, "balance": "bias", "balance_rate": RATE}
SIZES: dict[str, Any] = {"n_layer": 2, "n_head": 2, "dim": 16, "block_size": 8, "vocab_size": 40, "dropout": 0.2}


def batches(number: int) -> DataLoader[dict[str, Tensor]]:
    """Batches of two rows, nothing in them but ids and targets."""
    rows = torch.randint(40, (2 * number, 9), generator=torch.Generator().manual_seed(0))
    return DataLoader([{"ids": row[:-1], "targets": row[1:]} for row in rows], batch_size=2)  # type: ignore[arg-type]


def moe_module(**config: Any) -> GPTModule:
    L.seed_everything(SEED)
    return GPTModule(Optimization(lr=0.01), **{**SIZES, "ffn": MOE, **config})


def trainer(folder: Path, *callbacks: L.Callback, **flags: Any) -> L.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        enable_checkpointing=False,
        callbacks=list(callbacks),
        **{**quiet, "max_epochs": 1, **flags},
    )


def biases(module: GPTModule) -> list[Tensor]:
    return [mixture.router.bias.clone() for mixture in mixtures(module.model.block_views()).values()]


def test_it_trains_what_a_loop_by_hand_trains_and_moves_the_bias_by_the_formula(tmp_path: Path) -> None:
    """``b ← b + u·sign(mean c − c)`` over each step's choices c: Wang et al. 2024 (2408.15664), algorithm 1.

    Dropout of a batch without a cursor follows from (seed, optimizer step, number of the batch, process).
    """
    module = moe_module()
    model = copy.deepcopy(module.model).train()
    made = optimizer(model, module.optimization)
    rates = schedule(made, module.optimization, 4)
    expected = [torch.zeros(4) for _ in range(2)]
    for number, batch in enumerate(batches(7)):
        step, last_of_step = number // 2, number % 2 == 1 or number == 6
        torch.manual_seed(hash((SEED, step, number, 0)))
        (model.loss(batch["ids"], batch["targets"]) / 2).backward()
        if not last_of_step:
            continue
        for bias, mixture in zip(expected, mixtures(model.block_views()).values(), strict=True):
            chosen = mixture.take_use().chosen.double()  # type: ignore[union-attr]
            bias += RATE * (chosen.mean() - chosen).sign().float()
            mixture.router.bias.copy_(bias)
        made.step()
        made.zero_grad()
        rates.step()

    trainer(tmp_path, accumulate_grad_batches=2).fit(module, batches(7), batches(1))

    assert all(bias.abs().max() > RATE for bias in expected)
    for found, bias in zip(biases(module), expected, strict=True):
        assert torch.equal(found, bias)
    theirs = model.state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in module.model.state_dict().items())


def test_callbacks_that_log_and_draw_change_no_weight(tmp_path: Path) -> None:
    everything: dict[str, Any] = {"layer_drop": {"kind": "linear", "rate": 0.5}, "token_routing": "mixture_of_depths"}
    alone, watched = (moe_module(**everything) for _ in range(2))
    trainer(tmp_path).fit(alone, batches(6), batches(2))
    drawing = [ExpertUse(), TokenRoutes(), StepMetrics(), InitialLoss(), Cost()]
    logger = TensorBoardLogger(tmp_path)
    trainer(tmp_path, *drawing, logger=logger, log_every_n_steps=1).fit(watched, batches(6), batches(2))
    theirs = watched.state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in alone.state_dict().items())
    assert any(bias.abs().max() > 0 for bias in biases(alone))


def test_where_the_trainer_logs_nothing_no_loss_is_kept(tmp_path: Path) -> None:
    metrics = StepMetrics()
    trainer(tmp_path, metrics, log_every_n_steps=0).fit(moe_module(), batches(6))
    assert metrics.state_dict() == {"losses": []}
    assert metrics.latest == {}


class Hours(L.Callback):
    """Moves the clock: a second for each micro-batch, and an hour at the start and after each validation."""

    def __init__(self) -> None:
        self.now = 0.0

    def on_train_start(self, *_: Any) -> None:
        self.now += 3600

    def on_validation_end(self, *_: Any) -> None:
        self.now += 3600

    def on_train_batch_start(self, *_: Any) -> None:
        self.now += 1


@pytest.mark.parametrize("warmup", [0.0, 0.5])
def test_speed_is_that_of_training_whatever_callbacks_do_beside_it(
    warmup: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch may grow, and an epoch's last step may be smaller: 16 tokens take a second all the same."""
    hours = Hours()
    monkeypatch.setattr("time.perf_counter", lambda: hours.now)
    monkeypatch.setattr(step_metrics, "peak_flops", lambda device, dtype: 1e12)
    logged: list[dict[str, float]] = []
    monkeypatch.setattr(TensorBoardLogger, "log_metrics", lambda self, values, step: logged.append(values))
    L.seed_everything(SEED)
    module = GPTModule(Optimization(lr=0.01, batch_warmup=warmup, warmup=0.0), **SIZES)
    flags = {"accumulate_grad_batches": 4, "val_check_interval": 12, "log_every_n_steps": 1}
    if warmup:
        flags |= {"max_steps": 8, "max_epochs": -1}
    callbacks = [StepMetrics(), Cost(), hours]
    trainer(tmp_path, *callbacks, logger=TensorBoardLogger(tmp_path), **flags).fit(module, batches(23), batches(1))
    speeds = [values["train/tokens_per_second"] for values in logged if "train/tokens_per_second" in values]
    assert speeds == [16.0] * len(speeds)
    assert len(speeds) == (8 if warmup else 6)
    (cost,) = (values for values in logged if "cost/step_seconds" in values)
    assert (cost["cost/step_seconds"], cost["cost/tokens_per_second"]) == (4.0, 16.0)


def test_it_trains_what_fit_trains_with_all_its_callbacks(tmp_path: Path) -> None:
    corpus = tiny_corpus(tmp_path / "corpus.jsonl")
    config = tiny_config(corpus, max_steps=8, val_check_interval=4, accumulate_grad_batches=2)
    config["model"]["init_args"] |= {"ffn": MOE, "layer_drop": {"kind": "constant", "rate": 0.3}}
    must_run("fit", "--config", str(write_config(tmp_path / "run.yaml", config)), cwd=tmp_path)

    L.seed_everything(config["seed_everything"])
    module = GPTModule(**config["model"]["init_args"], vocab_size=300)
    data = TextData(**{**config["data"], "sources": [Files(str(corpus))], "block_size": 32})
    flags = {"max_steps": 8, "max_epochs": -1, "accumulate_grad_batches": 2, "gradient_clip_val": 1.0}
    trainer(tmp_path, limit_val_batches=0, **flags).fit(module, data)

    theirs = weights(tmp_path / "runs/tiny/version_0")
    ours = module.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_step_that_is_left_out_moves_no_bias(tmp_path: Path) -> None:
    class Watching(L.Callback):
        def __init__(self) -> None:
            self.seen: list[list[Tensor]] = []

        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
            assert isinstance(pl_module, GPTModule)
            self.seen.append(biases(pl_module))

    watching = Watching()
    trainer(tmp_path, Spikes(skip_steps=[(2, 2)]), watching).fit(moe_module(), batches(3))
    first, second, third = (torch.stack(seen) for seen in watching.seen)
    assert torch.equal(second, first)
    assert not torch.equal(third, second)


def test_validation_inside_an_accumulated_step_is_refused_and_at_the_end_of_an_epoch_is_not(tmp_path: Path) -> None:
    with pytest.raises(CallError, match="every 3 micro-batches falls inside an optimizer step of 2"):
        trainer(tmp_path, accumulate_grad_batches=2, val_check_interval=3).fit(moe_module(), batches(7), batches(1))
    trainer(tmp_path, accumulate_grad_batches=2).fit(moe_module(), batches(7), batches(1))
    trainer(tmp_path, accumulate_grad_batches=2, val_check_interval=3).fit(moe_module(), batches(7))


def test_the_documented_script_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / "engineer.md").read_text(), re.M | re.S)
    (block,) = (block for block in blocks if "L.Trainer" in block)
    names: dict[str, Any] = {}
    exec(compile(block, "engineer.md", "exec"), names)
    assert names["module"].trainer.global_step == 8
