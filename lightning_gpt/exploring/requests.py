"""What the page asks for: fields, types and ranges of each request."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

_Place = Annotated[int, Field(ge=0, le=10**6)]
_Text = Annotated[str, Field(max_length=200_000)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


class ShownText(_Strict):
    """A text as one of the models reads it, with parts of that model changed."""

    model: _Place = 0
    text: _Text
    more: tuple[_Place, ...] = ()
    """Ids that follow the text's own, such as those that were generated."""
    other: _Text = ""
    """The second text, from which outputs are patched."""
    changes: Annotated[str, Field(max_length=20_000)] = ""
    """As of :mod:`lightning_gpt.analysis.changes`."""


class PassRequest(_Strict):
    """One pass over a text, and another that it is compared with."""

    of: ShownText
    against: ShownText | None = None
    show: Literal["values", "difference", "side"] = "values"
    """Whether matrices are sent as they are, as differences from ``against``, or with those of ``against`` beside."""


class LayerRequest(PassRequest):
    """A layer's matrices, those of one of its heads besides."""

    layer: _Place = 0
    head: _Place = 0


class CellRequest(LayerRequest):
    """One cell of a head's softmax, or a row of it."""

    row: _Place
    column: _Place | None = None


class LensRequest(PassRequest):
    """The logit lens at some positions."""

    first: _Place = 0
    count: Annotated[int, Field(ge=1, le=64)] = 8


class NextRequest(PassRequest):
    """The next token after a position, and what the rules of sampling leave of its distribution."""

    row: _Place
    temperature: Annotated[float, Field(ge=0, le=10)] = 1.0
    top_k: Annotated[int, Field(ge=1, le=2**22)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**53)] | None = None
    """Draws a token with it; none is drawn without."""


class WorthRequest(_Strict):
    """What a layer and each of its parts are worth for the loss on a text."""

    of: ShownText
    layer: _Place
    kind: Literal["zero", "mean"] = "zero"
