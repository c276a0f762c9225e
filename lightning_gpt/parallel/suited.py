"""Whether a model suits a layout: refused in one line, before anything starts, with what would work."""

from collections.abc import Iterator

from torch import nn

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, LanguageModel, MemoryGPT
from lightning_gpt.models.adapters import adapter_names
from lightning_gpt.models.adjusted_head import AdjustedHead
from lightning_gpt.models.layer import Cut, Layer
from lightning_gpt.models.registry import at_layer
from lightning_gpt.models.scaled_head import ScaledHead
from lightning_gpt.parallel.context import require_divisible_rows
from lightning_gpt.parallel.experts import require_experts
from lightning_gpt.parallel.layout import Layout, divisors
from lightning_gpt.parallel.stages import require_stages, suits_schedule
from lightning_gpt.parallel.tensor import parameters_at

_MOST_SUGGESTED = 64


def require_flags(layout: Layout, strategy: object, precision: str) -> None:
    """Refuse flags of the Trainer that do not go with a layout.

    Args:
        layout: The layout.
        strategy: The flag ``strategy``.
        precision: The flag ``precision``.

    Raises:
        CallError: They do not.
    """
    if strategy != "auto":
        raise CallError(
            f"trainer.strategy {strategy} and parallel ({layout.described()}) cannot be combined: leave strategy out"
        )
    if precision == "16-mixed":
        raise CallError(
            f"trainer.precision 16-mixed and parallel ({layout.described()}) cannot be combined: its gradient scaler "
            f"works within one process; use bf16-mixed or 32-true"
        )


def require_device(layout: Layout, device: str) -> None:
    """Refuse a layout that a kind of device cannot run.

    Args:
        layout: The layout.
        device: ``cpu``, ``cuda`` or another of torch's types.

    Raises:
        CallError: It cannot.
    """
    if layout.offload and device == "cpu":
        raise CallError("parallel.offload moves shards to the CPU's memory, and this run is on the CPU: leave it out")


def require_suited(model: LanguageModel, layout: Layout, compiles: bool = False) -> None:
    """Refuse a model that a layout cannot hold.

    Args:
        model: The model, before it is laid out.
        layout: The layout.
        compiles: Whether its blocks are compiled.

    Raises:
        CallError: A part of it cannot be divided as the layout asks; the message says what would work.
    """
    if isinstance(model, MemoryGPT):
        raise CallError(
            f"model memory and parallel ({layout.described()}) cannot be combined: leave parallel out; "
            f"every device then trains a copy of the model"
        )
    if adapter_names(model):
        raise CallError(
            f"model.lora and parallel ({layout.described()}) cannot be combined: leave parallel out; "
            f"every device then trains a copy of the adapters"
        )
    if layout.tensor > 1:
        _require_divisible(model, layout, compiles)
    if layout.pipeline > 1:
        require_stages(model, layout, compiles)
    if layout.context > 1:
        require_divisible_rows(model, layout.context)
        own = model.config.block_size // layout.context
        if layout.sequence and own % layout.tensor:
            raise CallError(
                f"parallel.sequence divides the {own} tokens of a row that parallel.context {layout.context} leaves a "
                f"device over parallel.tensor {layout.tensor}, which does not divide them: leave sequence out, or "
                f"choose a block_size that is a multiple of {2 * layout.context * layout.tensor}"
            )
    if layout.expert > 1:
        require_experts(model, layout.expert)
        if compiles:
            raise CallError(
                f"compile_blocks and parallel.expert {layout.expert} cannot be combined, as the number of exchanged "
                f"tokens changes with each batch: leave one of them out"
            )


def require_rows(layout: Layout, batch_size: int | None, predicts: bool) -> None:
    """Refuse what a pipeline cannot run: a batch that it cannot divide, and predictions.

    Args:
        layout: The layout.
        batch_size: Rows of a batch of one process; None if unknown.
        predicts: Whether the run predicts.

    Raises:
        CallError: It cannot.
    """
    if layout.pipeline == 1:
        return
    if predicts:
        raise CallError(
            "predict needs whole models, and with parallel.pipeline each device has some layers: leave pipeline out"
        )
    parts = layout.pipeline_micro_batches
    if batch_size is not None and batch_size % parts:
        fitting = [str(each) for each in divisors(batch_size) if suits_schedule(layout, each)]
        works = f", or parallel.micro_batches to {' or '.join(fitting)}" if fitting else ""
        raise CallError(
            f"data.batch_size {batch_size} cannot be divided into {parts} micro-batches: set data.batch_size to a "
            f"multiple of {parts}{works}"
        )


def _require_divisible(model: LanguageModel, layout: Layout, compiles: bool) -> None:
    size = layout.tensor
    if not isinstance(model, GPT):
        raise CallError(f"parallel.tensor {size} divides a GPT, and this is a {model.class_name}: use parallel.shard")
    if compiles:
        raise CallError(
            f"compile_blocks and parallel.tensor {size} cannot be combined: leave one of them out, or divide by "
            f"parallel.shard"
        )
    if isinstance(model.head, AdjustedHead | ScaledHead):
        raise CallError(
            f"parallel.tensor {size} divides the vocabulary, and an output head with head_bias, logit_softcap, "
            f"logit_divisor or logit_scale cannot be divided: use parallel.shard"
        )
    if model.config.convolution is not None:
        raise CallError(
            f"parallel.tensor {size} divides heads and hidden units, and the convolution of a block cannot be divided: "
            f"use parallel.shard"
        )
    vocabulary = model.config.vocab_size
    if (size - 1) * -(-vocabulary // size) >= vocabulary:
        raise CallError(f"parallel.tensor {size} leaves devices without a part of the vocabulary of {vocabulary}")
    length = model.config.block_size
    if layout.sequence and length % size:
        raise CallError(
            f"parallel.sequence needs a block_size that parallel.tensor {size} divides, and it is {length}: "
            f"use tensor {_divisors(length)}, or leave sequence out"
        )
    for what, layer in _parts(model):
        cut = layer.cut()
        if cut is None:
            raise CallError(
                f"{what} cannot be divided over parallel.tensor {size}: use parallel.shard, or another kind "
                f"(attention full, grouped or window; ffn gelu, swiglu or moe)"
            )
        _require_whole_units(what, layer, cut, size)
        _require_all_described(what, layer, cut)


def _parts(model: GPT) -> Iterator[tuple[str, Layer]]:
    """What has units to divide, with what it is in words."""
    config = model.config
    yield f"position {config.position}", model.positions
    for number, view in enumerate(model.block_views()):
        yield f"layer {number}: attention {at_layer(config.attention, number)}", view.mixer
        if view.ffn is not None:
            yield from _with_parts(f"layer {number}: ffn {at_layer(config.ffn, number)}", view.ffn)


def _with_parts(what: str, layer: Layer) -> Iterator[tuple[str, Layer]]:
    yield what, layer
    cut = layer.cut()
    for name in () if cut is None else cut.parts:
        yield from _with_parts(what, getattr(layer, name))


def _require_whole_units(what: str, layer: Layer, cut: Cut, size: int) -> None:
    counts = {name: getattr(layer, name) for name in cut.units} | {
        name: len(getattr(layer, name)) for name in cut.lists
    }
    for name, count in counts.items():
        if count % size:
            raise CallError(
                f"parallel.tensor {size} does not divide {name} {count} of {what}: use tensor {_divisors(count)}"
            )


def _require_all_described(what: str, layer: Layer, cut: Cut) -> None:
    """A subclass may have parameters that the description it inherits does not name; they would be wrong in silence."""
    named = {
        (id(module), name)
        for path in (*cut.alike, *cut.whole, *cut.once, *cut.along)
        for module, name in parameters_at(layer, path)
    }
    children: list[nn.Module] = [getattr(layer, name) for name in (cut.into, cut.out, *cut.parts) if name is not None]
    named |= {(id(part), name) for child in children for part in child.modules() for name in part._parameters}
    for path, part in layer.named_modules():
        for name in part._parameters:
            if (id(part), name) not in named:
                raise CallError(
                    f"{what} does not say how its parameter {f'{path}.{name}'.lstrip('.')} is divided over "
                    f"parallel.tensor: its method cut must name it"
                )


def _divisors(count: int) -> str:
    found = [str(each) for each in divisors(count) if each <= _MOST_SUGGESTED]
    return " or ".join([", ".join(found[:-1]), found[-1]]) if len(found) > 1 else found[0]
