"""Errors as OpenAI's clients expect them."""

from typing import Any


class RefusedError(Exception):
    """A request that gets an error for a reply.

    Args:
        status: The HTTP status.
        message: One line: what was given and what is allowed.
        kind: OpenAI's type of error.
        code: OpenAI's code, if it has one for this.
        param: The parameter that is wrong.
        headers: Headers of the reply.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}
        self.body: dict[str, Any] = {"error": {"message": message, "type": kind, "param": param, "code": code}}
        """The reply."""


NOT_AGAIN = {"x-should-retry": "false"}
"""Tells OpenAI's client not to send a request again that would only end the same way."""
