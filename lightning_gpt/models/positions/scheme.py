"""How a model knows where a token stands.

A scheme may act in three places, and most act in one: a vector added to the token's embedding, a turning of queries and
keys, a number added to the scaled scores. Positions are whole numbers from 0, ``(time,)`` or ``(batch, time)``.
"""

import math

import torch
from torch import Tensor, nn

from lightning_gpt.errors import CallError
from lightning_gpt.models.record import Watched
from lightning_gpt.models.registry import Registry

position_schemes: Registry["Positions"] = Registry("position", "dim", "n_head", "block_size")


class Positions(Watched):
    """A scheme that does nothing; the others say where they act."""

    limit: int | None = None
    """The longest sequence, in tokens, where the scheme has one."""
    biases: bool = False
    """Whether the scheme adds to the scores."""

    def embedding(self, time: int, at: Tensor | None) -> Tensor | None:
        """What is added to the embeddings of ``time`` tokens at the positions ``at`` (0 to time − 1 when None)."""
        return None

    def turn(self, x: Tensor, at: Tensor | None) -> Tensor:
        """Queries or keys ``(batch, n_head, time, head_dim)`` as they are at their positions."""
        return x

    def bias(self, rows: Tensor, columns: Tensor) -> Tensor | None:
        """What is added to scaled scores: ``(n_head, rows, columns)``, or with a batch before it."""
        return None


@position_schemes.register("none")
class NoPositions(Positions):
    """Nothing but the causal mask tells order: Kazemnejad et al. 2023 (2305.19466)."""


@position_schemes.register("learned")
class LearnedPositions(Positions):
    """A learned vector for each position up to ``block_size``, as in GPT-2: ``X = E_tok[ids] + E_pos[0..T−1]``."""

    def __init__(self, dim: int, block_size: int) -> None:
        super().__init__()
        self.limit = block_size
        self.weight = nn.Parameter(torch.empty(block_size, dim))
        nn.init.normal_(self.weight, std=0.02)

    def embedding(self, time: int, at: Tensor | None) -> Tensor:
        return self.weight[:time] if at is None else self.weight[at]


@position_schemes.register("sinusoidal")
class SinusoidalPositions(Positions):
    """``sin(p / 10000^(2i/d))`` and ``cos`` of the same beside it: Vaswani et al. 2017 (1706.03762), section 3.5.

    Args:
        dim: Width of the stream; must be even.
        scale: What the waves are multiplied by, so that they do not drown embeddings that start at 0.02.
    """

    def __init__(self, dim: int, scale: float = 0.02) -> None:
        super().__init__()
        _require_even(dim, "sinusoidal positions", "dim")
        self.scale = scale
        self.register_buffer("frequencies", _frequencies(dim, 10000.0), persistent=False)

    def embedding(self, time: int, at: Tensor | None) -> Tensor:
        angles = _angles(self.get_buffer("frequencies"), time, at)  # (..., T, d/2)
        return self.scale * torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


@position_schemes.register("rotary")
class RotaryPositions(Positions):
    """Pairs of a query's or key's dimensions turned by ``p θ_i``: Su et al. 2021 (2104.09864), eq. 34.

    The pairs are ``(i, i + head_dim/2)``. A longer context than was trained on is reached by a ``factor`` above 1:
    ``linear`` divides the positions (Chen et al. 2023, 2306.15595, eq. 4); ``ntk`` raises the base to
    ``base · factor^(d/(d−2))``, which leaves the fastest waves as they were (bloc97 2023, in Peng et al. 2023,
    2309.00071, section 3.1).

    Args:
        dim: Width of the stream.
        n_head: Number of heads; ``dim / n_head`` must be even.
        base: The slowest wave is about ``2π base`` positions long.
        factor: How many times longer the context is.
        extension: How it is reached.

    Vectors of half a head's width (or a quarter) are turned by every second (fourth) wave, which are theirs.
    """

    def __init__(
        self, dim: int, n_head: int, base: float = 10000.0, factor: float = 1.0, extension: str = "linear"
    ) -> None:
        super().__init__()
        width = dim // n_head
        _require_even(width, "rotary positions", "dim / n_head")
        if extension not in ("linear", "ntk"):
            raise CallError(f"position extension is {extension!r}; it must be one of linear, ntk")
        if not factor >= 1:
            raise CallError(f"position factor is {factor}; it must be at least 1")
        if extension == "ntk" and width > 2:
            base *= factor ** (width / (width - 2))
        frequencies = _frequencies(width, base)
        self.register_buffer("frequencies", frequencies / factor if extension == "linear" else frequencies, False)

    def turn(self, x: Tensor, at: Tensor | None) -> Tensor:
        frequencies = self.get_buffer("frequencies")
        angles = _angles(frequencies[:: 2 * len(frequencies) // x.shape[-1]], x.shape[-2], at)  # (..., T, D/2)
        if angles.ndim == 3:
            angles = angles[:, None]  # (B, 1, T, D/2)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


@position_schemes.register("alibi")
class AlibiPositions(Positions):
    """``−m_h (i − j)`` added to the scores, the slopes ``m`` a geometric series: Press et al. 2022 (2108.12409), eq. 1.

    The slopes are ``2^(−8h/n)`` for ``n`` heads, a power of two; for another number of heads, as in the paper's
    code, those of the next lower power and then every other one of the next higher.
    """

    biases = True

    def __init__(self, n_head: int) -> None:
        super().__init__()
        lower = 2 ** int(math.log2(n_head))
        slopes = [2 ** (-8 * h / lower) for h in range(1, lower + 1)]
        slopes += [2 ** (-4 * h / lower) for h in range(1, 2 * (n_head - lower), 2)]
        self.register_buffer("slopes", torch.tensor(slopes), persistent=False)

    def bias(self, rows: Tensor, columns: Tensor) -> Tensor:
        distance = rows[..., :, None] - columns[..., None, :]  # (..., rows, columns)
        return -self.get_buffer("slopes")[:, None, None] * distance.unsqueeze(-3)


@position_schemes.register("t5")
class T5Positions(Positions):
    """A learned number for each head and bucket of distances: Raffel et al. 2020 (1910.10683), section 2.1.

    Half of the buckets hold one distance each; the other half grow by equal ratios up to ``max_distance`` and the last
    takes all beyond. One table serves all layers, as in the paper.

    Args:
        n_head: Number of heads.
        n_bucket: Number of buckets.
        max_distance: Where the last bucket begins, in tokens.
    """

    biases = True

    def __init__(self, n_head: int, n_bucket: int = 32, max_distance: int = 128) -> None:
        super().__init__()
        if n_bucket < 2 or max_distance <= n_bucket // 2:
            raise CallError(
                f"position t5 has n_bucket {n_bucket} and max_distance {max_distance}; "
                f"n_bucket must be at least 2 and max_distance more than half of it"
            )
        self.n_bucket, self.max_distance = n_bucket, max_distance
        self.weight = nn.Parameter(torch.zeros(n_bucket, n_head))

    def bucket(self, distance: Tensor) -> Tensor:
        """Distances back, 0 or more, to bucket numbers."""
        exact = self.n_bucket // 2
        ratio = (distance.clamp(min=1) / exact).log() / math.log(self.max_distance / exact)
        grown = exact + (ratio * (self.n_bucket - exact)).long()
        return torch.where(distance < exact, distance, grown.clamp(max=self.n_bucket - 1))

    def bias(self, rows: Tensor, columns: Tensor) -> Tensor:
        distance = (rows[..., :, None] - columns[..., None, :]).clamp(min=0)
        return self.weight[self.bucket(distance)].movedim(-1, -3)


def positions_within(documents: Tensor) -> Tensor:
    """The position of each token in its document, from document numbers ``(batch, time)``."""
    place = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return place - torch.where(begins, place, 0).cummax(dim=1).values


def _frequencies(width: int, base: float) -> Tensor:
    """``base^(−2i/width)`` for i below width / 2."""
    return base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width).float()


def _angles(frequencies: Tensor, time: int, at: Tensor | None) -> Tensor:
    at = torch.arange(time, device=frequencies.device) if at is None else at
    return at[..., None] * frequencies


def _require_even(width: int, what: str, name: str) -> None:
    if width % 2:
        raise CallError(f"{what} turn pairs of dimensions and {name} is {width}; it must be even")
