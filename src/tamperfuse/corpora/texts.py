"""Normalised texts and hashed word n-grams."""

import re
import unicodedata
from functools import cache

import numpy as np
import xxhash
from numpy.typing import NDArray

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")
_MARK_RANGE = range(0x300, 0x1F000)  # every combining mark but the variation selectors above U+E0100 is in it
_WORD = re.compile(r"\w+")


def normalise(text: str) -> str:
    """The text in NFC, with LF line ends, without other control characters than LF and tab, and stripped."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return _CONTROL.sub("", text).strip()


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation.

    Combining marks belong to the word that they follow: the vowel signs of Hindi, Bengali or Tamil and the tone marks of Thai
    distinguish words. Composed and decomposed letters (NFC and NFD) are equal.
    """
    if text.isascii():
        return _WORD.findall(text.lower())
    text = unicodedata.normalize("NFC", text.casefold())
    if _combining_marks().isdisjoint(text):
        return _WORD.findall(text)
    return _word_with_marks().findall(text)


@cache
def _combining_marks() -> frozenset[str]:
    """The characters of the Unicode categories M*."""
    return frozenset(chr(code) for code in _MARK_RANGE if unicodedata.category(chr(code)).startswith("M"))


@cache
def _word_with_marks() -> re.Pattern[str]:
    """A word in which combining marks may follow the first letter; six times slower than :data:`_WORD`."""
    return re.compile(rf"\w[\w{''.join(sorted(_combining_marks()))}]*")


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
