"""A key–value cache for sequences that are decoded together, and the attention of their newest tokens.

The prefix that all prompts share is stored once. The rest of each prompt is aligned at its end, so the newest token of every
row is in the same column:

    prefix     rest of prompt   decoded
    S y s      . A a b c        x x x
               . . . B d        y y y
               C e f g h        z z z

A decoding step writes one column and reads a contiguous slice; the only mask is that of the blanks on the left, which never
changes. When rows are finished, the last rows move into their places, so the rows in use are always the first ones.

The plain path is transformers' DynamicCache over left-padded rows; :mod:`tamperfuse.models.decoding` holds both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class _LayerCache:
    """One layer's keys and values, in the model's dtype."""

    prefix_keys: Tensor  # (groups, prefix, size)
    prefix_values: Tensor  # (groups, prefix, size)
    keys: Tensor  # (rows, groups, capacity, size)
    values: Tensor  # (rows, groups, capacity, size)


class KVCache:
    """Keys and values of all layers; one row for each sequence.

    Memory: 2 × layers × key-value heads × head size × (prefix + rows × capacity), in the model's dtype, where the capacity is
    the length of the longest prompt after the prefix plus `new_tokens`.

    Args:
        prefix: number of tokens that all prompts share; 0 or more.
        lengths: tokens of each prompt after the prefix, at least 1 each, in the order of the packed row.
        new_tokens: maximum number of tokens decoded per sequence.
        device: of the model.

    Attributes:
        rows: number of sequences that are being decoded.
        position: (rows,), position of the token that is decoded next.
    """

    def __init__(self, prefix: int, lengths: Sequence[int], new_tokens: int, device: torch.device) -> None:
        sizes = torch.tensor(lengths)
        longest = int(sizes.max())
        blanks, column = (longest - sizes)[:, None], torch.arange(longest)
        self.rows, self.prefix = len(lengths), prefix
        self.position = (prefix + sizes).to(device)
        self._longest, self._column, self._capacity = longest, longest, longest + new_tokens
        # Position in the packed row of each column's token; blanks repeat the row's first token and are masked.
        source = prefix + (torch.cumsum(sizes, 0) - sizes)[:, None] + (column - blanks).clamp(min=0)
        self._gather = source.flatten().to(device)
        unused = torch.arange(self._capacity) < blanks
        self._bias = torch.zeros(unused.shape).masked_fill_(unused, float("-inf"))[:, None, None].to(device)
        self._layers: dict[int, _LayerCache] = {}

    def fill(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Store the prompts' keys and values.

        Args:
            layer: index of the layer.
            key: of a packed row, (1, groups, tokens, size).
            value: of a packed row, (1, groups, tokens, size of values), which differs in DeepSeek's attention.
        """
        groups, rows, longest = key.shape[1], self.rows, self._longest

        def aligned(packed: Tensor) -> Tensor:
            """(1, groups, tokens, size) → (rows, groups, longest, size)."""
            return packed[0].index_select(1, self._gather).view(groups, rows, longest, -1).transpose(0, 1)

        cache = _LayerCache(
            prefix_keys=key[0, :, : self.prefix].contiguous(),
            prefix_values=value[0, :, : self.prefix].contiguous(),
            keys=key.new_empty(rows, groups, self._capacity, key.shape[3]),
            values=value.new_empty(rows, groups, self._capacity, value.shape[3]),
        )
        cache.keys[:, :, :longest] = aligned(key)
        cache.values[:, :, :longest] = aligned(value)
        self._layers[layer] = cache

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None
    ) -> Tensor:
        """Attention of one new token per row; its key and value are added to the cache.

        Args:
            layer: index of the layer.
            query: (rows, heads, 1, size).
            key: (rows, groups, 1, size).
            value: (rows, groups, 1, size of values).
            scaling: factor for the products of queries and keys.
            window: size of a sliding window, the new token included; None for full attention. If sequences outgrow the
                window, the cache must not have a prefix.

        Returns:
            (rows, 1, heads, size of values).
        """
        rows, heads, _, size = query.shape
        groups, cache, column = key.shape[1], self._layers[layer], self._column
        first = max(0, column + 1 - window) if window is not None else 0
        cache.keys[:rows, :, column] = key[:, :, 0]
        cache.values[:rows, :, column] = value[:, :, 0]
        keys = cache.keys[:rows, :, first : column + 1].flatten(0, 1)
        values = cache.values[:rows, :, first : column + 1].flatten(0, 1)

        folded = (query * scaling).view(rows * groups, -1, size)
        # Keys are the left factor: as the right factor they would be copied to be transposed in every step.
        row_scores = torch.bmm(keys, folded.transpose(1, 2)).view(rows, groups, keys.shape[1], -1).transpose(2, 3)
        scores = row_scores.new_empty(*row_scores.shape[:3], self.prefix + row_scores.shape[3], dtype=torch.float32)
        torch.add(row_scores, self._bias[:rows, :, :, first : column + 1], out=scores[..., self.prefix :])
        if self.prefix:
            prefix_scores = torch.bmm(self._by_group(folded, groups), cache.prefix_keys.transpose(1, 2))
            scores[..., : self.prefix] = self._by_row(prefix_scores, groups).view(*row_scores.shape[:3], -1)
        weights = torch.softmax(scores, -1).to(values.dtype).flatten(0, 1)
        out = torch.bmm(weights[..., self.prefix :], values)
        if self.prefix:
            prefix_weights = self._by_group(weights[..., : self.prefix], groups)
            out += self._by_row(torch.bmm(prefix_weights, cache.prefix_values), groups)
        return out.view(rows, 1, heads, -1)

    def advance(self) -> None:
        """Move to the next column; called after each decoding step."""
        self._column += 1
        self.position += 1

    def select(self, unfinished: Tensor) -> Tensor:
        """Remove rows, so that finished sequences take no more time.

        Args:
            unfinished: (rows,), true for rows that remain.

        Returns:
            (remaining rows,), the previous index of each remaining row.
        """
        remaining = unfinished.nonzero().flatten()
        self.rows = len(remaining)
        free, movers = (~unfinished[: self.rows]).nonzero().flatten(), remaining[remaining >= self.rows]
        for cache in self._layers.values():
            for buffer in (cache.keys, cache.values):
                buffer[free] = buffer[movers]
        self._bias[free] = self._bias[movers]
        order = torch.arange(self.rows, device=unfinished.device)
        order[free] = movers
        self.position = self.position[order]
        return order

    def _by_group(self, x: Tensor, groups: int) -> Tensor:
        """(rows × groups, heads per group, …) → (groups, rows × heads per group, …), to multiply with the prefix."""
        return x.view(self.rows, groups, *x.shape[1:]).transpose(0, 1).flatten(1, 2)

    def _by_row(self, x: Tensor, groups: int) -> Tensor:
        """The inverse of `_by_group`."""
        return x.view(groups, self.rows, -1, x.shape[2]).transpose(0, 1).flatten(0, 1)
