"""The thread that owns the model: it reads prompts, draws a token of every running text, and begins again.

Texts join and leave between two tokens (:mod:`lightning_gpt.models.decoding.rows`). Nothing here knows of HTTP.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gpt.console import say
from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.inference.batch import Continuation, TokenLogProbability
from lightning_gpt.models import LanguageModel
from lightning_gpt.models.decoding.rows import rows_for
from lightning_gpt.models.decoding.samplers import Sampler, draw_each, log_probabilities
from lightning_gpt.models.evaluating import evaluating
from lightning_gpt.serving.task import Failure, TextPiece, TextTask
from lightning_gpt.system_error import described

Deliver = Callable[[list[tuple[TextTask, TextPiece]]], None]
"""Takes what the texts have grown by; called in the engine's thread, and must not wait."""


class QueueFullError(Exception):
    """There is room for ``room`` texts only, of those that run and of those that wait."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room


class DrainingError(Exception):
    """The engine takes no more texts, because it is being stopped."""


@dataclass(frozen=True)
class Counts:
    """Numbers of texts."""

    running: int
    waiting: int
    completed: int
    cancelled: int
    cut: int
    """Cut off by a time limit, a failure or the end of the server."""


class _Running:
    """A text whose prompt is being read, or that is being continued."""

    def __init__(self, task: TextTask, deadline: float, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.task, self.deadline = task, deadline
        self.sampler = Sampler(task.request.sampling, task.request.ids, vocab_size, task.request.seed)
        self.text = Continuation(tokenizer, task.request)
        self._tokenizer = tokenizer
        self._held: deque[tuple[int, TokenLogProbability]] = deque()  # with the byte at which the token begins
        self._drawn = self._certain = 0  # bytes of all tokens, and of the text that is certain

    def take(self, token: int, log_probs: tuple[TokenLogProbability, ...]) -> TextPiece:
        """What a token that was drawn adds."""
        added = self.text.add(token)
        if token not in self._tokenizer.ends:
            self._held.extend((self._drawn, each) for each in log_probs)
        self._drawn += int(self._tokenizer.byte_lengths[token])
        self._certain += len(added.encode("utf-8", "replace"))
        return TextPiece(added, 1, tuple(self._reached()), self.text.finish)

    def _reached(self) -> Iterator[TokenLogProbability]:
        """The log-probabilities of the tokens that the text now has; those of a stop string are never among them."""
        is_whole = self.text.finish == "length"
        while self._held and (is_whole or self._held[0][0] < self._certain):
            yield self._held.popleft()[1]


class Engine:
    """Generates many texts at once with one model.

    Args:
        model: In evaluation mode, on its device; nobody else may use it meanwhile.
        tokenizer: Its tokenizer.
        slots: The most texts that are continued at once.
        queue: The most that wait for a slot.
        max_length: The longest text, prompt included, in tokens.
        prefill: The most tokens of prompts that are read between two tokens of the running texts.
    """

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer, slots: int, queue: int, max_length: int, prefill: int
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.slots, self.queue, self.max_length, self.prefill = slots, queue, max_length, prefill
        self.device = next(model.parameters()).device
        self._rows = rows_for(model, slots, max_length)
        self._running: list[_Running] = []
        self._reading: tuple[_Running, int] | None = None  # a text, and how much of its prompt was read
        # guards what follows; to other threads, what is being read and continued may be one token old
        self._changed = threading.Condition()
        self._waiting: deque[tuple[TextTask, float]] = deque()  # with the end of its time
        self._draining = self._cutting = self._closing = False
        self._completed = self._cancelled = self._cut = 0
        self._pieces: list[tuple[TextTask, TextPiece]] = []
        self._deliver: Deliver = lambda pieces: None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def allocate(self) -> int | None:
        """Take all memory that the texts need, before the engine starts: its size in bytes.

        None if the model's state cannot be divided by rows; each text then takes its own.
        """
        with evaluating(self.model):
            self._rows.begin()
            self._rows.read(torch.zeros(1, dtype=torch.long, device=self.device))
        self._rows.clear()
        return self._rows.n_bytes

    def start(self, deliver: Deliver) -> None:
        """Start the thread; pieces go to ``deliver``."""
        self._deliver = deliver
        self._thread.start()

    def submit(self, tasks: Sequence[TextTask]) -> None:
        """Generate these texts, in this order as slots become free.

        Raises:
            QueueFullError: They do not all find a place.
            DrainingError: No more are taken.
        """
        now = time.monotonic()
        with self._changed:
            if self._draining:
                raise DrainingError
            room = self.queue + max(0, self.slots - self._n_begun()) - len(self._waiting)
            if len(tasks) > room:
                raise QueueFullError(max(0, room))
            self._waiting.extend((task, now + task.seconds) for task in tasks)
            self._changed.notify()

    def cancel(self, tasks: Iterable[TextTask]) -> None:
        """Forget these texts before their next token; does nothing to those that are complete."""
        with self._changed:
            for task in tasks:
                task.cancelled = True
            self._changed.notify()

    def drain(self) -> None:
        """Take no more texts; those that were taken are finished."""
        with self._changed:
            self._draining = True

    def cut(self) -> None:
        """End every text that was taken before its next token."""
        with self._changed:
            self._cutting = True
            self._changed.notify()

    def close(self) -> None:
        """Cut what is left and end the thread."""
        with self._changed:
            self._draining = self._cutting = self._closing = True
            self._changed.notify()
        self._thread.join()

    @property
    def counts(self) -> Counts:
        """How many texts there are, and have been."""
        with self._changed:
            return Counts(self._n_begun(), len(self._waiting), self._completed, self._cancelled, self._cut)

    def _n_begun(self) -> int:
        return len(self._running) + (self._reading is not None)

    def _run(self) -> None:
        with evaluating(self.model):
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._closing or self._waiting or self._n_begun())
                    if self._closing and not (self._waiting or self._n_begun()):
                        return
                try:
                    self._retire()
                    self._read_prompts()
                    self._continue()
                except Exception as error:  # whatever the model raises, the engine outlives it
                    self._say_failure(error)
                    self._fail_begun()
                self._hand_out()

    def _hand_out(self) -> None:
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            self._deliver(pieces)

    def _retire(self) -> None:
        """Drop texts that nobody wants any more, or whose time is over."""
        now = time.monotonic()
        with self._changed:
            cutting = self._cutting
            waiting, self._waiting = self._waiting, deque()
            for task, deadline in waiting:
                if not self._drop(task, deadline, now, cutting):
                    self._waiting.append((task, deadline))
        if self._reading is not None:
            begun = self._reading[0]
            if self._drop(begun.task, begun.deadline, now, cutting):
                self._stop_reading()
        for row in reversed(range(len(self._running))):
            text = self._running[row]
            if self._drop(text.task, text.deadline, now, cutting):
                self._leave(row)

    def _drop(self, task: TextTask, deadline: float, now: float, cutting: bool) -> bool:
        if task.cancelled:
            self._cancelled += 1
        elif cutting:
            self._fail(task, "stopped")
        elif now >= deadline:
            self._fail(task, "timeout")
        else:
            return False
        return True

    def _fail(self, task: TextTask, failure: Failure) -> None:
        self._cut += 1
        self._pieces.append((task, TextPiece(failure=failure)))

    def _stop_reading(self) -> None:
        self._reading = None
        self._rows.begin()  # forgets what was read

    def _leave(self, row: int) -> None:
        self._rows.leave(row)
        last = self._running.pop()
        if row < len(self._running):
            self._running[row] = last

    def _next_waiting(self, chosen: TextTask | None = None) -> _Running | None:
        """The text that has waited longest, or the chosen one, taken out of the queue; None if it cannot begin."""
        with self._changed:
            for entry in self._waiting:
                if chosen is None or entry[0] is chosen:
                    self._waiting.remove(entry)
                    return self._begun(*entry)
        return None

    def _begun(self, task: TextTask, deadline: float) -> _Running | None:
        """A text with its sampler, for which there may be no memory: it then fails, and the others go on."""
        try:
            return _Running(task, deadline, self.tokenizer, self.model.config.vocab_size)
        except Exception as error:
            self._say_failure(error)
            self._fail(task, "failed")
            return None

    def _read_prompts(self) -> None:
        """Read prompts of waiting texts, as far as the budget of one round goes."""
        left = self.prefill
        while left and len(self._running) < self.slots:
            if self._reading is None:
                begun = self._next_waiting()
                if begun is None:
                    return
                self._reading = begun, 0
            text, read = self._reading
            part = text.task.request.ids[read : read + left]
            try:
                if read == 0:
                    self._rows.begin()
                logits = self._rows.read(part)
            except Exception as error:  # the other texts go on
                self._say_failure(error)
                self._fail(text.task, "failed")
                self._stop_reading()
                continue
            left -= len(part)
            self._reading = text, read + len(part)
            if read + len(part) == len(text.task.request.ids):
                self._join(text, logits)

    def _join(self, text: _Running, logits: Tensor) -> None:
        """Begin to continue a text whose prompt was read, and those of the same prompt for which there is a slot."""
        self._reading = None
        first = len(self._running)
        self._running.append(text)  # before its row is taken, so that a failure there fails it rather than loses it
        self._rows.join()
        for task in text.task.alike if self._rows.shares_passes else ():
            other = self._next_waiting(task) if len(self._running) < self.slots else None
            if other is not None:
                self._running.append(other)
                self._rows.join_copy(first)
        self._draw(first, logits.expand(len(self._running) - first, -1))

    def _continue(self) -> None:
        """Read the last token of every running text and draw the next one."""
        if not self._running:
            return
        tokens = torch.tensor([text.text.tokens[-1] for text in self._running], device=self.device)
        self._draw(0, self._rows.feed(tokens))

    def _fail_begun(self) -> None:
        """After a failure: begin anew with the texts that wait."""
        self._rows.clear()
        failed = [*self._running, *([self._reading[0]] if self._reading else [])]
        self._running, self._reading = [], None
        for text in failed:
            self._fail(text.task, "failed")

    def _draw(self, first: int, logits: Tensor) -> None:
        """Draw the next token of the running texts from ``first`` on, from ``logits`` ``(texts, vocab_size)``."""
        texts = self._running[first:]
        finite = logits.amax(dim=-1).isfinite()
        sound, logits = finite.tolist(), logits.where(finite[:, None], 0.0)
        drawn = draw_each(logits, [text.sampler for text in texts])
        log_probs = self._log_probs(texts, logits, drawn.clamp(min=0))
        for row, token in reversed(list(enumerate(drawn.tolist()))):
            text = texts[row]
            if not sound[row] or token < 0:
                whose = "after the rules of sampling the largest logit is" if sound[row] else "the model's logits are"
                say(f"a request failed: {whose} not finite")
                self._fail(text.task, "failed")
                self._leave(first + row)
                continue
            piece = text.take(token, log_probs.get(row, ()))
            self._pieces.append((text.task, piece))
            if piece.is_last:
                self._completed += 1
                self._leave(first + row)

    @staticmethod
    def _log_probs(
        texts: Sequence[_Running], logits: Tensor, drawn: Tensor
    ) -> dict[int, tuple[TokenLogProbability, ...]]:
        """The log-probabilities of the rows that ask for them."""
        asking = {row: top for row, text in enumerate(texts) if (top := text.task.request.logprobs) is not None}
        if not asking:
            return {}
        rows = torch.tensor(list(asking), device=logits.device)
        own, tops, values = log_probabilities(logits[rows], drawn[rows], max(asking.values()))
        found: dict[int, tuple[TokenLogProbability, ...]] = {}
        for place, (row, top) in enumerate(asking.items()):
            likeliest = tuple(zip(tops[place, :top].tolist(), values[place, :top].tolist(), strict=True))
            found[row] = (TokenLogProbability(int(drawn[row]), float(own[place]), likeliest),)
        return found

    @staticmethod
    def _say_failure(error: Exception) -> None:
        say(f"a request failed: {described(error) or f'{type(error).__name__}: {error}'}")
