"""Reading the checkpoints that training writes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_gpt.checkpoint_folder import read_saved
from lightning_gpt.checkpoint_name import located, located_step
from lightning_gpt.checkpoint_series import require_listed, require_step, step_of
from lightning_gpt.console import say
from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.errors import CallError
from lightning_gpt.models import LanguageModel
from lightning_gpt.models.adapters import LoRA, adapter_names, merged
from lightning_gpt.models.base import models
from lightning_gpt.models.registry import UnknownVariant, readable
from lightning_gpt.named_tensors import differences
from lightning_gpt.whole_file import previous_of

MODEL_KEY = "lightning_gpt_model"
"""The entry of a checkpoint that names the model's name and config."""
LORA_KEY = "lightning_gpt_lora"
"""The entry that holds the options of the adapters that were trained; absent where all weights were."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint, a file or a folder."""

    path: Path
    content: dict[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> "Checkpoint":
        """Read a checkpoint and check its sums. It may hold tensors, numbers and text; code is never run.

        Args:
            path: A file or a folder of a checkpoint; a run's folder, for its ``last.ckpt``; the folder that
                ``convert`` made; or ``RUN@STEP``, for a step of its series.

        Raises:
            CallError: If it is missing, unreadable, truncated, corrupt or not written by this package, or, of a
                series, not the one that was saved for that step.
        """
        path = located(path)
        content = read_saved(path)
        if MODEL_KEY not in content:
            raise CallError(f"checkpoint {str(path)!r} was not written by lightning-gpt fit")
        if step_of(path) is not None:
            require_listed(path)
            require_step(path, content.get("global_step"))
        return cls(path, content)

    @classmethod
    def of_step(cls, path: str | Path, step: int | None) -> "Checkpoint":
        """Read a step of a run's series, or as :meth:`read` if ``step`` is None.

        Raises:
            CallError: As :meth:`read`, or if the run has no such step.
        """
        return cls.read(path if step is None else located_step(Path(path), step))

    @classmethod
    def read_newest(cls, path: str | Path) -> "Checkpoint":
        """Read a checkpoint; the one before it if this one is missing, truncated or corrupt, and say so.

        Raises:
            CallError: As :meth:`read`, if the one before it cannot be read either, or none is kept.
        """
        try:
            return cls.read(path)
        except CallError as error:
            try:
                before = cls.read(previous_of(located(path)))
            except CallError:
                raise error from None
            step = before.content["global_step"]
            say(f"{error}")
            say(f"resuming from the one before it, of step {step:,}: {before.path}")
            return before

    @property
    def has_tokenizer(self) -> bool:
        """Whether it says which tokenizer the model was trained with."""
        return self.content.get("TextData", {}).get("tokenizer") is not None

    @property
    def model(self) -> dict[str, Any]:
        """The model's name and config, as returned by :meth:`~lightning_gpt.models.LanguageModel.describe`."""
        described: dict[str, Any] = self.content[MODEL_KEY]
        return described

    def config(self) -> Any:
        """The config of the model.

        Raises:
            CallError: If the model, or a variant in it, is not registered, or if an option is out of its range.
        """
        try:
            return models.config(self.model)
        except UnknownVariant as error:
            raise CallError(
                f"checkpoint {str(self.path)!r} has {error.what}, which is not registered: "
                f"name the module that registers it with --trust MODULE, or import it first"
            ) from None
        except CallError as error:
            raise CallError(f"checkpoint {str(self.path)!r}: {error}") from None
        except (AttributeError, KeyError, TypeError):  # of another version, or made by hand
            raise CallError(f"checkpoint {str(self.path)!r} does not describe a model of this version") from None

    def build(self, weights: Mapping[str, Any] | None = None) -> LanguageModel:
        """The bare model with the checkpoint's weights, in evaluation mode on the CPU.

        Args:
            weights: What :meth:`weights` returned, if it was asked for: adapters are then not merged again.

        Raises:
            CallError: As :meth:`config`, or if the weights are not those of such a model; names all that differ.
        """
        self.config()
        model = models.build(self.model)
        said = f"checkpoint {str(self.path)!r} has different weights from the model that it describes"
        weights = self.weights() if weights is None else weights
        differing = differences(_shapes(weights), _shapes(model.state_dict()))
        if differing:
            raise CallError(f"{said}: {differing}")
        try:
            model.load_state_dict(weights)
        except RuntimeError:
            raise CallError(said) from None
        return model.eval()

    def weights(self) -> dict[str, Any]:
        """The weights by their names in the bare model, with adapters merged into those that they are beside.

        Raises:
            CallError: The adapters are not those that the checkpoint describes.
        """
        lora, state = self.lora, self.state()
        try:
            return state if lora is None else merged(state, lora.scale)
        except (KeyError, RuntimeError):
            raise CallError(f"checkpoint {str(self.path)!r} has adapters that do not fit its weights") from None

    def state(self) -> dict[str, Any]:
        """The weights by their names in the model as it was trained, adapters apart."""
        prefix = "model."
        return {k.removeprefix(prefix): v for k, v in self.content["state_dict"].items() if k.startswith(prefix)}

    @property
    def lora(self) -> LoRA | None:
        """The adapters that were trained; None if all weights were.

        Raises:
            CallError: The checkpoint does not describe them as this version does.
        """
        try:
            return LoRA.of(self.content[LORA_KEY]) if LORA_KEY in self.content else None
        except (CallError, KeyError, TypeError):
            raise CallError(f"checkpoint {str(self.path)!r} does not describe adapters of this version") from None

    def require_same_adapters(self, lora: LoRA | None) -> None:
        """Refuse to load adapters into a module without them, or with others; dropout may differ.

        Raises:
            CallError: They differ.
        """
        was, now = (None if each is None else {**each.described(), "dropout": 0} for each in (self.lora, lora))
        if was != now:
            there, here = (
                "without adapters" if each is None else f"with model.lora {readable(each.described())}"
                for each in (self.lora, lora)
            )
            raise CallError(f"checkpoint {str(self.path)!r} was trained {there}, and this is a module {here}")

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with.

        Raises:
            CallError: If the model was trained without :class:`~lightning_gpt.data.datamodule.TextData`.
        """
        if not self.has_tokenizer:
            raise CallError(f"checkpoint {str(self.path)!r} has no tokenizer: it was trained without TextData")
        return Tokenizer.from_state_dict(self.content["TextData"]["tokenizer"])

    def require_training(self) -> None:
        """Refuse to resume from a model alone.

        Raises:
            CallError: The checkpoint holds no state of an optimizer.
        """
        if "optimizer_states" not in self.content:
            raise CallError(
                f"checkpoint {str(self.path)!r} holds only a model, as convert writes it, so there is no run to "
                f"resume; to train from its weights, give --weights instead of --ckpt_path"
            )

    def require_same_model(self, model: LanguageModel) -> None:
        """Refuse to load these weights into a model of another kind or architecture, naming what differs.

        Raises:
            CallError: As :meth:`config`; if the kind differs; if a part of the config does that determines weights
                or their meaning; or if a weight is missing, not expected or of another shape.
        """
        stored = self.config()
        if self.model["name"] != model.name:
            raise CallError(
                f"checkpoint {str(self.path)!r} holds a {self.model['name']} but the config builds a {model.name}"
            )
        was, now = vars(stored), vars(model.config)
        free = {"dropout", "attention_backend", "checkpointing"}  # they change neither shape nor meaning of a weight
        if not model.knows_length:
            free.add("block_size")
        keys = [key for key in now if key not in free and was[key] != now[key]]
        if keys:
            differing = [f"{key} is {readable(was[key])} there and {readable(now[key])} here" for key in keys]
            raise CallError(f"checkpoint {str(self.path)!r} has a different architecture: {'; '.join(differing)}")
        adapters = adapter_names(model)
        plain = {name: tensor for name, tensor in model.state_dict().items() if name not in adapters}
        differing_weights = differences(_shapes(self.weights()), _shapes(plain))
        if differing_weights:
            raise CallError(f"checkpoint {str(self.path)!r} has different weights from this model: {differing_weights}")


def _shapes(tensors: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) if isinstance(tensor, Tensor) else () for name, tensor in tensors.items()}
