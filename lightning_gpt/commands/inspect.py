"""``lightning-gpt inspect``: attention over a text as a page, tables, plots and arrays, and the effect of ablations."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from lightning_gpt.analysis.attention import AttentionMaps, attention_maps, readable_tokens
from lightning_gpt.analysis.head_matrices import head_activations
from lightning_gpt.analysis.interventions import (
    Ablation,
    Part,
    ablate_each,
    ablated_loss,
    all_parts,
    check_parts,
    text_loss,
)
from lightning_gpt.analysis.logit_lens import LogitLens, logit_lens
from lightning_gpt.analysis.page import Ablated, Page, layers_of_page, names_of_lens, vector_numbers
from lightning_gpt.analysis.plots import ablation_grid, heads_grid, three_matrices
from lightning_gpt.checkpoint import Checkpoint
from lightning_gpt.commands.call import parse_function_call, refuse_unused, require_output, require_single
from lightning_gpt.commands.device import named_device
from lightning_gpt.commands.fresh_head import OF_WEIGHTS, fresh_head
from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.errors import CallError
from lightning_gpt.inference import checked_ids, prompt_ids
from lightning_gpt.inference.prompts import require_utf8
from lightning_gpt.models import LanguageModel
from lightning_gpt.options import Index, Seed, TokenId
from lightning_gpt.whole_file import create_output

_MOST_COLUMNS = 12
_OF_IDS: dict[str, set[str]] = {"ids": set(), "no ids": {"text"}}
_OF_ABLATION: dict[str, set[str]] = {"ablate": {"ablation"}, "no ablate": set()}
"""Options that are read in some forms of the command only."""
_MARK = "lightning-gpt inspect"
"""The title of every page and, as the program that made it, in every picture."""
_MARKED_BYTES = 4096


def inspect(
    checkpoint: str | None = None,
    text: str = "The city was founded in 1850",
    ids: list[TokenId] | None = None,
    layer: Index = 0,
    head: Index = 0,
    ablate: str = "",
    ablation: Literal["zero", "mean"] = "zero",
    page_layers: list[Index] | None = None,
    output: str = "inspect",
    seed: Seed = 0,
    device: str = "cpu",
) -> None:
    """Show which tokens each head of a model attends to in a text, and what the model would predict after each layer.

    OUTPUT/index.html shows everything on one page; open it in a browser, no network needed. The chosen head's mask,
    scaled QK scores and softmax are printed as tables and drawn to OUTPUT/layerL_headH.png, all heads' patterns are
    drawn to OUTPUT/heads.png, and the matrices of all heads are saved to OUTPUT/attention.npz.

    Args:
        checkpoint: A checkpoint written by fit or convert; a one-head model with random weights and GPT-2's vocabulary
            if omitted.
        text: Text to inspect.
        ids: Token ids to inspect instead of a text.
        layer: Layer whose matrices are printed, drawn and shown first on the page.
        head: Head of that layer.
        ablate: Parts to ablate, to measure the change in loss on the text: LAYER.HEAD or LAYER.ffn, several separated
            by commas (3.2,3.ffn), or all for a table and a plot with every part ablated separately.
        ablation: Replacement for an ablated part's output: zero, or its mean over the text.
        page_layers: Layers whose matrices the page contains; all if omitted, [] for no page.
        output: Folder for the page, the plots and the arrays.
        seed: Seed for the random weights used without a checkpoint.
        device: Where the model runs: cpu, cuda, cuda:N or mps.
    """
    options = dict(locals())
    refuse_unused(inspect, options, _OF_IDS, "ids" if ids is not None else "no ids")
    refuse_unused(inspect, options, OF_WEIGHTS, "a checkpoint" if checkpoint is not None else "no checkpoint")
    refuse_unused(inspect, options, _OF_ABLATION, "ablate" if ablate else "no ablate")
    require_single("page_layers", page_layers or [])
    require_utf8("text", text)
    require_output(output)
    where = named_device(device)
    model, tokenizer, step = _model_and_tokenizer(checkpoint, seed)
    token_ids = prompt_ids(model, tokenizer, text) if ids is None else checked_ids(model, torch.tensor(ids).long())
    model, token_ids = model.to(where), token_ids.to(where)
    if not len(token_ids):
        raise CallError("ids is []; give at least one token id, or a text")
    parts = [] if ablate in ("", "all") else [Part.parse(name) for name in ablate.split(",")]
    require_single("ablate", parts)
    check_parts(model, parts)
    if ablate:
        text_loss(model, token_ids[None])  # raises for a text that is too short, before anything is written
    maps = attention_maps(model, token_ids, readable_tokens(tokenizer, token_ids))
    for name, value, count in (("layer", layer, maps.n_layer), ("head", head, maps.n_head)):
        if not 0 <= value < count:
            has = f"{count} {name}{'' if count == 1 else 's'}"
            raise CallError(f"{name} is {value}; this model has {has} (allowed: 0 to {count - 1})")
    vectors = [] if page_layers == [] else head_activations(model, token_ids)
    layers = layers_of_page(maps, page_layers, vector_numbers(vectors) if vectors else 0)
    matrices = f"layer{layer}_head{head}.png"
    written = ["heads.png", matrices, "attention.npz", *(["ablation.png", "ablation.csv"] if ablate == "all" else [])]
    _require_own(Path(output), [*written, *(["index.html"] if layers else [])])
    folder = create_output(output)
    _save(heads_grid(maps, "attention pattern"), folder / "heads.png")
    _save(three_matrices(maps, layer, head), folder / matrices)
    maps.save(folder / "attention.npz")
    _print_tables(maps, layer, head)
    ablated = None
    if ablate == "all":
        ablated = _ablate_all(model, token_ids, ablation, folder)
    elif parts:
        _print_ablations(model, token_ids, parts, ablation)
    print(f"plots:    {folder}/heads.png {folder}/{matrices}\narrays:   {folder}/attention.npz")
    if ablated is not None:
        print(f"ablation: {folder}/ablation.png {folder}/ablation.csv")
    if layers:
        lens = logit_lens(model, token_ids)
        Page(
            title=f"{_title(maps)}, {_weights(step, checkpoint)}",
            facts=_facts(model, lens, checkpoint, seed),
            maps=maps,
            head_dim=model.block_views()[layer].mixer.head_dim,
            biased=model.positions.biases,
            layers=layers,
            ids=token_ids.tolist(),
            lens=lens,
            vocabulary=names_of_lens(lens, lambda shown: readable_tokens(tokenizer, shown)),
            start=(layer, head),
            ablated=ablated,
            vectors=vectors,
        ).write(folder / "index.html")
        print(f"page:     {folder}/index.html")


def _model_and_tokenizer(checkpoint: str | None, seed: int) -> tuple[LanguageModel, Tokenizer, int | None]:
    """The model, its tokenizer, and the step that it was trained to, if that is known."""
    if checkpoint is not None:
        read = Checkpoint.read(checkpoint)
        return read.build(), read.tokenizer(), read.content.get("global_step")
    return *fresh_head(seed), None


def _require_own(folder: Path, names: Sequence[str]) -> None:
    """Refuse to replace files that no earlier call has written.

    A page carries the mark itself; other files are those of an earlier call where the page or a picture carries it.

    Raises:
        CallError: One of ``names`` is in ``folder`` and of other origin.
    """
    if not os.path.isdir(folder):  # also where its name is too long
        return
    there = [name for name in names if (folder / name).exists()]
    is_ours = any(_is_marked(folder / name) for name in ("index.html", "heads.png"))
    for name in there:
        if not (_is_marked(folder / name) if name == "index.html" else is_ours):
            what = f"{str(folder / name)!r} exists and does not bear the mark of inspect"
            raise CallError(f"output {str(folder)!r}: {what}; choose another output, or delete it")


def _is_marked(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return _MARK.encode() in opened.read(_MARKED_BYTES)


def _save(figure: Figure, file: Path) -> None:
    figure.savefig(file, dpi=120, metadata={"Software": _MARK})


def _weights(step: int | None, checkpoint: str | None) -> str:
    """What tells the page of a trained model from that of a fresh one."""
    if checkpoint is None:
        return "random weights"
    return f"trained for {step:,} steps" if step else "trained weights"


def _print_tables(maps: AttentionMaps, layer: int, head: int) -> None:
    console = Console(highlight=False)
    of_head = f"layer {layer}, head {head}"
    mask, scores, pattern = (matrix[layer, head] for matrix in (maps.mask, maps.scores, maps.pattern))
    matrices = (
        ("causal mask (1: the row may attend to the column)", np.where(mask, "1", "·")),
        (f"scaled scores Q Kᵀ / √d, {of_head}", np.char.mod("%.3f", scores)),
        (f"softmax, {of_head}", np.where(mask, np.char.mod("%.3f", pattern), "·")),
    )
    rows = min(len(maps.tokens), _MOST_COLUMNS)
    columns = min(_fitting_columns(maps, matrices[1][1][:rows], console.width), _MOST_COLUMNS)
    for title, cells in matrices:
        table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
        for name in ["", *maps.keys[:columns]]:
            table.add_column(escape(name), justify="right", no_wrap=True)
        for name, row in zip(maps.tokens, cells[:rows, :columns], strict=False):
            table.add_row(escape(name), *row)
        console.print(table)
        console.print()
    if (rows, columns) < cells.shape:
        whole = " x ".join(map(str, cells.shape))
        print(f"the first {rows} rows and {columns} columns of {whole} are shown; the files contain all")


def _fitting_columns(maps: AttentionMaps, cells: np.ndarray, room: int) -> int:
    """How many columns of ``cells`` fit into ``room`` characters beside the column of tokens; at least one."""
    names = max(cell_len(token) for token in maps.tokens[: len(cells)])
    widths = [max(cell_len(key), *map(len, column)) + 2 for key, column in zip(maps.keys, cells.T, strict=True)]
    return max(1, int((np.cumsum(widths) + names + 2 <= room).sum()))


def _print_ablations(model: LanguageModel, token_ids: torch.Tensor, parts: Sequence[Part], kind: Ablation) -> None:
    """Print the change in loss for each of ``parts`` separately and, if there are several, for all of them together."""
    together = [list(parts)] if len(parts) > 1 else []
    before = text_loss(model, token_ids[None])
    print(f"loss on the text: {before:.6f} nats; loss and change with the output of these parts {_replaced(kind)}:")
    for group in [*([part] for part in parts), *together]:
        after = ablated_loss(model, token_ids[None], group, kind)
        print(f"  {' + '.join(map(str, group)):<12} {after:.6f}  {after - before:+.6f}")


def _ablate_all(model: LanguageModel, token_ids: torch.Tensor, kind: Ablation, folder: Path) -> Ablated:
    """Ablate every head and FFN separately; print, draw and save the table."""
    found = dict(
        track(
            ablate_each(model, token_ids[None], kind),
            "ablating",
            total=len(all_parts(model)),
            console=Console(stderr=True),
            transient=True,
        )
    )
    heads = sorted({part.head for part in found if part.head is not None})
    columns = [*map(str, heads), *(["ffn"] if any(part.head is None for part in found) else [])]
    change = np.full((len(model.block_views()), len(columns)), np.nan)  # a layer may lack a part that others have
    for part, value in found.items():
        change[part.layer, columns.index(_column(part))] = value
    table = Table(box=None, padding=(0, 1), title_justify="left")
    table.title = f"change in loss (nats) with the output of one part {_replaced(kind)}"
    for name in ("layer", *columns):
        table.add_column(name, justify="right", no_wrap=True)
    for number, row in enumerate(change):
        table.add_row(str(number), *("–" if np.isnan(value) else f"{value:+.3f}" for value in row))
    Console(highlight=False, soft_wrap=True).print(table)
    title = f"change in loss with one part's output {_replaced(kind)}"
    _save(ablation_grid(change, columns, title), folder / "ablation.png")
    with (folder / "ablation.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("part", "ablation", "change_in_loss"))
        writer.writerows((str(part), kind, value) for part, value in found.items())
    return Ablated(kind, columns, change)


def _column(part: Part) -> str:
    return "ffn" if part.head is None else str(part.head)


def _replaced(kind: Ablation) -> str:
    return "set to zero" if kind == "zero" else "replaced by its mean over the text"


def _title(maps: AttentionMaps) -> str:
    if maps.n_layer == maps.n_head == 1:
        return "One attention head"
    layers = "1 layer" if maps.n_layer == 1 else f"{maps.n_layer} layers"
    return f"{layers}, {maps.n_head} heads each"


def _facts(model: LanguageModel, lens: LogitLens, checkpoint: str | None, seed: int) -> dict[str, str]:
    parameters, limit = sum(parameter.numel() for parameter in model.parameters()), model.context_limit
    facts = {
        "model": type(model).__name__,
        "weights": checkpoint or f"random, seed {seed}",
        "parameters": f"{parameters:,}",
        "width": f"{model.config.dim:,}",
        "vocabulary": f"{model.config.vocab_size:,}",
        "tokens": f"{lens.top.shape[1]:,}" + (f" of at most {limit:,}" if limit else ""),
    }
    if lens.nll.size:
        loss = float(lens.nll[-1].mean())
        even = np.log(model.config.vocab_size)
        facts["loss on the text"] = f"{loss:.3f} nats (perplexity {np.exp(loss):,.1f}; ln |V| = {even:.3f})"
    return facts


def run(args: list[str]) -> None:
    """Parse ``args`` and inspect."""
    inspect(**parse_function_call(inspect, "inspect", args))
