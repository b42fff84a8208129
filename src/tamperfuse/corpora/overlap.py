"""Near-duplicate prompts: the same words, 13 consecutive words in common, or a high cosine under a sentence encoder.

The default encoder is an English one: it gives texts in other scripts nearly equal vectors (all Thai texts have a cosine of 1).
Of such texts its cosine says nothing, and only the words are compared; a multilingual encoder compares all.
"""

import logging
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from tamperfuse.corpora.texts import ngrams, words
from tamperfuse.models.encoder import DEFAULT_ENCODER, TextEncoder, Vectors
from tamperfuse.records.progress import progress

log = logging.getLogger("tamperfuse")

NEAR_COSINE = 0.9  # cosine from which two prompts count as near-duplicates
GRAM = 13  # words; the n-gram of GPT-3's decontamination (arXiv 2005.14165, appendix C)
_ROWS = 256


def plain(text: str) -> str:
    """The words of a text as one string: equal for texts that differ in case, punctuation or white space only."""
    return " ".join(words(text)) or text


def distinct(texts: Sequence[str], encoder: TextEncoder) -> list[int]:
    """Indices of texts without near-duplicates, ascending: of near-duplicates, the first text stays.

    Args:
        texts: their order decides which ones stay.
        encoder: encodes each text once, of those that differ in case, punctuation or white space only the first.
    """
    first: dict[str, int] = {}
    for index, text in enumerate(texts):
        first.setdefault(plain(text), index)
    candidates = list(first.values())
    if not candidates:
        return []
    vectors = np.concatenate(list(_encode_in_blocks(candidates, texts, encoder)))
    comparable = _comparable([texts[index] for index in candidates], encoder)
    compared = np.empty_like(vectors)  # of the texts that stay, so far
    count, stay, grams_that_stay = 0, [], set[int]()
    for index, vector, is_comparable in zip(candidates, vectors, comparable, strict=True):
        grams = _grams(texts[index])
        is_near = is_comparable and (compared[:count] @ vector >= NEAR_COSINE).any()
        if is_near or not grams_that_stay.isdisjoint(grams):
            continue
        stay.append(index)
        grams_that_stay.update(grams)
        if is_comparable:
            compared[count], count = vector, count + 1
    return stay


def near(texts: Sequence[str], others: Sequence[str], encoder: TextEncoder) -> dict[int, tuple[str, str]]:
    """Texts that are near-duplicates of one of the others.

    Args:
        texts: the texts to check.
        others: the texts to compare them with.
        encoder: encodes only the texts that the cheaper tests did not find.

    Returns:
        For the index of a near-duplicate: the other text, and the reason ("exact", "13-gram" or "cosine 0.93").
    """
    exact = {plain(text): text for text in others}
    shingles = {gram: text for text in others for gram in _grams(text)}
    duplicates: dict[int, tuple[str, str]] = {}
    for index, text in enumerate(texts):
        if plain(text) in exact:
            duplicates[index] = exact[plain(text)], "exact"
        elif (shared := next((gram for gram in _grams(text) if gram in shingles), None)) is not None:
            duplicates[index] = shingles[shared], f"{GRAM}-gram"
    remaining = [index for index in range(len(texts)) if index not in duplicates]
    if not remaining or not others:
        return duplicates
    compared = [text for text, usable in zip(others, _comparable(others, encoder), strict=True) if usable]
    remaining = [
        index
        for index, usable in zip(remaining, _comparable([texts[index] for index in remaining], encoder), strict=True)
        if usable
    ]
    if not remaining or not compared:
        return duplicates
    against = encoder.encode(compared)
    indices = iter(remaining)
    for vectors in _encode_in_blocks(remaining, texts, encoder):
        for cosine in vectors @ against.T:
            index, nearest = next(indices), int(cosine.argmax())
            if cosine[nearest] >= NEAR_COSINE:
                duplicates[index] = compared[nearest], f"cosine {float(cosine[nearest]):.2f}"
    return duplicates


def _comparable(texts: Sequence[str], encoder: TextEncoder) -> NDArray[np.bool_]:
    """Whether the encoder can compare each text: the default one only texts whose letters are mostly Latin.

    The number of the others is logged.
    """
    if encoder.name != DEFAULT_ENCODER:
        return np.ones(len(texts), dtype=np.bool_)
    comparable = np.array([_is_latin(text) for text in texts], dtype=np.bool_)
    if not comparable.all():
        log.warning(
            "%s of %s prompts are in a script that the English encoder %s cannot compare: their near-duplicates are found by "
            "equal words only.",
            f"{int((~comparable).sum()):,}",
            f"{len(texts):,}",
            encoder.name,
        )
    return comparable


def _is_latin(text: str) -> bool:
    """Whether at least half of the letters of a text are Latin, or it has none."""
    if text.isascii():
        return True
    letters = [char for char in text if char.isalpha()]
    latin = sum(char.isascii() or unicodedata.name(char, "").startswith("LATIN ") for char in letters)
    return 2 * latin >= len(letters)


def _encode_in_blocks(indices: Sequence[int], texts: Sequence[str], encoder: TextEncoder) -> Iterator[Vectors]:
    """Vectors of the texts at these indices, in blocks, so that a table of cosines stays small."""
    with progress("comparing prompts", len(indices)) as advance:
        for start in range(0, len(indices), _ROWS):
            block = indices[start : start + _ROWS]
            yield encoder.encode([texts[index] for index in block])
            advance(len(block))


def _grams(text: str) -> list[int]:
    return [int(gram) for gram in ngrams(text, GRAM)] if len(words(text)) >= GRAM else []
