"""A family of published models: what it calls its tensors and options, in both directions."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_gpt.errors import CallError
from lightning_gpt.interop.settings import Expressed, Settings, expressed
from lightning_gpt.interop.tensors import Pieces, Published
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.layer import all_matrices
from lightning_gpt.models.registry import Registry, readable
from lightning_gpt.named_tensors import grouped
from lightning_gpt.options import shown

families: Registry["Family"] = Registry("family")
"""Every family, by the ``model_type`` in its ``config.json``."""


def name_of(kind: str, kinds: dict[str, str]) -> str:
    """What a published config calls a kind of ours: the first of its names in ``kinds``, from names to kinds."""
    return {ours: name for name, ours in reversed(kinds.items())}[kind]


@dataclass(frozen=True)
class Entry:
    """A tensor of ours and the published ones that it is made of.

    Args:
        ours: Its name in the model's state dict.
        theirs: Their names and shapes, in order.
        published: How they are put together.
        pieces: The pieces of ours.
    """

    ours: str
    theirs: Mapping[str, torch.Size]
    published: Published
    pieces: Pieces


class Family(ABC):
    """Base class of the families. A family has no state."""

    model_type: ClassVar[str]
    """The name it is registered under."""
    architecture: ClassVar[str]
    """The class of transformers that computes it."""
    prefix: ClassVar[str] = "model."
    """What the names of all tensors but the head's begin with; files of the bare model leave it out."""
    outside: ClassVar[Mapping[str, Published]]
    """The published tensors for each of ours outside the blocks, all without their endings."""
    inside: ClassVar[Mapping[str, Published]]
    """The same for each of ours inside a block."""
    buffers: ClassVar[str] = r"rotary_emb\.inv_freq$"
    """Names of tensors that follow from the config and are left out: a regular expression."""

    @abstractmethod
    def read(self, given: Settings) -> dict[str, Any]:
        """The arguments of our config for a published one.

        Raises:
            CallError: It has an option that our parts cannot express; the message names it.
        """

    @abstractmethod
    def write(self, ours: Expressed) -> dict[str, Any]:
        """The published config for one of ours.

        It needs to be right only for models that the family can express: :meth:`published` reads it back.
        """

    def config(self, given: Mapping[str, Any]) -> GPTConfig:
        """Our config for a published one.

        Raises:
            CallError: As :meth:`read`; or an option is missing, of the wrong type, or out of range.
        """
        return GPTConfig(**self.read(Settings(given)))

    def published(self, config: GPTConfig) -> dict[str, Any]:
        """The content of ``config.json`` for a model of ours.

        Raises:
            CallError: The family cannot express it; the message names the part.
        """
        ours = expressed(config)
        try:
            written = self.write(ours)
            back = expressed(self.config(written))
        except (KeyError, TypeError):  # an option that only other kinds of a part have
            raise CallError(f"{self.architecture} has no {self._foreign(config)}") from None
        differing = [name for name, value in ours.items() if value != back[name]]
        if differing:
            parts = ", ".join(f"{name} {readable(getattr(config, name))}" for name in differing)
            raise CallError(f"{self.architecture} has no {parts}")
        return {"architectures": [self.architecture], "model_type": self.model_type, **written}

    @staticmethod
    def _foreign(config: GPTConfig) -> str:
        parts = ("norm", "residual", "position", "attention", "ffn")
        return " with ".join(f"{part} {readable(getattr(config, part))}" for part in parts)

    def entries(self, config: GPTConfig) -> list[Entry]:
        """All tensors of a model."""
        with torch.device("meta"):
            model = GPT(config)
        return list(self._entries(model))

    def _entries(self, model: GPT) -> Iterator[Entry]:
        state, pieces = model.state_dict(keep_vars=True), {}
        for matrix in all_matrices(model):
            pieces[id(matrix.weight)] = pieces[id(matrix.bias)] = matrix.pieces
        for name, tensor in state.items():
            published, ending, layer = self._published(name)
            names = published.named(ending, layer, len(tensor))
            of_it = pieces.get(id(tensor), {})
            parts = published.split(tensor.detach(), of_it, model.config.n_head)
            theirs = {name: part.shape for name, part in zip(names, parts, strict=True)}
            yield Entry(name, theirs, published, of_it)

    def _published(self, ours: str) -> tuple[Published, str, int | None]:
        """How a tensor of ours is published, the ending of its name and its layer."""
        in_block = re.fullmatch(r"blocks\.(\d+)\.(.*)", ours)
        table, name = (self.outside, ours) if in_block is None else (self.inside, in_block[2])
        layer = None if in_block is None else int(in_block[1])
        if name in table:  # a stack of experts is a parameter of its layer
            return table[name], ".weight", layer
        stem, dot, ending = name.rpartition(".")
        if stem not in table:
            raise CallError(f"{self.architecture} has no place for the weights {name}")
        return table[stem], dot + ending, layer

    def from_published(self, config: GPTConfig, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state dict of our model.

        Args:
            config: Its config.
            theirs: The published tensors; a mapping that reads each when it is asked for will do.

        Raises:
            CallError: Tensors are missing, unknown or of another shape; the message lists them.
        """
        entries, names = self.entries(config), self._found(theirs)
        expected = {name: shape for entry in entries for name, shape in entry.theirs.items()}
        self._check(expected, names, theirs, config)
        made = {}
        for entry in entries:
            parts = [theirs[names[name]] for name in entry.theirs]
            dtypes = {part.dtype for part in parts}
            if len(dtypes) > 1:
                given = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
                raise CallError(
                    f"the tensors {', '.join(grouped(entry.theirs))} are one matrix here, and they are {given}"
                )
            made[entry.ours] = entry.published.join(parts, entry.pieces, config.n_head).contiguous()
        return made

    def _found(self, theirs: Mapping[str, Tensor]) -> dict[str, str]:
        """The names in a file by what this family calls them; the bare model's lack the prefix."""
        if any(name.startswith(self.prefix) for name in theirs):
            return {name: name for name in theirs}
        heads = {name for published in self.outside.values() for name in published.names}
        return {name if name.rpartition(".")[0] in heads else self.prefix + name: name for name in theirs}

    def _check(
        self,
        expected: Mapping[str, torch.Size],
        names: Mapping[str, str],
        theirs: Mapping[str, Tensor],
        config: GPTConfig,
    ) -> None:
        missing = [name for name in expected if name not in names]
        extra = [name for name in names if name not in expected and not re.search(self.buffers, name)]
        head, embedding = (f"{self.outside[ours].names[0]}.weight" for ours in ("head.linear", "token_embedding"))
        if config.tie_embeddings and head in extra and embedding in names:
            if not torch.equal(theirs[names[head]], theirs[names[embedding]]):
                raise CallError(f"tie_word_embeddings is true, but {head} and {embedding} hold other numbers")
            extra.remove(head)
        wrong = [
            f"{name} {tuple(theirs[names[name]].shape)} instead of {tuple(shape)}"
            for name, shape in expected.items()
            if name in names and theirs[names[name]].shape != shape
        ]
        problems = (("missing", missing), ("unknown", extra), ("of the wrong shape", wrong))
        found = [f"{len(names)} {what}: {', '.join(grouped(names))}" for what, names in problems if names]
        if found:
            raise CallError(f"the tensors are not those of this config: {'; '.join(found)}")

    def to_published(self, config: GPTConfig, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The published tensors of a model of ours."""
        made = {}
        for entry in self.entries(config):
            parts = entry.published.split(ours[entry.ours], entry.pieces, config.n_head)
            made.update({name: part.contiguous() for name, part in zip(entry.theirs, parts, strict=True)})
        return made


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a ``config.json``.

    Raises:
        CallError: It names none, or one that is not known.
    """
    kind = config.get("model_type")
    if kind not in families.names:
        raise CallError(f"model_type is {shown(kind)}; the known families are {', '.join(families.names)}")
    return families.make(kind)


def family_for(config: GPTConfig, asked: str | None) -> tuple[str, Family]:
    """A family that expresses a model of ours, and its name.

    Args:
        config: The model's config.
        asked: The family to use; the first that fits if None.

    Raises:
        CallError: It has a part that the family, or every family, lacks.
    """
    refusals = {}
    for name in families.names if asked is None else [asked]:
        family = families.make(name)
        try:
            family.published(config)
        except CallError as error:
            refusals[name] = str(error)
        else:
            return name, family
    if asked is not None:
        raise CallError(refusals[asked])
    fewest = min(refusals, key=lambda name: len(refusals[name]))
    raise CallError(f"no known family expresses this model; the nearest is {fewest}: {refusals[fewest]}")
