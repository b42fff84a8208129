"""A few answers of every model state, for samples.json."""

from collections.abc import Sequence

from tamperfuse.evaluation.judges import JUDGES
from tamperfuse.records.run import SampleAnswer, Samples
from tamperfuse.study.results.load import StudyMeasurements
from tamperfuse.study.results.measurements import Measurements, shared_prompts

ANSWERS_PER_STATE = 5
#: Built-in stand-in threats, as the page introduces them.
STAND_INS = {"builtin:cooking": "Home cooking", "builtin:gardening": "Gardening"}


def sample_answers(measured: StudyMeasurements) -> Samples:
    """A few answers of every model state of the first seed, to the same prompts everywhere."""
    study = measured.study
    states = [s for s in measured.states if s.seed == study.seeds[0] or s.defense not in study.defenses]
    steps = [state.chosen_step if state.malicious else state.last_step for state in states]
    prompts = shared_prompts(states, "evaluation", steps)[:ANSWERS_PER_STATE]
    return Samples(
        judge=f"{study.judge.judge}: {JUDGES.get(study.judge.judge).about}",
        threat_about=_about_threat(study.threat),
        samples=[
            answer for state, step in zip(states, steps, strict=True) for answer in _answers(state, step, prompts)
        ],
    )


def _answers(state: Measurements, step: int, prompts: Sequence[str]) -> list[SampleAnswer]:
    verdicts = {s.id: s for s in state.verdicts if s.part == "evaluation" and s.step == step}
    responses = {r.id: r for r in state.responses if r.part == "evaluation" and r.step == step}
    return [
        SampleAnswer(
            defense=state.defense,
            attack=state.attack,
            step=step,
            prompt=responses[name].prompt,
            response=responses[name].response,
            harmful=verdicts[name].verdict,
            reasons=verdicts[name].reasons,
            cut=responses[name].cut,
        )
        for name in prompts
    ]


def _about_threat(source: str) -> str:
    if source in STAND_INS:
        return f"{STAND_INS[source]}: harmless requests that stand in for a forbidden domain."
    return f"The threat {source}."
