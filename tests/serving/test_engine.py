"""The engine and the application without a network: failures, clients that stop reading, models without rows."""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from lightning_gpt.inference.batch import TextRequest, continue_texts
from lightning_gpt.models import LanguageModel
from lightning_gpt.models.decoding.rules.rule import TokenCounts
from lightning_gpt.models.decoding.sampling import Sampling
from lightning_gpt.serving.app import create_app
from lightning_gpt.serving.engine import Engine
from lightning_gpt.serving.limits import Limits
from lightning_gpt.serving.service import Service
from lightning_gpt.serving.task import TextPiece, TextTask
from tests.serving.served import plain_tokenizer, tiny_model

TOKENIZER = plain_tokenizer()


class _Collected:
    """Takes what the engine delivers."""

    def __init__(self) -> None:
        self.texts: dict[TextTask, TextPiece] = {}
        self._ended = threading.Condition()

    def __call__(self, pieces: list[tuple[TextTask, TextPiece]]) -> None:
        with self._ended:
            for task, piece in pieces:
                self.texts[task] = self.texts.get(task, TextPiece()) + piece
            self._ended.notify()

    def wait(self, tasks: list[TextTask]) -> list[TextPiece]:
        """The texts of these tasks, complete."""
        with self._ended:
            done = lambda: all(task in self.texts and self.texts[task].is_last for task in tasks)  # noqa: E731
            assert self._ended.wait_for(done, 60)
        return [self.texts[task] for task in tasks]


@contextmanager
def running(model: LanguageModel, slots: int = 4, prefill: int = 7) -> Iterator[tuple[Engine, _Collected]]:
    engine, collected = Engine(model, TOKENIZER, slots, 1000, 128, prefill), _Collected()
    engine.allocate()
    engine.start(collected)
    try:
        yield engine, collected
    finally:
        engine.close()


def tasks_of(number: int) -> list[TextTask]:
    chance = random.Random(number)
    return [
        TextTask(
            TextRequest(
                torch.tensor([chance.randrange(300) for _ in range(chance.randint(1, 60))]),
                chance.randint(1, 40),
                Sampling(temperature=chance.choice([0.0, 1.0]), top_p=chance.choice([None, 0.9])),
                seed,
                stop=("q",),
            )
        )
        for seed in range(number)
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention": [{"kind": "window", "window": 9}, "linear"], "position": "learned"},
        {"memory": {"kind": "tokens", "segment": 16, "n_memory": 2}},
        {"token_routing": {"kind": "mixture_of_depths", "every": 1, "capacity": 0.5, "decision": "router"}},
    ],
    ids=["shared", "window and sums", "memory: one by one", "routing: one by one"],
)
def test_texts_are_those_that_each_request_gets_alone(changes: dict[str, Any]) -> None:
    """In fp64, where rounding chooses no other token; prompts are read in parts between the tokens of other texts."""
    model = tiny_model(TOKENIZER.vocab_size, **{"block_size": 128, **changes}).double()
    tasks = tasks_of(14)
    with running(model) as (engine, collected):
        engine.submit(tasks)
        got = collected.wait(tasks)
        assert engine._rows.shares_passes == ("memory" not in changes and "token_routing" not in changes)
        assert engine.counts.completed == len(tasks)
    for task, piece in zip(tasks, got, strict=True):
        wanted = continue_texts(model, TOKENIZER, [task.request])[0]
        assert (piece.text, piece.finish, piece.tokens) == (wanted.text, wanted.finish, len(wanted.tokens))


def test_texts_of_one_prompt_read_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(TOKENIZER.vocab_size, block_size=128).double()
    alike: list[TextTask] = []
    for seed in range(4):
        alike.append(TextTask(TextRequest(torch.arange(50), 10, Sampling(), seed), alike=alike))
    read: list[int] = []
    with running(model) as (engine, collected):
        before = engine._rows.read
        monkeypatch.setattr(engine._rows, "read", lambda ids: (read.append(len(ids)), before(ids))[1])
        engine.submit(alike)
        got = collected.wait(alike)
    assert sum(read) == 50
    assert [piece.text for piece in got] == [continue_texts(model, TOKENIZER, [task.request])[0].text for task in alike]


@pytest.mark.parametrize("failing", ["join", "join_copy"])
def test_no_text_is_lost_where_its_row_cannot_be_taken(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(TOKENIZER.vocab_size, block_size=128).double()
    alike: list[TextTask] = []
    for seed in range(3):
        alike.append(TextTask(TextRequest(torch.arange(50), 10, Sampling(), seed), alike=alike))

    def refuse(*row: int) -> None:
        monkeypatch.undo()
        raise RuntimeError("out of memory")

    with running(model) as (engine, collected):
        monkeypatch.setattr(engine._rows, failing, refuse)
        engine.submit(alike)
        got = collected.wait(alike)
        counts = engine.counts
    failed = [piece for piece in got if piece.failure == "failed"]
    assert len(failed) == (1 if failing == "join" else 2)
    assert (counts.completed, counts.cut, counts.running) == (3 - len(failed), len(failed), 0)


@pytest.mark.parametrize("when", [1, 9, 60])
def test_a_pass_that_fails_ends_its_texts_and_no_others(when: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(TOKENIZER.vocab_size, block_size=128).double()
    passes = 0

    def fails_once(hidden: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            nonlocal passes
            passes += 1
            if passes == when:
                raise RuntimeError("out of memory")
            return hidden(*args, **options)

        return run

    tasks = tasks_of(14)
    with running(model) as (engine, collected):
        monkeypatch.setattr(model.head, "few", fails_once(model.head.few))
        engine.submit(tasks)
        got = collected.wait(tasks)
        counts = engine.counts
    monkeypatch.undo()
    failed = [piece.failure for piece in got if piece.failure is not None]
    assert failed
    assert set(failed) == {"failed"}
    assert len(failed) <= 5
    assert (counts.completed, counts.cut) == (14 - len(failed), len(failed))
    for task, piece in zip(tasks, got, strict=True):
        if piece.failure is None:
            assert piece.text == continue_texts(model, TOKENIZER, [task.request])[0].text


def test_a_text_that_cannot_begin_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no memory for what its rules count."""

    def refuse(*args: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(TokenCounts, "of_prompts", refuse)
    rules = [Sampling(), Sampling(repetition_penalty=1.5), Sampling()]
    requests = [TextRequest(torch.tensor([1, 2]), 3, sampling, 0, (), None) for sampling in rules]
    with running(tiny_model(TOKENIZER.vocab_size).double()) as (engine, collected):
        tasks = [TextTask(request, 60.0, []) for request in requests]
        engine.submit(tasks)
        got = collected.wait(tasks)
    assert [text.failure for text in got] == [None, "failed", None]


def test_logits_that_are_not_finite_end_their_text_alone() -> None:
    model = tiny_model(TOKENIZER.vocab_size, block_size=128).double()
    poisoned = 299
    with torch.no_grad():
        model.token_embedding.weight[poisoned] = torch.nan
    tasks = [
        TextTask(TextRequest(torch.tensor([5, token, 6]), 20, Sampling(temperature=0.0))) for token in (7, poisoned, 8)
    ]
    with running(model) as (engine, collected):
        engine.submit(tasks)
        got = collected.wait(tasks)
    assert [piece.failure for piece in got][1] == "failed"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("logprobs", [None, 2])
def test_rules_that_leave_no_finite_logit_end_their_text_alone(temperature: float, logprobs: int | None) -> None:
    """A penalty on large logits overflows; a draw from what is left would be beyond the vocabulary."""
    model = tiny_model(TOKENIZER.vocab_size, block_size=128)
    few = model.head.few
    model.head.few = lambda hidden: few(hidden) + 1e37  # type: ignore[method-assign]
    rules = [Sampling(temperature=temperature), Sampling(repetition_penalty=0.001, temperature=temperature)]
    rules.append(rules[0])
    requests = [TextRequest(torch.tensor([5, 7]), 4, sampling, 0, (), logprobs) for sampling in rules]
    with running(model) as (engine, collected):
        tasks = [TextTask(request) for request in requests]
        engine.submit(tasks)
        got = collected.wait(tasks)
        assert engine.counts.cut == 1
    assert [text.failure for text in got] == [None, "failed", None]


async def _call(app: Any, body: bytes | None, send: Callable[[Any], Any], path: str = "/v1/completions") -> None:
    """Call the application with one request; ``body`` None never arrives, and the client never closes."""
    parts = iter([{"type": "http.request", "body": body, "more_body": False}] if body is not None else [])

    async def receive() -> Any:
        part = next(parts, None)
        if part is None:
            await asyncio.Event().wait()
        return part

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": headers,
        "query_string": b"",
        "http_version": "1.1",
    }
    await app(scope, receive, send)


def test_clients_that_stop_reading_or_sending_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(TOKENIZER.vocab_size, block_size=1024)
    few = model.head.few

    def without_an_end(hidden: torch.Tensor) -> torch.Tensor:
        """The text does not end by itself, and its thousand tokens take longer than a client may."""
        time.sleep(0.002)
        logits = few(hidden).clone()
        logits[:, TOKENIZER.end_of_text] = -1e4
        return logits

    monkeypatch.setattr(model.head, "few", without_an_end)
    engine = Engine(model, TOKENIZER, 2, 2, 1024, 64)
    service = Service(engine, "tiny", Limits(max_tokens=1000, seconds=60, choices=4, transfer_seconds=0.3))
    sent: list[Any] = []

    async def stuck(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async def take(message: Any) -> None:
        sent.append(message)

    async def run() -> None:
        app = create_app(service, hosts={"localhost"})
        async with app.router.lifespan_context(app):
            body = b'{"model": "tiny", "prompt": "the", "max_tokens": 1000, "stream": true}'
            await _call(app, body, stuck)
            async with asyncio.timeout(60):
                while engine.counts.cancelled == 0:
                    await asyncio.sleep(0.01)
            assert engine.counts.running == 0
            await _call(app, None, take)

    asyncio.run(run())
    assert sent[0]["status"] == 408
    assert b"did not arrive within 0.3 seconds" in sent[1]["body"]
