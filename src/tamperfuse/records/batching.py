"""Grouping items of different lengths: by a budget of tokens, or into groups of about equal total length."""

from collections.abc import Sequence


def group_by_budget(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group items of similar length, at most `budget` tokens in a group.

    For items that may be processed in any order: with similar lengths, attention costs least and there is least padding.

    Args:
        lengths: tokens of the items.
        budget: tokens of a group; an item that is longer forms a group of its own.

    Returns:
        Groups of indices, longest items first, so that a group that does not fit into memory fails at once.
    """
    groups: list[list[int]] = []
    total = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not groups or total + lengths[index] > budget:
            groups.append([])
            total = 0
        groups[-1].append(index)
        total += lengths[index]
    return groups


def group_evenly(lengths: Sequence[int], groups: int) -> list[list[int]]:
    """Distribute items over groups of about equal total length.

    Args:
        lengths: of the items, at least 1.
        groups: number of groups; at most the number of items.

    Returns:
        Indices of the items of every group, ascending; no group is empty.
    """
    members: list[list[int]] = [[] for _ in range(min(groups, len(lengths)))]
    totals = [0] * len(members)
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        shortest = min(range(len(members)), key=lambda group: (totals[group], group))
        members[shortest].append(index)
        totals[shortest] += lengths[index]
    return [sorted(group) for group in members]
