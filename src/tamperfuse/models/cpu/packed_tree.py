"""Sequences with a common beginning, packed as one segment: the common part is computed once.

A question with its answer choices, or a prompt with several responses, is a trunk with branches:

    sequences    q q q a b       segment    q q q | a b | c | d e f
                 q q q c         position   0 1 2   3 4   3   3 4 5
                 q q q d e f     attends to the trunk and, causally, to its own branch

Segments are then concatenated in a packed row (:mod:`tamperfuse.models.packed`), after the prefix that all of them share. The
plain path is the same function with one sequence per group; `evaluation.score` chooses.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from tamperfuse.models.layout import Layout
from tamperfuse.models.packed import common_prefix, pack


def pack_tree(
    groups: Sequence[Sequence[Sequence[int]]], device: torch.device
) -> tuple[Tensor, Layout, list[list[list[int]]]]:
    """Pack groups of sequences into one row.

    Args:
        groups: at least one group of at least one sequence of at least one token. The sequences of a group should have a
            common beginning. A group that is longer than a model's sliding window (its trunk counted once) must contain only
            one sequence.
        device: of the tensors.

    Returns:
        Token ids of the row, (1, tokens); the layout; and for every sequence of every group the positions of its tokens in
        the row.
    """
    trunks = [common_prefix(group, min(map(len, group))) for group in groups]
    segments = [
        [*group[0][:trunk], *(token for tokens in group for token in tokens[trunk:])]
        for group, trunk in zip(groups, trunks, strict=True)
    ]
    row, layout = pack(segments, max(min(trunks) - 1, 0), device)
    prefix, longest = layout.prefix, layout.longest
    position_ids, places = list(range(prefix)), []
    branch = torch.zeros(len(groups), longest, dtype=torch.long)  # 0 in the trunk, 1, 2, … in the branches
    starts = accumulate(layout.lengths[:-1], initial=prefix)
    for number, (group, trunk, start) in enumerate(zip(groups, trunks, starts, strict=True)):
        position_ids += range(prefix, trunk)
        trunk_places = [*range(prefix), *range(start, start + trunk - prefix)]
        offset, group_places = trunk - prefix, []
        for index, tokens in enumerate(group, start=1):
            size = len(tokens) - trunk
            position_ids += range(trunk, trunk + size)
            branch[number, offset : offset + size] = index
            group_places.append([*trunk_places, *range(start + offset, start + offset + size)])
            offset += size
        places.append(group_places)
    branch_mask = (branch[:, None] == 0) | (branch[:, :, None] == branch[:, None])
    return (
        row,
        replace(
            layout,
            position_ids=torch.tensor([position_ids], device=device),
            branch_mask=None if bool(branch_mask.all()) else branch_mask.to(device),
        ),
        places,
    )
