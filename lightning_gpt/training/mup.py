"""μP: initialisation and learning rates under which a hyper-parameter tuned on a narrow model serves a wide one.

Yang et al. 2022, "Tensor Programs V" (2203.03466), table 8, for Adam. With a width ``m`` times that of the base:

=====================  ==================  ============  =========
weights                initial variance    Adam's rate   output
=====================  ==================  ============  =========
embeddings, vectors    as at the base      η             1
hidden matrices        1/m of the base's   η / m         1
output head            as at the base      η             1/m
=====================  ==================  ============  =========

and attention scores ``q·k / d`` in place of ``q·k / √d``. The two factors of the last column are folded into gains that
follow or precede them (appendix B: a constant factor on a weight is the same as its start and its rate scaled), so that
a model trained in μP is an ordinary model, in a checkpoint and anywhere else: the output's into the final norm, the
scores' into the norm of the queries.
"""

import dataclasses
import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig, LanguageModel
from lightning_gpt.models.layer import HIDDEN_SPACES, Layer, all_matrices
from lightning_gpt.options import Width, check_options


@dataclass(frozen=True, kw_only=True)
class MuP:
    """The narrow model whose learning rate, initialisation and dynamics a wide one shares.

    Args:
        base_dim: Its width; a model of this width is trained as without μP.
        base_head_dim: Width of its heads. When omitted, that of the model's heads: a wider model then has more heads,
            and the scale of the scores need not change. A different width needs a ``qk_norm``.
    """

    base_dim: Width
    base_head_dim: Width | None = None

    def __post_init__(self) -> None:
        check_options(MuP.__init__, vars(self), "mup.")

    def base_config(self, config: GPTConfig) -> GPTConfig:
        """The config of the base model.

        Raises:
            CallError: Where the base has no whole number of heads.
        """
        a_head = Fraction(config.dim, config.n_head) if self.base_head_dim is None else self.base_head_dim
        heads = self.base_dim / Fraction(a_head)
        if heads.denominator != 1:
            raise CallError(
                f"mup.base_dim {self.base_dim} is not a multiple of the width of a head, {float(a_head):g}: "
                f"choose another base_dim, or set mup.base_head_dim to the width of the base model's heads"
            )
        return dataclasses.replace(config, dim=self.base_dim, n_head=heads.numerator)

    def base_of(self, model: GPT) -> GPT:
        """The base model of ``model``, without weights.

        Raises:
            CallError: Where there is no such model.
        """
        config = self.base_config(model.config)
        try:
            with torch.device("meta"):
                return type(model)(config)
        except CallError as error:
            given = f"mup.base_dim {self.base_dim} makes a base model with {config.n_head} heads"
            raise CallError(f"{given}, which cannot be built: {error}") from None


@dataclass(frozen=True)
class Factors:
    """What a weight's start and its learning rate under Adam are multiplied by."""

    start: float = 1.0
    rate: float = 1.0


def factors(model: LanguageModel, mup: MuP) -> dict[str, Factors]:
    """The factors of every parameter of ``model``, by name.

    A dimension that the base model has in another size is one that grows with the width; which kind of table 8 a weight
    is of follows from which of its dimensions do. A linear layer that maps many to few (a router, say) is an output.

    Raises:
        CallError: Where the model has no gain to fold a factor into, or a part that is not scaled.
    """
    if not isinstance(model, GPT):
        raise CallError(f"mup scales a GPT; this model is a {model.name}")
    refused = next((part.no_mup for part in model.modules() if isinstance(part, Layer) and part.no_mup), "")
    if refused:
        raise CallError(f"mup cannot scale this model: {refused}")
    base_model = mup.base_of(model)
    base = dict(base_model.named_parameters())
    matrices = {id(matrix.weight): matrix for matrix in all_matrices(model)}
    found = {}
    for name, parameter in model.named_parameters():
        found[name] = Factors()
        matrix = matrices.get(id(parameter))
        if matrix is None or matrix.source not in HIDDEN_SPACES or matrix.target == "vocabulary":
            continue
        rows, columns = (now / then for now, then in zip(parameter.shape[-2:], base[name].shape[-2:], strict=True))
        if columns != 1:
            start = 1 / columns if rows == 1 else 1 / math.sqrt(columns)
            already = 1 / math.sqrt(columns) if matrix.starts_by_width else 1.0
            found[name] = Factors(start / already, rate=1 / columns)
    return found | _output_factors(model, mup) | _score_factors(model, base_model)


def _output_factors(model: GPT, mup: MuP) -> dict[str, Factors]:
    if not model.final_norm.has_gain:
        raise CallError(
            "mup scales the logits by the gain of the final norm, and this model has none: "
            "choose norm layer or rms, and a residual rule that is followed by a final norm (pre, sandwich, ...)"
        )
    share = mup.base_dim / model.config.dim
    return {f"final_norm.{name}": Factors(share, share) for name, _ in model.final_norm.named_parameters()}


def _score_factors(model: GPT, base: GPT) -> dict[str, Factors]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, Factors] = {}
    for view, base_view in zip(model.block_views(), base.block_views(), strict=True):
        mixer, then = view.mixer, base_view.mixer
        if not mixer.has_scores or mixer.head_dim == then.head_dim:
            continue
        gains = mixer.query_gains()
        if not gains:
            raise CallError(
                f"heads are {mixer.head_dim} wide and those of mup's base model {then.head_dim}: the scores must be "
                f"divided by the width of a head, which needs qk_norm rms or layer; or let n_head be "
                f"{model.config.dim // then.head_dim}, so that heads are as wide as the base's"
            )
        share = (then.head_dim / mixer.head_dim) * math.sqrt(mixer.scale_width / then.scale_width)
        found |= {names[id(gain)]: Factors(share, share) for gain in gains}
    return found


@torch.no_grad()
def rescale(model: LanguageModel, mup: MuP) -> None:
    """Start ``model``, freshly initialised, as μP has it."""
    by_name = factors(model, mup)
    for name, parameter in model.named_parameters():
        if by_name[name].start != 1:
            parameter.mul_(by_name[name].start)


def learning_rates(model: LanguageModel, mup: MuP) -> dict[Tensor, float]:
    """What Adam's learning rate of each parameter is multiplied by."""
    by_name = factors(model, mup)
    return {parameter: by_name[name].rate for name, parameter in model.named_parameters()}
