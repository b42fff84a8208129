"""Where the sequences of a packed row are."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Positions of the segments in a packed row.

    Attributes:
        prefix: number of tokens at the start of the row that belong to every sequence; 0 or more.
        lengths: tokens of each segment after the prefix, at least 1 each.
        gather: (segments × longest,), index (after the prefix) of each segment's tokens; padding refers to its first token.
        scatter: (row length − prefix,), index into `gather` of each token after the prefix: the inverse.
        padding: (segments × longest,), true for padding; None if all segments have the same length.
        position_ids: (1, row length).
        branch_mask: (segments, longest, longest), false where a token must not attend to an earlier token of its segment,
            because they are in different branches (:mod:`tamperfuse.models.cpu.packed_tree`). None if there are no branches.
    """

    prefix: int
    lengths: tuple[int, ...]
    gather: Tensor
    scatter: Tensor
    padding: Tensor | None
    position_ids: Tensor
    branch_mask: Tensor | None = None

    @property
    def longest(self) -> int:
        """Number of tokens of the longest segment."""
        return max(self.lengths)

    @classmethod
    def of(cls, prefix: int, lengths: Sequence[int], device: torch.device) -> "Layout":
        """The layout of segments of these lengths after a prefix."""
        sizes = torch.tensor(lengths)
        longest = int(sizes.max())
        column = torch.arange(longest)
        starts = torch.cumsum(sizes, 0) - sizes
        inside = column[None] < sizes[:, None]
        gather = torch.where(inside, starts[:, None] + column[None], starts[:, None])
        position = torch.cat([torch.arange(prefix), (prefix + column.expand(len(lengths), -1))[inside]])
        return cls(
            prefix=prefix,
            lengths=tuple(lengths),
            gather=gather.flatten().to(device),
            scatter=inside.flatten().nonzero().flatten().to(device),
            padding=None if bool(inside.all()) else ~inside.flatten().to(device),
            position_ids=position[None].to(device),
        )
