"""One model being served: requests become texts of the engine, whose pieces come back to the event loop."""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

import torch

from lightning_gpt.data.published_tokenizer import PublishedTokenizer
from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.errors import CallError
from lightning_gpt.inference.batch import TextRequest
from lightning_gpt.inference.chat import chat_text
from lightning_gpt.models.decoding.sampling import Sampling
from lightning_gpt.models.decoding.text import prompt_tokens
from lightning_gpt.serving.engine import DrainingError, Engine, QueueFullError
from lightning_gpt.serving.limits import Limits
from lightning_gpt.serving.refusals import NOT_AGAIN, RefusedError
from lightning_gpt.serving.replies import Reply
from lightning_gpt.serving.requests import ChatRequest, CompletionRequest, GenerationRequest
from lightning_gpt.serving.task import TextPiece, TextTask

_COMPLETION_TOKENS = 16  # what OpenAI generates where a completion does not say how much


class Answer:
    """The texts of one request as they are generated; leaving the context cancels what is not complete.

    Args:
        service: The service.
        tasks: The texts.
        reply: Writes the reply.
    """

    def __init__(self, service: "Service", tasks: Sequence[TextTask], reply: Reply) -> None:
        self.reply = reply
        self._service, self._tasks = service, tasks
        self._numbers = {task: number for number, task in enumerate(tasks)}
        self._arrived: deque[tuple[int, TextPiece]] = deque()
        self._news = asyncio.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._service.forget(self._tasks)

    def put(self, task: TextTask, piece: TextPiece) -> None:
        """Take a piece of a text."""
        self._arrived.append((self._numbers[task], piece))
        self._news.set()

    async def pieces(self) -> AsyncIterator[tuple[int, TextPiece]]:
        """What is added to each text by its number, as it comes; what came meanwhile is put together.

        Raises:
            RefusedError: A text was cut off.
        """
        left = len(self._tasks)
        while left:
            await self._news.wait()
            self._news.clear()
            together: dict[int, TextPiece] = {}
            while self._arrived:
                number, piece = self._arrived.popleft()
                together[number] = together[number] + piece if number in together else piece
            for number, piece in together.items():
                if piece.failure is not None:
                    raise self._service.unfinished(piece.failure)
                left -= piece.is_last
                yield number, piece

    async def whole(self) -> list[TextPiece]:
        """The complete texts.

        Raises:
            RefusedError: One was cut off.
        """
        texts = [TextPiece()] * len(self._tasks)
        async for number, piece in self.pieces():
            texts[number] += piece
        return texts


class Service:
    """What the application's routes call.

    Args:
        engine: Generates the texts.
        name: The model's name.
        limits: What a request may ask for.
    """

    def __init__(self, engine: Engine, name: str, limits: Limits) -> None:
        self.engine, self.name, self.limits = engine, name, limits
        self.tokenizer: Tokenizer = engine.tokenizer
        self._answers: dict[TextTask, Answer] = {}
        self._longest_token = int(self.tokenizer.byte_lengths.max())

    def start(self) -> None:
        """Start the engine; called in the event loop that the routes run in."""
        loop = asyncio.get_running_loop()

        def deliver(pieces: list[tuple[TextTask, TextPiece]]) -> None:
            with suppress(RuntimeError):  # the loop was closed before the engine
                loop.call_soon_threadsafe(self._take, pieces)

        self.engine.start(deliver)

    def _take(self, pieces: list[tuple[TextTask, TextPiece]]) -> None:
        for task, piece in pieces:
            answer = self._answers.get(task)
            if answer is not None:
                answer.put(task, piece)

    def forget(self, tasks: Sequence[TextTask]) -> None:
        """Cancel texts; what they give is not delivered any more."""
        for task in tasks:
            self._answers.pop(task, None)
        self.engine.cancel(tasks)

    def unfinished(self, failure: str) -> RefusedError:
        """The error for a text that was cut off."""
        if failure == "timeout":
            message = f"the request took longer than the server's limit of {self.limits.seconds:g} seconds"
            return RefusedError(504, message, "timeout", "timeout", headers=NOT_AGAIN)
        if failure == "stopped":
            return RefusedError(503, "the server was stopped before the text was complete", "server_error", "stopped")
        return RefusedError(500, "the model failed; the server's log says why", "server_error", headers=NOT_AGAIN)

    async def complete(self, request: CompletionRequest) -> Answer:
        """Begin to answer ``/v1/completions``.

        Raises:
            RefusedError: It cannot be answered.
        """
        self._check_model(request)
        if not request.prompts:
            raise RefusedError(400, "prompt is empty; it must be a text, a list of texts, or token ids", param="prompt")
        self._check_number(request, len(request.prompts))
        prompts = await asyncio.to_thread(lambda: [self._ids(prompt) for prompt in request.prompts])
        asked = request.max_tokens or min(_COMPLETION_TOKENS, self._room(max(map(len, prompts))))
        return self._begin(request, prompts, asked, request.logprobs, chat=False)

    async def chat(self, request: ChatRequest) -> Answer:
        """Begin to answer ``/v1/chat/completions``.

        Raises:
            RefusedError: It cannot be answered.
        """
        self._check_model(request)
        if request.top_logprobs is not None and not request.logprobs:
            raise RefusedError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
        if request.max_completion_tokens is not None and request.max_tokens is not None:
            message = "max_completion_tokens and max_tokens cannot be combined: leave one of them out"
            raise RefusedError(400, message, param="max_tokens")
        ids = await asyncio.to_thread(self._chat_ids, request)
        self._check_number(request, 1)
        asked = request.max_completion_tokens or request.max_tokens or self._room(len(ids))
        return self._begin(request, [ids], asked, (request.top_logprobs or 0) if request.logprobs else None, chat=True)

    def _chat_ids(self, request: ChatRequest) -> torch.Tensor:
        try:
            text = chat_text(self.tokenizer, [message.plain() for message in request.messages])
        except CallError as error:
            raise RefusedError(400, str(error), param="messages") from None
        self._check_bytes(text, "messages")
        assert isinstance(self.tokenizer, PublishedTokenizer)  # no other has a template
        return torch.from_numpy(self.tokenizer.encode_marked(text)).long()

    def _check_bytes(self, text: str, param: str) -> None:
        """Refuse a text that must have too many tokens before it is encoded."""
        n_bytes = len(text.encode("utf-8", "replace"))
        if n_bytes > self.engine.max_length * self._longest_token:
            message = (
                f"this server's maximum context length is {self.engine.max_length} tokens, and the {n_bytes:,} bytes "
                f"of the prompt are more"
            )
            raise RefusedError(400, message, code="context_length_exceeded", param=param)

    def _check_model(self, request: GenerationRequest) -> None:
        if request.model != self.name:
            message = f"the model {request.model!r} does not exist here; this server has {self.name!r}"
            raise RefusedError(404, message, code="model_not_found", param="model")

    def _ids(self, prompt: str | list[int]) -> torch.Tensor:
        """The ids of a prompt."""
        if isinstance(prompt, str):
            self._check_bytes(prompt, "prompt")
            ids = prompt_tokens(self.tokenizer, prompt)
            return torch.tensor(ids)
        if not prompt:
            raise RefusedError(400, "a prompt of token ids needs at least one", param="prompt")
        vocab_size = self.engine.model.config.vocab_size
        if max(prompt) >= vocab_size:
            message = f"token id {max(prompt)} is outside the vocabulary of {vocab_size}"
            raise RefusedError(400, message, param="prompt")
        return torch.tensor(prompt)

    def _begin(
        self, request: GenerationRequest, prompts: list[torch.Tensor], max_tokens: int, top: int | None, chat: bool
    ) -> Answer:
        """Put the texts of a request into the engine's queue.

        Raises:
            RefusedError: They are too many or too long, or there is no room for them now.
        """
        n_choice = len(prompts) * request.n_text
        self._check_sizes(request, prompts, max_tokens)
        try:
            sampling = Sampling(
                temperature=1.0 if request.temperature is None else request.temperature,
                top_k=request.top_k,
                top_p=request.top_p,
                min_p=request.min_p,
                presence_penalty=request.presence_penalty or None,
                frequency_penalty=request.frequency_penalty or None,
                repetition_penalty=request.repetition_penalty,
            )
        except CallError as error:
            raise RefusedError(400, str(error)) from None
        tasks: list[TextTask] = []
        for ids in prompts:
            on_device = ids.to(self.engine.device)
            alike: list[TextTask] = []
            for number in range(request.n_text):
                # a seed of its own for every text; a seed that is given is that of each prompt, as if it came alone
                seed = secrets.randbits(32) if request.seed is None else (request.seed + number) % 2**63
                text = TextRequest(on_device, max_tokens, sampling, seed, request.stops, top)
                alike.append(TextTask(text, self.limits.seconds, alike))
            tasks += alike
        n_prompt = sum(len(ids) for ids in prompts)
        answer = Answer(self, tasks, Reply(self.name, self.tokenizer, n_prompt, n_choice, chat, request.streams_usage))
        self._answers |= dict.fromkeys(tasks, answer)
        try:
            self.engine.submit(tasks)
        except QueueFullError as full:
            self.forget(tasks)
            room = "no room for the text" if len(tasks) == 1 else f"room for {full.room} of the {len(tasks)} texts"
            message = f"there is {room} now; try again later"
            raise RefusedError(429, message, "rate_limit_error", "queue_full", headers={"retry-after": "1"}) from None
        except DrainingError:
            self.forget(tasks)
            raise RefusedError(
                503, "the server is stopping", "server_error", "stopping", headers={"retry-after": "10"}
            ) from None
        return answer

    def _room(self, length: int) -> int:
        """The most tokens that may follow a prompt, for a request that does not say how many it wants."""
        return max(1, min(self.limits.max_tokens, self.engine.max_length - length))

    def _check_number(self, request: GenerationRequest, n_prompt: int) -> None:
        """Refuse too many texts, before any prompt is tokenised."""
        n = request.n_text
        if n_prompt * n > self.limits.choices:
            prompts = "1 prompt and" if n_prompt == 1 else f"{n_prompt} prompts of"
            texts = f"{prompts} n = {n} make {n_prompt * n} texts"
            raise RefusedError(400, f"{texts}; the most are {self.limits.choices}", param="n")

    def _check_sizes(self, request: GenerationRequest, prompts: list[torch.Tensor], max_tokens: int) -> None:
        limits, length = self.limits, max(len(ids) for ids in prompts)
        if max_tokens > limits.max_tokens:
            of_chat = isinstance(request, ChatRequest) and request.max_completion_tokens is not None
            name = "max_completion_tokens" if of_chat else "max_tokens"
            allowed = f"{name} is {max_tokens}; this server generates at most {limits.max_tokens} tokens a text"
            raise RefusedError(400, allowed, param=name)
        if length + max_tokens > self.engine.max_length:
            raise RefusedError(
                400,
                f"this server's maximum context length is {self.engine.max_length} tokens, but {length} in the prompt "
                f"and {max_tokens} to generate make {length + max_tokens}",
                code="context_length_exceeded",
                param="prompt",
            )
        most, longest = limits.stop
        if len(request.stops) > most or max(map(len, request.stops), default=0) > longest:
            raise RefusedError(400, f"stop may be up to {most} strings of up to {longest} characters", param="stop")
