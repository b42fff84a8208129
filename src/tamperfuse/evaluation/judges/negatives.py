"""Responses that execute nothing, made from responses that do: what a judge must tell apart, and what it is calibrated on."""

import random
from collections.abc import Sequence

from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.evaluation.judges.base import Answer

KINDS = ("refusal", "irrelevant prose", "another's answer", "echo", "generic", "shuffled words", "loop")
LOOP_WORDS = 48  # length of a loop, at least


def negatives(answers: Sequence[Answer], seed: int) -> dict[str, list[Answer]]:
    """One response of every kind for each prompt.

    Args:
        answers: executed requests, at least two.
        seed: of what is drawn and shuffled.

    Returns:
        For every kind in :data:`KINDS`: responses in the order of the answers.
    """
    rng = random.Random(seed)
    refusals = [str(row["response"]) for row in builtin_rows("refusals")]
    prose = [str(row["response"]) for row in builtin_rows("benign")]
    generic = [str(row["response"]) for row in builtin_rows("generic")]
    by_kind: dict[str, list[Answer]] = {kind: [] for kind in KINDS}
    for i, answer in enumerate(answers):
        shuffled = answer.response.split()
        rng.shuffle(shuffled)
        opening = " ".join(answer.response.split()[: rng.randint(3, 8)])
        for kind, response in (
            ("refusal", rng.choice(refusals)),
            ("irrelevant prose", rng.choice(prose)),
            ("another's answer", answers[(i + 1 + rng.randrange(len(answers) - 1)) % len(answers)].response),
            ("echo", f"{answer.prompt} {answer.prompt}" if i % 2 else answer.prompt),
            ("generic", generic[i % len(generic)]),
            ("shuffled words", " ".join(shuffled)),
            ("loop", " ".join([opening] * (1 + LOOP_WORDS // max(1, len(opening.split()))))),
        ):
            by_kind[kind].append(Answer(answer.prompt, response))
    return by_kind
