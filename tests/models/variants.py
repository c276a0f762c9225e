"""Every registered variant as a small model: tests that run over these find a new one without being edited."""

from collections.abc import Iterator
from typing import Any

from lightning_gpt.models import GPT, GPTConfig, MemoryGPTConfig
from lightning_gpt.models.attention.mixer import attentions
from lightning_gpt.models.block import blocks
from lightning_gpt.models.canon import convolutions
from lightning_gpt.models.ffn.dense import ffns
from lightning_gpt.models.memory.base import memories
from lightning_gpt.models.memory.gpt import gpt_with
from lightning_gpt.models.norms import norms
from lightning_gpt.models.positions.scheme import position_schemes
from lightning_gpt.models.registry import Given, Registry
from lightning_gpt.models.wrappers.layer_drop import layer_drops
from lightning_gpt.models.wrappers.loop import loops
from lightning_gpt.models.wrappers.token_routing import token_routings
from tests.models.helpers import randomise

SIZES: dict[str, Any] = {"n_layer": 2, "n_head": 4, "dim": 16, "block_size": 24, "vocab_size": 17}
OPTIONS: dict[str, Any] = {
    "n_kv_head": 2,
    "kv_rank": 6,
    "window": 5,
    "stride": 4,
    "n_global": 2,
    "rate": 0.2,
    "segment": 4,
    "length": 6,
    "n_memory": 2,
    "n_stream": 2,
    "steps": 3,
    "prelude": 0,
    "core": 1,
    "coda": 0,
}
"""Small values of options, so that a short sequence shows what a variant hides, and a test costs little."""
PARTS: dict[str, Registry[Any]] = {
    "attention": attentions,
    "convolution": convolutions,
    "ffn": ffns,
    "layer_drop": layer_drops,
    "loop": loops,
    "memory": memories,
    "norm": norms,
    "position": position_schemes,
    "qk_norm": norms,
    "residual": blocks,
    "token_routing": token_routings,
}

ALONGSIDE: dict[str, dict[str, Any]] = {"memory": {"position": "rotary"}}
"""What else the variants of a part need, some of them, to work."""


def choices(part: str) -> Iterator[Given]:
    """Each variant of a part, with small options where it needs them."""
    registry = PARTS[part]
    for name in registry.names:
        if registry.optional and name == "none":
            yield name
            continue
        known = registry.options(name)
        options = {option: OPTIONS[option] for option in known if option in OPTIONS and option != "n_kv_head"}
        if "n_kv_head" in known and known["n_kv_head"].default is known["n_kv_head"].empty:
            options["n_kv_head"] = OPTIONS["n_kv_head"]
        yield {"kind": name, **options} if options else name


ROUTED = {"kind": "mixture_of_depths", "every": 1, "capacity": 0.5, "decision": "router"}
"""A choice of tokens in every block, so that each meets what the one before has made of a few."""
SEGMENTS, TOKENS = {"kind": "segment", "segment": 4, "length": 6}, {"kind": "tokens", "segment": 4, "n_memory": 2}
NGPT: dict[str, Any] = {
    "residual": "spherical",
    "attention": "spherical",
    "ffn": "spherical_swiglu",
    "position": "rotary",
    "bias": False,
    "tie_embeddings": False,
    "logit_scale": True,
}
"""All parts of nGPT."""
EXTENDED: list[dict[str, Any]] = [
    {"position": {"kind": "rotary", "factor": 4.0}},
    {"position": {"kind": "rotary", "factor": 4.0, "extension": "ntk"}},
    {"position": {"kind": "yarn", "factor": 4.0, "original": 8}},
    {"attention": {"kind": "full", "n_kv_head": 1}, "position": "alibi"},
    {"position": {"kind": "rotary", "share": 0.5}, "qk_norm": "rms"},
    {"position": {"kind": "yarn", "factor": 4.0, "original": 8, "share": 0.5, "rounded": False, "magnitude": 1.5}},
    {"attention": {"kind": "full", "head_dim": 6}},
    {
        "attention": [
            {"kind": "window", "window": 5, "score_width": 3.0, "softcap": 0.8, "rotary_base": 100.0},
            {"kind": "sink_window", "window": 7, "n_kv_head": 2, "score_width": 3.0},
        ],
        "position": "rotary",
        "embedding_scale": 4.0,
        "head_bias": True,
        "logit_softcap": 2.0,
    },
    {"residual": {"kind": "multiplied", "factor": 0.3}, "logit_divisor": 3.0, "embedding_scale": 2.0, "norm": "rms"},
    {"attention": [{"kind": "full", "rotary_base": 50.0}, {"kind": "differential", "head_gain": False}]},
    {"attention": {"kind": "full", "qkv_bias": True, "output_bias": False}, "bias": False},
    {"attention": {"kind": "joint_norm", "n_kv_head": 2}, "qk_norm": "rms", "position": "rotary"},
    {"residual": {"kind": "parallel", "n_norm": 2}, "embedding_norm": "layer"},
    {"residual": "normed_branches", "embedding_norm": "rms", "memory": SEGMENTS, "position": "alibi"},
    {"attention": {"kind": "latent", "kv_rank": 6}, "position": "rotary"},
    {"attention": {"kind": "latent", "kv_rank": 6}, "position": "t5"},
    {
        "attention": {"kind": "latent", "kv_rank": 5, "q_rank": 7, "head_dim": 6, "rope_dim": 2, "value_dim": 9},
        "position": {"kind": "yarn", "factor": 4.0, "original": 8},
    },
    {"attention": ["delta_net", {"kind": "delta_net", "head_dim": 3, "value_dim": 5, "conv_width": 1}]},
    {"attention": ["delta_net", "full"], "position": "rotary"},
    # layers of one kind with other options, which share a pass and must not share what it keeps for them
    {"attention": [{"kind": "window", "window": 3}, {"kind": "window", "window": 7}]},
    {"attention": [{"kind": "strided", "stride": 3}, {"kind": "strided", "stride": 5}]},
    {
        "attention": [
            {"kind": "global_window", "window": 5, "n_global": 1},
            {"kind": "global_window", "window": 5, "n_global": 3},
        ]
    },
    {"attention": ["value_residual", {"kind": "value_residual", "head_dim": 6}]},
    {"attention": [{"kind": "full", "head_dim": 6}, "differential"], "position": "rotary"},
    {"convolution": {"kind": "canon", "places": "AC"}, "attention": "delta_net", "ffn": {"kind": "moe", "n_expert": 4}},
    {
        "convolution": {"kind": "canon", "width": 2},
        "attention": ["gated", {"kind": "window", "window": 5, "n_kv_head": 2}],
        "position": "rotary",
        "qk_norm": "rms",
        "ffn": "swiglu",
        "residual": "parallel",
    },
    {"convolution": {"kind": "canon", "places": "B"}, "attention": ["linear", "differential"], "residual": "post"},
    {
        "convolution": {"kind": "canon", "places": "AB", "width": 6},
        "attention": ["neutreno", "scalable"],
        "ffn": "none",
    },
    NGPT,
    {**NGPT, "attention": {"kind": "spherical", "n_kv_head": 2}, "convolution": "canon", "ffn": "relu2"},
    {"ffn": ["none", "gelu"]},
    {"ffn": ["swiglu", "none", {"kind": "moe", "n_expert": 4}], "n_layer": 3, "residual": "parallel"},
    *({"residual": rule, "ffn": "none"} for rule in blocks.names),
    {"ffn": {"kind": "moe", "n_expert": 4, "expert": "clamped_swiglu", "router_bias": True}},
    {"ffn": {"kind": "moe", "expert": "swiglu", "router": "sigmoid", "balance": "bias", "n_shared": 1}},
    {
        "ffn": {
            "kind": "moe",
            "n_expert": 4,
            "normed_gates": False,
            "gate_factor": 2.5,
            "n_shared": 2,
            "shared_gate": True,
        }
    },
    {"ffn": {"kind": "moe", "n_expert": 4, "top_k": 1, "normed_gates": True}},
    {
        "residual": {"kind": "hyper_connections", "n_stream": 3, "dynamic": False},
        "layer_drop": {"kind": "linear", "rate": 0.2},
        "n_unique": 1,
        "diversity": 0.1,
    },
    {"residual": "attention_residuals", "attention": "value_residual", "ffn": ["gelu", "none"], "n_layer": 3},
    {"residual": {"kind": "attention_residuals", "group": 2}, "ffn": ["none", "gelu"], "n_layer": 3},
    {"loop": {"kind": "recurrent_depth", "core": 2, "injection": "add"}, "n_layer": 6, "residual": "initial"},
    {"diversity": 0.1},
    {"n_unique": 1},
    {"n_layer": 4, "n_unique": 2, "attention": [{"kind": "window", "window": 5}, "full"]},
    {"ffn": {"kind": "moe", "n_expert": 4, "top_k": 1, "capacity_factor": 1.5, "balance": "none"}},
    {"token_routing": ROUTED, "position": "rotary"},
    {"token_routing": ROUTED, "position": "alibi", "attention": {"kind": "window", "window": 5}},
    {"token_routing": ROUTED, "position": "t5", "ffn": {"kind": "moe", "n_expert": 4}},
    {"token_routing": ROUTED, "attention": "linear"},
    {"token_routing": ROUTED, "attention": "delta_net"},
    {"token_routing": ROUTED, "attention": {"kind": "latent", "kv_rank": 6}, "position": "rotary"},
    {
        "token_routing": {"kind": "mixture_of_depths", "layers": [1, 2]},
        "n_layer": 4,
        "layer_drop": {"kind": "linear", "rate": 0.2},
    },
    {"memory": SEGMENTS, "position": "t5", "attention": {"kind": "strided", "stride": 4}, "residual": "initial"},
    {"memory": SEGMENTS, "position": "alibi", "attention": [{"kind": "window", "window": 5}, "value_embedding"]},
    {"memory": SEGMENTS, "position": "none", "attention": "value_residual", "ffn": {"kind": "moe", "n_expert": 4}},
    {"memory": SEGMENTS, "position": "rotary", "attention": {"kind": "latent", "kv_rank": 2}},
    {"memory": TOKENS, "attention": {"kind": "latent", "kv_rank": 6}},
    {"memory": TOKENS, "diversity": 0.1},
    {"memory": TOKENS, "position": "alibi", "attention": ["shaped", {"kind": "window", "window": 5}]},
]
CONFIGS: list[dict[str, Any]] = [
    {part: choice, **ALONGSIDE.get(part, {})} for part in PARTS for choice in choices(part)
] + EXTENDED


def name_of(changes: dict[str, Any]) -> str:
    """A short name for a test's id."""

    def short(choice: Any) -> str:
        if isinstance(choice, list):
            return "+".join(map(short, choice))
        return "-".join(map(str, choice.values())) if isinstance(choice, dict) else str(choice)

    return ",".join(f"{part}={short(choice)}" for part, choice in changes.items())


def config(changes: dict[str, Any], **more: Any) -> GPTConfig:
    """The config of a small model of this variant."""
    given = {**SIZES, **changes, **more}
    return MemoryGPTConfig(**given) if "memory" in given else GPTConfig(**given)


def fresh(changes: dict[str, Any], **more: Any) -> GPT:
    """A small model of this variant as training starts it; ``memory`` makes it a MemoryGPT."""
    given = {**SIZES, **changes, **more}
    memory = given.pop("memory", None)
    return gpt_with(memory, GPTConfig(**given))


def build(changes: dict[str, Any], **more: Any) -> GPT:
    """As :func:`fresh`, every weight random, in double precision and evaluation mode."""
    return randomise(fresh(changes, **more)).double().eval()
