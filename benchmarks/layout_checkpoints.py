"""Checkpoints saved under each layout and loaded under each other, held against one process that was never stopped.

Processes train five steps in float64 in one layout and save in the background, as ``lightning-gpt fit`` does. Others in
another layout and often another number, load that and train five steps more. Their losses, the weights at the end and
the validation loss of the weights' mean are those of a single process that trains all ten. The learning rate follows a
schedule, gradients are clipped and the weights averaged. One process without a layout writes a file, all others a
folder.

These are lines of ``python -m benchmarks.layouts``.
"""

import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.layout_cases import Proof
from benchmarks.layout_training import LayoutResult, Save, Trained, differences, results_of, train
from lightning_gpt.checkpoint_folder import is_folder
from lightning_gpt.parallel.layout import Layout

STEPS, SAVED = 10, 5

ALONE = "one process"
LAYOUTS: dict[str, dict[str, Any]] = {
    ALONE: {},
    "layout of one": {},
    "data 2": {"data": 2},
    "shard 2": {"shard": 2},
    "tensor 2": {"tensor": 2},
    "tensor 2 + sequence": {"tensor": 2, "sequence": True},
    "pipeline 2": {"pipeline": 2, "micro_batches": 2},
    "context 2": {"context": 2},
    "expert 2": {"expert": 2},
    "data 2 × shard 2": {"data": 2, "shard": 2},
    "shard 4": {"shard": 4},
    "tensor 4": {"tensor": 4},
    "shard 2 × tensor 2 + sequence": {"shard": 2, "tensor": 2, "sequence": True},
    "pipeline 2 × shard 2": {"pipeline": 2, "shard": 2, "micro_batches": 2},
    "pipeline 2 × tensor 2 + sequence": {"pipeline": 2, "tensor": 2, "sequence": True, "micro_batches": 2},
    "shard 2 × expert 2": {"shard": 2, "expert": 2},
    "expert 2 × tensor 2": {"expert": 2, "tensor": 2},
}
"""Each by its name; a file is written by the first one alone."""

_SCHEDULE = {"schedule": "cosine", "warmup": 0.2}
_CLIPPED = {"gradient_clip_val": 0.1}
_ADAMW = Proof(optimization=_SCHEDULE, trainer=_CLIPPED, averaging=0.9)
_MUON = Proof(optimization={"optimizer": "muon", **_SCHEDULE}, trainer=_CLIPPED, averaging=0.9)
_NO_MEAN = Proof(optimization=_SCHEDULE, trainer=_CLIPPED)
RESUMED: dict[str, tuple[Proof, Proof]] = {
    "resumed, adamw": (_ADAMW, _ADAMW),
    "resumed, muon": (_MUON, _MUON),
    "resumed without the mean": (_ADAMW, _NO_MEAN),
    "resumed with a mean": (_NO_MEAN, _ADAMW),
}
"""How it is trained before and after the checkpoint."""

TRAININGS = [("gpt2", "resumed, adamw"), ("llama", "resumed, adamw"), ("values", "resumed, muon")]
WITH_EXPERTS = ("mixture", "resumed, adamw")


def made(name: str) -> Layout | None:
    """A layout of :data:`LAYOUTS`; None for one process without any."""
    return None if name == ALONE else Layout(**{"data": 1, **LAYOUTS[name]})


def devices(name: str) -> int:
    """The number of processes of a layout."""
    layout = made(name)
    return 1 if layout is None else layout.devices


def is_possible(name: str, model: str) -> bool:
    """Whether a model can be laid out so: its key heads can be divided, and it has experts for an axis of them."""
    options = LAYOUTS[name]
    return not (model == "llama" and options.get("tensor") == 4) and (model == "mixture" or "expert" not in options)


@dataclass(frozen=True)
class Pair:
    """A layout that saves and one that loads.

    Args:
        model: One of :data:`~benchmarks.layout_cases.MODELS`.
        proof: One of :data:`RESUMED`.
        saved: The layout that saves.
        loaded: The one that loads.
    """

    model: str
    proof: str
    saved: str
    loaded: str

    def described(self) -> str:
        """The pair in words."""
        return f"{self.saved} → {self.loaded} | {self.model} | {self.proof}"


def all_pairs() -> list[Pair]:
    """Every pair of layouts over one and two processes, and of each of those over four with some others."""
    some = {ALONE, "shard 2", "shard 2 × tensor 2 + sequence", "pipeline 2 × shard 2"}
    pairs = [
        Pair(model, proof, saved, loaded)
        for model, proof in (*TRAININGS, WITH_EXPERTS)
        for saved in LAYOUTS
        for loaded in LAYOUTS
        if is_possible(saved, model) and is_possible(loaded, model)
        if max(devices(saved), devices(loaded)) < 4 or saved in some or loaded in some
    ]
    return [*pairs, *_other_means()]


def short_pairs() -> list[Pair]:
    """The pairs of the test suite: most layouts over two processes save once and load once, and some others."""
    ring = [ALONE, "shard 2", "expert 2", "pipeline 2", "tensor 2 + sequence", "context 2"]
    pairs = [Pair(*WITH_EXPERTS, saved, loaded) for saved, loaded in zip(ring, [*ring[1:], ALONE], strict=True)]
    four = "shard 2 × tensor 2 + sequence"
    pairs.append(Pair(*TRAININGS[2], four, "pipeline 2"))
    return [*pairs, *_other_means()]


def _other_means() -> list[Pair]:
    """Pairs that begin or leave out the mean of the weights."""
    return [
        Pair("gpt2", "resumed without the mean", "tensor 2", "shard 2"),
        Pair("gpt2", "resumed with a mean", "shard 2", "pipeline 2"),
    ]


@dataclass(frozen=True)
class _Saving:
    """The first half of pairs, which leaves a checkpoint and no line."""

    pair: Pair
    path: Path

    @property
    def proved(self) -> Proof:
        return RESUMED[self.pair.proof][0]

    def described(self) -> str:
        return f"{self.pair.saved} → … | {self.pair.model} | {self.pair.proof}"

    def differ(self, is_first: bool) -> list[float]:
        layout = made(self.pair.saved)
        train(self.pair.model, self.proved, STEPS, layout, save=Save(self.path, SAVED))
        assert is_folder(self.path) == (layout is not None)
        return []


@dataclass(frozen=True)
class _Loading:
    """The second half of a pair."""

    pair: Pair
    path: Path
    reference: Trained

    @property
    def proved(self) -> Proof:
        return RESUMED[self.pair.proof][1]

    def described(self) -> str:
        return self.pair.described()

    def differ(self, is_first: bool) -> list[float]:
        trained = train(self.pair.model, self.proved, STEPS, made(self.pair.loaded), load=self.path)
        return differences(trained, self.reference) if is_first else []


def _reference(model: str, proof: str, folder: Path) -> Trained:
    """What one process does in the second half: without a stop, where that is the same training."""
    before, after = RESUMED[proof]
    if before is after:
        whole = train(model, after, STEPS, None)
        return replace(whole, losses=whole.losses[SAVED:])
    path = folder / "reference.ckpt"
    train(model, before, STEPS, None, save=Save(path, SAVED))
    return train(model, after, STEPS, None, load=path)


def results_of_pairs(pairs: Sequence[Pair], sizes: Collection[int]) -> list[LayoutResult]:
    """Save under each layout and load under each.

    Args:
        pairs: The pairs.
        sizes: The numbers of processes; pairs with others are left out.
    """
    pairs = [pair for pair in pairs if {devices(pair.saved), devices(pair.loaded)} <= set(sizes)]
    results: list[LayoutResult] = []
    with tempfile.TemporaryDirectory() as folder:
        trainings = list(dict.fromkeys((pair.model, pair.proof) for pair in pairs))
        references = {each: _reference(*each, Path(folder)) for each in trainings}
        paths = {
            pair: Path(folder, f"{trainings.index((pair.model, pair.proof))}-{list(LAYOUTS).index(pair.saved)}.ckpt")
            for pair in pairs
        }
        first = {path: pair for pair, path in paths.items()}
        for size in sorted(sizes):
            saving = [_Saving(pair, path) for path, pair in first.items() if devices(pair.saved) == size]
            results += [result for result in (results_of(saving, size) if saving else []) if not result.holds]
        for size in sorted(sizes):
            loading = [
                _Loading(pair, path, references[pair.model, pair.proof])
                for pair, path in paths.items()
                if devices(pair.loaded) == size
            ]
            results += results_of(loading, size) if loading else []
    return results
