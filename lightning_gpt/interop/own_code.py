"""Models that transformers has no class for: config and weights beside modelling code that imports nothing of ours."""

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_gpt.errors import CallError
from lightning_gpt.interop.settings import plain_config
from lightning_gpt.interop.single_file import as_one_file, modules_of
from lightning_gpt.models import GPT, GPTConfig, LanguageModel, SingleHeadConfig, SingleHeadModel
from lightning_gpt.models.attention.mixer import attentions
from lightning_gpt.models.block import blocks
from lightning_gpt.models.canon import convolutions
from lightning_gpt.models.ffn.dense import ffns
from lightning_gpt.models.norms import norms
from lightning_gpt.models.positions.scheme import position_schemes
from lightning_gpt.models.registry import Registry
from lightning_gpt.models.wrappers.layer_drop import layer_drops
from lightning_gpt.models.wrappers.token_routing import token_routings
from lightning_gpt.named_tensors import differences

OWN = "lightning_gpt"
"""The ``model_type`` of such models."""
CODE = "modeling_lightning_gpt"
CONFIG_CODE = "configuration_lightning_gpt"
NAMES: dict[type, str] = {GPTConfig: GPT.name, SingleHeadConfig: SingleHeadModel.name}
"""The names of the models that have an export, by the classes of their configs."""

_STATE = "model."
_REGISTRIES: Mapping[str, Registry[Any]] = {
    "attention": attentions,
    "ffn": ffns,
    "expert": ffns,
    "norm": norms,
    "qk_norm": norms,
    "embedding_norm": norms,
    "position": position_schemes,
    "residual": blocks,
    "convolution": convolutions,
    "layer_drop": layer_drops,
    "token_routing": token_routings,
}
"""The fields and options that name a registered class."""

_CONFIG = '''"""The config of a model of lightning_gpt {version}, for transformers."""

from transformers import PretrainedConfig


class LightningGPTConfig(PretrainedConfig):
    """``model`` holds every option of the model."""

    model_type = "{own}"

    def __init__(self, model=None, **kwargs):
        self.model = model or {{}}
        super().__init__(**kwargs)
'''
_HEADER = '''"""A language model of lightning_gpt {version} (MIT licence), for transformers.

Made from the sources of that package: the definitions that this model needs, without their comments. The last class is
what transformers loads. It has no cache: generation reads the whole text for each token.
"""

from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .{config_code} import LightningGPTConfig
'''
_WRAPPER = '''

class LightningGPTForCausalLM(PreTrainedModel, GenerationMixin):
    """Logits ``(batch, time, vocab_size)`` of token ids ``(batch, time)``."""

    config_class = LightningGPTConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = {model}({config}(**config.model))
        self.post_init()

    def _init_weights(self, module):
        """Nothing: the model has initialised itself."""

    def forward(self, input_ids, attention_mask=None, labels=None, **kwargs):
        """Tokens before and after a change of ``attention_mask`` do not see each other, and positions restart there."""
        documents = None
        if attention_mask is not None and not bool(attention_mask.all()):
            documents = (attention_mask.diff(dim=1, prepend=attention_mask[:, :1]) != 0).cumsum(dim=1)
        logits = self.model.head(self.model.hidden(input_ids, documents))
        loss = None if labels is None else self.loss_function(logits, labels, logits.shape[-1])
        return CausalLMOutput(loss=loss, logits=logits)

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **kwargs):
        return {{"input_ids": input_ids, "attention_mask": attention_mask}}
'''


class OwnCode:
    """Reads and writes such models, as a :class:`~lightning_gpt.interop.family.Family` does."""

    architecture: ClassVar[str] = "LightningGPTForCausalLM"

    def config(self, given: Mapping[str, Any]) -> GPTConfig | SingleHeadConfig:
        """Our config.

        Raises:
            CallError: It does not describe a model of ours.
        """
        kinds = {name: kind for kind, name in NAMES.items()}
        if given.get("lightning_gpt_model") not in kinds or not isinstance(given.get("model"), dict):
            raise CallError(f"config.json does not describe a model of this version ({', '.join(kinds)})")
        try:
            made: GPTConfig | SingleHeadConfig = kinds[given["lightning_gpt_model"]](**given["model"])
        except TypeError:
            raise CallError("config.json has different options from a model of this version") from None
        return made

    def published(self, config: GPTConfig | SingleHeadConfig) -> dict[str, Any]:
        """The content of ``config.json``.

        Raises:
            CallError: It has a part that cannot be exported; the message names it.
        """
        if isinstance(config, GPTConfig) and config.n_unique is not None:
            raise CallError(
                f"n_unique is {config.n_unique}; a model whose layers share weights cannot be exported with its code"
            )
        if isinstance(config, GPTConfig) and config.loop is not None:
            raise CallError("with loop, layers share weights, and such a model cannot be exported with its code")
        sizes = {"hidden_size": config.dim, "num_hidden_layers": getattr(config, "n_layer", 1)}
        return {
            "architectures": [self.architecture],
            "model_type": OWN,
            "auto_map": {
                "AutoConfig": f"{CONFIG_CODE}.LightningGPTConfig",
                "AutoModelForCausalLM": f"{CODE}.{self.architecture}",
            },
            "lightning_gpt_model": NAMES[type(config)],
            "model": plain_config(config),
            "vocab_size": config.vocab_size,
            "max_position_embeddings": config.block_size,
            **sizes,
            "num_attention_heads": getattr(config, "n_head", 1),
            "tie_word_embeddings": False,  # the model ties them itself
            "use_cache": False,
        }

    def from_published(self, config: GPTConfig | SingleHeadConfig, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state dict of our model.

        Raises:
            CallError: Tensors are missing, unknown or of another shape.
        """
        state = {name.removeprefix(_STATE): theirs[name] for name in theirs}
        saved = {name: tuple(tensor.shape) for name, tensor in state.items()}
        wanted = {name: tuple(tensor.shape) for name, tensor in _on_meta(config).state_dict().items()}
        differing = differences(saved, wanted)
        if differing:
            raise CallError(f"the tensors are not those of this config: {differing}")
        return state

    def to_published(self, config: GPTConfig | SingleHeadConfig, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The published tensors."""
        return {f"{_STATE}{name}": tensor.contiguous() for name, tensor in ours.items()}

    def code(self, config: GPTConfig | SingleHeadConfig) -> dict[str, str]:
        """The files of modelling code by their names.

        Raises:
            CallError: A part is of another package.
        """
        model = _on_meta(config)
        found = [type(model), type(config), *_chosen(plain_config(config)), *map(type, model.modules())]
        classes = [each for each in dict.fromkeys(found) if each.__module__.partition(".")[0] != "torch"]
        for each in classes:
            if each not in modules_of(classes):
                raise CallError(
                    f"the code of {each.__qualname__} is in {each.__module__}, outside lightning_gpt, and cannot be "
                    f"exported with the model"
                )
        body = as_one_file(modules_of(classes).values(), ("forward", "hidden"))
        names = {"version": version("lightning-gpt"), "own": OWN, "config_code": CONFIG_CODE}
        names |= {"model": type(model).__name__, "config": type(config).__name__}
        text = _HEADER.format(**names) + body + _WRAPPER.format(**names)
        return {f"{CODE}.py": text, f"{CONFIG_CODE}.py": _CONFIG.format(**names)}


def _on_meta(config: GPTConfig | SingleHeadConfig) -> LanguageModel:
    with torch.device("meta"):
        return GPT(config) if isinstance(config, GPTConfig) else SingleHeadModel(config)


def _chosen(options: Mapping[str, Any]) -> Iterator[type]:
    """The registered classes that options name."""
    for name, value in options.items():
        for each in value if isinstance(value, list) else [value]:
            kind = each.get("kind") if isinstance(each, dict) else each
            if name in _REGISTRIES and isinstance(kind, str):
                yield _REGISTRIES[name].get(kind)
            if isinstance(each, dict):
                yield from _chosen(each)
