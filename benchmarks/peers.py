"""The projects that are compared, each built and trained with its own code.

Each builder imports its project when called. Sizes, tied weights and biases are the same wherever a project allows it.
The exceptions: minGPT does not tie its embeddings, and litgpt has rotary positions on a quarter of each head.
"""

import contextlib
import importlib.util
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from benchmarks.subject import Generate, Loss, Subject
from benchmarks.workload import Spec
from lightning_gpt.errors import CallError
from lightning_gpt.kept_memory import freed_memory_kept
from lightning_gpt.models import GPT, GPTConfig, LanguageModel
from lightning_gpt.models.decoding.int8 import int8
from lightning_gpt.training.compiling import CompiledBlocks
from lightning_gpt.training.optim import adamw
from lightning_gpt.training.step_graph import StepGraph

LR, WEIGHT_DECAY, BETAS = 3e-4, 0.1, (0.9, 0.95)

NANO_GPT_FILE, MIN_GPT_FILE = "nanoGPT/model.py", "minGPT/mingpt/model.py"
"""Paths below ``--peer_dir`` of the projects that are not on a package index."""


def build(spec: Spec) -> Subject:
    """The model and optimizer that ``spec`` describes."""
    torch.manual_seed(0)
    with torch.device(spec.device):
        return PROJECTS[spec.project](spec)


def missing(project: str, peer_dir: str | None) -> str | None:
    """Why ``project`` cannot be built in this process, in a few words; None if it can."""
    package = {"Hugging Face": "transformers", "litgpt": "litgpt"}.get(project)
    if package is not None and importlib.util.find_spec(package) is None:
        more = ", or give --litgpt_python, the Python of an environment that has it" if package == "litgpt" else ""
        return f"{package} is not installed (pip install {package}{more})"
    file = {"nanoGPT": NANO_GPT_FILE, "minGPT": MIN_GPT_FILE}.get(project)
    if file is not None and peer_dir is None:
        return f"--peer_dir is not given: a folder that contains {file}"
    if file is not None and not Path(str(peer_dir), file).is_file():
        return f"{Path(str(peer_dir), file)} does not exist"
    return None


def ours(spec: Spec) -> Subject:
    """:class:`lightning_gpt.GPT` with the fused loss, AdamW as ``fit`` makes it, and the KV cache.

    On a CPU its steps keep freed memory, as in ``fit``; those of other projects do not.
    """
    model = gpt(spec)
    loss = _compiled_loss(model) if spec.compiled else model.loss
    around = freed_memory_kept if spec.device == "cpu" else None
    return Subject(spec, model, adamw(model, LR, WEIGHT_DECAY, BETAS), loss, greedy(model), around)


def _compiled_loss(model: GPT) -> Loss:
    """The loss as ``fit`` computes it on a GPU: compiled blocks, and on CUDA their step as a graph."""
    blocks = CompiledBlocks(model)
    captured = StepGraph(model) if model.unembedding.is_cuda else None

    def loss(ids: Tensor, targets: Tensor) -> Tensor:
        with blocks.training():
            return model.loss(ids, targets) if captured is None else captured.loss(ids, targets, None, z_loss=0.0)

    return loss


def ours_rounded(spec: Spec, precision: Literal["bf16", "int8"]) -> Subject:
    """Our model as ``lightning-gpt generate --precision`` runs it, for generation only."""
    torch.manual_seed(0)
    with torch.device(spec.device):
        model = gpt(spec)
        rounded = int8(model) if precision == "int8" else model.bfloat16()
    return Subject(spec, rounded, None, rounded.loss, greedy(rounded))


def greedy(model: LanguageModel) -> Generate:
    """How our models continue prompts here."""
    return lambda prompts, new_tokens: model.generate(prompts, new_tokens, temperature=0)


def gpt(spec: Spec) -> GPT:
    """Our model without an optimizer."""
    work = spec.workload
    config = GPTConfig(
        n_layer=spec.n_layer,
        n_head=work.n_head,
        dim=work.dim,
        block_size=work.time,
        vocab_size=work.vocab_size,
        **spec.options,
    )
    return GPT(config)


def nano_gpt(spec: Spec) -> Subject:
    """nanoGPT's ``model.py``: ``forward`` with targets, ``configure_optimizers``, ``generate`` without a cache."""
    module = _module_at(Path(str(spec.peer_dir), NANO_GPT_FILE))
    work = spec.workload
    with _quiet():
        model = module.GPT(
            module.GPTConfig(
                block_size=work.time,
                vocab_size=work.vocab_size,
                n_layer=spec.n_layer,
                n_head=work.n_head,
                n_embd=work.dim,
                dropout=0.0,
                bias=True,
            )
        )
        optimizer = model.configure_optimizers(WEIGHT_DECAY, LR, BETAS, spec.device)
    run = torch.compile(model) if spec.compiled else model
    return Subject(spec, model, optimizer, lambda ids, targets: run(ids, targets)[1], model.generate)


def min_gpt(spec: Spec) -> Subject:
    """minGPT's ``mingpt`` package: ``forward`` with targets and ``configure_optimizers``."""
    folder = str(Path(str(spec.peer_dir), MIN_GPT_FILE).parents[1])
    with _importable(folder):
        module, utils = importlib.import_module("mingpt.model"), importlib.import_module("mingpt.utils")
    work = spec.workload
    config = module.GPT.get_default_config()
    config.merge_from_dict(
        {
            "model_type": None,
            "n_layer": spec.n_layer,
            "n_head": work.n_head,
            "n_embd": work.dim,
            "vocab_size": work.vocab_size,
            "block_size": work.time,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "attn_pdrop": 0.0,
        }
    )
    with _quiet():
        model = module.GPT(config)
    optimizer = model.configure_optimizers(utils.CfgNode(weight_decay=WEIGHT_DECAY, learning_rate=LR, betas=BETAS))
    return Subject(spec, model, optimizer, lambda ids, targets: model(ids, targets)[1], None)


def hugging_face(spec: Spec) -> Subject:
    """transformers' ``GPT2LMHeadModel``: its loss, the fused AdamW of its Trainer, ``generate`` with its cache."""
    from transformers import GPT2Config, GPT2LMHeadModel

    work = spec.workload
    config = GPT2Config(
        vocab_size=work.vocab_size,
        n_positions=work.time,
        n_embd=work.dim,
        n_layer=spec.n_layer,
        n_head=work.n_head,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), LR, BETAS, weight_decay=WEIGHT_DECAY, fused=True)

    def loss(ids: Tensor, targets: Tensor) -> Tensor:
        found: Tensor = model(input_ids=ids, labels=targets, shift_labels=targets, use_cache=False).loss
        return found

    def generate(prompts: Tensor, new_tokens: int) -> object:
        mask = torch.ones_like(prompts)
        length = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
        return model.generate(prompts, attention_mask=mask, do_sample=False, pad_token_id=0, **length)

    return Subject(spec, model, optimizer, loss, generate)


def litgpt(spec: Spec) -> Subject:
    """litgpt's ``GPT`` and the loss and optimizer of its ``pretrain``; no project is compiled."""
    module, utils = importlib.import_module("litgpt.model"), importlib.import_module("litgpt.utils")
    work = spec.workload
    config = module.Config(
        block_size=work.time,
        vocab_size=work.vocab_size,
        padded_vocab_size=work.vocab_size,
        n_layer=spec.n_layer,
        n_head=work.n_head,
        n_embd=work.dim,
        parallel_residual=False,
    )
    model = module.GPT(config)
    model.transformer.wte.weight = model.lm_head.weight  # pretrain's train.tie_embeddings
    optimizer = utils.instantiate_torch_optimizer(
        "AdamW", model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY, betas=BETAS, fused=spec.device == "cuda"
    )
    return Subject(spec, model, optimizer, lambda ids, targets: utils.chunked_cross_entropy(model(ids), targets), None)


PROJECTS: dict[str, Callable[[Spec], Subject]] = {
    "ours": ours,
    "nanoGPT": nano_gpt,
    "minGPT": min_gpt,
    "Hugging Face": hugging_face,
    "litgpt": litgpt,
}
"""Every project by its name in tables."""


def _module_at(file: Path) -> ModuleType:
    """Import ``file`` by its path, because several projects have a ``model.py``."""
    found = importlib.util.spec_from_file_location(f"{file.parent.name}_{file.stem}", file)
    if found is None or found.loader is None:
        raise CallError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # dataclasses look up their module there
    try:
        found.loader.exec_module(module)
    except (ImportError, SyntaxError) as error:
        raise CallError(f"{file} cannot be imported: {type(error).__name__}: {error}") from None
    return module


@contextlib.contextmanager
def _importable(folder: str) -> Iterator[None]:
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _quiet() -> contextlib.redirect_stdout[io.StringIO]:
    """Hide what a project prints while it is built."""
    return contextlib.redirect_stdout(io.StringIO())
