"""What the tests of residual rules make blocks of, one at a time."""

from collections.abc import Mapping
from typing import Any

from lightning_gpt.models.attention.mixer import Mixer, attentions
from lightning_gpt.models.positions.scheme import NoPositions
from lightning_gpt.models.registry import Given
from tests.models.slopes import Array
from tests.reference import formulas, parts

State = Mapping[str, Array]


def attention(choice: Given = "full", dim: int = 6, n_head: int = 2) -> Mixer:
    context: dict[str, Any] = {"dim": dim, "n_head": n_head, "bias": True, "dropout": 0.0, "backend": "sdpa"}
    return attentions.make(choice, **context, qk_norm="none", layer=0, positions=NoPositions())


def layer_norm(state: State, name: str) -> parts.Branch:
    return lambda h: formulas.layer_norm(h, state[f"{name}.weight"], state[f"{name}.bias"])
