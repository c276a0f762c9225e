"""``lightning-gpt inspect``: a text's attention as tables, pictures and arrays."""

from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightning_gpt.analysis.attention import AttentionMaps, attention_maps, readable_tokens
from lightning_gpt.analysis.plots import heads_grid, three_matrices
from lightning_gpt.checkpoint import Checkpoint
from lightning_gpt.commands.call import parse_function_call
from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.errors import CallError
from lightning_gpt.inference import checked_ids, prompt_ids
from lightning_gpt.models import LanguageModel, SingleHeadConfig, SingleHeadModel

_MOST_COLUMNS = 12


def inspect(
    checkpoint: str | None = None,
    text: str = "The city was founded in 1850",
    ids: list[int] | None = None,
    layer: int = 0,
    head: int = 0,
    output: str = "inspect",
    seed: int = 0,
) -> None:
    """Show the causal mask, the scaled QK scores and the QK softmax of a text.

    The chosen head's three matrices are printed as tables and drawn to OUTPUT/layerL_headH.png, every head's pattern
    to OUTPUT/heads.png, and all matrices of all heads are saved to OUTPUT/attention.npz.

    Args:
        checkpoint: A file that fit wrote; a one-head model with fresh weights and GPT-2's vocabulary when omitted.
        text: The text to look at.
        ids: Token ids to look at, instead of a text.
        layer: Which layer's matrices to print and draw.
        head: Which of its heads.
        output: Folder for the pictures and arrays.
        seed: Of the fresh weights, where there is no checkpoint.
    """
    model, tokenizer = _model_and_tokenizer(checkpoint, seed)
    token_ids = prompt_ids(model, tokenizer, text) if ids is None else checked_ids(model, torch.tensor(ids))
    maps = attention_maps(model, token_ids, readable_tokens(tokenizer, token_ids))
    for name, value, count in (("layer", layer, maps.n_layer), ("head", head, maps.n_head)):
        if not 0 <= value < count:
            raise CallError(f"{name} is {value}; this model has {count} (allowed: 0 to {count - 1})")
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    heads_grid(maps, "attention pattern").savefig(folder / "heads.png", dpi=120)
    three_matrices(maps, layer, head).savefig(folder / f"layer{layer}_head{head}.png", dpi=120)
    maps.save(folder / "attention.npz")
    _print_tables(maps, layer, head)
    print(f"pictures: {folder}/heads.png {folder}/layer{layer}_head{head}.png\narrays:   {folder}/attention.npz")


def _model_and_tokenizer(checkpoint: str | None, seed: int) -> tuple[LanguageModel, Tokenizer]:
    if checkpoint is not None:
        read = Checkpoint.read(checkpoint)
        return read.build(), read.tokenizer()
    torch.manual_seed(seed)
    return SingleHeadModel(SingleHeadConfig()).eval(), Tokenizer.gpt2()


def _print_tables(maps: AttentionMaps, layer: int, head: int) -> None:
    shown = min(len(maps.tokens), _MOST_COLUMNS)
    console = Console(highlight=False)
    of_head = f"layer {layer}, head {head}"
    matrices = (
        ("causal mask (1: the row may attend to the column)", np.where(maps.mask, "1", "·")),
        (f"scaled scores Q Kᵀ / √d, {of_head}", np.char.mod("%.3f", maps.scores[layer, head])),
        (f"softmax, {of_head}", np.where(maps.mask, np.char.mod("%.3f", maps.pattern[layer, head]), "·")),
    )
    for title, cells in matrices:
        table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
        names = [escape(token) for token in maps.tokens[:shown]]
        for name in ["", *names]:
            table.add_column(name, justify="right", no_wrap=True)
        for name, row in zip(names, cells[:shown, :shown], strict=True):
            table.add_row(name, *row)
        console.print(table)
        console.print()
    if shown < len(maps.tokens):
        print(f"the first {shown} of {len(maps.tokens)} tokens are printed; the files hold all of them")


def run(args: list[str]) -> None:
    """Parse ``args`` and inspect."""
    inspect(**parse_function_call(inspect, "inspect", args))
