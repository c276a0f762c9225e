"""Small published models of each family, with random weights, as transformers makes and saves them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM

LLAMA = {
    "vocab_size": 59,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = {**LLAMA, "num_key_value_heads": 2}
BLOOM = {"vocab_size": 59, "hidden_size": 24, "n_layer": 3, "seq_length": 64}
NEOX = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
GPT2 = {"vocab_size": 59, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 64}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
STRETCHED = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

EXPERTS = {
    **GROUPED,
    "head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "norm_topk_prob": True,
}

SHARED = {**EXPERTS, "norm_topk_prob": False, "shared_expert_intermediate_size": 24}

GEMMA = {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 6, "sliding_window": 5}
OSS = {**GROUPED, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 12}
BASES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", GPT2),
    "gpt2 untied, relu": (
        "gpt2",
        {**GPT2, "n_inner": 28, "activation_function": "relu", "tie_word_embeddings": False},
    ),
    "gpt2 with erf": ("gpt2", {**GPT2, "activation_function": "gelu"}),
    "llama": ("llama", GROUPED),
    "llama 3.1": ("llama", {**GROUPED, "rope_parameters": STRETCHED, "head_dim": 10}),
    "llama with biases, tied": (
        "llama",
        {**LLAMA, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama with attention biases": ("llama", {**GROUPED, "attention_bias": True, "hidden_act": "gelu_pytorch_tanh"}),
    "llama, linear": ("llama", {**LLAMA, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "mistral": ("mistral", {**GROUPED, "sliding_window": 7, "head_dim": 8}),
    "mistral without window": ("mistral", {**GROUPED, "sliding_window": None}),
    "qwen2": ("qwen2", {**GROUPED, "tie_word_embeddings": True}),
    "qwen2 with windows": (
        "qwen2",
        {**GROUPED, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "rope_parameters": YARN},
    ),
    "qwen3": ("qwen3", {**GROUPED, "head_dim": 8, "rope_parameters": {**YARN, "truncate": False, "factor": 2.0}}),
    "mixtral": ("mixtral", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "mixtral with one expert": ("mixtral", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 1}),
    "granite": (
        "granite",
        {
            **GROUPED,
            "residual_multiplier": 0.3,
            "embedding_multiplier": 4.0,
            "logits_scaling": 0.5,
            "attention_multiplier": 0.3,
        },
    ),
    "granite with biases, tied": (
        "granite",
        {**LLAMA, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "logits_scaling": 3},
    ),
    "qwen2_moe": ("qwen2_moe", {**SHARED, "num_experts_per_tok": 3}),
    "qwen2_moe with windows and a dense layer": (
        "qwen2_moe",
        {
            **SHARED,
            "mlp_only_layers": [1],
            "norm_topk_prob": True,
            "shared_expert_intermediate_size": 12,
            "qkv_bias": False,
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 2,
        },
    ),
    "qwen3_moe": ("qwen3_moe", {**EXPERTS, "mlp_only_layers": []}),
    "qwen3_moe with a dense layer": (
        "qwen3_moe",
        {**EXPERTS, "mlp_only_layers": [1], "use_sliding_window": True, "sliding_window": 6},
    ),
    "qwen3_moe with scores as weights": ("qwen3_moe", {**EXPERTS, "norm_topk_prob": False}),
    "qwen3_moe with heads that share the width": (
        "qwen3_moe",
        {name: value for name, value in EXPERTS.items() if name != "head_dim"},
    ),
    "qwen3_moe with one expert": ("qwen3_moe", {**EXPERTS, "norm_topk_prob": False, "num_experts_per_tok": 1}),
    "olmo2": ("olmo2", GROUPED),
    "gpt_neox": ("gpt_neox", {**NEOX, "num_attention_heads": 2, "rotary_pct": 0.5}),
    "gpt_neox in sequence": (
        "gpt_neox",
        {**NEOX, "use_parallel_residual": False, "attention_bias": False, "rotary_pct": 1.0},
    ),
    "phi": ("phi", {**NEOX, "num_attention_heads": 2}),
    "phi with fewer key heads": (
        "phi",
        {**GROUPED, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.34}},
    ),
    "phi3": ("phi3", {**GROUPED, "sliding_window": 6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    "gemma2": ("gemma2", {**GEMMA, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.5}),
    "gemma2 without bounds": (
        "gemma2",
        {
            **GEMMA,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        },
    ),
    "gemma3_text": ("gemma3_text", {**GEMMA, "sliding_window_pattern": 2}),
    "gemma3_text with a long context": (
        "gemma3_text",
        {**GEMMA, "sliding_window_pattern": 3, "rope_parameters": BASES},
    ),
    "gpt_oss": ("gpt_oss", {**OSS, "sliding_window": 5}),
    "gpt_oss with other positions": (
        "gpt_oss",
        {
            **OSS,
            "attention_bias": False,
            "layer_types": ["full_attention", "full_attention", "sliding_attention"],
            "rope_parameters": YARN,
        },
    ),
    "gpt_oss with one expert": ("gpt_oss", {**OSS, "num_experts_per_tok": 1}),
    "diffllama": ("diffllama", {**LLAMA, "num_key_value_heads": 2, "head_dim": 8}),
    "diffllama with biases": ("diffllama", {**LLAMA, "attention_bias": True, "rms_norm_eps": 1e-4}),
    "bloom": ("bloom", {**BLOOM, "n_head": 4}),
    "bloom with six heads": ("bloom", {**BLOOM, "n_head": 6}),
}
"""By name: the family and its options."""


def make(
    name: str, folder: Path, dtype: torch.dtype = torch.float32, vocab_size: int | None = None, **options: Any
) -> Path:
    """Save a model with random weights, also biases and gains; ``options`` are those of ``save_pretrained``."""
    kind, given = MODELS[name]
    given = {**given, "vocab_size": vocab_size or given["vocab_size"]}
    with torch.random.fork_rng():
        torch.manual_seed(sorted(MODELS).index(name))
        config = AutoConfig.for_model(kind, **given, bos_token_id=None, eos_token_id=None, pad_token_id=None)
        model = AutoModelForCausalLM.from_config(config)
        for weight in model.parameters():
            with torch.no_grad():
                weight.add_(0.1 * torch.randn_like(weight))
    model.to(dtype).save_pretrained(folder, **options)
    return folder


_PLAIN = {"attn_implementation": "eager", "experts_implementation": "eager"}


class _InDouble(TorchFunctionMode):
    """Makes float64 of every conversion to float32 in the code of a model."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.float:
            func, args = torch.Tensor.double, args[:1]
        args = tuple(torch.float64 if each is torch.float32 else each for each in args)
        kwargs = {name: torch.float64 if each is torch.float32 else each for name, each in kwargs.items()}
        return func(*args, **kwargs)


@contextmanager
def in_double(folder: Path) -> Iterator[Any]:
    """The published model in float64, also where its code asks for float32.

    The rotary frequencies are fp32 numbers on both sides. Theirs are computed in fp32, one rounding away from the
    closest ones, which ours are: here theirs are computed in float64 and rounded once.
    """
    with _InDouble():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, **_PLAIN).eval()
    for buffer_name, buffer in list(model.named_buffers()):
        if buffer_name.endswith("inv_freq"):
            buffer.copy_(buffer.to(torch.float32))
    with _InDouble(), torch.no_grad():
        yield model
