"""Tiny models on a shelf, the application over them, and its answers read back."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI

from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.exploring.app import create_explorer
from lightning_gpt.exploring.looking import Passes
from lightning_gpt.exploring.shelf import Explored, Shelf
from lightning_gpt.models import GPT, GPTConfig, LanguageModel, SingleHeadConfig, SingleHeadModel
from lightning_gpt.serving.server import listening_socket
from tests.models.helpers import randomise

TEXT = "the city was"
OTHER = "the lake was"
LONG_NAME = "a-study-of-depth-and-width/cells/n_layer=2,n_head=4,dim=32,seed=0"


def tokenizer() -> Tokenizer:
    return Tokenizer("bytes", {bytes([b]): b for b in range(256)})


def gpt(seed: int = 0, **changes: Any) -> GPT:
    """Two layers of four heads, of which two share keys and values."""
    sizes: dict[str, Any] = {"n_layer": 2, "n_head": 4, "dim": 32, "block_size": 64, "vocab_size": 257}
    config = GPTConfig(**{**sizes, "attention": {"kind": "grouped", "n_kv_head": 2}, **changes})
    return randomise(GPT(config), seed=seed).eval()


def single_head() -> SingleHeadModel:
    return randomise(SingleHeadModel(SingleHeadConfig(dim=16, block_size=16, vocab_size=257))).eval()


def passes_of(*models: LanguageModel, longest: int = 40) -> Passes:
    names = [f"runs/{LONG_NAME}/version_{number}" for number in range(len(models))]
    return Passes(Shelf(names, lambda n: Explored(names[n], f"model = models[{n}]", models[n], tokenizer())), longest)


def app_of(*models: LanguageModel, longest: int = 40) -> FastAPI:
    return create_explorer(passes_of(*models, longest=longest), TEXT)


def unpacked(reply: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The JSON and the arrays of an answer."""
    length = int.from_bytes(reply[:4], "little")
    content = json.loads(reply[4 : 4 + length])
    arrays = {}
    for name, place in content.pop("arrays").items():
        kind, count = np.dtype(place["type"]), int(np.prod(place["shape"]))
        flat = np.frombuffer(reply, kind, count, 4 + length + place["start"])
        arrays[name] = flat.reshape(place["shape"])
    return content, arrays


def ids_of(text: str) -> torch.Tensor:
    return torch.from_numpy(tokenizer().encode(text)).long()[None]


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The application on a free port of this machine, in a thread."""
    bound = listening_socket("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()
