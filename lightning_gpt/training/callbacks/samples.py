"""Text samples and attention patterns in TensorBoard while a model trains."""

import re

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_gpt.analysis.attention import NoPattern, attention_maps, readable_tokens
from lightning_gpt.analysis.plots import FewHeads
from lightning_gpt.data.datamodule import TextData
from lightning_gpt.inference import prompt_ids, stream_text
from lightning_gpt.models.decoding.sampling import NewTokens, Sampling
from lightning_gpt.options import NotNegative, Seed, check_options
from lightning_gpt.training.module import LanguageModule


class Samples(Callback):
    """After each validation, logs a continuation of each prompt and the attention patterns over a text.

    Args:
        prompts: Texts to continue.
        max_new_tokens: Length of each continuation, in tokens.
        temperature: Sampling temperature; 0 is greedy.
        seed: Sampling seed, the same at each validation so that continuations can be compared.
        attention_text: The text whose attention is drawn, for up to eight heads of up to eight layers, truncated to the
            model's context; nothing is drawn for a model with a layer that has no attention pattern.
    """

    def __init__(
        self,
        prompts: tuple[str, ...] = ("The", "In the beginning", "A function is"),
        max_new_tokens: NewTokens = 48,
        temperature: NotNegative = 0.8,
        seed: Seed = 0,
        attention_text: str = "The city was founded in the north of the country, and the city was its capital.",
    ) -> None:
        check_options(Samples.__init__, locals(), "samples.")
        self.prompts = prompts
        self.max_new_tokens = max_new_tokens
        self.sampling = Sampling(temperature=temperature)
        self.seed = seed
        self.attention_text = attention_text

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        board = next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)
        data = trainer.datamodule  # type: ignore[attr-defined]
        if board is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if not isinstance(pl_module, LanguageModule) or not isinstance(data, TextData):
            return
        model, tokenizer, step = pl_module.whole_model(), data.tokenizer, trainer.global_step
        if model is None:
            return
        for number, prompt in enumerate(self.prompts):
            ids = prompt_ids(model, tokenizer, prompt).to(pl_module.device)
            text = "".join(stream_text(model, tokenizer, ids, self.max_new_tokens, self.sampling, self.seed))
            board.experiment.add_text(f"samples/{number}", f"**{_plain(prompt.strip())}**{_plain(text)}", step)
        shown = model.trace_limit or model.config.block_size
        ids = torch.from_numpy(tokenizer.encode(self.attention_text)).long()[:shown]
        try:
            maps = attention_maps(model, ids.to(pl_module.device), readable_tokens(tokenizer, ids))
        except NoPattern:
            return
        for name, figure in FewHeads(maps).pictures(step):
            board.experiment.add_figure(f"attention/{name}", figure, step, close=False)


def _plain(text: str) -> str:
    """``text`` escaped for Markdown, which TensorBoard renders."""
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|<>~])", r"\\\1", text)
