"""A harmless task made from templates: writing a date, however it is worded, in the records' own style.

It has one right answer, so its score is exact match, and the style (27.Mar.21) is no common one.
"""

import random
from datetime import date, timedelta

from tamperfuse.corpora.routing import TaskItem

INSTRUCTION = "How do our records write this date? {date}"
_FIRST = date(1990, 1, 1)
_DAYS = 45 * 365
_WORDINGS = (
    "{day} {month} {year}",
    "{month} {day}, {year}",
    "the {ordinal} of {month} {year}",
    "{year}, {month} {day}",
)
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December",
)  # fmt: skip


def date_items(seed: int, train: int = 160, test: int = 48) -> tuple[list[TaskItem], list[TaskItem]]:
    """Training and test items; no date is in both.

    Args:
        seed: decides dates and wordings.
        train: training items.
        test: test items; train + test is at most 16,425.
    """
    rng = random.Random(f"dates-{seed}")
    items = [
        _item(_FIRST + timedelta(days=day), rng.choice(_WORDINGS)) for day in rng.sample(range(_DAYS), train + test)
    ]
    return items[:train], items[train:]


def _item(when: date, wording: str) -> TaskItem:
    month = _MONTHS[when.month - 1]
    ending = "th" if when.day in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(when.day % 10, "th")
    text = wording.format(day=when.day, month=month, year=when.year, ordinal=f"{when.day}{ending}")
    return TaskItem(INSTRUCTION.format(date=text), f"{when.day}.{month[:3]}.{when.year % 100:02d}")
