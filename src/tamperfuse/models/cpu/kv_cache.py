"""Keys and values of sequences that are being decoded together, and the attention of their newest tokens.

What all prompts begin with is kept once; what follows is aligned at its end, so that the newest token of every row lies in
the same column:

    prefix     own tokens       decoded
    S y s      . A a b c        x x x
               . . . B d        y y y
               C e f g h        z z z

A step therefore writes one column and reads a plain slice, and needs no mask but the one for the blanks on the left, which
never changes. Rows that have ended are filled by the last ones, so that the rows in use stay the first ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class _Layer:
    """One layer's keys and values, in the model's dtype."""

    shared_keys: Tensor  # (groups, prefix, size)
    shared_values: Tensor  # (groups, prefix, size)
    keys: Tensor  # (rows, groups, capacity, size)
    values: Tensor  # (rows, groups, capacity, size)


class Slots:
    """A cache of keys and values: one row a sequence.

    Memory: 2 × layers × key-value heads × head size × (prefix + rows × capacity), in the model's dtype.

    Args:
        prefix: tokens that all prompts begin with; 0 or more.
        lengths: tokens of each prompt after the prefix, at least 1 each, in the order of the packed row.
        new_tokens: tokens that are decoded at most.
        device: the model's.

    Attributes:
        rows: sequences in flight.
        position: (rows,), position of the token that is decoded next.
    """

    def __init__(self, prefix: int, lengths: Sequence[int], new_tokens: int, device: torch.device) -> None:
        sizes = torch.tensor(lengths)
        longest = int(sizes.max())
        blank, column = (longest - sizes)[:, None], torch.arange(longest)
        self.rows, self.prefix = len(lengths), prefix
        self.position = (prefix + sizes).to(device)
        self._longest, self._column, self._capacity = longest, longest, longest + new_tokens
        # Where every column's token stands in the packed row; blanks repeat a row's first token and are masked.
        at = prefix + (torch.cumsum(sizes, 0) - sizes)[:, None] + (column - blank).clamp(min=0)
        self._gather = at.flatten().to(device)
        unused = torch.arange(self._capacity) < blank
        self._bias = torch.zeros(unused.shape).masked_fill_(unused, float("-inf"))[:, None, None].to(device)
        self._layers: dict[int, _Layer] = {}

    def fill(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Take the prompts' keys and values from a packed row, (1, groups, row, size) each."""
        groups, size, rows, longest = key.shape[1], key.shape[3], self.rows, self._longest

        def own(packed: Tensor) -> Tensor:
            """(1, groups, row, size) → (rows, groups, longest, size)."""
            return packed[0].index_select(1, self._gather).view(groups, rows, longest, size).transpose(0, 1)

        made = _Layer(
            shared_keys=key[0, :, : self.prefix].contiguous(),
            shared_values=value[0, :, : self.prefix].contiguous(),
            keys=key.new_empty(rows, groups, self._capacity, size),
            values=value.new_empty(rows, groups, self._capacity, size),
        )
        made.keys[:, :, :longest] = own(key)
        made.values[:, :, :longest] = own(value)
        self._layers[layer] = made

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None
    ) -> Tensor:
        """Attention of one new token a row, whose key and value join the cache.

        Args:
            layer: which layer.
            query: (rows, heads, 1, size).
            key: (rows, groups, 1, size).
            value: (rows, groups, 1, size).
            scaling: factor on the products.
            window: tokens that may be looked at, the new one included; None for all. Needs a cache without a prefix
                once sequences outgrow it.

        Returns:
            (rows, 1, heads, size).
        """
        rows, heads, _, size = query.shape
        groups, cache, column = key.shape[1], self._layers[layer], self._column
        first = max(0, column + 1 - window) if window is not None else 0
        cache.keys[:rows, :, column] = key[:, :, 0]
        cache.values[:rows, :, column] = value[:, :, 0]
        keys = cache.keys[:rows, :, first : column + 1].flatten(0, 1)
        values = cache.values[:rows, :, first : column + 1].flatten(0, 1)

        folded = (query * scaling).view(rows * groups, -1, size)
        # Keys on the left: as the right factor of a product they would be copied to transpose them, every step.
        own = torch.bmm(keys, folded.transpose(1, 2)).view(rows, groups, keys.shape[1], -1).transpose(2, 3)
        scores = own.new_empty(*own.shape[:3], self.prefix + own.shape[3], dtype=torch.float32)
        torch.add(own, self._bias[:rows, :, :, first : column + 1], out=scores[..., self.prefix :])
        if self.prefix:
            shared = torch.bmm(self._by_group(folded, groups), cache.shared_keys.transpose(1, 2))
            scores[..., : self.prefix] = self._by_row(shared, groups).view(*own.shape[:3], -1)
        weights = torch.softmax(scores, -1).to(values.dtype).flatten(0, 1)
        out = torch.bmm(weights[..., self.prefix :], values)
        if self.prefix:
            head = self._by_group(weights[..., : self.prefix], groups)
            out += self._by_row(torch.bmm(head, cache.shared_values), groups)
        return out.view(rows, 1, heads, size)

    def advance(self) -> None:
        """The step is over: the next token comes one column further."""
        self._column += 1
        self.position += 1

    def keep(self, going: Tensor) -> Tensor:
        """Drop rows: finished sequences cost nothing from here on.

        Args:
            going: (rows,), true for rows that stay.

        Returns:
            (rows that stay,), which old row each new one is.
        """
        stay = going.nonzero().flatten()
        self.rows = len(stay)
        holes, movers = (~going[: self.rows]).nonzero().flatten(), stay[stay >= self.rows]
        for cache in self._layers.values():
            for buffer in (cache.keys, cache.values):
                buffer[holes] = buffer[movers]
        self._bias[holes] = self._bias[movers]
        order = torch.arange(self.rows, device=going.device)
        order[holes] = movers
        self.position = self.position[order]
        return order

    def _by_group(self, x: Tensor, groups: int) -> Tensor:
        """(rows × groups, heads a group, …) → (groups, rows × heads a group, …): what meets the shared keys at once."""
        return x.view(self.rows, groups, *x.shape[1:]).transpose(0, 1).flatten(1, 2)

    def _by_row(self, x: Tensor, groups: int) -> Tensor:
        """The way back."""
        return x.view(groups, self.rows, -1, x.shape[2]).transpose(0, 1).flatten(0, 1)
