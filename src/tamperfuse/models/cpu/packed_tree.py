"""Sequences that begin alike, laid out as one segment: what they share is computed once.

A question with its choices, or a prompt with several responses, is a trunk with branches:

    sequences    q q q a b       segment    q q q | a b | c | d e f
                 q q q c         position   0 1 2   3 4   3   3 4 5
                 q q q d e f     attends to the trunk and, causally, to its own branch

Segments then lie end to end in a packed row (see :mod:`tamperfuse.models.packed`), behind the tokens that all of them share.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from tamperfuse.models.packed import Layout, common_prefix, pack


def pack_branches(
    groups: Sequence[Sequence[Sequence[int]]], device: torch.device
) -> tuple[Tensor, Layout, list[list[list[int]]]]:
    """Groups of sequences → one row, its layout, and where every token went.

    Args:
        groups: at least one, of at least one sequence, of at least one token. The sequences of a group should begin alike.
            A group that is longer than a model's sliding window, its branches added up, must have one sequence.
        device: where the tensors go.

    Returns:
        Row of token ids, (1, tokens); the layout; and for every sequence of every group the places of its tokens in the row.
    """
    trunks = [common_prefix(group, min(map(len, group))) for group in groups]
    segments = [
        [*group[0][:trunk], *(token for tokens in group for token in tokens[trunk:])]
        for group, trunk in zip(groups, trunks, strict=True)
    ]
    row, layout = pack(segments, max(min(trunks) - 1, 0), device)
    prefix, longest = layout.prefix, layout.longest
    positions, places = list(range(prefix)), []
    branch = torch.zeros(len(groups), longest, dtype=torch.long)  # 0 in the trunk, 1, 2, … in the branches
    begins = accumulate(layout.lengths[:-1], initial=prefix)
    for number, (group, trunk, begin) in enumerate(zip(groups, trunks, begins, strict=True)):
        positions += range(prefix, trunk)
        own_trunk = [*range(prefix), *range(begin, begin + trunk - prefix)]
        at, places_here = trunk - prefix, []
        for which, tokens in enumerate(group, start=1):
            size = len(tokens) - trunk
            positions += range(trunk, trunk + size)
            branch[number, at : at + size] = which
            places_here.append([*own_trunk, *range(begin + at, begin + at + size)])
            at += size
        places.append(places_here)
    together = (branch[:, None] == 0) | (branch[:, :, None] == branch[:, None])
    return (
        row,
        replace(
            layout,
            position_ids=torch.tensor([positions], device=device),
            together=None if bool(together.all()) else together.to(device),
        ),
        places,
    )
