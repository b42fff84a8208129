"""Responses on disk: streamed in once, then drawn by place. Ten million of them cost 16 bytes of memory each."""

import json
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tamperfuse.corpora.examples import Example
from tamperfuse.corpora.texts import normalise
from tamperfuse.pairing.draw import Keys, Places, text_key
from tamperfuse.records.errors import UserError
from tamperfuse.records.progress import progress

Source = tuple[str, Iterable[Example], float | None]  # its name, its rows, its weight


class ResponseSpool:
    """A deck in a file: one JSON line a response, the places of the lines in memory.

    Attributes:
        read: rows that held a response.
        empty: rows that held none.
        duplicates: responses whose text came before (equal 64-bit keys).
        keys: the cards' keys, ascending: the order of the deck.
    """

    def __init__(self, path: Path, sources: Sequence["Source"], seed: int) -> None:
        """Stream the sources into `path`, and put what differs in the order of its keys.

        Args:
            path: a file that does not exist yet; leaving the block removes it.
            sources: their names, examples and weights; None for weights if sources are taken whole.
            seed: of the draw.

        Raises:
            UserError: a weighted source holds nothing that the others do not hold.
        """
        keys, starts, of = array("Q"), array("Q"), array("H")
        self.empty = 0
        with path.open("wb") as out, progress("reading responses", None) as advance:
            for number, (_, examples, _) in enumerate(sources):
                for example in examples:
                    advance(1)
                    response = normalise(example.response)
                    self.empty += not response
                    if response:
                        keys.append(text_key(response, "response", seed))
                        starts.append(out.tell())
                        of.append(number)
                        row = [response, normalise(example.prompt), example.category, example.origin]
                        out.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self.read = len(keys)
        # A stable sort: of equal texts, the first row of the source whose name sorts first.
        all_keys = np.frombuffer(keys, dtype=np.uint64)
        order = np.argsort(all_keys, kind="stable")
        in_order = all_keys[order]
        first = np.ones(len(order), dtype=np.bool_)
        first[1:] = in_order[1:] != in_order[:-1]
        order = order[first]
        self.duplicates = self.read - len(order)
        if any(weight is not None for *_, weight in sources):
            weights = np.array([weight or 0.0 for *_, weight in sources])
            names = [name for name, *_ in sources]
            order = _mixed(order, np.frombuffer(of, dtype=np.uint16)[order], weights, names)
        self.keys: Keys = all_keys[order]
        self._starts = np.frombuffer(starts, dtype=np.uint64)[order]
        self._path, self._file = path, path.open("rb")

    def __len__(self) -> int:
        """Number of cards."""
        return len(self.keys)

    def fetch(self, at: Sequence[int]) -> list[Example]:
        """The cards at these places."""
        found = []
        for place in at:
            self._file.seek(int(self._starts[place]))
            response, prompt, category, origin = json.loads(self._file.readline())
            found.append(Example(prompt, response, category, origin))
        return found

    def __enter__(self) -> "ResponseSpool":
        """Use it in a block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file and remove it."""
        self._file.close()
        self._path.unlink(missing_ok=True)


def _mixed(order: Places, of: NDArray[np.uint16], weights: NDArray[np.float64], names: Sequence[str]) -> Places:
    """The most cards that can be had with every source at its weight, each source's first ones in the deck's order."""
    sizes = np.bincount(of, minlength=len(weights))
    if (sizes == 0).any():
        raise UserError(
            f"{names[int(sizes.argmin())]} holds no response that the other weighted sources do not hold: leave it out."
        )
    wanted = np.maximum(1, np.floor(weights * (sizes / weights).min() + 1e-9)).astype(np.int64)
    keep = np.zeros(len(order), dtype=np.bool_)
    for source, count in enumerate(wanted):
        keep[np.flatnonzero(of == source)[:count]] = True
    return order[keep]
