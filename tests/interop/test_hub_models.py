"""Models of the Hub through the real command and the Hub's own client, at a server that stands in for it."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_gpt.checkpoint import Checkpoint
from tests.interop.published import make
from tests.processes import environment

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Handler(BaseHTTPRequestHandler):
    """The model ``org/tiny`` by the Hub's protocol; ``org/gated`` needs a token, and every other is unknown."""

    server: "Server"
    protocol_version = "HTTP/1.1"

    def respond(self) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append(f"{self.command} {path}")
        if path.startswith("/api/models/org/gated"):
            return self.answer(403, b"", "GatedRepo")
        if re.fullmatch(r"/api/models/org/tiny/revision/(main|" + COMMIT + ")", path):
            return self.answer(200, json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": []}).encode())
        if path.startswith("/api/models/org/tiny/revision/"):
            return self.answer(404, b"", "RevisionNotFound")
        if path.startswith("/api/models/org/tiny/tree/"):
            sizes = {name: len(content) for name, content in self.server.files.items()}
            files = [{"type": "file", "oid": name, "size": size, "path": name} for name, size in sizes.items()]
            return self.answer(200, json.dumps(files).encode())
        name = path.removeprefix(f"/org/tiny/resolve/{COMMIT}/")
        if name in self.server.files:
            return self.answer(200, self.server.files[name], etag=name)
        return self.answer(404, b"", "RepoNotFound" if path.startswith("/api") else "EntryNotFound")

    do_GET = do_HEAD = respond  # noqa: N815 - named by the base class

    def answer(self, status: int, content: bytes, error: str = "", etag: str = "") -> None:
        self.send_response(status)
        headers = {"Content-Length": str(len(content)), "X-Repo-Commit": COMMIT, "X-Error-Code": error, "ETag": etag}
        for name, value in headers.items():
            if value:
                self.send_header(name, f'"{value}"' if name == "ETag" else value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.requests: list[str] = []


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server({path.name: path.read_bytes() for path in folder.iterdir()})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def many(cwd: Path, calls: list[list[str]], **env: str | None) -> list[dict[str, Any]]:
    """The answers of ``convert`` with each of these arguments, without the comparison with transformers."""
    calls = [
        ["convert", "--output", f"{env['HF_HUB_OFFLINE']}-{n}", "--compare", "false", *c] for n, c in enumerate(calls)
    ]
    (cwd / "calls.json").write_text(json.dumps(calls))
    # in an interpreter of its own: the client reads where the Hub is when it is imported
    variables = environment({"HF_HOME": str(cwd / "home"), "PYTHONPATH": str(ROOT), **env})
    command = [sys.executable, "-m", "tests.many_calls", "calls.json"]
    done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Server, list[dict[str, Any]], list[dict[str, Any]]]:
    """What was said while there was a server, and offline after it."""
    folder = tmp_path_factory.mktemp("hub")
    there = make("llama", folder / "there", max_shard_size="20KB")
    (there / "consolidated.safetensors").write_bytes(b"the same weights in the form of another program")
    with serving(there) as server:
        proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"))
        online = many(
            folder,
            [
                ["--source", "org/tiny"],
                ["--source", "org/tiny", "--revision", COMMIT],
                ["--source", "org/tiny", "--revision", "v9"],
                ["--source", "org/nothing"],
                ["--source", "org/gated"],
                ["--source", "org/tiny.ckpt"],
                ["--source", "there", "--revision", "main"],
                ["--source", "there"],
            ],
            HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}",
            HF_HUB_OFFLINE="0",
            **proxies,
        )
    offline = many(folder, [["--source", "org/tiny"], ["--source", "org/other"]], HF_HUB_OFFLINE="1")
    return folder, server, online, offline


@pytest.mark.parametrize("where", ["0-0", "0-1", "1-0"])
def test_a_model_is_downloaded_once_and_read_like_a_folder(where: str, asked: Any) -> None:
    folder, server, online, offline = asked
    for answer in (*online[:2], online[7], offline[0]):
        assert answer["status"] == 0, answer["errors"]
    ours, theirs = (Checkpoint.read(folder / name / "model.ckpt").content["state_dict"] for name in (where, "0-7"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    fetched = [request.rpartition("/")[2] for request in server.requests if request.startswith("GET /org/tiny/resolve")]
    assert sorted(fetched) == sorted({name for name in server.files if name != "consolidated.safetensors"})


SAID = {
    2: r"org/tiny is not a local file or folder, and the model on the Hub has no revision 'v9'",
    3: r"org/nothing is not a local file or folder, and there is no such model on the Hub, or it is private",
    4: r"org/gated is not a local file or folder, and access to it on the Hub is not granted: ask for it there",
    5: r"org/tiny.ckpt.*does not exist",
    6: r"revision is 'main'; it applies only to a model on the Hub, and there is not one",
}


@pytest.mark.parametrize("call", SAID)
def test_what_the_hub_does_not_give_is_said_in_one_line(call: int, asked: Any) -> None:
    folder, server, online, _ = asked
    assert online[call]["status"] == 2, online[call]
    assert re.search(SAID[call], online[call]["errors"]), online[call]["errors"]
    assert len(online[call]["errors"].strip().splitlines()) == 1
    assert not (folder / f"0-{call}").exists()
    assert not any("tiny.ckpt" in request for request in server.requests)


def test_a_hub_that_cannot_be_reached_is_said_in_one_line(asked: Any) -> None:
    _, _, _, (_, answer) = asked
    assert answer["status"] == 1
    assert answer["errors"].strip().splitlines() == [
        "error: org/other is not a local file or folder, and the Hub cannot be reached (nor is it in the cache of "
        "earlier downloads)"
    ]
