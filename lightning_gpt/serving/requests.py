"""What OpenAI's API calls the body of a request: its fields, their types and ranges."""

from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lightning_gpt.errors import shortened
from lightning_gpt.serving.refusals import RefusedError

_Penalty = Annotated[float, Field(ge=-2, le=2)]
R = TypeVar("R", bound=BaseModel)
_Id = Annotated[int, Field(ge=0)]
_LONGEST = 200  # characters of a message that a client's own values may fill


class _Empty(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """Accepted without effect: nothing is added to a stream to hide the length of its parts."""


class GenerationRequest(BaseModel):
    """What both kinds of request share. Fields of OpenAI's API that are not here are refused, rather than ignored."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    model: str
    n: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    stop: str | list[str] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    repetition_penalty: Annotated[float, Field(ge=0.001, le=100)] | None = None
    user: str | None = None
    """Accepted without effect, as clients send it by themselves."""

    @property
    def n_text(self) -> int:
        """Number of texts for each prompt."""
        return self.n or 1

    @property
    def streams_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(stop for stop in given if stop)


class CompletionRequest(GenerationRequest):
    """The body of ``/v1/completions``."""

    prompt: str | list[str] | list[_Id] | list[list[_Id]]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: None = None
    logit_bias: _Empty | None = None

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, each text or ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        is_of_ids = bool(self.prompt) and isinstance(self.prompt[0], int)
        return cast(list[str] | list[list[int]], [self.prompt] if is_of_ids else self.prompt)


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(strict=True, extra="forbid")
    role: str
    content: str | list[_Part]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """Role and content as a template reads them."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": text, **({} if self.name is None else {"name": self.name})}


class ChatRequest(GenerationRequest):
    """The body of ``/v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    logit_bias: _Empty | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None


def parsed(kind: type[R], body: bytes) -> R:
    """The request in a body.

    Raises:
        RefusedError: It is not JSON, or a field is missing, unknown, or of a wrong type or range.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _refused(first) from None


def _refused(error: Any) -> RefusedError:
    if error["type"] == "json_invalid":
        return RefusedError(400, shortened(f"the body is not valid JSON: {error['ctx']['error']}", _LONGEST))
    branches = ("list[", "constrained", "literal[")  # what pydantic calls the members of a union
    names = [str(part) for part in error["loc"] if part != "str" and not str(part).startswith(branches)]
    name = ".".join(names) or "the body"
    if error["type"] in ("extra_forbidden", "none_required") or names in (["echo"], ["best_of"]):
        message = f"{name} is not supported"
    elif error["type"] == "missing":
        message = f"{name} is missing"
    else:
        said = error["msg"][:1].lower() + error["msg"][1:]
        message = f"{name} is {shortened(repr(error.get('input')), 60)}; {said}"
    return RefusedError(400, shortened(message, _LONGEST), param=names[0] if names else None)
