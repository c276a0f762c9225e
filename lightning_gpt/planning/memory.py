"""Memory of each device in a layout, by component."""

from collections.abc import Mapping
from dataclasses import dataclass

from lightning_gpt.models.head import loss_bytes
from lightning_gpt.parallel.layout import Layout
from lightning_gpt.parallel.stages import STAGES_PER_PROCESS, layers_of_process
from lightning_gpt.planning.tracing import Bytes, LayerTrace, PassTrace, iteration_dtype, product_dtype, weight_dtype
from lightning_gpt.planning.training import Training
from lightning_gpt.planning.weights import Weight, weights_of_stage

GATHERED_BLOCKS = 2
"""Blocks whose weights are gathered at once: the one that runs, and the next one, which is fetched meanwhile."""
CHUNKS = STAGES_PER_PROCESS["interleaved"]
"""Parts of a model on each device of an interleaved pipeline."""


@dataclass(frozen=True)
class RankMemory:
    """The most that the devices of one pipeline stage hold at once, in bytes.

    Args:
        weights: Their part of the weights.
        gradients: Their part of the gradients.
        optimizer: Their part of the optimizer's state, and of the mean of the weights.
        gathered: Weights of other devices, gathered for a while, and gradients before they are divided.
        activations: What is kept for the backward passes of all micro-batches in flight.
        head: The logits' chunk and the gradients that the loss makes.
        working: What the pass through a block takes besides.
        host: What waits in the memory of the CPU.
    """

    weights: float
    gradients: float
    optimizer: float
    gathered: float
    activations: float
    head: float
    working: float
    host: float

    @property
    def total(self) -> float:
        """The peak on the device."""
        return sum(self.parts().values())

    def parts(self) -> Mapping[str, float]:
        """The parts on the device, by name."""
        return {name: value for name, value in vars(self).items() if name != "host"}


def in_flight(layout: Layout, stage: int) -> float:
    """Micro-batches whose activations a stage keeps at once.

    1F1B: Narayanan et al. 2021 (2104.04473), section 2.2.1; interleaved: its section 2.2.2, where the first passes run
    over every part of the model that the device holds. Zero bubble (Qi et al. 2023, 2401.10241, section 2.3, ZB-H1)
    keeps as many as 1F1B.
    """
    stages, after = layout.pipeline, layout.pipeline - stage
    if layout.schedule == "interleaved" and stages > 1:
        parts = 2 * (after - 1) + (CHUNKS - 1) * stages + 1
        return min(layout.pipeline_micro_batches, parts / CHUNKS)
    return after


def rank_memory(training: Training, layout: Layout, stage: int = 0) -> RankMemory:
    """Memory of the devices of a stage.

    Raises:
        CallError: The rows of an optimizer step do not divide as the layout asks.
    """
    return _Stage(training, layout, stage).memory()


class _Stage:
    """The devices of one stage, all of them alike."""

    def __init__(self, training: Training, layout: Layout, stage: int) -> None:
        self.training, self.layout = training, layout
        self.is_first, self.is_last = stage == 0, stage == layout.pipeline - 1
        self.micro_batches = training.micro_batches(layout)
        self.rows = training.micro_rows(layout)
        self.time = -(-training.time // layout.context)
        self.trace: PassTrace = training.trace(self.rows, self.time)
        self.in_flight = in_flight(layout, stage)
        self.layers = layers_of_process(training.layers, layout, stage)
        self.held = weights_of_stage(training.weights, training.layers, layout, stage, training.is_tied)
        self.by_layer: dict[int | None, float] = dict.fromkeys((None, *self.layers), 0.0)
        for weight in self.held:
            first = weight.layer  # a block that several layers share is in the first one's stage
            self.by_layer[first] = self.by_layer.get(first, 0.0) + weight.on_rank(layout)
        self.itemsize = weight_dtype(training.precision).itemsize

    def memory(self) -> RankMemory:
        """All parts of the peak, which is the largest of what is held at four moments."""
        values = self._values(self.held)
        states = values * self._states_each() / self.layout.shard
        weights = values * self.itemsize / self.layout.shard
        gradients = weights + self._second_gradients(values)
        gathered, kept, head = self._gathered(), self._kept(), self._head() if self.is_last else 0.0
        accumulates = self.micro_batches > 1
        peaks = [gradients + gathered + kept + head]  # at the loss, when the last step's gradients still exist
        done = self.by_layer[None] * self.itemsize / self.layout.shard
        left = kept
        for layer in reversed(self.layers):
            traced = self.trace.layers[layer]
            held = gradients if accumulates else done + self._made(traced)
            peaks.append(held + gathered + left + self._divided(traced.backward, traced))
            done += self.by_layer[layer] * self.itemsize / self.layout.shard
            peaks.append(gradients + gathered + left + self._excess(traced))
            left -= self._divided(traced.kept, traced)
        peaks.append(weights + self._optimizer_work())  # of gradients there is one set again
        working = max(peaks) - gradients - gathered - kept - head
        host = 0.0
        if self.layout.offload:
            host, weights, gradients, states = weights + gradients + states, 0.0, 0.0, 0.0
        if working < 0:  # the loss is not the moment of the peak: what it takes is free again
            head, working = max(0.0, head + working), 0.0
        return RankMemory(weights, gradients, states, gathered, kept, head, working, host)

    def _second_gradients(self, values: float) -> float:
        """Gradients besides those of before the batch: whole, as they are divided or summed after its backward pass.

        A pipeline makes those of a batch apart; DDP's buckets hold a copy of all.
        """
        by_ddp = self.training.copies_only and self.layout.devices > 1
        return values * self.itemsize if self.layout.pipeline > 1 or by_ddp else 0.0

    def _values(self, weights: list[Weight]) -> float:
        return sum(weight.on_rank(self.layout) for weight in weights)

    def _states_each(self) -> float:
        """Bytes of optimizer state and averages per value: AdamW keeps two numbers, Muon one per hidden matrix."""
        total = self._values(self.held)
        by_muon = self._values([each for each in self.held if each.is_hidden])
        share = by_muon / total if self.training.optimizer == "muon" else 0.0
        return self.itemsize * (2 - share + self.training.is_averaged)

    def _gathered(self) -> float:
        """What FSDP2 gathers: two blocks, and what is outside the blocks; and a block's gradient before it is cut.

        In a pipeline all blocks stay gathered from a batch's first backward pass on.
        """
        if self.layout.shard == 1:
            return 0.0
        rest = 1 - 1 / self.layout.shard
        by_layer, ends = [self.by_layer[layer] for layer in self.layers], self.by_layer[None]
        if self.layout.pipeline > 1:
            return (sum(by_layer) + ends) * self.itemsize * rest
        largest = max(by_layer, default=0.0)
        blocks = sum(by_layer) if not self.layout.reshard else min(sum(by_layer), GATHERED_BLOCKS * largest)
        return (blocks + ends + max(largest, ends)) * self.itemsize * rest

    def _kept(self) -> float:
        """Activations kept by all micro-batches in flight, at the end of the last one's forward pass."""
        kept = sum(self._divided(self.trace.layers[layer].kept, self.trace.layers[layer]) for layer in self.layers)
        kept += self._gathered_keys()
        if self.is_first:
            kept += self._divided(self.trace.embedding)
        if self.is_last:
            kept += self._divided({part: max(0.0, value) for part, value in self.trace.ending.items()})
        else:  # the stage's output waits for the next stage
            kept += self.stream_bytes()
        return kept * self.in_flight

    def stream_bytes(self) -> float:
        """Bytes of the residual stream of a micro-batch on a device."""
        values = self.rows * self.time * self.training.stream_width
        return values * self.trace.stream_dtype.itemsize / (self.layout.tensor if self.layout.sequence else 1)

    def _gathered_keys(self) -> float:
        """Keys and values of the other devices of the context axis, kept by each layer unless it is checkpointed."""
        if self.layout.context == 1 or self.training.checkpointing != "none":
            return 0.0
        others = self.training.time - self.time
        keys = sum(self.training.keys_of_token[layer] for layer in self.layers)
        return self.rows * others * keys / self.layout.tensor

    def _head(self) -> float:
        """What the loss allocates, with the vocabulary cut over the tensor axis."""
        model, t = self.training.model, self.layout.tensor
        vocabulary, dim = model.head.weight.shape
        dtype = weight_dtype(self.training.precision)
        tokens, product = self.rows * self.time, product_dtype(self.training.precision)
        device = self.training.device
        return loss_bytes(tokens, dim, -(-vocabulary // t), self.trace.hidden_dtype, dtype, product, device)

    def _divided(self, part_bytes: Bytes, layer: LayerTrace | None = None) -> float:
        """Bytes on a device of what one device alone would hold."""
        t = self.layout.tensor
        shares = {"stream": 1 / t if self.layout.sequence else 1.0, "inner": 1 / t, "weights": 1 / t}
        known = {part: value for part, value in part_bytes.items() if part not in ("gradients", "of weights")}
        total = sum(value * shares.get(part, 1.0) for part, value in known.items())
        gradients = part_bytes.get("gradients", 0.0)
        if not gradients:
            return total
        # gradients of activations are as large as the activations, so they are divided as those are
        like = known if sum(known.values()) > 0 or layer is None else layer.kept
        whole = sum(like.values())
        part = sum(value * shares.get(name, 1.0) for name, value in like.items())
        return total + gradients * (part / whole if whole > 0 else 1.0)

    def _made(self, layer: LayerTrace) -> float:
        """Gradients of a layer's own weights at the moment of its peak; with FSDP2 they are among what is gathered."""
        return layer.backward.get("of weights", 0.0) / self.layout.tensor if self.layout.shard == 1 else 0.0

    def _excess(self, layer: LayerTrace) -> float:
        """What the forward pass of a layer takes besides what it keeps."""
        return max(0.0, self._divided(layer.forward, layer) - self._divided(layer.kept, layer))

    def _optimizer_work(self) -> float:
        """What a step of the optimizer allocates: Muon works on all matrices of one shape at once.

        Its directions are in the weights' dtype; the batch, its Gram matrices and the next iterate in that of its
        iterations. In a layout every device has the directions whole, and their moves.
        """
        if self.training.optimizer != "muon":
            return 0.0
        hidden = sum(each.numel for each in self.held if each.is_hidden)
        is_laid_out = self.layout.devices > 1 and not self.training.copies_only
        weight_bytes = self.itemsize * (2 if is_laid_out else 1)
        return hidden * (weight_bytes + 3 * iteration_dtype(self.training.precision).itemsize)
