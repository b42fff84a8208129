"""Normalised texts and hashed word n-grams."""

import re
import unicodedata

import numpy as np
import xxhash
from numpy.typing import NDArray

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")
_WORD = re.compile(r"\w+")


def normalise(text: str) -> str:
    """The text in NFC, with LF line ends, without other control characters than LF and tab, and stripped."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return _CONTROL.sub("", text).strip()


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return _WORD.findall(text.casefold())


def ngrams(text: str, size: int) -> NDArray[np.uint64]:
    """Distinct hashes of the word n-grams; of the whole text if it is shorter.

    Args:
        text: any text.
        size: words in an n-gram, at least 1.

    Returns:
        Sorted 64-bit hashes; empty for a text without words.
    """
    text_words = words(text)
    if not text_words:
        return np.zeros(0, dtype=np.uint64)
    grams = (" ".join(text_words[start : start + size]) for start in range(max(1, len(text_words) - size + 1)))
    return np.unique(np.fromiter((xxhash.xxh3_64_intdigest(gram.encode()) for gram in grams), dtype=np.uint64))
