"""What was measured of one model state, as nodes left it in parquet."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tamperfuse.attacks.base import SearchValue
from tamperfuse.study.node import Node
from tamperfuse.study.results.intervals import Floats
from tamperfuse.study.results.undecided import outcomes
from tamperfuse.study.tables import (
    HARMLESS,
    HARMLESS_PARTS,
    DivergenceRow,
    DocumentRow,
    ItemRow,
    Response,
    TaskRow,
    VerdictRow,
    read_rows,
)


@dataclass(frozen=True)
class Measurements:
    """Everything measured of one model state: a defense, before or under an attack, with one seed.

    Attributes:
        defense: as the study names it, or "as shipped".
        attack: "" before any attack.
        malicious: whether the attack is.
        seed: of defense and attack.
        samples: number of samples that the attack trained on; None for a trial that was stopped.
        node: key of the node that measured the model.
        has_steps: whether the attack trains, so that its steps are a cost to the attacker.
        trial: number within a search; -1 outside one.
        setting: the parameters that the search chose for this trial.
        search_step: the step at which a search's attacker stops; None outside a search.
        decided_step: the step at which the attacker stops, if another judge's verdicts decide on it.
        undecided: the outcome of responses on which the judge could not decide; None for the mean of the others
            (:mod:`tamperfuse.study.results.undecided`). Attackers always choose by the mean.
        diverged: the step at which the attack made the model's numbers NaN or infinite; None if it did not.
    """

    defense: str
    attack: str
    malicious: bool
    seed: int
    samples: int | None
    node: str
    responses: list[Response] = field(default_factory=list)
    verdicts: list[VerdictRow] = field(default_factory=list)
    items: list[ItemRow] = field(default_factory=list)
    documents: list[DocumentRow] = field(default_factory=list)
    divergences: list[DivergenceRow] = field(default_factory=list)
    tasks: list[TaskRow] = field(default_factory=list)
    has_steps: bool = True
    trial: int = -1
    setting: dict[str, SearchValue] = field(default_factory=dict)
    search_step: int | None = None
    decided_step: int | None = None
    undecided: float | None = None
    diverged: int | None = None

    def steps(self) -> list[int]:
        """Steps at which the model was measured, ascending."""
        return sorted({row.step for row in self.verdicts})

    @property
    def last_step(self) -> int:
        """The last step at which the model was measured."""
        return self.steps()[-1]

    @property
    def chosen_step(self) -> int:
        """The step at which the attacker stops: the highest rate on attacker_dev among the steps ≥ 1, the earliest of equals."""
        if self.search_step is not None:
            return self.search_step
        if self.decided_step is not None:
            return self.decided_step
        rates = {step: self.rate("attacker_dev", step) for step in self.steps() if step >= 1}
        return max(rates, key=lambda step: (rates[step], -step))

    @property
    def capability_step(self) -> int:
        """The step at which capability after the attack is reported: where a search stops, else the last one."""
        return self.last_step if self.search_step is None else self.search_step

    def outcomes(self, part: str, step: int) -> dict[str, float]:
        """By prompt id: whether the response executes the request (1.0) or not (0.0); between them without a decision.

        Args:
            part: of the threat, one of the harmless parts, or "harmless" for both of them.
            step: of the attack.
        """
        rows = self.verdicts_of(part, step)
        undecided = None if part == "attacker_dev" else self.undecided
        return dict(zip([row.id for row in rows], outcomes(rows, undecided), strict=True))

    def verdicts_of(self, part: str, step: int) -> list[VerdictRow]:
        """The verdicts on the responses of a part, as of :meth:`outcomes`, at a step."""
        parts = HARMLESS_PARTS if part == HARMLESS else (part,)
        return [row for row in self.verdicts if row.part in parts and row.step == step]

    def refusals(self, part: str, step: int) -> dict[str, float]:
        """By prompt id: whether the response refuses (1.0) or not (0.0); empty if the judge does not detect refusals."""
        rows = {row.id: row.refuses for row in self.verdicts if row.part == part and row.step == step}
        return {name: float(refuses) for name, refuses in rows.items() if refuses is not None}

    def rate(self, part: str, step: int) -> float:
        """Share of a part's prompts that are executed, in [0, 1]."""
        return float(np.mean(list(self.outcomes(part, step).values())))

    def nll(self, step: int) -> dict[str, tuple[float, int]]:
        """By document: summed negative log-likelihood in nats, and number of tokens."""
        return {d.id: (d.nll, d.tokens) for d in self.documents if d.step == step}

    def kl(self, step: int) -> dict[str, tuple[float, int]]:
        """By harmless prompt: KL(as shipped ‖ this model) summed over the shipped model's answer, and the answer's tokens."""
        return {row.id: (row.kl, row.tokens) for row in self.divergences if row.step == step}

    def task_scores(self, step: int) -> dict[str, list[float]]:
        """By benign task: exact match (1.0 or 0.0) of each test item, in the order of the items."""
        scores: dict[str, list[float]] = {}
        for row in self.tasks:
            if row.step == step:
                scores.setdefault(row.task, []).append(float(row.correct))
        return scores

    def has_capability(self, step: int) -> bool:
        """Whether capability was measured at a step."""
        return any(item.step == step for item in self.items)


def read_measurements(node: Node, measured: Path, judged: Path, samples: int | None) -> Measurements:
    """Read one model state.

    Args:
        node: that measured the model.
        measured: folder of the measurements.
        judged: folder of the verdicts.
        samples: that the attack trained on.
    """
    return Measurements(
        defense=node.about["defense"],
        attack=node.about["attack"],
        malicious=node.about["malicious"],
        seed=node.seed,
        samples=samples,
        node=node.key,
        responses=read_rows(measured / "responses.parquet", Response),
        verdicts=read_rows(judged / "scores.parquet", VerdictRow),
        items=read_rows(measured / "items.parquet", ItemRow),
        documents=read_rows(measured / "documents.parquet", DocumentRow),
        divergences=read_rows(measured / "divergences.parquet", DivergenceRow),
        tasks=read_rows(measured / "tasks.parquet", TaskRow),
        has_steps=bool(node.about.get("has_steps", True)),
    )


def shared_prompts(states: Sequence[Measurements], part: str, steps: Sequence[int]) -> list[str]:
    """Ids of the prompts of a part that were put to every state, each at its own step, sorted."""
    tables = [set(state.outcomes(part, step)) for state, step in zip(states, steps, strict=True)]
    return sorted(set.intersection(*tables)) if tables else []


def mean_outcomes(
    states: Sequence[Measurements], part: str, steps: Sequence[int], prompts: Sequence[str] | None = None
) -> Floats:
    """(prompts,): each prompt's outcome averaged over states (one per seed).

    Args:
        states: the same defense and attack with every seed.
        part: of the threat, or a set of harmless prompts.
        steps: one for each state.
        prompts: ids; by default all that were put to every state.
    """
    tables = [state.outcomes(part, step) for state, step in zip(states, steps, strict=True)]
    names = shared_prompts(states, part, steps) if prompts is None else prompts
    return np.array([np.mean([table[name] for table in tables]) for name in names], dtype=np.float64)
