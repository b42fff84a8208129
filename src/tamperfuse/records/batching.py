"""Grouping items of different lengths by a budget of tokens."""

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
