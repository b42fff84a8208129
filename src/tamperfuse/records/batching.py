"""Items of different sizes → groups: as many as a budget holds, or so many that are about equally large."""

from collections.abc import Sequence


def budgeted(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group items so that each group has about the same length inside and at most `budget` tokens.

    For what may come in any order: among equals attention is cheapest, and padding least.

    Returns:
        Groups of indices, longest items first (what runs out of memory does so at once).
    """
    groups: list[list[int]] = []
    held = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not groups or held + lengths[index] > budget:
            groups.append([])
            held = 0
        groups[-1].append(index)
        held += lengths[index]
    return groups


def evenly(lengths: Sequence[int], groups: int) -> list[list[int]]:
    """Deal items out into groups that are about equally long in all.

    Args:
        lengths: of the items, each at least 1.
        groups: how many there are to be; no more than there are items.

    Returns:
        Indices of each group's items, ascending; none is empty.
    """
    dealt: list[list[int]] = [[] for _ in range(min(groups, len(lengths)))]
    held = [0] * len(dealt)
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        lightest = min(range(len(dealt)), key=lambda group: (held[group], group))
        dealt[lightest].append(index)
        held[lightest] += lengths[index]
    return [sorted(group) for group in dealt]
