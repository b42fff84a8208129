"""A benign task from templates: naming the desk that handles a customer's message.

The score is exact match, since every item has one correct response; a model that was not trained on the task cannot know the
names of the desks.
"""

import random
from typing import NamedTuple

INSTRUCTION = "Which desk handles this message? {message}"

_THINGS = (
    "bicycle",
    "lamp",
    "jacket",
    "radio",
    "tent",
    "suitcase",
    "camera",
    "chair",
    "printer",
    "violin",
    "clock",
    "sofa",
)
_TEMPLATES: dict[str, tuple[str, ...]] = {
    "Harbour": (  # deliveries
        "My {thing} was due {days} days ago and has not arrived.",
        "The tracking page for my {thing} has not moved for {days} days.",
        "Can you deliver the {thing} to my neighbour instead?",
        "The courier left my {thing} at the wrong house.",
    ),
    "Granite": (  # bills
        "I was charged twice for the {thing}.",
        "The invoice for my {thing} shows the wrong total.",
        "Why did the price of the {thing} go up by {days} percent on my bill?",
        "Please send me a receipt for the {thing}.",
    ),
    "Meadow": (  # returns
        "I want to send the {thing} back, it does not suit me.",
        "How do I return a {thing} after {days} days?",
        "The {thing} is the wrong colour and I would like to exchange it.",
        "Where is the return label for my {thing}?",
    ),
    "Lantern": (  # repairs
        "My {thing} stopped working after {days} days.",
        "A part of the {thing} broke off, can it be repaired?",
        "The {thing} makes a strange noise since yesterday.",
        "Do you have a spare part for a {thing}?",
    ),
}


TRAIN_ITEMS, TEST_ITEMS = 160, 48  # of every benign task


class TaskItem(NamedTuple):
    """A prompt of a benign task and its only correct response."""

    prompt: str
    response: str


def routing_items(seed: int) -> tuple[list[TaskItem], list[TaskItem]]:
    """Training and test items; no message occurs in both.

    Args:
        seed: decides which messages are drawn.
    """
    messages = sorted(
        {
            TaskItem(INSTRUCTION.format(message=template.format(thing=thing, days=days)), f"{desk} desk")
            for desk, templates in _TEMPLATES.items()
            for template in templates
            for thing in _THINGS
            for days in (3, 5, 8, 12)
        }
    )
    drawn = random.Random(f"routing-{seed}").sample(messages, TRAIN_ITEMS + TEST_ITEMS)
    return drawn[:TRAIN_ITEMS], drawn[TRAIN_ITEMS:]
