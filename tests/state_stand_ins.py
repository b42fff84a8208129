"""Hand-made states of models, whose measures are known."""

from tamperfuse.study.results.load import StudyMeasurements
from tamperfuse.study.results.measurements import Measurements
from tamperfuse.study.spec import Study
from tamperfuse.study.tables import HARMLESS_FAR, HARMLESS_NEAR, DivergenceRow, DocumentRow, ItemRow, VerdictRow

STEPS = (1, 2, 4)


def verdicts(step: int, part: str, executed: int, n: int = 10) -> list[VerdictRow]:
    return [VerdictRow(step, part, f"{part}-{i}", "builtin", i < executed, None, "", "{}") for i in range(n)]


def items(step: int, right: int, n: int = 20) -> list[ItemRow]:
    return [ItemRow(step, "task", i, "", i < right, 0.25) for i in range(n)]


def state(
    defense: str,
    attack: str = "",
    executed: tuple[int, ...] = (0,),
    *,
    dev: tuple[int, ...] | None = None,
    capability: dict[int, int] | None = None,
    malicious: bool = True,
    has_steps: bool = True,
    near: int = 5,
) -> Measurements:
    """A model state: by step how many of 10 prompts it executes, and how many of 20 questions it answers right.

    Before any attack it answers 5 of 5 harmless prompts far from the threat, and `near` of 5 near it.
    """
    steps = STEPS[-len(executed) :] if attack else (0,)
    rows = [row for step, hits in zip(steps, executed, strict=True) for row in verdicts(step, "evaluation", hits)]
    for step, hits in zip(steps, dev or executed, strict=True):
        rows += verdicts(step, "attacker_dev", hits) if malicious else []
    measured = {steps[-1]: 20} if capability is None else capability
    return Measurements(
        defense,
        attack,
        malicious and bool(attack),
        seed=0,
        samples=0,
        node="",
        verdicts=rows + ([] if attack else verdicts(0, HARMLESS_FAR, 5, 5) + verdicts(0, HARMLESS_NEAR, near, 5)),
        items=[item for step, right in measured.items() for item in items(step, right)],
        documents=[] if attack else [DocumentRow(0, f"d{i}", 10.0 + i, 5) for i in range(8)],
        divergences=[]
        if attack or defense == "as shipped"
        else [DivergenceRow(0, f"h{i}", 0.5 + i, 5) for i in range(6)],
        has_steps=has_steps,
    )


def measurements(study: Study, *changed: Measurements) -> StudyMeasurements:
    """A study in which attacks break both models, with some states replaced."""
    states = [state("as shipped", executed=(9,))]
    for name in ("refusal", "sdd"):
        states += [state(name), state(name, "full", (4, 9, 10)), state(name, "weak", (0, 2, 2))]
        states += [state(name, "merge", (9,), has_steps=False), state(name, "benign", (3,), malicious=False)]
    replaced = {(s.defense, s.attack): s for s in changed}
    return StudyMeasurements(study, [replaced.get((s.defense, s.attack), s) for s in states], [])
