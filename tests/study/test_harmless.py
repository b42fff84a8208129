"""Which harmless prompts are asked, and that half of them are near the threat at hand."""

import pytest

from stand_ins import WordCountEncoder
from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.corpora.threats import PARTS, Threat, ThreatPrompt, load_threat
from tamperfuse.study.observe import harmless_prompts
from tamperfuse.study.tables import HARMLESS_NEAR

SUBJECTS = {str(row["id"]): str(row["subject"]) for row in builtin_rows("harmless")}
GARDEN = "garden plants"


def threat_of(prompts: list[str]) -> Threat:
    """A threat whose parts all hold these prompts."""
    return Threat(
        "made up", {part: tuple(ThreatPrompt(f"{part}-{i}", p) for i, p in enumerate(prompts)) for part in PARTS}
    )


def test_prompts_of_the_threat_and_of_its_subject_are_left_out() -> None:
    words = WordCountEncoder()
    cooking, gardening = (
        harmless_prompts(132, load_threat(f"builtin:{name}"), words) for name in ("cooking", "gardening")
    )
    assert GARDEN in {SUBJECTS[p.id] for p in cooking} and GARDEN not in {SUBJECTS[p.id] for p in gardening}
    taken = [str(row["prompt"]) for row in builtin_rows("harmless")[:5]]
    rest = harmless_prompts(132, threat_of([taken[0].upper(), *taken[1:]]), words)
    assert not {p.prompt for p in rest} & set(taken)


@pytest.mark.parametrize("limit", [2, 5, 100])
def test_half_are_near_and_the_choice_is_always_the_same(limit: int) -> None:
    words, threat = WordCountEncoder(), load_threat("builtin:cooking")
    prompts = harmless_prompts(limit, threat, words)
    assert prompts == harmless_prompts(limit, threat, words)
    assert len({p.id for p in prompts}) == len(prompts) == limit
    assert sum(p.part == HARMLESS_NEAR for p in prompts) == (limit + 1) // 2
