"""Duplicates: the signatures are those of the definition, planted pairs are found, and the rule is kept."""

import random
from zlib import crc32

import numpy as np
import pytest
from datasketch import MinHash
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gpt.data.prepare.duplicates import (
    PERMUTATIONS,
    SHINGLE_WORDS,
    Finding,
    find_duplicates,
    signatures,
    text_hashes,
)

TRAIN, VAL = True, False


def shingles(text: str) -> set[int]:
    """The definition, in whole numbers: five words' hashes, mixed; a shorter text is one shingle, filled up."""
    words = [crc32(word) for word in text.encode().lower().split()]
    words += [0] * (SHINGLE_WORDS - len(words))
    hashed = set()
    for start in range(len(words) - SHINGLE_WORDS + 1):
        total = 0
        for word in words[start : start + SHINGLE_WORDS]:
            total = (total + word) * 0x9E3779B97F4A7C15 % 2**64
        hashed.add(total >> 32)
    return hashed


def words(count: int, seed: int) -> list[str]:
    return random.Random(seed).choices([f"word{number}" for number in range(5000)], k=count)


def varied(text: list[str], changes: int, seed: int) -> str:
    """The text with some words replaced, each of which changes five shingles."""
    changed = list(text)
    for position in random.Random(seed).sample(range(len(text)), changes):
        changed[position] = f"other{position}"
    return " ".join(changed)


@settings(max_examples=30)
@given(texts=st.lists(st.text(alphabet="aB \nä", max_size=60), min_size=1, max_size=6))
def test_signatures_are_the_smallest_permuted_shingles(texts: list[str]) -> None:
    a, b = MinHash(PERMUTATIONS, seed=1, scheme="affine32").permutations.tolist()
    expected = [
        [min((shingle * x + y) % 2**32 for shingle in shingles(text)) for x, y in zip(a, b, strict=True)]
        for text in texts
    ]
    assert signatures([text.encode() for text in texts]).tolist() == expected


def test_signatures_agree_as_often_as_the_sets_do() -> None:
    base = words(400, 0)
    errors = []
    for changes in range(0, 60, 2):
        other = varied(base, changes, changes)
        one, two = shingles(" ".join(base)), shingles(other)
        signed = signatures([" ".join(base).encode(), other.encode()])
        errors.append((signed[0] == signed[1]).mean() - len(one & two) / len(one | two))
    assert abs(np.mean(errors)) < 0.03, "no bias"
    assert np.std(errors) < 1.5 * 0.5 / PERMUTATIONS**0.5


def find(texts: list[str], in_train: list[bool], threshold: float | None = 0.8) -> list[Finding]:
    encoded = [text.encode() for text in texts]
    signed = None if threshold is None else signatures(encoded)
    return find_duplicates(text_hashes(encoded), np.array(in_train), signed, threshold)


def test_planted_duplicates_are_found_and_nothing_else() -> None:
    texts = [" ".join(words(200, seed)) for seed in range(300)]
    in_train = [seed % 10 != 0 for seed in range(300)]  # every tenth is for validation
    near = varied(texts[20].split(), 1, 1), varied(texts[31].split(), 2, 1), varied(texts[40].split(), 1, 2)
    texts[5] = near[0]  # of train, before its twin of val
    texts[205] = texts[203]
    texts[207] = near[1]
    texts[100] = near[2]  # of val, as its twin is
    assert [(f.document, f.twin, f.exact) for f in find(texts, in_train)] == [
        (5, 20, False),
        (100, 40, False),
        (205, 203, True),
        (207, 31, False),
    ]
    assert [(f.document, f.twin) for f in find(texts, in_train, threshold=None)] == [(205, 203)]


def test_similarity_is_near_the_true_one() -> None:
    base = words(300, 0)
    other = varied(base, 3, 0)
    (finding,) = find([" ".join(base), other], [TRAIN, TRAIN])
    one, two = shingles(" ".join(base)), shingles(other)
    assert finding.similarity == pytest.approx(len(one & two) / len(one | two), abs=0.08)


def test_a_train_document_names_its_twin_of_validation_before_one_of_train() -> None:
    base = words(200, 0)
    texts = [" ".join(base), varied(base, 1, 1), varied(base, 1, 2), varied(base, 1, 3)]
    found = find(texts, [TRAIN, TRAIN, TRAIN, VAL])
    assert [(f.document, f.twin) for f in found] == [(0, 3), (1, 3), (2, 3)]


def test_a_chain_keeps_what_resembles_only_what_is_gone() -> None:
    """B is near A and goes; C is near B alone and stays."""
    base = words(200, 0)
    texts = [" ".join(base[n : 200 - 20 + n]) for n in (0, 10, 20)]
    found = find(texts, [TRAIN] * 3, threshold=0.85)
    assert [(f.document, f.twin) for f in found] == [(1, 0)]


def test_many_copies_are_one_finding_each() -> None:
    base = words(400, 0)
    variants = [" ".join([*base[:at], "other", *base[at + 1 :]]) for at in range(100)]
    texts = [*variants, *[" ".join(base)] * 50]
    found = find(texts, [TRAIN] * 150)
    assert [f.document for f in found] == [*range(1, 100), *range(100, 150)]
    assert {f.twin for f in found if not f.exact} == {0}
    assert {f.twin for f in found if f.exact} == {100}


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
def test_thresholds_within_range_find_a_copy_with_other_spaces(threshold: float) -> None:
    text = words(200, 0)
    assert len(find([" ".join(text), "\n".join(text).upper()], [TRAIN, TRAIN], threshold)) == 1
