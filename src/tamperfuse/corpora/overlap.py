"""Prompts that are one prompt in other words: equal, with 13 words in a row in common, or near by a sentence encoder."""

from collections.abc import Iterator, Sequence

import numpy as np

from tamperfuse.corpora.texts import ngrams, words
from tamperfuse.models.encoder import TextEncoder, Vectors
from tamperfuse.records.progress import progress

NEAR_COSINE = 0.9  # from which a prompt is another in other words
GRAM = 13  # words; the n-gram that language models' data are decontaminated with (GPT-3, arXiv 2005.14165, appendix C)
_ROWS = 256


def plain(text: str) -> str:
    """A text's words: two texts that share them are equal but for case, punctuation and white space."""
    return " ".join(words(text)) or text


def distinct(texts: Sequence[str], encoder: TextEncoder) -> list[int]:
    """Indices of texts no two of which are near each other, in their order: of near ones the first stays.

    Args:
        texts: the order decides what stays.
        encoder: looks only at what the cheap tests leave.
    """
    seen: set[str] = set()
    grams: set[int] = set()
    left: list[int] = []
    for index, text in enumerate(texts):
        own = _grams(text)
        if plain(text) not in seen and grams.isdisjoint(own):
            left.append(index)
            grams.update(own)
        seen.add(plain(text))
    if not left:
        return []
    vectors, kept = np.concatenate(list(_encoded(left, texts, encoder))), np.zeros(len(left), dtype=bool)
    for row in range(len(left)):
        kept[row] = not (vectors[:row][kept[:row]] @ vectors[row] >= NEAR_COSINE).any()
    return [index for index, stays in zip(left, kept, strict=True) if stays]


def near(texts: Sequence[str], others: Sequence[str], encoder: TextEncoder) -> dict[int, tuple[str, str]]:
    """Texts that are near one of the others.

    Args:
        texts: to be looked at.
        others: what they must be apart from.
        encoder: looks only at what the cheap tests leave.

    Returns:
        By index of a text: the other that it is near, and how ("exact", "13-gram" or "cosine 0.93").
    """
    exact = {plain(text): text for text in others}
    shingles = {gram: text for text in others for gram in _grams(text)}
    found: dict[int, tuple[str, str]] = {}
    for index, text in enumerate(texts):
        if plain(text) in exact:
            found[index] = exact[plain(text)], "exact"
        elif (shared := next((gram for gram in _grams(text) if gram in shingles), None)) is not None:
            found[index] = shingles[shared], f"{GRAM}-gram"
    left = [index for index in range(len(texts)) if index not in found]
    if not left or not others:
        return found
    against = encoder.encode(list(others))
    indices = iter(left)
    for vectors in _encoded(left, texts, encoder):
        for cosine in vectors @ against.T:
            index, nearest = next(indices), int(cosine.argmax())
            if cosine[nearest] >= NEAR_COSINE:
                found[index] = others[nearest], f"cosine {float(cosine[nearest]):.2f}"
    return found


def _encoded(indices: Sequence[int], texts: Sequence[str], encoder: TextEncoder) -> Iterator[Vectors]:
    """Vectors of those texts, some rows at a time, so that a table of cosines stays small."""
    with progress("comparing prompts", len(indices)) as advance:
        for start in range(0, len(indices), _ROWS):
            block = indices[start : start + _ROWS]
            yield encoder.encode([texts[index] for index in block])
            advance(len(block))


def _grams(text: str) -> list[int]:
    return [int(gram) for gram in ngrams(text, GRAM)] if len(words(text)) >= GRAM else []
