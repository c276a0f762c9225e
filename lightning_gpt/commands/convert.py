"""``lightning-gpt convert``: published models in and out, and checkpoints as one file."""

from pathlib import Path

from lightning_gpt.checkpoint import Checkpoint
from lightning_gpt.checkpoint_folder import is_folder
from lightning_gpt.checkpoint_name import located
from lightning_gpt.commands.call import parse_function_call, refuse_unused
from lightning_gpt.consolidated import consolidate as as_one_file
from lightning_gpt.consolidated import from_consolidated
from lightning_gpt.errors import CallError
from lightning_gpt.interop.adapters import into_adapters
from lightning_gpt.interop.convert import PublishedModel, into_checkpoint, into_folder
from lightning_gpt.interop.convert import merge as merged
from lightning_gpt.interop.folder import CONFIG, Folder
from lightning_gpt.interop.gguf_file import GgufFile
from lightning_gpt.interop.hub import downloaded, is_hub_id
from lightning_gpt.options import Positive

_USED = {
    "merge": set(),
    "consolidate": set(),
    "adapters_for": {"compare", "tolerance"},
    "a published model": {"tokenizer", "pickled", "compare", "tolerance", "revision", "custom_code"},
    "a .gguf file": {"tokenizer", "compare", "tolerance", "custom_code"},
    "a checkpoint": {"family", "tokenizer", "compare", "tolerance", "shard_size", "custom_code"},
}
"""What each form of the command reads of its other options."""
_COMPARING: dict[str, set[str]] = {"compare true": {"tolerance"}, "compare false": set()}
"""What is read of them with and without a comparison of logits."""


def convert(
    source: str,
    output: str,
    family: str | None = None,
    tokenizer: bool = True,
    pickled: bool = False,
    compare: bool = True,
    tolerance: Positive = 1e-4,
    shard_size: str = "5GB",
    revision: str | None = None,
    custom_code: bool = False,
    consolidate: bool = False,
    merge: bool = False,
    adapters_for: str | None = None,
) -> None:
    """Convert a published model into a checkpoint, or a checkpoint into a folder in Hugging Face's layout.

    With ``--consolidate true``, a checkpoint, a layout's folder too, becomes one safetensors file, and such a file a
    checkpoint folder again.

    Args:
        source: A folder with config.json and model.safetensors (also in shards), a .gguf file of a Llama or Qwen model,
            or a checkpoint of this package. What is none of these here and has the form owner/name is looked for on the
            Hub.
        output: The folder to make; it must not exist.
        family: What to write a checkpoint as, such as llama; the first family that expresses it when omitted.
        tokenizer: Whether to convert the tokenizer, too.
        pickled: Whether weights may be read from pytorch_model.bin, a format that can hold code; none is run.
        compare: Whether to compare the logits with those that transformers computes before anything is written.
        tolerance: Largest difference of two logits, as a share of the largest logit.
        shard_size: Largest file of weights of a folder that is written; a larger model becomes several, with an index.
        revision: Branch, tag or commit of a model on the Hub; its main branch when omitted.
        custom_code: Whether a model that no family expresses goes out with modelling code of its own, and whether such
            code in a folder may be run to compare logits.
        consolidate: Whether to write a checkpoint as the one file output, with everything that a resume needs, or a
            .safetensors file made like that as the checkpoint folder output.
        merge: Whether to write a checkpoint of a run with model.lora as a plain checkpoint, with the adapters merged
            into its weights.
        adapters_for: The folder of the published model that such a run started from: writes the adapters alone, as a
            folder that peft puts on that model.
    """
    given = dict(locals())
    path, allowed = Path(source), tolerance if compare else None
    if Path(output).exists():
        raise CallError(f"{output} exists; choose another output, or delete it")
    forms = [("merge", merge), ("consolidate", consolidate), ("adapters_for", adapters_for is not None)]
    asked = [form for form, is_asked in forms if is_asked]
    if len(asked) > 1:
        raise CallError("merge, consolidate and adapters_for each write something else: give one of them")
    if asked:
        refuse_unused(convert, given, _USED, asked[0])
    refuse_unused(convert, given, _COMPARING, f"compare {str(compare).lower()}")
    if merge or adapters_for is not None:
        read = Checkpoint.read(path)
        base = None if adapters_for is None else Path(adapters_for)
        for line in merged(read, Path(output)) if base is None else into_adapters(read, base, Path(output), allowed):
            print(line)
        return
    if consolidate:
        (from_consolidated if path.suffix == ".safetensors" else as_one_file)(path, output)
        print(f"{output} holds all of {source}")
        return
    if not path.exists() and is_hub_id(source):
        path = downloaded(source, revision, pickled)
    elif revision is not None:
        raise CallError(f"revision is {revision!r}; it applies only to a model on the Hub, and {source} is not one")
    path = path if (path / CONFIG).is_file() else located(path)
    if (path.is_dir() and not is_folder(path)) or path.suffix == ".gguf":
        refuse_unused(convert, given, _USED, "a published model" if path.is_dir() else "a .gguf file")
        published: PublishedModel = Folder(path, pickled) if path.is_dir() else GgufFile(path)
        lines = into_checkpoint(published, Path(output), tokenizer, allowed, custom_code)
    else:
        refuse_unused(convert, given, _USED, "a checkpoint")
        lines = into_folder(Checkpoint.read(path), Path(output), family, allowed, shard_size, custom_code, tokenizer)
    for line in lines:
        print(line)


def run(args: list[str]) -> None:
    """Parse ``args`` and convert."""
    convert(**parse_function_call(convert, "convert", args))
