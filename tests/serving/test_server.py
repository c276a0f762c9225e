"""The real command in real processes, called by OpenAI's own client."""

import asyncio
import itertools
import json
import random
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

from lightning_gpt.inference.batch import Continuation, TextRequest, continue_texts
from lightning_gpt.models.decoding.sampling import Sampling
from tests.processes import run_command
from tests.serving.served import (
    LONGEST,
    WORDS,
    Served,
    chat_tokenizer,
    plain_tokenizer,
    serving,
    tiny_model,
    write_model,
)

TOKEN = "a-token-of-the-tests"
SLOTS = 8
TOKENIZER = chat_tokenizer()
MODEL = tiny_model(TOKENIZER.vocab_size)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "token").write_text(f"{TOKEN}\n")
    checkpoint = write_model(MODEL, TOKENIZER, folder / "tiny.ckpt")
    options = ("--token_file", str(folder / "token"), "--slots", str(SLOTS), "--max_tokens", "1000")
    with serving(checkpoint, *options) as served:
        yield served


def client(server: Served, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", **{"api_key": TOKEN, "max_retries": 0, "timeout": 120, **options})


def test_the_page_s_client_reads_a_stream(server: Served, capsys: pytest.CaptureFixture[str]) -> None:
    """The block of docs/serve.md, at this server's address and with its token."""
    page = (Path(__file__).parents[2] / "docs/serve.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    (model,) = (each.id for each in client(server).models.list())
    for shown, here in (
        ("http://127.0.0.1:8000", server.url),
        ('api_key="none"', f'api_key="{TOKEN}"'),
        ('"mine"', f'"{model}"'),
    ):
        assert block.count(shown) == 1
        block = block.replace(shown, here)
    before = server.health()["completed"]
    exec(compile(block, "docs/serve.md", "exec"), {})
    assert capsys.readouterr().out
    assert server.health()["completed"] == before + 1


def post(server: Served, content: Any, path: str = "completions", **options: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json", **options.pop("headers", {})}
    body = content if isinstance(content, str | bytes) else json.dumps(content)
    return httpx.post(f"{server.url}/v1/{path}", content=body, headers=headers, timeout=120)


def alone(
    prompt: str | list[int],
    max_tokens: int,
    seed: int,
    stop: tuple[str, ...] = (),
    top: int | None = None,
    **rules: Any,
) -> Continuation:
    """What ``generate`` makes of one prompt."""
    ids = TOKENIZER.encode(prompt).tolist() if isinstance(prompt, str) else prompt
    request = TextRequest(torch.tensor(ids), max_tokens, Sampling(**rules), seed, stop, top)
    return continue_texts(MODEL, TOKENIZER, [request])[0]


def written(token: int) -> str:
    """A token as OpenAI writes it."""
    content = TOKENIZER.decode_bytes(token)
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def requests(number: int) -> list[dict[str, Any]]:
    """Requests of many kinds: greedy and sampled, short and long, with and without penalties."""
    chance = random.Random(number)
    made = []
    for seed in range(number):
        prompt = "".join(chance.choices(WORDS, k=chance.randint(1, 300)))
        rules: dict[str, Any] = {"temperature": chance.choice([0.0, 0.7, 1.0])}
        rules |= chance.choice([{}, {"top_p": 0.9}, {"presence_penalty": 0.5, "frequency_penalty": 0.2}])
        made.append({"prompt": prompt, "max_tokens": chance.randint(1, 60), "seed": seed, **rules})
    return made


def test_64_streams_at_once_are_all_complete_and_right_and_take_no_memory_twice(server: Served) -> None:
    """More than there are slots: the others wait in the queue."""
    asked = requests(64)

    async def stream(one: openai.AsyncOpenAI, request: dict[str, Any]) -> tuple[str, str, Any]:
        text, finish, usage = "", "", None
        options = {"include_usage": True}
        async for event in await one.completions.create(model="tiny", stream=True, stream_options=options, **request):
            usage = event.usage or usage
            for choice in event.choices:
                assert not finish, "something came after the end"
                text, finish = text + choice.text, choice.finish_reason or ""
        return text, finish, usage

    async def all_streams() -> list[tuple[str, str, Any]]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=TOKEN, max_retries=0) as one:
            return await asyncio.gather(*(stream(one, request) for request in asked))

    before = server.health()["completed"]
    got = asyncio.run(all_streams())
    memory = server.memory()
    for request, (text, finish, usage) in zip(asked, got, strict=True):
        wanted = alone(**request)
        assert (text, finish) == (wanted.text, wanted.finish), request
        assert usage.completion_tokens == len(wanted.tokens)
        assert usage.prompt_tokens == len(TOKENIZER.encode(request["prompt"]))
    assert asyncio.run(all_streams()) != []
    assert server.until_idle()["completed"] == before + 2 * len(asked)
    assert server.memory() < memory + 20 * 1024, "KiB"


def test_whole_replies_with_many_choices_stop_strings_and_log_probabilities(server: Served) -> None:
    one = client(server)
    prompts = ["the quick", "lazy dog; "]
    rules = {"temperature": 1.0, "top_p": 0.95, "frequency_penalty": 0.3}
    reply = one.completions.create(
        model="tiny", prompt=prompts, n=3, max_tokens=40, seed=7, logprobs=2, stop=["o", "🙂"], **rules
    )
    assert [choice.index for choice in reply.choices] == list(range(6))
    n_token = 0
    for index, choice in enumerate(reply.choices):
        prompt = prompts[index // 3]
        wanted = alone(prompt, 40, 7 + index % 3, ("o", "🙂"), 2, **rules)
        assert (choice.text, choice.finish_reason) == (wanted.text, wanted.finish)
        log_probs = choice.logprobs
        n_token += len(wanted.tokens)
        begins = itertools.accumulate((int(TOKENIZER.byte_lengths[token]) for token in wanted.tokens), initial=0)
        is_whole, end = wanted.finish == "length", len(wanted.text.encode())
        kept = [each for each, begin in zip(wanted.logprobs, begins, strict=False) if is_whole or begin < end]
        assert log_probs.token_logprobs == pytest.approx([each.logprob for each in kept], abs=1e-3)
        assert log_probs.tokens == [written(each.token) for each in kept]
        assert all(2 <= len(top) <= 3 for top in log_probs.top_logprobs)
    assert {choice.finish_reason for choice in reply.choices} == {"stop"}
    assert reply.usage.completion_tokens == n_token
    ids = TOKENIZER.encode("the quick").tolist()
    more = one.completions.create(
        model="tiny", prompt=ids, max_tokens=9, temperature=0, extra_body={"repetition_penalty": 1.3}
    )
    assert more.choices[0].text == alone("the quick", 9, 0, temperature=0.0, repetition_penalty=1.3).text
    empty = one.completions.create(model="tiny", prompt="", max_tokens=5, temperature=0)
    assert empty.choices[0].text == alone([TOKENIZER.end_of_text], 5, 0, temperature=0.0).text


def test_texts_without_a_seed_draw_numbers_of_their_own(server: Served) -> None:
    reply = client(server).completions.create(model="tiny", prompt=["the fox"] * 3, n=2, max_tokens=30, temperature=1)
    assert len({choice.text for choice in reply.choices}) == 6


def test_what_openai_allows_and_nothing_comes_of_is_accepted(server: Served) -> None:
    """Null for a default, an empty bias; with the usage asked for, parts of a stream say that they have none."""
    empty = {"n": None, "stream": None, "logit_bias": {}, "stream_options": None}
    plain = post(server, {**ASK, **empty, "max_tokens": 3})
    assert len(plain.json()["choices"]) == 1
    options = {"include_usage": True, "include_obfuscation": False}
    streamed = post(server, {**ASK, "stream": True, "stream_options": options, "max_tokens": 3})
    parts = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
    assert [part["usage"] for part in parts[:-1]] == [None] * (len(parts) - 1)
    assert parts[-1]["usage"]["completion_tokens"] == 3


def test_chats_by_the_tokenizers_template(server: Served) -> None:
    messages = [{"role": "system", "content": "lazy"}, {"role": "user", "content": [{"type": "text", "text": "fox?"}]}]
    written = "<|im_start|>system\nlazy<|im_end|>\n<|im_start|>user\nfox?<|im_end|>\n<|im_start|>assistant\n"
    ids = TOKENIZER.encode_marked(written).tolist()
    assert len(ids) < len(TOKENIZER.encode(written)), "its special tokens are such"
    one = client(server)
    options: dict[str, Any] = {"model": "tiny", "messages": messages, "seed": 5, "temperature": 1.0}
    whole = one.chat.completions.create(**options, max_completion_tokens=20, logprobs=True, top_logprobs=3)
    wanted = alone(ids, 20, 5, top=3, temperature=1.0)
    assert whole.choices[0].message.content == wanted.text
    assert whole.usage.prompt_tokens == len(ids)
    content = whole.choices[0].logprobs.content
    assert [bytes(each.bytes) for each in content] == [TOKENIZER.decode_bytes(token) for token in wanted.tokens][
        : len(content)
    ]
    assert {len(each.top_logprobs) for each in content} == {3}
    events = list(one.chat.completions.create(**options, max_tokens=20, stream=True))
    assert events[0].choices[0].delta.role == "assistant"
    assert "".join(event.choices[0].delta.content for event in events) == wanted.text
    assert events[-1].choices[0].finish_reason == wanted.finish


def test_models_are_listed(server: Served) -> None:
    one = client(server)
    assert [model.id for model in one.models.list()] == ["tiny"]
    assert one.models.retrieve("tiny").owned_by == "lightning-gpt"
    with pytest.raises(openai.NotFoundError, match="other"):
        one.models.retrieve("other")


def test_clients_that_vanish_free_their_slots(server: Served) -> None:
    """In the middle of a stream, before a whole reply, and before the request was sent."""
    before = server.until_idle()
    long = {"model": "tiny", "prompt": "the", "max_tokens": 1000, "logit_bias": None, "temperature": 0}
    one = client(server)
    streams = [one.completions.create(stream=True, **long) for _ in range(2 * SLOTS)]
    next(iter(streams[0]))
    for stream in streams:
        stream.close()
    with pytest.raises(openai.APITimeoutError):
        client(server, timeout=0.5).completions.create(n=3, **long)
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps(long).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {TOKEN}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    for sent in (head.encode(), head.encode() + body[:10], head.encode() + body, b"\x16\x03\x01garbage\r\n\r\n"):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(sent)
            time.sleep(0.1)
    after = server.until_idle()
    assert after["cancelled"] >= before["cancelled"] + 2 * SLOTS
    texts = after["cancelled"] + after["completed"] - before["cancelled"] - before["completed"]
    assert texts == 2 * SLOTS + 3 + 1, "each is complete or cancelled, and those that were not sent never began"
    assert after["cut"] == 0
    assert client(server).completions.create(model="tiny", prompt="the", max_tokens=3).usage.completion_tokens == 3


ASK = {"model": "tiny", "prompt": "the"}
WRONG: dict[str, tuple[Any, int, str]] = {
    "not JSON": ("{'model'", 400, "the body is not valid JSON"),
    "empty": ("", 400, "the body is not valid JSON"),
    "not UTF-8": (b'{"model": "\xff"}', 400, "the body is not valid JSON"),
    "nested": ("[" * 100_000, 400, "the body is not valid JSON"),
    "a list": ([ASK], 400, "the body is"),
    "cut off": (json.dumps(ASK)[:-3], 400, "the body is not valid JSON"),
    "no prompt": ({"model": "tiny"}, 400, "prompt is missing"),
    "no prompts": ({**ASK, "prompt": []}, 400, "prompt is empty"),
    "no ids": ({**ASK, "prompt": [[]]}, 400, "a prompt of token ids needs at least one"),
    "wrong id": ({**ASK, "prompt": [10**6]}, 400, "token id 1000000 is outside the vocabulary of"),
    "negative id": ({**ASK, "prompt": [-1]}, 400, "prompt"),
    "mixed": ({**ASK, "prompt": ["a", 1]}, 400, "prompt"),
    "other model": ({**ASK, "model": "gpt-4"}, 404, "the model 'gpt-4' does not exist here"),
    "unknown": ({**ASK, "tools": []}, 400, "tools is not supported"),
    "unsupported": ({**ASK, "echo": True}, 400, "echo is not supported"),
    "bias": ({**ASK, "logit_bias": {"1": 5}}, 400, "logit_bias.1 is not supported"),
    "text for a number": ({**ASK, "max_tokens": "5"}, 400, "max_tokens is '5'"),
    "no tokens": ({**ASK, "max_tokens": 0}, 400, "max_tokens is 0"),
    "not a number": ('{"model": "tiny", "prompt": "the", "temperature": NaN}', 400, "temperature"),
    "too hot": ({**ASK, "temperature": 2.5}, 400, "temperature is 2.5"),
    "top_p": ({**ASK, "top_p": 0}, 400, "top_p is 0"),
    "penalty": ({**ASK, "presence_penalty": 3}, 400, "presence_penalty is 3"),
    "seed": ({**ASK, "seed": 2**70}, 400, "seed"),
    "logprobs": ({**ASK, "logprobs": 21}, 400, "logprobs is 21"),
    "a stream of words": ({**ASK, "stream": "yes"}, 400, "stream is 'yes'"),
    "stream options": ({**ASK, "stream_options": {"a": 1}}, 400, "stream_options.a is not supported"),
    "many prompts": (
        {**ASK, "prompt": ["a"] * 60_000},
        400,
        "60000 prompts of n = 1 make 60000 texts",
    ),
    "stop": ({**ASK, "stop": ["a"] * 17}, 400, "stop may be up to 16 strings"),
    "stop too long": ({**ASK, "stop": "a" * 257}, 400, "stop may be up to 16 strings"),
    "stop wrong": ({**ASK, "stop": 3}, 400, "stop is 3"),
    "too many tokens": ({**ASK, "max_tokens": 1001}, 400, "this server generates at most 1000 tokens"),
    "repetition": ({**ASK, "repetition_penalty": 1e-300}, 400, "repetition_penalty is 1e-300"),
    "too many texts": ({**ASK, "n": 100}, 400, "1 prompt and n = 100 make 100 texts; the most are 72"),
    "too long": ({**ASK, "prompt": [1] * LONGEST}, 400, f"maximum context length is {LONGEST} tokens"),
    "together too long": ({**ASK, "prompt": [1] * 900, "max_tokens": 200}, 400, "make 1100"),
    "much too long": ({**ASK, "prompt": "ab" * 10**6}, 400, "bytes of the prompt are more"),
    "huge": (b" " * (9 * 2**20), 413, "the body is longer than"),
}


def test_wrong_requests_get_one_line_and_the_server_goes_on(server: Served) -> None:
    for name, (content, status, said) in WRONG.items():
        reply = post(server, content)
        assert reply.status_code == status, (name, reply.text)
        error = reply.json()["error"]
        assert said in error["message"], name
        assert "\n" not in error["message"], name
        assert len(error["message"]) < 250, name
        assert error["type"] == "invalid_request_error", name
    assert post(server, {**ASK, "prompt": [1] * LONGEST}).json()["error"]["code"] == "context_length_exceeded"
    wrong_chats: list[tuple[Any, str]] = [
        ([], "messages is []"),
        ([{"role": "pirate", "content": "a"}], "role"),
        ([{"role": "user"}], "messages.0.content is missing"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages.0.content"),
    ]
    for messages, said in wrong_chats:
        reply = post(server, {"model": "tiny", "messages": messages}, "chat/completions")
        assert reply.status_code == 400, messages
        assert said in reply.json()["error"]["message"]
    talk = {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}
    for tokens, param, said in (
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens", "max_completion_tokens and max_tokens cannot be"),
        ({"max_completion_tokens": 1001}, "max_completion_tokens", "max_completion_tokens is 1001; this server"),
        ({"max_tokens": 1001}, "max_tokens", "max_tokens is 1001; this server generates at most 1000 tokens a text"),
    ):
        error = post(server, {**talk, **tokens}, "chat/completions").json()["error"]
        assert (error["param"], said in error["message"]) == (param, True), error
    assert post(server, json.dumps(ASK), headers={"content-type": "text/plain"}).status_code == 415
    assert post(server, ASK, "nothing").status_code == 404
    assert httpx.get(f"{server.url}/v1/completions", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 405
    assert httpx.get(f"{server.url}/docs", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 404
    foreign = httpx.get(f"{server.url}/health", headers={"host": "page.example"})
    assert foreign.status_code == 403
    assert "the host 'page.example' is not served" in foreign.json()["error"]["message"]
    for wrong in ("other", f"{TOKEN}x", TOKEN[:-1]):
        with pytest.raises(openai.AuthenticationError, match="token is wrong"):
            client(server, api_key=wrong).models.list()
    assert "token is missing" in httpx.get(f"{server.url}/v1/models").json()["error"]["message"]
    assert server.until_idle()["cut"] == 0


def test_a_full_queue_a_limit_of_time_and_a_stop_that_cuts(tmp_path: Path) -> None:
    """In an interpreter of its own, with a tokenizer that has no template."""
    tokenizer = plain_tokenizer()
    checkpoint = write_model(tiny_model(tokenizer.vocab_size, block_size=2**14), tokenizer, tmp_path / "small.ckpt")
    options = ("--slots", "1", "--queue", "1", "--timeout", "3", "--grace", "0.5", "--max_length", str(2**14))
    with serving(checkpoint, *options, fresh=True) as server:
        one = client(server)
        long: dict[str, Any] = {"model": "tiny", "prompt": "the", "max_tokens": 16_000, "temperature": 0}
        first = one.completions.create(stream=True, **long)
        events = iter(first)
        next(events)
        waiting: list[Any] = []
        other = threading.Thread(target=lambda: waiting.append(post(server, long)))
        other.start()
        while not server.health()["waiting"]:
            time.sleep(0.01)
        with pytest.raises(openai.RateLimitError, match="there is no room for the text now; try again later") as full:
            one.completions.create(**long)
        several = post(server, {**long, "n": 2}).json()["error"]["message"]
        assert several == "there is room for 0 of the 2 texts now; try again later"
        assert int(full.value.response.headers["retry-after"]) >= 1
        with pytest.raises(openai.APIError, match="limit of 3 seconds"):
            list(events)
        other.join()
        assert waiting[0].status_code == 504
        assert waiting[0].json()["error"]["code"] == "timeout"
        assert server.until_idle()["cut"] == 2
        refused = post(server, {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}, "chat/completions")
        assert "has no chat template" in refused.json()["error"]["message"]
        events = iter(one.completions.create(stream=True, **long))
        next(events)
        status, said = server.stop()
        with pytest.raises(openai.APIError, match="the server was stopped before the text was complete"):
            list(events)
    assert status == 0
    assert "stopping: 1 text to finish, for at most 0.5 s" in said
    assert said.splitlines()[-1] == "stopped: 0 texts completed, 3 cut off"


@pytest.mark.parametrize(
    "wrong",
    [
        (("--checkpoint", "none.ckpt"), "none.ckpt"),
        (("--port", "70000"), "port is 70000; it must be a whole number from 0 to 65,535"),
        (("--host", "no.such.host.invalid"), "no.such.host.invalid"),
        (("--host", "a..b"), "host 'a..b' is not a valid name; choose another --host"),
        (("--device", "cuda:99"), "device is 'cuda:99'"),
        (("--max_length", "4096"), "max_length is 4096; it must be from 2 to the model's block_size, which is 1024"),
        (("--token", "a b"), "the token must be printable ASCII without spaces"),
        (("--token", "a", "--token_file", "b"), "token and token_file cannot be combined"),
        (("--slots", "0"), "slots is 0"),
    ],
    ids=lambda wrong: wrong[0][0],
)
def test_wrong_calls_are_refused_in_a_line(wrong: tuple[tuple[str, ...], str], tmp_path: Path, server: Served) -> None:
    options, said = wrong
    checkpoint = () if options[0] == "--checkpoint" else ("--checkpoint", str(server.output.parent / "tiny.ckpt"))
    done = run_command("serve", *checkpoint, "--port", "0", *options, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr.splitlines()[-1]


def test_a_port_that_is_taken_and_a_missing_package(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning_gpt.commands import serve
    from lightning_gpt.errors import CallError

    with pytest.raises(CallError, match="Address already in use; choose another --host or --port"):
        serve.serve("none.ckpt", port=int(server.url.rpartition(":")[2]))
    monkeypatch.setattr(serve, "_NEEDED", ("fastapi", "a_package_that_is_not_installed"))
    with pytest.raises(CallError, match=r"serve needs a_package_that_is_not_installed: pip install -e '.\[serve\]'"):
        serve.serve("none.ckpt")


def test_a_stop_finishes_what_was_accepted(server: Served) -> None:
    """The last test: it ends the server."""
    server.until_idle()
    got: list[Any] = []
    request = {"prompt": "the lazy", "max_tokens": 200, "temperature": 0.0}
    threads = [
        threading.Thread(target=lambda: got.append(post(server, {"model": "tiny", **request}))) for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    while sum(server.health()[which] for which in ("running", "waiting")) < len(threads):
        time.sleep(0.005)
    status, said = server.stop(signal.SIGINT)
    for thread in threads:
        thread.join()
    wanted = alone(seed=0, **request).text
    assert [reply.json()["choices"][0]["text"] for reply in got] == [wanted] * 12
    assert status == 0
    assert said.splitlines()[-1].startswith("stopped: ")
    assert "cut off" not in said.splitlines()[-1]
