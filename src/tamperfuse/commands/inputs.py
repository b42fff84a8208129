"""What the Python interface takes in place of a source's name: texts, pairs, and several sources."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from tamperfuse.corpora.examples import Example, Pair
from tamperfuse.corpora.sources import clean_text, read_source
from tamperfuse.pairing import PairSet, read_pairs
from tamperfuse.records.errors import UserError, shown


def examples_of(texts: str | Path | Iterable[str], field: str) -> list[Example]:
    """The rows of a source, or of texts.

    Args:
        texts: a source, of a threat its defender part, or the texts.
        field: which the texts fill, "prompt" or "response".

    Raises:
        UserError: the source cannot be read, or an entry is no text.
    """
    if isinstance(texts, str | Path):
        return list(read_source(str(texts), part="defender" if field == "prompt" else None))
    if not isinstance(texts, Iterable):
        raise UserError(f"{shown(repr(texts))} holds no {field}s: give a source, or the texts.")
    entries = list(texts)
    for number, text in enumerate(entries, 1):
        if not isinstance(text, str):
            raise UserError(f"{field.capitalize()} {number} is {shown(text)}, not text: give texts, or a source.")
    return [Example(**{"prompt": "", "response": "", field: clean_text(text)}) for text in entries]


def pairs_of(pairs: PairSet | Sequence[Pair] | Path | str | None) -> Sequence[Pair] | None:
    """SDD pairs: of a set, of a list, or of the folder that `tamperfuse pair` wrote; None for None.

    Raises:
        UserError: they are something else, or the folder cannot be read.
    """
    if isinstance(pairs, str | Path):
        return read_pairs(Path(pairs))
    if isinstance(pairs, PairSet):
        return pairs.pairs
    if pairs is None:
        return None
    if isinstance(pairs, Sequence) and not pairs:
        raise UserError("pairs: the list is empty. Leave it out to draw pairs from the built-in responses.")
    if isinstance(pairs, Sequence) and all(isinstance(pair, Pair) for pair in pairs):
        return [pair for pair in pairs if isinstance(pair, Pair)]
    raise UserError("pairs: give what tamperfuse.pair returned, its pairs, or the folder of `tamperfuse pair`.")


def source_names(sources: str | Path | Sequence[str | Path]) -> list[str]:
    """The names of one source or of several.

    Raises:
        UserError: it is neither.
    """
    if isinstance(sources, str | Path):
        return [str(sources)]
    if not isinstance(sources, Sequence):
        raise UserError(f"{shown(repr(sources))} is no source: give the name of one, or a list of them.")
    return [str(source) for source in sources]
