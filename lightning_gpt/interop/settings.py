"""Reading published options, and ours in the one form in which two configs compare."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPTConfig
from lightning_gpt.models.ffn.dense import FeedForward, ffns
from lightning_gpt.models.ffn.moe.mixture import MixtureOfExperts
from lightning_gpt.models.ffn.moe.router import Router
from lightning_gpt.models.positions.scheme import position_schemes
from lightning_gpt.models.positions.yarn import YarnPositions
from lightning_gpt.models.registry import at_layer, plain
from lightning_gpt.options import check_option, shown

Expressed = Mapping[str, Any]
"""What a model of ours computes in evaluation, by the fields of its config, with every option spelt out.

``attention`` and ``ffn`` are lists with a mapping for each layer, ``None`` for an omitted network.
"""

_OF_TRAINING = {
    *("dropout", "attention_backend", "layer_drop", "diversity", "zero_projections", "checkpointing"),
}
_REQUIRED: Any = object()


class Settings:
    """The content of a ``config.json``.

    Args:
        values: The content.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def get(self, name: str, hint: Any, default: Any = _REQUIRED) -> Any:
        """An option.

        Args:
            name: Its name.
            hint: Its type and range, as in :mod:`lightning_gpt.options`.
            default: Its value where it is left out; null counts as left out, unless None is the default.

        Raises:
            CallError: It is missing without a default, or has a value that ``hint`` does not allow.
        """
        value = self.values.get(name)
        if value is None:
            if default is _REQUIRED:
                raise CallError(f"config.json has no {name}")
            return default
        check_option(name, value, hint)
        return value

    def require(self, name: str, *allowed: Any) -> Any:
        """An option that must be one of a few values, of which the first is the default.

        Raises:
            CallError: It is another.
        """
        value = self.values.get(name, allowed[0])
        if value not in allowed:
            words = " or ".join(str(each).lower() if isinstance(each, bool | None) else str(each) for each in allowed)
            raise CallError(f"{name} is {shown(value)}; lightning_gpt computes only {words}")
        return value

    def dropout(self, *names: str) -> float:
        """The dropout of all parts; 0 where they differ, as ours has one."""
        values = {self.get(name, float, 0.0) for name in names}
        return values.pop() if len(values) == 1 else 0.0


def plain_config(config: Any) -> dict[str, Any]:
    """The fields of a model's config as plain values."""
    return {each.name: plain(getattr(config, each.name)) for each in fields(config)}


def expressed(config: GPTConfig) -> Expressed:
    """What a config's model computes in evaluation."""
    made = {each.name: plain(getattr(config, each.name)) for each in fields(config) if each.name not in _OF_TRAINING}
    made["attention"] = [_attention(config, layer) for layer in range(config.n_layer)]
    made["ffn"] = [_ffn(config, layer) for layer in range(config.n_layer)]
    made["position"] = _position(config)
    return made


def _attention(config: GPTConfig, layer: int) -> dict[str, Any]:
    choice = at_layer(config.attention, layer)
    assert choice is not None
    made = dict(choice)
    if choice.kind == "multi_query":
        made["n_kv_head"] = 1
    if choice.kind in ("grouped", "multi_query"):
        made["kind"] = "full"
    width = made.get("head_dim") or config.dim // config.n_head
    standards = {
        "n_kv_head": config.n_head,
        "head_dim": width,
        "score_width": width,
        "qkv_bias": config.bias,
        "output_bias": config.bias,
    }
    return made | {name: value for name, value in standards.items() if made.get(name) is None}


def _ffn(config: GPTConfig, layer: int) -> dict[str, Any] | None:
    choice = at_layer(config.ffn, layer)
    if choice is None:
        return None
    made = dict(choice)
    kind = ffns.get(choice.kind)
    if kind is MixtureOfExperts:
        for name in ("capacity_factor", "balance_rate", "z_loss"):
            made.pop(name)
        made["normed_gates"] = Router.are_normed(made["normed_gates"], made["top_k"])
        made["balance"] = "bias" if made["balance"] == "bias" else "none"
        made["hidden"] = MixtureOfExperts.hidden_of_one(config.dim, **_given(made))
    elif made.get("hidden") is None and issubclass(kind, FeedForward):
        made["hidden"] = kind.default_hidden(config.dim)
    return made


def _given(moe: Mapping[str, Any]) -> dict[str, Any]:
    return {name: moe[name] for name in ("expert", "top_k", "n_shared", "hidden")}


def _position(config: GPTConfig) -> dict[str, Any]:
    made = dict(plain(config.position))
    if "original" in made and made["original"] is None:
        made["original"] = config.block_size
    if made["kind"] == "yarn" and made["magnitude"] is None:
        scheme = position_schemes.make(config.position, block_size=config.block_size)
        assert isinstance(scheme, YarnPositions)
        made["magnitude"] = scheme.magnitude
    if made.get("extension") and made["factor"] == 1:
        made["extension"] = "linear"
    return made
