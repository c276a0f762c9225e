"""The data card: a summary of a prepared corpus, for programs (``card.json``) and for people (``card.md``).

It contains no date and no machine name, so the same configuration always gives the same card.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_gpt.data.prepare.duplicates import SHINGLE_WORDS, SPLITS, Duplicate
from lightning_gpt.data.prepare.parts import Limits, PartFile, Tally
from lightning_gpt.data.split import SplitName

_EXAMPLES = 5


def make_card(manifest: Mapping[str, Any], duplicates: Sequence[Duplicate]) -> dict[str, Any]:
    """The card as plain values.

    Args:
        manifest: The content of ``manifest.json``.
        duplicates: All duplicates, in document order.
    """
    config = manifest["config"]
    across = [duplicate for duplicate in duplicates if duplicate.across]
    within = [duplicate for duplicate in duplicates if not duplicate.across]
    return {
        "tokenizer": {name: manifest["tokenizer"][name] for name in ("name", "vocab_size", "fingerprint")},
        "val_share": config["val_share"],
        "test_share": config["test_share"],
        "split_by": config["split_by"],
        "split_digest": manifest["split_digest"],
        "near_duplicate_threshold": config["near_duplicate_threshold"],
        "remove_duplicates": config["remove_duplicates"],
        "sources": [
            {**_without_files(described), "splits": _splits(described["name"], source["parts"], duplicates)}
            for described, source in zip(config["sources"], manifest["sources"], strict=True)
        ],
        "duplicates": [
            {"split": split, "of": of, **_counts(each)}
            for split in SPLITS
            for of in SPLITS
            if (each := [d for d in duplicates if (d.document.split, d.twin.split) == (split, of)])
        ],
        "examples_across_splits": [_example(duplicate) for duplicate in across[:_EXAMPLES]],
        "examples_within_a_split": [_example(duplicate) for duplicate in within[:_EXAMPLES]],
    }


def _without_files(described: Mapping[str, Any]) -> dict[str, Any]:
    """A source's description with the number and total size of its files in place of the files themselves."""
    files = described["files"]
    totals = {"files": len(files), "bytes": sum(file["bytes"] for file in files)}
    return {**{name: value for name, value in described.items() if name != "files"}, **totals}


def _splits(
    source: str, described_parts: Sequence[Mapping[str, Any]], duplicates: Sequence[Duplicate]
) -> dict[SplitName, dict[str, Any]]:
    parts = [PartFile.from_json(part) for part in described_parts]
    splits: dict[SplitName, dict[str, Any]] = {}
    for split in SPLITS:
        tally = sum((part.splits[split] for part in parts), Tally())
        own = [d for d in duplicates if (d.document.source, d.document.split) == (source, split)]
        splits[split] = {**vars(tally), "bytes_per_token": bytes_per_token(tally), **_counts(own)}
    return splits


def bytes_per_token(tally: Tally) -> float | None:
    """Bytes of text per token, not counting the closing <|endoftext|> of each document; None if there is no text."""
    tokens = tally.tokens - tally.documents
    return round(tally.bytes / tokens, 4) if tokens else None


def _counts(duplicates: Sequence[Duplicate]) -> dict[str, int]:
    kinds = Counter(duplicate.exact for duplicate in duplicates)
    return {"exact": kinds[True], "near": kinds[False], "removed": sum(duplicate.removed for duplicate in duplicates)}


def _read_until(limits: Limits) -> str:
    wanted = (f"{limit:,} {split} tokens" for split, limit in limits.items())
    return f", read until it had yielded {', '.join(wanted)}" if limits else ""


def _example(duplicate: Duplicate) -> str:
    kind = "exact" if duplicate.exact else f"near ({duplicate.similarity:.2f})"
    places = (f"{place.origin} ({place.split})" for place in (duplicate.document, duplicate.twin))
    return " ".join(f"{kind}: {' duplicates '.join(places)}".split())


def card_text(card: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    tokenizer, threshold = card["tokenizer"], card["near_duplicate_threshold"]
    near = (
        "No search for near duplicates was made."
        if threshold is None
        else f"Near duplicates: estimated Jaccard similarity of at least {threshold} between the documents' sets of "
        f"{SHINGLE_WORDS} consecutive words."
    )
    removed = (
        "Removed: training documents that duplicate a validation or test document, or an earlier training document."
        if card["remove_duplicates"]
        else "Nothing was removed."
    )
    lines = [
        "# Data card",
        "",
        f"- tokenizer: {tokenizer['name']}, {tokenizer['vocab_size']:,} tokens, `{tokenizer['fingerprint']}`",
        f"- split (split_by {card['split_by']}): {card['val_share']:.1%} validation, {card['test_share']:.1%} test",
        f"- split digest: `{card['split_digest']}`",
        *(
            f"- source {source['name']}: {source['class']} `{json.dumps(source['arguments'], ensure_ascii=False)}`"
            f"{_read_until(source['limits'])}, split by {'position' if source['by_position'] else 'documents'}"
            for source in card["sources"]
        ),
        "",
        "| source | split | documents | tokens | bytes | bytes/token | exact duplicates | near duplicates | removed |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {source['name']} | {split} | {of['documents']:,} | {of['tokens']:,} | {of['bytes']:,} | "
            f"{of['bytes_per_token'] or '–'} | {of['exact']:,} | {of['near']:,} | {of['removed']:,} |"
            for source in card["sources"]
            for split, of in source["splits"].items()
        ),
        "",
        "Each document ends with `<|endoftext|>`, which counts as one of its tokens but not in bytes/token.",
        "",
        "## Duplicates",
        "",
        f"{near} {removed} `duplicates.jsonl` lists every duplicate with the document it duplicates.",
        "",
        "| split | duplicates a document of | exact | near | removed |",
        "| --- | --- | ---: | ---: | ---: |",
        *(
            f"| {pair['split']} | {pair['of']} | {pair['exact']:,} | {pair['near']:,} | {pair['removed']:,} |"
            for pair in card["duplicates"]
        ),
    ]
    for title, name in (("Across splits", "across_splits"), ("Within a split", "within_a_split")):
        examples = [f"- {example}" for example in card[f"examples_{name}"]]
        lines += ["", f"{title} (first {_EXAMPLES}):", "", *(examples or ["- none"])]
    return "\n".join([*lines, ""])
