"""The pool of responses that prompts draw from: in memory, or in a file for corpora that do not fit into memory."""

import json
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from tamperfuse.corpora.examples import Example
from tamperfuse.corpora.texts import normalise
from tamperfuse.pairing.sampling import Keys, Positions, text_key
from tamperfuse.records.errors import UserError
from tamperfuse.records.progress import progress


class ResponsePool(Protocol):
    """Responses in ascending order of their keys, no text twice."""

    def __len__(self) -> int:
        """Number of responses."""

    def fetch(self, positions: Sequence[int]) -> list[Example]:
        """The responses at these positions."""


class ListPool:
    """A pool in memory."""

    def __init__(self, responses: Sequence[Example]) -> None:
        """Take the responses, in ascending order of their keys."""
        self._responses = responses

    def __len__(self) -> int:
        """Number of responses."""
        return len(self._responses)

    def fetch(self, positions: Sequence[int]) -> list[Example]:
        """The responses at these positions."""
        return [self._responses[position] for position in positions]


class Source(NamedTuple):
    """A source of responses.

    Attributes:
        name: as the user wrote it, for messages.
        examples: its rows.
        weight: its share beside the other sources' weights; None for all of it.
    """

    name: str
    examples: Iterable[Example]
    weight: float | None


class DiskPool:
    """A pool in a file: one JSON line for each response, the offsets of the lines in memory (16 bytes for each response).

    Attributes:
        read: rows with a response.
        empty: rows without.
        duplicates: responses whose text came before (equal 64-bit keys).
        keys: the responses' keys, ascending.
    """

    def __init__(self, path: Path, sources: Sequence[Source], seed: int, *, exchanges: bool = False) -> None:
        """Stream the sources into a file and sort the responses by their keys.

        Args:
            path: a file that does not exist yet; leaving the `with` block removes it.
            sources: all of them with a weight, or none.
            seed: of the draw.
            exchanges: whether rows with one response and different prompts are different.

        Raises:
            UserError: a weighted source holds nothing that the others do not hold.
        """
        keys, offsets, source_numbers = array("Q"), array("Q"), array("H")
        self.empty = 0
        with path.open("wb") as file, progress("reading responses", None) as advance:
            for number, source in enumerate(sources):
                for example in source.examples:
                    advance(1)
                    response = normalise(example.response)
                    self.empty += not response
                    if response:
                        prompt = normalise(example.prompt)
                        keys.append(text_key(f"{prompt}\n{response}" if exchanges else response, "response", seed))
                        offsets.append(file.tell())
                        source_numbers.append(number)
                        row = [response, prompt, example.category, example.origin]
                        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self.read = len(keys)
        # A stable sort: of equal texts, the first row of the source whose name sorts first is used.
        all_keys = np.frombuffer(keys, dtype=np.uint64)
        order = np.argsort(all_keys, kind="stable")
        sorted_keys = all_keys[order]
        is_first = np.ones(len(order), dtype=np.bool_)
        is_first[1:] = sorted_keys[1:] != sorted_keys[:-1]
        order = order[is_first]
        self.duplicates = self.read - len(order)
        if any(source.weight is not None for source in sources):
            order = _weighted(order, np.frombuffer(source_numbers, dtype=np.uint16)[order], sources)
        self.keys: Keys = all_keys[order]
        self._offsets = np.frombuffer(offsets, dtype=np.uint64)[order]
        self._path, self._file = path, path.open("rb")

    def __len__(self) -> int:
        """Number of responses."""
        return len(self.keys)

    def fetch(self, positions: Sequence[int]) -> list[Example]:
        """The responses at these positions."""
        examples = []
        for position in positions:
            self._file.seek(int(self._offsets[position]))
            response, prompt, category, origin = json.loads(self._file.readline())
            examples.append(Example(prompt, response, category, origin))
        return examples

    def __enter__(self) -> Self:
        """Use the pool in a `with` block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file and remove it."""
        self._file.close()
        self._path.unlink(missing_ok=True)


def _weighted(order: Positions, source_numbers: NDArray[np.uint16], sources: Sequence[Source]) -> Positions:
    """The largest selection in which every source has its weight; of each source, the responses with the lowest keys.

    Args:
        order: rows in ascending order of their keys.
        source_numbers: the source of each of these rows.
        sources: all sources, each with a weight.
    """
    weights = np.array([source.weight or 0.0 for source in sources])
    sizes = np.bincount(source_numbers, minlength=len(sources))
    if (sizes == 0).any():
        name = sources[int(sizes.argmin())].name
        raise UserError(
            f"Every response of {name} is also in another source, so it cannot have a weight of its own: leave it out, or give "
            "it other responses."
        )
    counts = np.maximum(1, np.floor(weights * (sizes / weights).min() + 1e-9)).astype(np.int64)
    selected = np.zeros(len(order), dtype=np.bool_)
    for number, count in enumerate(counts):
        selected[np.flatnonzero(source_numbers == number)[:count]] = True
    return order[selected]
