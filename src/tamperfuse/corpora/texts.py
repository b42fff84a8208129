"""Normal form of a text, and its hashed word n-grams."""

import re
import unicodedata

import numpy as np
import xxhash
from numpy.typing import NDArray

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")
_WORD = re.compile(r"\w+")


def normalise(text: str) -> str:
    """NFC, line ends as LF, no control characters but LF and tab, no surrounding white space."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return _CONTROL.sub("", text).strip()


def words(text: str) -> list[str]:
    """Words, lower case, without punctuation: what two texts share if they differ in layout only."""
    return _WORD.findall(text.casefold())


def ngrams(text: str, size: int) -> NDArray[np.uint64]:
    """Distinct hashes of the word n-grams; of the whole text where it is shorter.

    Args:
        text: any text.
        size: words an n-gram, at least 1.

    Returns:
        Sorted 64-bit hashes; empty for a text without words.
    """
    found = words(text)
    if not found:
        return np.zeros(0, dtype=np.uint64)
    grams = (" ".join(found[at : at + size]) for at in range(max(1, len(found) - size + 1)))
    return np.unique(np.fromiter((xxhash.xxh3_64_intdigest(gram.encode()) for gram in grams), dtype=np.uint64))
