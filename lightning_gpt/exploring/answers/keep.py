"""What can be kept of a look: the page as one file, and the lines of Python that give the same numbers."""

from lightning_gpt.analysis.attention import maps_of, readable_tokens
from lightning_gpt.analysis.changes import parse_changes
from lightning_gpt.analysis.head_matrices import matrices_of
from lightning_gpt.analysis.logit_lens import lens_of
from lightning_gpt.analysis.page import Page, layers_of_page, names_of_lens, vector_numbers
from lightning_gpt.exploring.looking import Passes, TextPass


def page(look: TextPass, layer: int, head: int) -> bytes:
    """The page of the text as one file, which works without this server.

    Raises:
        CallError: It would be too large to open.
    """
    model = look.model
    look.require_head(layer, head)
    maps = maps_of(model, look.trace, look.tokens)
    vectors = [matrices_of(model, look.trace, number) for number in range(maps.n_layer)]
    layers = layers_of_page(maps, None, vector_numbers(vectors))
    lens = lens_of(model, look.trace, look.ids)
    facts = {"model": model.class_name, "weights": look.explored.name}
    if look.shown.changes.strip():
        facts["changed"] = ", ".join(str(change) for change in parse_changes(look.shown.changes))
    if look.loss is not None:
        facts["loss on the text"] = f"{look.loss:.3f} nats"
    made = Page(
        title=f"{look.explored.name}, {maps.n_layer} × {maps.n_head} heads",
        facts=facts,
        maps=maps,
        head_dim=model.block_views()[layer].mixer.head_dim,
        biased=model.positions.biases,
        layers=layers,
        ids=look.ids.tolist(),
        lens=lens,
        vocabulary=names_of_lens(lens, lambda ids: readable_tokens(look.explored.tokenizer, ids)),
        start=(layer, head),
        vectors=vectors,
    )
    return made.text().encode()


def code(passes: Passes, look: TextPass, layer: int, head: int, row: int, column: int | None) -> str:
    """Python that gives the numbers of the cell that is shown, or of its row where ``column`` is None.

    Raises:
        CallError: There is no such head, row or column.
    """
    look.require_head(layer, head)
    look.require_row(row)
    if column is not None:
        look.require_column(layer, column)
    prefix = look.model.block_views()[layer].mixer_name
    is_single = look.trace[f"{prefix}.pattern"].ndim == 3
    place = "0" if is_single else f"0, {head}"
    lines = ["import torch", "from lightning_gpt import load"]
    edits = ""
    if look.shown.changes.strip():
        lines.append("from lightning_gpt.analysis.changes import change_edits, parse_changes")
    if look.explored.is_fresh:
        lines = ["import torch", "from lightning_gpt import SingleHeadConfig, SingleHeadModel", *lines[2:]]
    lines += ["", f"{look.explored.code}", f"ids = torch.tensor([{look.ids.tolist()}])"]
    if look.shown.changes.strip():
        other = ""
        if look.shown.other:
            ids = passes.ids_of(look.explored, look.shown.other).tolist()
            other = f", torch.tensor([{ids}])"
        text = ",".join(str(change) for change in parse_changes(look.shown.changes))
        lines.append(f"edits = change_edits(model, parse_changes({text!r}), ids{other})")
        edits = ", edits"
    names = f'"{prefix}.pattern"' if not edits else f'["{prefix}.pattern"]'
    lines.append(f"with torch.no_grad(), model.record({names}{edits}) as trace:")
    lines.append("    logits = model(ids)")
    where = f"{place}, {row}" if column is None else f"{place}, {row}, {column}"
    lines.append(f'print(trace["{prefix}.pattern"][{where}])')
    return "\n".join(lines) + "\n"
