"""``lightning-gpt tokenizer``: train a vocabulary on the training documents of a config's data section."""

from pathlib import Path
from typing import TYPE_CHECKING

from lightning_gpt.commands.call import refuse_unread_flags, require_output
from lightning_gpt.commands.data_section import parse_data_call
from lightning_gpt.data.prepare.card import bytes_per_token
from lightning_gpt.data.prepare.parts import Tally
from lightning_gpt.data.tokenizer import TrainedVocabSize
from lightning_gpt.errors import CallError
from lightning_gpt.whole_file import create_output, write_file

if TYPE_CHECKING:
    from lightning_gpt.data.datamodule import TextData


def tokenizer(data: "TextData", vocab_size: TrainedVocabSize, output: str) -> None:
    """Train a byte-level BPE vocabulary as fit does and write it to OUTPUT/bpe-N.tiktoken, for use as data.tokenizer.

    Of the data section, only sources, val_share, test_share and split_by matter.

    Args:
        data: The data section.
        vocab_size: Number of tokens, at least 257 (the 256 bytes and <|endoftext|>).
        output: Folder for the file.
    """
    from lightning_gpt.data.datamodule import TextData

    require_output(output)
    file = Path(output) / f"bpe-{vocab_size}.tiktoken"
    if file.exists():
        raise CallError(f"{file} exists; choose another output, or delete it")
    training = TextData(
        data.configured,
        tokenizer=vocab_size,
        val_share=data.val_share,
        test_share=data.test_share,
        split_by=data.split_by,
    )
    training.setup("tokenizer")
    trained = training.tokenizer
    smaller = file.with_name(f"{trained.name}.tiktoken")
    if smaller != file and smaller.exists():
        raise CallError(f"the text yields only {trained.vocab_size:,} tokens, and {smaller} exists; delete it first")
    file = smaller
    create_output(output)
    write_file(file, trained.table.encode())
    tally = Tally()
    for text in training.texts("val"):
        tally += Tally(1, len(trained.encode(text)) + 1, len(text.encode("utf-8", "surrogatepass")))
    measured = (
        f"{bytes_per_token(tally):.3f} bytes per token on {tally.documents:,} validation documents"
        if tally.bytes
        else "no validation documents to measure bytes per token on"
    )
    print(f"{file}: {trained.vocab_size:,} tokens, {measured}")


def run(args: list[str]) -> None:
    """Parse ``args`` and train the vocabulary."""
    data, options = parse_data_call(tokenizer, "tokenizer", args)
    refuse_unread_flags(args, "tokenizer")
    tokenizer(data, **options)
