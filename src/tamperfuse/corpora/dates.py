"""A benign task from templates: rewriting a date in the uncommon format 27.Mar.21.

The score is exact match, since every item has one correct response.
"""

import random
from datetime import date, timedelta

from tamperfuse.corpora.routing import TEST_ITEMS, TRAIN_ITEMS, TaskItem

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


def date_items(seed: int) -> tuple[list[TaskItem], list[TaskItem]]:
    """Training and test items; no date occurs in both.

    Args:
        seed: decides dates and wordings.
    """
    rng = random.Random(f"dates-{seed}")
    items = [
        _item(_FIRST + timedelta(days=offset), rng.choice(_WORDINGS))
        for offset in rng.sample(range(_DAYS), TRAIN_ITEMS + TEST_ITEMS)
    ]
    return items[:TRAIN_ITEMS], items[TRAIN_ITEMS:]


def _item(day: date, wording: str) -> TaskItem:
    month = _MONTHS[day.month - 1]
    ending = "th" if day.day in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(day.day % 10, "th")
    text = wording.format(day=day.day, month=month, year=day.year, ordinal=f"{day.day}{ending}")
    return TaskItem(INSTRUCTION.format(date=text), f"{day.day}.{month[:3]}.{day.year % 100:02d}")
