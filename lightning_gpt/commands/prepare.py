"""``lightning-gpt prepare``: tokenise the documents of a config's data section into a folder."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_gpt.cluster import connected
from lightning_gpt.commands.data_section import parse_data_call
from lightning_gpt.commands.prepare_progress import ConsoleProgress
from lightning_gpt.data.prepare.duplicates import Threshold
from lightning_gpt.data.sources.base import require_distinct_names
from lightning_gpt.errors import CallError
from lightning_gpt.options import Processes

if TYPE_CHECKING:
    from lightning_gpt.data.datamodule import TextData


def prepare(
    data: "TextData",
    output: str,
    jobs: Processes | None = None,
    remove_duplicates: bool = False,
    near_duplicate_threshold: Threshold | None = 0.8,
    ray: str | None = None,
) -> None:
    """Tokenise all documents of the data section into a folder that training memory-maps.

    Args:
        data: The data section.
        output: The folder to make. If a run is stopped, repeat it with the same settings to resume.
        jobs: Worker processes; one per usable core when omitted. The folder is the same for any number.
        remove_duplicates: Remove training documents that duplicate a validation or test document, or an earlier
            training document. Validation and test documents are kept.
        near_duplicate_threshold: Lowest similarity (0.5 to 0.95) of near duplicates: the Jaccard similarity of the
            documents' sets of five consecutive words. null finds exact duplicates only.
        ray: Tokenise on the Ray cluster at this address: HOST:PORT of its head, or auto. The folder is the same.
    """
    # importing Lightning takes seconds, and run() refuses broken config files first
    from lightning_gpt.console import say
    from lightning_gpt.data.prepare.corpus import prepare_corpus

    require_distinct_names(data.sources)
    folder = Path(output)
    if folder.exists():
        raise CallError(f"output {output!r} exists; choose another folder, or delete it")
    with nullcontext() if ray is None else connected(ray) as cluster:
        prepare_corpus(
            folder,
            data,
            jobs=jobs,
            remove_duplicates=remove_duplicates,
            near_duplicate_threshold=near_duplicate_threshold,
            progress=ConsoleProgress(),
            on=cluster,
        )
    say(f"{folder} is ready; see {folder / 'card.md'} for its contents")


def run(args: list[str]) -> None:
    """Parse ``args`` and prepare the corpus."""
    data, options = parse_data_call(prepare, "prepare", args)
    prepare(data, **options)
