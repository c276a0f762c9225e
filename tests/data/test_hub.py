"""Streams from servers that drop connections, answer with errors, or are not there: every record once, in order."""

import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled
from torch.utils.data import DataLoader, IterableDataset

from lightning_gpt.data.sources import hub
from lightning_gpt.data.sources.hub import Hub
from lightning_gpt.errors import CallError, WorkError

TEXTS = [f"shard {shard}, record {record}, {'x' * 40}" for shard in range(3) for record in range(300)]
COMMIT = "c0" * 20


def shards(encode: Callable[[list[str]], bytes], suffix: str) -> dict[str, bytes]:
    return {f"/train-{n}.{suffix}": encode(TEXTS[300 * n : 300 * n + 300]) for n in range(3)}


def as_jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts)).encode()


def as_parquet(texts: list[str]) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), file, row_group_size=128)
    return file.getvalue()


class Server(ThreadingHTTPServer):
    """Files at their paths, and as the data set ``org/name`` by the Hub's protocol.

    ``trouble`` says of each request, by its number and what it is (``GET /a.jsonl bytes=0-9``), what goes wrong:
    nothing, ``close`` the connection unanswered, ``cut`` the answer off in its middle, or a status to answer with.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.requests: list[str] = []
        self.trouble: Callable[[int, str], str | int | None] = lambda number, request: None
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.urls = [self.url + path for path in files]

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def respond(self) -> None:
        path = self.path.partition("?")[0]
        request = f"{self.command} {path} {self.headers.get('Range', '')}".strip()
        trouble = self.server.trouble(len(self.server.requests), request)
        self.server.requests.append(request)
        if trouble == "close":
            self.close_connection = True
        elif isinstance(trouble, int):
            self.answer(trouble, b"")
        else:
            self.answer(*self.content(path), cut=trouble == "cut")

    do_GET = do_HEAD = do_POST = respond  # noqa: N815 - named by the base class

    def content(self, path: str) -> tuple[int, bytes]:
        if path.startswith("/api/datasets/org/name/tree/"):
            files = [{"type": "file", "oid": "0", "size": len(v), "path": k[1:]} for k, v in self.server.files.items()]
            return 200, json.dumps(files).encode()
        if re.fullmatch(r"/api/datasets/org/name(/revision/\w+)?", path):
            names = [{"rfilename": path[1:]} for path in self.server.files]
            return 200, json.dumps({"id": "org/name", "sha": COMMIT, "siblings": names}).encode()
        name = re.sub(r"^/datasets/org/name/resolve/\w+", "", path)
        return (200, self.server.files[name]) if name in self.server.files else (404, b"")

    def answer(self, status: int, content: bytes, cut: bool = False) -> None:
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if status == 200 else None
        whole = len(content)
        if part:
            status, content = 206, content[int(part[1]) : int(part[2]) + 1]
        self.send_response(status)
        if part:
            self.send_header("Content-Range", f"bytes {part[1]}-{int(part[1]) + len(content) - 1}/{whole}")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", '"0"')
        self.send_header("X-Repo-Commit", COMMIT)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound" if self.path.startswith("/api") else "EntryNotFound")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = self.close_connection or cut

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def serve() -> Iterator[Callable[[dict[str, bytes]], Server]]:
    servers: list[Server] = []

    def start(files: dict[str, bytes]) -> Server:
        servers.append(Server(files))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses made, which take no time here; `datasets` tries everything once."""
    for what in ("READ", "OPEN"):
        monkeypatch.setattr(datasets.config, f"STREAMING_{what}_MAX_RETRIES", 1)
        monkeypatch.setattr(datasets.config, f"STREAMING_{what}_RETRY_INTERVAL", 0)
    made: list[float] = []
    monkeypatch.setattr(hub, "time", SimpleNamespace(sleep=made.append))
    return made


def dropping(path: str, times: int) -> Callable[[int, str], str | None]:
    """The trouble of a file whose first transfers are cut off."""
    left = iter(range(times))

    def trouble(_: int, request: str) -> str | None:
        transfer = request.startswith("GET") and f"{path} bytes" in request
        return "cut" if transfer and next(left, None) is not None else None

    return trouble


def texts(source: Hub, start: int = 0) -> list[str]:
    return [document.text for document in source.documents(start)]


@pytest.mark.parametrize(
    ("format_", "encode", "trouble"),
    [("json", as_jsonl, "cut"), ("json", as_jsonl, 503), ("parquet", as_parquet, "cut")],
)
def test_whatever_request_fails_every_record_comes_once_and_in_order(
    format_: str,
    encode: Callable[[list[str]], bytes],
    trouble: str | int,
    serve: Callable[..., Server],
    pauses: list[float],
) -> None:
    server = serve(shards(encode, format_))
    source = Hub(format_, data_files=server.urls)
    assert texts(source) == TEXTS
    needed = len(server.requests)
    for failing in range(needed):
        server.requests.clear()
        # two in a row: the HTTP client repeats a request by itself when a kept connection turns out to be closed
        server.trouble = lambda number, _, failing=failing: trouble if failing <= number < failing + 2 else None
        assert texts(source) == TEXTS, f"request {failing} of {needed}"
    assert len(pauses) > 5, "the trouble must have been felt"


@pytest.mark.parametrize("start", [0, 1, 255, 256, 299, 300, 301, 640, 899, 900])
def test_from_any_record_also_when_the_connection_drops(
    start: int, serve: Callable[..., Server], pauses: list[float]
) -> None:
    server = serve(shards(as_jsonl, "jsonl"))
    source = Hub("json", data_files=server.urls)
    server.trouble = dropping("/train-2.jsonl", times=3)
    assert texts(source, start) == TEXTS[start:]
    assert len(pauses) == 3
    origins = [document.origin for document in source.documents(start)]
    assert origins == [f"json, record {number}" for number in range(start, 900)]


def test_reading_goes_on_in_the_file_that_it_had_come_to(serve: Callable[..., Server]) -> None:
    server = serve(shards(as_jsonl, "jsonl"))
    documents = Hub("json", data_files=server.urls).documents()
    for _ in range(700):
        next(documents)
    server.requests.clear()
    server.trouble = dropping("/train-2.jsonl", times=1)
    assert [document.text for document in documents] == TEXTS[700:]
    assert len([request for request in server.requests if request.startswith("GET /train-1.jsonl bytes")]) <= 1


def test_a_server_that_stays_dead_ends_the_run_with_one_line(
    serve: Callable[..., Server], pauses: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve(shards(as_jsonl, "jsonl"))
    documents = Hub("json", data_files=server.urls, name="mine").documents()
    read = [next(documents) for _ in range(10)]
    server.trouble = lambda number, request: "close"
    with pytest.raises(WorkError, match=r"^data set 'json' could not be read past record \d+ in 8 attempts: "):
        read.extend(documents)
    assert [document.text for document in read] == TEXTS[: len(read)]
    assert len(pauses) == hub.TRIES - 1
    for pause, due in zip(pauses, (1, 2, 4, 8, 16, 30, 30), strict=True):
        assert 0.75 * due <= pause <= 1.25 * due
    assert capsys.readouterr().err.count("data set 'json': ") == len(pauses)


@pytest.mark.parametrize("status", [404, 410, 403])
def test_what_the_server_refuses_is_not_asked_for_again(
    status: int, serve: Callable[..., Server], pauses: list[float]
) -> None:
    server = serve(shards(as_jsonl, "jsonl"))
    server.trouble = lambda number, request: status if "/train-1.jsonl" in request else None
    with pytest.raises(CallError, match=rf"'json' does not exist or is not accessible .*answered {status}"):
        texts(Hub("json", data_files=server.urls))
    assert pauses == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"column": "body"}, r"json, record 0 has no field 'body'; its fields: 'id', 'text'"),
        ({"split": "dev"}, r"data set 'json' cannot be opened: .*split"),
    ],
)
def test_what_is_not_in_the_data_set_is_not_asked_for_again(
    arguments: dict[str, str], message: str, serve: Callable[..., Server], pauses: list[float]
) -> None:
    server = serve(shards(as_jsonl, "jsonl"))
    with pytest.raises(CallError, match=message):
        texts(Hub("json", data_files=server.urls, **arguments))
    assert pauses == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": oops}\n', r"'json' cannot be read past record \d+: JSON parse error: Invalid value"),
        (b'{"text": "b\xe9d"}\n', r"'json' cannot be read past record \d+: 'utf-8' codec"),
        (b'{"text": null}\n', r"json, record 300: 'text' holds NoneType, not text"),
        (b'{"text": ["a"]}\n', r"'json' cannot be read past record \d+: Couldn't cast"),
    ],
)
def test_a_damaged_file_is_not_read_again(
    content: bytes, message: str, serve: Callable[..., Server], pauses: list[float]
) -> None:
    server = serve({"/a.jsonl": as_jsonl(TEXTS[:300]), "/b.jsonl": content})
    with pytest.raises(WorkError, match=message):
        texts(Hub("json", data_files=server.urls))
    assert pauses == []


def test_without_a_network_the_first_opening_says_so_at_once(
    monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    alternative = "without a network use the embedded corpus"
    with pytest.raises(WorkError, match=rf"cannot be reached for data set 'json' .*{alternative}"):
        texts(Hub("json", data_files="http://no-such-host.invalid/a.jsonl"))

    def offline(*_: object, **__: object) -> None:
        raise OfflineModeIsEnabled("offline mode is enabled")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", offline)
    with pytest.raises(WorkError, match=rf"'org/name' \(offline mode is enabled\); {alternative}"):
        texts(Hub("org/name"))
    assert pauses == []


def test_a_network_that_goes_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, serve: Callable[..., Server], pauses: list[float]
) -> None:
    """Names that resolved once may fail to for a moment."""
    server = serve(shards(as_jsonl, "jsonl"))
    source = Hub("json", data_files=server.urls)
    assert texts(source) == TEXTS
    source.data_files = ["http://no-such-host.invalid/a.jsonl"]
    with pytest.raises(WorkError, match="could not be read past record 0 in 8 attempts"):
        texts(source)
    assert len(pauses) == hub.TRIES - 1


class Documents(IterableDataset):
    """A source in a loader's workers."""

    def __init__(self, source: Hub) -> None:
        self.source = source

    def __iter__(self) -> Iterator[str]:
        return (document.text for document in self.source.documents())


def test_every_loader_worker_sees_every_document(serve: Callable[..., Server]) -> None:
    """Left to itself, a stream of `datasets` gives each worker some of the files only."""
    source = Hub("json", data_files=serve(shards(as_jsonl, "jsonl")).urls)
    assert texts(source) == TEXTS  # opened before the workers fork, too
    seen = list(DataLoader(Documents(source), batch_size=None, num_workers=2))
    assert sorted(seen) == sorted(TEXTS * 2)


READ = """
import sys, time
time.sleep = lambda seconds: None  # nobody waits here, the Hub's client included
import datasets
datasets.config.STREAMING_READ_MAX_RETRIES = 1
from lightning_gpt.data.sources.hub import Hub
from lightning_gpt.errors import CallError
for document in Hub("org/name").documents():
    print(document.text)
try:
    next(Hub("org/nome").documents())
except CallError as error:
    print("CallError:", error)
"""


def test_the_protocol_of_the_hub(serve: Callable[..., Server], tmp_path: Path) -> None:
    """In a process of its own: where the Hub is, is settled when its client is imported."""
    server = serve(shards(as_parquet, "parquet"))
    server.trouble = dropping("/train-1.parquet", times=8)  # more often than the Hub's client tries by itself
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", READ], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *lines, refusal = done.stdout.splitlines()
    assert lines == TEXTS
    files = [request for request in server.requests if ".parquet" in request]
    assert sum("/train-1.parquet" in request for request in files) > 8
    assert all(f"/resolve/{COMMIT}/" in request for request in files), "reopened, it must be the same commit"
    assert refusal.startswith("CallError: data set 'org/nome' does not exist or is not accessible")
    assert server.requests.count("GET /api/datasets/org/nome") == 1


def test_what_datasets_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def load(path: str, subset: str | None, **options: object) -> datasets.IterableDataset:
        asked.update(path=path, subset=subset, **options)
        return datasets.Dataset.from_dict({"text": ["a", "b", "c"]}).to_iterable_dataset()

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: SimpleNamespace(sha=COMMIT))
    monkeypatch.setattr(datasets, "load_dataset", load)
    source = Hub("wikimedia/wikipedia", subset="20231101.en", revision="v1")
    assert texts(source) == ["a", "b", "c"]
    assert texts(source, 2) == ["c"]
    assert asked == {
        "path": "wikimedia/wikipedia",
        "subset": "20231101.en",
        "split": "train",
        "revision": COMMIT,
        "data_files": None,
        "streaming": True,
    }
    assert source.name == "wikimedia/wikipedia"
