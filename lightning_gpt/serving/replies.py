"""The objects that OpenAI's API replies with, whole and in pieces."""

import codecs
import secrets
import time
from collections.abc import Sequence
from typing import Any

from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.inference.batch import TokenLogProbability
from lightning_gpt.serving.task import TextPiece


class Reply:
    """Writes the reply to one request.

    Args:
        model: The model's name.
        tokenizer: Its tokenizer.
        prompt_tokens: Number of tokens of all prompts.
        choices: Number of texts.
        chat: Whether they are messages of a chat.
        streams_usage: Whether a stream's last part has the numbers of tokens; the others then say that they have none.
    """

    def __init__(
        self, model: str, tokenizer: Tokenizer, prompt_tokens: int, choices: int, chat: bool, streams_usage: bool
    ) -> None:
        self._model, self._tokenizer, self._chat = model, tokenizer, chat
        self._without_usage: dict[str, Any] = {"usage": None} if streams_usage else {}
        self._id = f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._prompt_tokens, self._tokens = prompt_tokens, 0
        self._offsets = [0] * choices  # complete characters of each text so far
        self._characters = [codecs.getincrementaldecoder("utf-8")("replace") for _ in range(choices)]
        self._begun = [False] * choices

    def whole(self, texts: Sequence[TextPiece]) -> dict[str, Any]:
        """The reply with all texts, which are complete."""
        choices = []
        for index, piece in enumerate(texts):
            content = {"message": {"role": "assistant", "content": piece.text}} if self._chat else {"text": piece.text}
            choices.append(self._choice(index, piece, content))
        return self._object(choices, "") | {"usage": self._usage()}

    def chunk(self, index: int, piece: TextPiece) -> dict[str, Any]:
        """A part of the reply: what was added to one text."""
        if self._chat:
            role = {} if self._begun[index] else {"role": "assistant"}
            self._begun[index] = True
            content: dict[str, Any] = {"delta": {**role, "content": piece.text}}
        else:
            content = {"text": piece.text}
        return self._object([self._choice(index, piece, content)], ".chunk" if self._chat else "") | self._without_usage

    def usage_chunk(self) -> dict[str, Any]:
        """The last part, with the numbers of tokens, for clients that ask for it."""
        return self._object([], ".chunk" if self._chat else "") | {"usage": self._usage()}

    def count(self, piece: TextPiece) -> None:
        """Count the tokens of a piece without text, which is not written."""
        self._tokens += piece.tokens

    def _object(self, choices: list[dict[str, Any]], part: str) -> dict[str, Any]:
        kind = f"chat.completion{part}" if self._chat else "text_completion"
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model, "choices": choices}

    def _usage(self) -> dict[str, int]:
        total = self._prompt_tokens + self._tokens
        return {"prompt_tokens": self._prompt_tokens, "completion_tokens": self._tokens, "total_tokens": total}

    def _choice(self, index: int, piece: TextPiece, content: dict[str, Any]) -> dict[str, Any]:
        self.count(piece)
        log_probs = None
        if piece.log_probs:
            log_probs = self._of_chat(piece.log_probs) if self._chat else self._of_text(index, piece.log_probs)
        return {"index": index, **content, "logprobs": log_probs, "finish_reason": piece.finish}

    def _of_chat(self, log_probs: Sequence[TokenLogProbability]) -> dict[str, Any]:
        def described(token: int, log_prob: float) -> dict[str, Any]:
            content = self._tokenizer.decode_bytes(token)
            return {"token": self._text_of(token), "logprob": log_prob, "bytes": list(content)}

        return {
            "content": [
                {**described(each.token, each.logprob), "top_logprobs": [described(*top) for top in each.top]}
                for each in log_probs
            ]
        }

    def _of_text(self, index: int, log_probs: Sequence[TokenLogProbability]) -> dict[str, Any]:
        tokens, offsets = [self._text_of(each.token) for each in log_probs], []
        for each in log_probs:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(self._characters[index].decode(self._tokenizer.decode_bytes(each.token)))
        return {
            "tokens": tokens,
            "token_logprobs": [each.logprob for each in log_probs],
            "top_logprobs": [
                {self._text_of(token): value for token, value in (*each.top, (each.token, each.logprob))}
                for each in log_probs
            ],
            "text_offset": offsets,
        }

    def _text_of(self, token: int) -> str:
        """A token as text; one that is no whole character as OpenAI writes it, so that no two become the same."""
        content = self._tokenizer.decode_bytes(token)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
