"""What a run reports at its start and at its end."""

import math
import shlex
from pathlib import Path

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from rich.table import Table
from torch import nn

from lightning_gpt.analysis.baseline import unigram_loss
from lightning_gpt.console import console, say
from lightning_gpt.data.datamodule import TextData
from lightning_gpt.inference import prompt_ids, stream_text
from lightning_gpt.models.decoding.sampling import Sampling
from lightning_gpt.models.head import IGNORED
from lightning_gpt.models.registry import readable
from lightning_gpt.perplexity import perplexity
from lightning_gpt.planning.flops import active_parameters
from lightning_gpt.training.module import LanguageModule
from lightning_gpt.trust import trusted_options

_SAMPLE_PROMPT = "The"


class RunSummary(Callback):
    """Prints model size and initial loss at the start; perplexities, a sample and the next commands at the end."""

    def __init__(self) -> None:
        self._start_loss: float | None = None
        self._validated_step = 0
        self._folder: str | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._folder = trainer.log_dir  # reading it is a broadcast, so every process must

    @rank_zero_only
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not isinstance(pl_module, LanguageModule):
            return
        model = pl_module.model_to_count()
        sizes = ", ".join(f"{name} {readable(value)}" for name, value in vars(model.config).items())
        say(f"model: {model.class_name} ({sizes})")
        table = Table(box=None, padding=(0, 2))
        table.add_column("part")
        table.add_column("parameters", justify="right")
        for name, part in model.named_children():
            parameters = _parameters(part)
            if parameters:
                table.add_row(f"{name}{_copies(part)}", f"{parameters:,}")
        total, active = _parameters(model), active_parameters(model)
        table.add_row("all", f"{total:,}", style="bold")
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        if trained != total:
            table.add_row("trained", f"{trained:,}", style="bold")
        if active != total:
            table.add_row("active per token", f"{active:,}", style="bold")
        console.print(table)
        data = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, TextData) and data.vocab_size_to_train is not None and trainer.loggers and self._folder:
            data.tokenizer.save(Path(self._folder) / "tokenizer")

    @rank_zero_only
    def on_sanity_check_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if "val/loss" not in trainer.callback_metrics or not isinstance(pl_module, LanguageModule):
            return
        self._start_loss = float(trainer.callback_metrics["val/loss"])
        vocab_size = pl_module.model.config.vocab_size
        uniform = math.log(vocab_size)
        say(
            f"initial validation loss {self._start_loss:.4f}, {self._start_loss / uniform - 1:+.2%} from "
            f"ln|V| = ln {vocab_size:,} = {uniform:.4f}"
        )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validated_step = trainer.global_step
        if trainer.state.fn == "validate":
            _print_results(trainer)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _print_results(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(pl_module, LanguageModule) or not isinstance(data, TextData):
            return
        model = None if trainer.fast_dev_run else pl_module.whole_model()  # type: ignore[attr-defined]
        if not trainer.is_global_zero:
            return
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            steps = "1 step" if trainer.global_step == 1 else f"{trainer.global_step} steps"
            say(f"fast_dev_run: {steps} and a validation ran without an error; nothing is kept")
            return
        assert self._folder is not None
        assert model is not None
        say("")
        if "val/loss" in trainer.callback_metrics:
            self._say_perplexities(trainer, data)
        _say_what_was_drawn(data)
        tokenizer = data.tokenizer
        ids = prompt_ids(model, tokenizer, _SAMPLE_PROMPT).to(pl_module.device)
        text = "".join(stream_text(model, tokenizer, ids, 60, Sampling(temperature=0.8, top_k=50)))
        say(f"sample: {' '.join((_SAMPLE_PROMPT + text).split())}")
        say_next_commands(Path(self._folder))

    def _say_perplexities(self, trainer: L.Trainer, data: TextData) -> None:
        loss = float(trainer.callback_metrics["val/loss"])
        lines = []
        if self._start_loss is not None:
            lines.append(("before training", perplexity(self._start_loss)))
        lines.append((f"last validation (step {self._validated_step:,})", perplexity(loss)))
        counts = data.counts()
        if counts is not None:
            measured = sum(trainer.num_val_batches) * data.micro_batch_rows  # fewer with limit_val_batches
            targets = data.evaluation("val").all_targets[: int(measured)]
            token_counts = np.sum([c.token_counts for c in counts], axis=0)
            unigram = perplexity(unigram_loss(token_counts, targets[targets != IGNORED].numpy()))
            lines.append(("unigram baseline on the same text", unigram))
        say("validation perplexity")
        for name, figure in lines:
            say(f"  {name:<34}{figure:>12,.2f}")
        if counts is not None:
            say(f"  perplexity is {perplexity(loss) / unigram:.3f}x the unigram baseline's")
        say(f"validation bits per byte {float(trainer.callback_metrics['val/bits_per_byte']):.4f}")


def _parameters(part: nn.Module) -> int:
    """How many parameters a part has; one that several layers share counts once."""
    return sum(parameter.numel() for parameter in part.parameters())


def _copies(part: nn.Module) -> str:
    """`` (4 x 789,760)`` of a list of parts that are alike in size, however many layers share each."""
    own = list(dict.fromkeys(part)) if isinstance(part, nn.ModuleList) else []
    sizes = {_parameters(each) for each in own}
    return f" ({len(own)} x {sizes.pop():,})" if len(sizes) == 1 else ""


def _say_what_was_drawn(data: TextData) -> None:
    """Print how much of each source was trained on."""
    if data.mark is None:
        return
    drawn, rows = data.mark.sources, data.rows_of_a_pass()
    sizes = [None] * len(drawn) if rows is None else rows
    say("trained on")
    for (name, state), size in zip(drawn.items(), sizes, strict=True):
        share = state["rows_taken"] / max(1, sum(each["rows_taken"] for each in drawn.values()))
        passes = "" if size is None else f", {state['rows_taken'] / size:.2f} passes"
        say(f"  {name:<34}{state['rows_taken']:>12,} rows ({share:.1%}{passes})")


@rank_zero_only
def _print_results(trainer: L.Trainer) -> None:
    """Print the result of ``validate`` or ``test``, on standard output because it is what the user asked for."""
    for name, value in trainer.callback_metrics.items():
        print(f"{name} {float(value):.6f}")


def say_next_commands(run: Path) -> None:
    """Print the exact commands to look at, use and resume a run; without a saved checkpoint, those to look at it."""
    last = run / "checkpoints/last.ckpt"
    folder, checkpoint, config = (shlex.quote(str(path)) for path in (run, last, run / "config.yaml"))
    options = "".join(f" {shlex.quote(option)}" for option in trusted_options())
    commands = []
    if any(run.glob("events.out.tfevents.*")):
        commands.append(f"look:      tensorboard --logdir {folder}")
    if last.exists():  # a folder where the layout is divided
        commands += [
            f'generate:  lightning-gpt generate --checkpoint {checkpoint} --prompt "The"{options}',
            f'inspect:   lightning-gpt inspect --checkpoint {checkpoint} --text "The city was founded"{options}',
            f"resume:    lightning-gpt fit --config {config} --ckpt_path {checkpoint}{options}",
        ]
    if commands:
        say("next")
    for command in commands:
        say(f"  {command}")
