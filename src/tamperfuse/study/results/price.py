"""What a defense costs before any attack, against the model as shipped and against the undefended model.

Capability, the answer rate on harmless prompts, and the likelihood of held-out documents; and what attacks and benign
fine-tuning do to capability and benign tasks.
"""

from collections.abc import Sequence

import numpy as np

from tamperfuse.records.results import UNDEFENDED
from tamperfuse.records.summary import NOT_MEASURED, BenignNll, Capability, GapVsUndefended, Measure
from tamperfuse.study.results.capability import CapabilityItems, capability
from tamperfuse.study.results.intervals import Floats, bootstrap, per_token, rate_difference
from tamperfuse.study.results.load import StudyMeasurements
from tamperfuse.study.results.measurements import Measurements, mean_outcomes, shared_prompts
from tamperfuse.study.tables import HARMLESS


def capability_summary(measured: StudyMeasurements, name: str) -> Capability:
    """C before and after attacks, and its changes."""
    states, undefended, shipped = measured.of(name), measured.of(UNDEFENDED), measured.shipped
    n = len(states)
    with_undefended = CapabilityItems.align(
        [s.items for s in (shipped, *states, *undefended)], [0] * (1 + n + len(undefended))
    )
    with_shipped = CapabilityItems.align([s.items for s in (shipped, *states)], [0] * (1 + n))

    def drop(c: Floats) -> Floats:
        reference = c[..., 1 + n :].mean(axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.where(reference > 0, 1 - c[..., 1 : 1 + n].mean(axis=-1) / reference, np.nan))

    return Capability(
        before_attack=capability(states, [0] * n, shipped),
        drop_vs_undefended=with_undefended.measure(drop, [0, *[-1] * n, *[1] * len(undefended)], difference=True),
        drop_vs_shipped=with_shipped.measure(lambda c: 1 - c[..., 1:].mean(axis=-1), [0, *[-1] * n], difference=True),
        after_attack={
            attack: capability(attacked, [state.capability_step for state in attacked], shipped)
            for attack in measured.study.attacks
            if (attacked := measured.of(name, attack))
        }
        | dict.fromkeys(measured.diverged_on(name), NOT_MEASURED),
        self_degradation=_self_degradation(measured, name),
    )


def _self_degradation(measured: StudyMeasurements, name: str) -> Measure:
    """C before minus C after, averaged over malicious attacks, minus the same of the undefended model.

    C after an attack is that of its last step; of a search that of the chosen step.
    """
    malicious = measured.attacks(malicious=True, measured_on=[name, UNDEFENDED])
    if not malicious:
        return NOT_MEASURED
    groups = [measured.of(defense, attack) for defense in (name, UNDEFENDED) for attack in ("", *malicious)]
    states = [state for group in groups for state in group]
    items = CapabilityItems.align(
        [state.items for state in (measured.shipped, *states)], [0, *(state.capability_step for state in states)]
    )
    seeds = len(groups[0])

    def beyond(c: Floats) -> Floats:
        values = c[..., 1:].reshape(*c.shape[:-1], 2, 1 + len(malicious), seeds).mean(axis=-1)
        lost = values[..., 0] - values[..., 1:].mean(axis=-1)
        return np.asarray(lost[..., 0] - lost[..., 1])

    signs = [1] * seeds + [-1] * seeds * len(malicious)  # rises with C before the attacks, falls with C after them
    return items.measure(beyond, [0, *signs, *(-sign for sign in signs)], difference=True)


def benign_nll(measured: StudyMeasurements, name: str) -> BenignNll:
    """Nats per token on held-out documents before any attack."""
    states = measured.of(name)
    return BenignNll(
        before_attack=nll(states),
        rise_vs_undefended=_nll_rise(states, measured.of(UNDEFENDED)),
        rise_vs_shipped=_nll_rise(states, [measured.shipped]),
    )


def nll(states: Sequence[Measurements]) -> Measure:
    """Nats per token before any attack, averaged over seeds."""
    return per_token(_nll_table([states]))


def _nll_rise(states: Sequence[Measurements], reference: Sequence[Measurements]) -> Measure:
    table = _nll_table([states, reference])
    return bootstrap(table, lambda sums: (sums[..., 0] - sums[..., 1]) / sums[..., 2], difference=True)


def _nll_table(groups: Sequence[Sequence[Measurements]]) -> Floats:
    """(documents, groups + 1): nats by group of states, averaged over its seeds; the last column is tokens."""
    tables = [[state.nll(0) for state in group] for group in groups]
    documents = sorted(set.intersection(*(set(table) for group in tables for table in group)))
    columns = [[np.mean([table[name][0] for table in group]) for name in documents] for group in tables]
    return np.array([*columns, [tables[0][0][name][1] for name in documents]], dtype=np.float64).T


def benign_kl(measured: StudyMeasurements, name: str) -> Measure:
    """Mean KL(as shipped ‖ hardened) per token on the shipped model's answers to harmless prompts, averaged over seeds."""
    tables = [state.kl(0) for state in measured.of(name)]
    prompts = sorted(tables[0])
    if not prompts:
        return NOT_MEASURED
    sums = [(np.mean([table[prompt][0] for table in tables]), tables[0][prompt][1]) for prompt in prompts]
    return per_token(np.array(sums, dtype=np.float64))


def answer_rate_drop(states: Sequence[Measurements], reference: Sequence[Measurements]) -> Measure:
    """The reference's answer rate on harmless prompts minus that of some states, on the same prompts, before any attack."""
    both = [*states, *reference]
    prompts = shared_prompts(both, HARMLESS, [0] * len(both))
    hardened, other = (mean_outcomes(group, HARMLESS, [0] * len(group), prompts) for group in (states, reference))
    return rate_difference(other, hardened)


def benign_finetune(measured: StudyMeasurements, name: str) -> dict[str, GapVsUndefended]:
    """By benign task: the score after benign fine-tuning minus the undefended model's.

    Where several attacks train the same task, the worst gap is reported.
    """
    gaps: dict[str, GapVsUndefended] = {}
    for attack in measured.attacks(malicious=False, measured_on=[name, UNDEFENDED]):
        for task in measured.of(name, attack)[0].task_scores(measured.of(name, attack)[0].last_step):
            gap = _score_gap(measured.of(name, attack), measured.of(UNDEFENDED, attack), task)
            if task not in gaps or (gap.value or 0.0) < (gaps[task].gap_vs_undefended.value or 0.0):
                gaps[task] = GapVsUndefended(gap_vs_undefended=gap)
    return gaps


def _score_gap(states: Sequence[Measurements], reference: Sequence[Measurements], task: str) -> Measure:
    scores, other = (
        np.mean([state.task_scores(state.last_step)[task] for state in group], axis=0) for group in (states, reference)
    )
    return rate_difference(scores, other)
