"""The published options of rotary positions, and ours."""

import math
from collections.abc import Mapping
from typing import Any

from lightning_gpt.errors import CallError
from lightning_gpt.interop.settings import Settings
from lightning_gpt.options import Length, Positive, shown


def read_rotary(given: Settings, base: float, block_size: int, share: float = 1.0) -> dict[str, Any]:
    """Our position scheme.

    Args:
        given: The published config, with ``rope_parameters``, or ``rope_theta`` and ``rope_scaling``.
        base: The base where it names none.
        block_size: The longest sequence, in tokens.
        share: The share of each head that rotates where it names none.

    Raises:
        CallError: It is of a kind that we do not have.
    """
    values = given.get("rope_scaling", dict, None) or given.get("rope_parameters", dict, None) or {}
    rope = Settings({"rope_theta": given.values.get("rope_theta"), **values})
    kind = values.get("rope_type", values.get("type", "default"))
    same = {
        "base": float(rope.get("rope_theta", float, base)),
        "share": float(rope.get("partial_rotary_factor", float, share)),
    }
    if kind == "default":
        return {"kind": "rotary", **same}
    if kind == "linear":
        return {"kind": "rotary", "factor": float(rope.get("factor", float)), **same}
    if kind == "llama3":
        return {
            "kind": "llama3",
            "factor": float(rope.get("factor", float)),
            "original": rope.get("original_max_position_embeddings", Length, block_size),
            "fast": float(rope.get("high_freq_factor", float)),
            "slow": float(rope.get("low_freq_factor", float)),
            **same,
        }
    if kind == "yarn":
        return {"kind": "yarn", **_yarn(rope, block_size), **same}
    raise CallError(f"rope_type is {shown(kind)}; lightning_gpt computes only default, linear, llama3, yarn")


def _yarn(rope: Settings, block_size: int) -> dict[str, Any]:
    original = rope.get("original_max_position_embeddings", Length, block_size)
    factor = float(rope.get("factor", float, block_size / original))

    def sharpened(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0

    first, second = (rope.get(name, float, 0.0) for name in ("mscale", "mscale_all_dim"))
    magnitude = sharpened(first) / sharpened(second) if first and second else sharpened(1)
    return {
        "factor": factor,
        "original": original,
        "beta_fast": float(rope.get("beta_fast", float, 32.0)),
        "beta_slow": float(rope.get("beta_slow", float, 1.0)),
        "magnitude": float(rope.get("attention_factor", Positive, magnitude)),
        "rounded": rope.get("truncate", bool, True),
    }


def write_rotary(position: Mapping[str, Any]) -> dict[str, Any]:
    """The published options of one of our schemes: as transformers 5 has them, and as earlier versions do."""
    kind, base = position["kind"], {"rope_theta": position["base"]}
    share = {"partial_rotary_factor": position["share"]} if position["share"] != 1 else {}
    if kind == "rotary" and position["factor"] == 1:
        scaling: dict[str, Any] = {}
    elif kind == "rotary" and position["extension"] == "linear":
        scaling = {"rope_type": "linear", "factor": position["factor"]}
    elif kind == "llama3":
        scaling = {
            "rope_type": "llama3",
            "factor": position["factor"],
            "original_max_position_embeddings": position["original"],
            "high_freq_factor": position["fast"],
            "low_freq_factor": position["slow"],
        }
    elif kind == "yarn":
        scaling = {
            "rope_type": "yarn",
            "factor": position["factor"],
            "original_max_position_embeddings": position["original"],
            "beta_fast": position["beta_fast"],
            "beta_slow": position["beta_slow"],
            "attention_factor": position["magnitude"],
            "truncate": position["rounded"],
        }
    else:
        raise KeyError(kind)
    full = {"rope_type": "default", **scaling, **base, **share}
    return {**base, **share, "rope_scaling": {**scaling, **share} if scaling else None, "rope_parameters": full}
