"""Published models on the Hugging Face Hub."""

import re
from pathlib import Path

from lightning_gpt.data.published_tokenizer import FILES
from lightning_gpt.errors import CallError, WorkError
from lightning_gpt.interop.folder import CONFIG, GENERATION, PICKLED, WEIGHTS

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_OF_FILES = {".ckpt", ".safetensors", ".gguf", ".bin"}


def is_hub_id(source: str) -> bool:
    """Whether a source that is no file or folder here has the form ``owner/name`` and not that of a path."""
    path = Path(source)
    return _NAME.fullmatch(source) is not None and path.suffix not in _OF_FILES and not path.parent.exists()


def downloaded(name: str, revision: str | None, pickled: bool) -> Path:
    """The folder of a model in the Hub's cache, downloaded where it is not there yet.

    Args:
        name: ``owner/name``.
        revision: A branch, a tag or a commit; the main branch if None.
        pickled: Whether to download pickled weights, too.

    Raises:
        CallError: There is no such model or revision, or access to it is not granted.
        WorkError: It cannot be downloaded.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    what = f"{name} is not a local file or folder, and "
    weights = [WEIGHTS, PICKLED] if pickled else [WEIGHTS]
    shards = [f"{Path(file).stem}-*{Path(file).suffix}" for file in weights]
    rest = [CONFIG, GENERATION, *FILES, *(f"{file}.index.json" for file in weights)]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[*rest, *weights, *shards]))
    except GatedRepoError:
        raise CallError(
            f"{what}access to it on the Hub is not granted: ask for it there, and log in with hf auth login"
        ) from None
    except RevisionNotFoundError:
        raise CallError(f"{what}the model on the Hub has no revision {revision!r}") from None
    except RepositoryNotFoundError:
        raise CallError(f"{what}there is no such model on the Hub, or it is private: hf auth login") from None
    except HFValidationError as error:
        raise CallError(f"{what}not a name that the Hub allows: {_first_line(error)}") from None
    except LocalEntryNotFoundError:
        raise WorkError(f"{what}the Hub cannot be reached (nor is it in the cache of earlier downloads)") from None
    except Exception as error:  # whatever else the network, the disk and the client of the Hub do
        raise WorkError(f"{what}it cannot be downloaded: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
