"""Bytes that each device sends in an optimizer step, by axis, and over which links."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from lightning_gpt.models.ffn.moe.mixture import MixtureOfExperts
from lightning_gpt.parallel.layout import AXES, Axis, Layout
from lightning_gpt.parallel.stages import layers_of_process, layers_of_stages, stages_of_process
from lightning_gpt.planning.devices import DeviceKind
from lightning_gpt.planning.tracing import product_dtype, weight_dtype
from lightning_gpt.planning.training import Training
from lightning_gpt.planning.weights import weights_of_stage

LATENCY = {"node": 3e-6, "network": 10e-6}
"""Seconds of one step of a ring, apart from its bytes: the order of magnitude of NCCL's."""

Link = Literal["node", "network"]
"""Between devices of one node, or between nodes."""


@dataclass(frozen=True)
class Traffic:
    """What a device sends along one axis in an optimizer step.

    Args:
        gathered: Bytes of all-gather and reduce-scatter.
        reduced: Bytes of all-reduce.
        exchanged: Bytes sent to single devices: between stages, or to experts.
        steps: Steps of rings, one after another.
        link: The slowest link that the axis crosses.
        seconds: The time this takes on that link.
    """

    gathered: float
    reduced: float
    exchanged: float
    steps: float
    link: Link
    seconds: float

    @property
    def sent(self) -> float:
        """All bytes."""
        return self.gathered + self.reduced + self.exchanged


def ring(size: float, devices: int) -> float:
    """Bytes that each device sends to gather, or to reduce and scatter, ``size`` bytes over a ring.

    An all-reduce is both, so it sends twice as much (Patarasuk & Yuan 2009, section 3).
    """
    return size * (devices - 1) / devices


def link_of(layout: Layout, axis: Axis, device: DeviceKind) -> tuple[Link, float]:
    """The link that an axis crosses, and its bandwidth for each device in byte/s.

    Ranks of the innermost axis are neighbours. Where an axis has several devices in each node, their networks work
    together.
    """
    inner = 1
    for each in AXES[AXES.index(axis) + 1 :]:
        inner *= layout.size(each)
    if inner * layout.size(axis) <= device.node:
        return "node", device.link_gb_s * 1e9
    within = max(1, device.node // inner)
    return "network", min(device.link_gb_s, device.network_gb_s * within) * 1e9


def traffic(training: Training, layout: Layout, device: DeviceKind, stage: int = 0) -> Mapping[Axis, Traffic]:
    """What a device of a stage sends in an optimizer step, by axis; axes of size 1 are left out.

    Raises:
        CallError: The rows of an optimizer step do not divide as the layout asks.
    """
    sizes = _Sizes(training, layout, stage)
    amounts: Mapping[Axis, Callable[[], tuple[float, float, float]]] = {  # some trace the model, so only what is asked
        "shard": lambda: (sizes.weights_gathered(), 0.0, 0.0),
        "data": lambda: (0.0, sizes.gradients_averaged(("data",)), 0.0),
        "context": lambda: (sizes.keys_gathered(), sizes.gradients_averaged(("context",)), 0.0),
        "tensor": lambda: (*sizes.branches(), 0.0),
        "pipeline": lambda: (0.0, sizes.ends(), sizes.boundaries()),
        "expert": lambda: (0.0, sizes.gradients_averaged(("expert",)), sizes.choices()),
    }
    found: dict[Axis, Traffic] = {}
    for axis in AXES:
        if layout.size(axis) > 1:
            link, bandwidth = link_of(layout, axis, device)
            amount, steps = amounts[axis](), sizes.steps(axis)
            found[axis] = Traffic(*amount, steps, link, sum(amount) / bandwidth + steps * LATENCY[link])
    return found


class _Sizes:
    """The sizes of what a device of one stage sends."""

    def __init__(self, training: Training, layout: Layout, stage: int) -> None:
        self.training, self.layout, self.stage = training, layout, stage
        self.is_first, self.is_last = stage == 0, stage == layout.pipeline - 1
        self.micro_batches, self.rows = training.micro_batches(layout), training.micro_rows(layout)
        self.reductions = 1 if training.copies_only else training.batches(layout)  # DDP waits for the last batch
        self.time = -(-training.time // layout.context)
        self.layers = layers_of_process(training.layers, layout, stage)
        self.held = weights_of_stage(training.weights, training.layers, layout, stage, training.is_tied)
        self.weight_bytes = weight_dtype(training.precision).itemsize
        self.product_bytes = product_dtype(training.precision).itemsize
        self.runs_again = training.checkpointing != "none"

    def steps(self, axis: Axis) -> float:
        """Steps of the rings along an axis: collectives of a step, times the devices that each goes around."""
        blocks, branches = len(self.layers), 2 * len(self.layers)
        of_micro_batch = {"context": 2 * blocks, "tensor": 4 * branches + 2, "pipeline": 2, "expert": 4 * blocks}
        averaging = 2 * (blocks + 1)
        of_batch = {
            "shard": (self.gathers() + 1) * blocks + 2,
            **dict.fromkeys(("data", "context", "expert"), averaging),
        }
        collectives = self.micro_batches * of_micro_batch.get(axis, 0) + self.reductions * of_batch.get(axis, 0)
        return collectives * (self.layout.size(axis) - 1 if axis != "pipeline" else 1)

    def gathers(self) -> int:
        """How often FSDP2 gathers a block's weights for a batch.

        A forward pass frees them and the backward pass needs them again. In a pipeline they stay from a backward pass
        to the forward pass that follows it.
        """
        return self.layout.pipeline_micro_batches + 1 if self.layout.reshard else 1

    def weights_gathered(self) -> float:
        """FSDP2, for each batch: what is outside the blocks is gathered once, and all gradients are scattered once."""
        blocks = sum(each.on_rank(self.layout) for each in self.held if each.layer is not None)
        ends = sum(each.on_rank(self.layout) for each in self.held if each.layer is None)
        gathered = blocks * self.gathers() + ends
        return self.reductions * ring((gathered + blocks + ends) * self.weight_bytes, self.layout.shard)

    def gradients_averaged(self, axes: tuple[Axis, ...]) -> float:
        """The share that ``axes`` have in averaging the gradients over all copies of the weights.

        Copies are those of the data, expert and context axes together; experts have copies along data and context.
        """
        total = 0.0
        for of_experts in (False, True):
            copies = {"data": self.layout.size("data")}
            if not of_experts:
                copies["expert"] = self.layout.expert
            copies["context"] = self.layout.context
            over = 1
            for size in copies.values():
                over *= size
            values = sum(each.on_rank(self.layout) for each in self.held if each.is_of_experts == of_experts)
            whole = 2 * ring(values * self.weight_bytes / self.layout.shard, over)
            several = [axis for axis in copies if copies[axis] > 1]
            # one ring goes over all of them: its slowest link, the outermost axis, carries it
            if several and several[0] in axes:
                total += whole
        return self.reductions * total

    def branches(self) -> tuple[float, float]:
        """Tensor parallel (Shoeybi et al. 2019, 1909.08053, section 3), for each branch of each layer.

        Two all-reduces of the stream, one forward and one backward; the embedding takes one forward, the head one
        backward. With sequence parallel each is a gather and a reduce-scatter, but the embedding's sum is taken whole.
        What is recomputed ends before the last branch's sum, which nothing needs; its gather is needed. The ends are in
        the stream's precision. A mixture sums each choice of a token, and reads whole rows with sequence parallel.
        """
        views, sequence, number = self.training.views, self.layout.sequence, 0.0
        for layer in self.layers:
            ffn = views[layer].ffn
            mixture = ffn if isinstance(ffn, MixtureOfExperts) else None
            chosen = 0 if mixture is None else mixture.top_k
            dense = ffn is not None if mixture is None else mixture.shared is not None
            number += 2 * (1 + dense + chosen) + (sequence and mixture is not None)
            again = {"block": (ffn is not None) + chosen, "attention": 0}.get(self.training.checkpointing)
            number += 0 if again is None else again + 0.5 * sequence
        tokens = self.rows * self.time * self.training.dim
        trace = self.training.trace(self.rows, self.time)
        width = number * self.product_bytes + self.is_last * trace.hidden_dtype.itemsize
        width += self.is_first * (1.5 if sequence else 1.0) * trace.stream_dtype.itemsize
        size = 2 * ring(width * tokens, self.layout.tensor) * self.micro_batches
        return (size, 0.0) if self.layout.sequence else (0.0, size)

    def keys_gathered(self) -> float:
        """Context parallel: keys and values are gathered, their gradients reduced and scattered."""
        keys = sum(self.training.keys_of_token[layer] for layer in self.layers) / self.layout.tensor
        passes = 3 if self.runs_again else 2
        size = self.rows * self.training.time * keys * passes
        return self.micro_batches * ring(size, self.layout.context)

    def boundaries(self) -> float:
        """Pipeline: the stream and what is carried with it go to the next stage, their gradients to the one before."""
        stages = stages_of_process(self.layout, self.layout.pipeline - 1)[-1] + 1
        layers, size = layers_of_stages(self.training.layers, stages), 0.0
        for stage in stages_of_process(self.layout, self.stage):
            if stage > 0:
                size += self._handed_on(layers[stage].start - 1)
            if stage < stages - 1:
                size += self._handed_on(layers[stage].stop - 1)
        return self.micro_batches * size

    def _handed_on(self, layer: int) -> float:
        """What goes from a layer to the next one, for a micro-batch."""
        trace, t = self.training.trace(self.rows, self.time), self.layout.tensor
        shares = {"stream": 1 / t if self.layout.sequence else 1.0, "inner": 1 / t}
        carried = sum(size * shares.get(part, 1.0) for part, size in trace.layers[layer].carried.items())
        values = self.rows * self.time * self.training.stream_width
        return values * trace.stream_dtype.itemsize * shares["stream"] + carried

    def ends(self) -> float:
        """Pipeline: the gradient of a tied embedding is summed over the first and the last stage for each batch."""
        if not (self.training.is_tied and (self.is_first or self.is_last)):
            return 0.0
        embedding = sum(each.on_rank(self.layout) for each in self.held if each.component == "token embedding")
        return self.training.batches(self.layout) * 2 * ring(embedding * self.weight_bytes / self.layout.shard, 2)

    def choices(self) -> float:
        """Experts: each chosen token goes to its expert and comes back, forward and backward."""
        chosen = sum(number for layer, number in self.training.choices.items() if layer in self.layers)
        exchanges = 4 + 2 * (self.training.checkpointing == "block")
        size = exchanges * self.rows * self.time * chosen * self.training.dim * self.product_bytes
        return self.micro_batches * ring(size, self.layout.expert)
