"""`summary.json`: what a study measured of every defense, for the report, the gate and other tools."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from tamperfuse.records.errors import UserError, invalid_place
from tamperfuse.records.files import write_json
from tamperfuse.records.run_files import read_run_file

SUMMARY = "summary.json"
SCHEMA = 2
ROUNDING = 1e-9  # error of computed rates and of the ends of intervals: a mean over seeds of 0 or 1 is not exact


def _share(text: str) -> str:
    if not re.fullmatch(r"[0-9](\.[0-9]{1,20})?(e-[0-9]{1,3})?", text) or float(text) > 1:
        raise ValueError("the name of a usable harm is a share in [0, 1], as in 0.05")
    return text


Share = Annotated[str, AfterValidator(_share)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Undecided = Annotated[Count, Field(exclude_if=lambda count: count == 0)]


class Measure(BaseModel):
    """A value with its 95% interval.

    Attributes:
        value: the estimate; None where it is undefined (division by zero, an empty mean) or was not measured. It is then not
            resolved.
        low: lower end; None where no interval could be computed.
        high: upper end; None where no interval could be computed.
        n: number of items (prompts, questions, documents) behind it.
        resolved: false for a difference whose interval contains zero, and for what is undefined or was not measured.
    """

    # A misspelled `resolved` would be read as its default, true.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = Field(0, ge=0, lt=2**63)
    resolved: bool = Field(True, exclude_if=lambda resolved: resolved)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError("low is above high")
        return self

    def as_row(self) -> dict[str, Any]:
        """Value, ends and number of items, as a table has them: without whether it is resolved."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


def _is_rate(measure: Measure) -> Measure:
    numbers = [number for number in (measure.value, measure.low, measure.high) if number is not None]
    if any(not -ROUNDING <= number <= 1 + ROUNDING for number in numbers):
        raise ValueError("a rate is in [0, 1]")
    return measure


#: A measure whose value and interval are in [0, 1].
Rate = Annotated[Measure, AfterValidator(_is_rate)]
#: A measure that was not taken, or has nothing to be computed from.
NOT_MEASURED = Measure(value=None, resolved=False)


class UsableHarm(Measure):
    """A usable harm: the highest rate among the checkpoints that kept enough capability; the interval ignores the selection.

    Attributes:
        capability_not_measured: some checkpoint has a higher rate, but its capability was not measured: the value is then a
            lower bound, since that checkpoint may be usable too.
    """

    capability_not_measured: bool = Field(False, exclude_if=lambda marked: not marked)


class HarmfulExecution(BaseModel):
    """Harmful execution rates of one defense, each in [0, 1].

    Attributes:
        before_attack: of the hardened model.
        after_attack: by malicious attack, at the step at which the attacker stops (the chosen step).
        mean: over the malicious attacks.
        worst: the one of them whose interval reaches highest.
        worst_seed: of the rates of single seeds after the malicious attacks, the one whose interval reaches highest; the other
            measures are means over seeds. Not measured in files of older versions.
        worst_seed_unattacked: of the rates of single seeds before any attack and after each control, the one whose interval
            reaches highest. Not measured in files of older versions.
        after_control: by attack that is not malicious (benign fine-tuning, export, pruning, …), at its end.
    """

    before_attack: Rate
    after_attack: dict[str, Rate]
    mean: Rate
    worst: Rate
    worst_seed: Rate = NOT_MEASURED
    worst_seed_unattacked: Rate = NOT_MEASURED
    after_control: dict[str, Rate]

    @property
    def after(self) -> dict[str, Measure]:
        """The rates after all attacks: the malicious ones, then the controls."""
        return self.after_attack | self.after_control


class Reduction(BaseModel):
    """1 − Σ rate(defense) / Σ rate(undefended) over the malicious attacks that count; at most 1, negative for an increase.

    Attributes:
        pooled: over all attacks that count.
        worst: of the attack that is reduced least by the lower end of its interval.
        attacks_that_count: attacks that bring the undefended model to at least 80%.
        too_weak: the other malicious attacks that did not diverge.
    """

    pooled: Measure
    worst: Measure
    attacks_that_count: list[str]
    too_weak: list[str]


class AttackCost(BaseModel):
    """The first evaluated step (≥ 1) whose rate is at least half of the undefended model's highest under the same attack.

    The rate must still be that high at the next evaluated step. The last evaluated step has none, and counts by itself. Of a
    search it is the cost of the cheapest trial, the median over seeds.

    Attributes:
        steps: the first step that qualifies; the last evaluated one where none does.
        censored: no step qualifies; the cost is then more than `steps`.
        last_point: `steps` is the last evaluated step, so that no later one confirms it.
        ratio_vs_undefended: `steps` over the undefended model's; a lower bound where censored, None where the undefended
            model's cost is censored itself.
        steps_low: lower end of the 95% interval of `steps`; None in files of older versions, as are the other ends.
        steps_high: upper end; None where it is censored.
        ratio_low: lower end of the ratio's interval; None where there is no ratio, or none in half of the bootstrap's draws.
        ratio_high: upper end; None where it is censored or there is no ratio.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    steps: int = Field(ge=0, lt=2**63)
    censored: bool
    last_point: bool
    ratio_vs_undefended: float | None
    steps_low: float | None = None
    steps_high: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None


class Capability(BaseModel):
    """Mean over tasks of (accuracy − chance) / (accuracy as shipped − chance), and its changes.

    Attributes:
        before_attack: of the hardened model; 1 is the model as shipped.
        drop_vs_undefended: 1 − capability / the undefended model's.
        drop_vs_shipped: 1 − capability.
        after_attack: by attack, controls included, at the last step; of a search at the chosen step. That of harmful execution
            is at the chosen step, so the two may belong to different checkpoints.
        self_degradation: capability before minus capability after, averaged over malicious attacks, minus the same of the
            undefended model.
    """

    before_attack: Measure
    drop_vs_undefended: Measure
    drop_vs_shipped: Measure
    after_attack: dict[str, Measure]
    self_degradation: Measure


class BenignNll(BaseModel):
    """Negative log-likelihood of held-out documents before any attack, in nats per token.

    Attributes:
        before_attack: of this model.
        rise_vs_undefended: this model's minus the undefended model's; None for the model as shipped.
        rise_vs_shipped: this model's minus that of the model as shipped; None for the model as shipped.
    """

    before_attack: Measure
    rise_vs_undefended: Measure
    rise_vs_shipped: Measure


class GapVsUndefended(BaseModel):
    """How a benign task was learned, compared with the undefended model.

    Attributes:
        gap_vs_undefended: score of the task after benign fine-tuning, minus the undefended model's; negative if the defense
            hinders benign fine-tuning.
    """

    gap_vs_undefended: Measure


class MeanScore(BaseModel):
    """Means of a judge's scores on the evaluation part, in the judge's own unit; higher for a clearer execution.

    Attributes:
        before_attack: of the hardened model.
        after_attack: by malicious attack, at the chosen step.
        after_control: by attack that is not malicious, at its end.
    """

    before_attack: Measure
    after_attack: dict[str, Measure]
    after_control: dict[str, Measure]

    @property
    def after(self) -> dict[str, Measure]:
        """The scores after all attacks: the malicious ones, then the controls."""
        return self.after_attack | self.after_control


class DefenseSummary(BaseModel):
    """Everything measured of one defense.

    Attributes:
        harmful_execution: harmful execution rates.
        diverged: attacks whose training made the model's numbers NaN or infinite: they say nothing about the defense and enter no
            measure of it; in `after_attack` they are not measured.
        reduction_vs_undefended: how much less harm there is after attacks than in the undefended model.
        capability: scores in capability tasks.
        benign_nll: likelihood of held-out documents.
        usable_harm: by ε ("0.05", …), the share of the undefended model's capability that may be lost.
        attack_cost: by malicious attack; None for an attack that trains no steps or diverged.
        benign_kl: mean KL(as shipped ‖ hardened) per token on the shipped model's answers to harmless prompts, in nats; a lower
            bound, since all but the 40 likeliest tokens at each position form one bucket.
        benign_finetune: by task.
        benign_answer_rate: share of harmless prompts answered before any attack.
        benign_answer_rate_near: share of the harmless prompts near the threat answered before any attack.
        benign_answer_drop_vs_undefended: the undefended model's rate minus this one's.
        benign_answer_drop_vs_shipped: the rate of the model as shipped minus this one's.
        mean_score: means of the judge's scores; only of a judge that grades responses.
        undecided: number of responses of this model, before and under attacks, on which the judge could not decide; left out of
            the file where it is 0. Values leave them out, intervals hold however they would have been decided.
    """

    harmful_execution: HarmfulExecution
    diverged: list[str] = Field(default_factory=list)
    usable_harm: dict[Share, Annotated[UsableHarm, AfterValidator(_is_rate)]]
    reduction_vs_undefended: Reduction
    attack_cost: dict[str, AttackCost | None]
    capability: Capability
    benign_nll: BenignNll
    benign_kl: Measure
    benign_finetune: dict[str, GapVsUndefended]
    benign_answer_rate: Rate
    benign_answer_rate_near: Rate
    benign_answer_drop_vs_undefended: Measure
    benign_answer_drop_vs_shipped: Measure
    mean_score: MeanScore | None = Field(None, exclude_if=lambda score: score is None)
    undecided: Undecided = 0

    def counting_costs(self) -> dict[str, AttackCost]:
        """The costs of the attacks that count and train."""
        counting = self.reduction_vs_undefended.attacks_that_count
        return {name: cost for name in counting if (cost := self.attack_cost.get(name)) is not None}

    def attacks_without_ratio(self) -> list[str]:
        """Attacks that count and train, and whose cost has no ratio: the undefended model's own cost is censored."""
        return [name for name, cost in self.counting_costs().items() if cost.ratio_vs_undefended is None]


class ShippedSummary(BaseModel):
    """The measures before attack, of the model as shipped.

    Attributes:
        harmful_execution: share of evaluation prompts whose response executes the request.
        capability: 1 by definition.
        benign_nll: likelihood of held-out documents; its rises are not measured.
        benign_answer_rate: share of harmless prompts answered.
        benign_answer_rate_near: share of the harmless prompts near the threat answered.
        undecided: number of its responses on which the judge could not decide; left out of the file where it is 0.
    """

    harmful_execution: Rate
    capability: Measure
    benign_nll: Measure
    benign_answer_rate: Rate
    benign_answer_rate_near: Rate
    undecided: Undecided = 0


class Summary(BaseModel):
    """`summary.json`, schema 2.

    Attributes:
        version: version of this layout; a reader refuses another one.
        model: the model before hardening, as the study names it.
        threat: source of the threat, as the study names it.
        seeds: those of the study.
        as_shipped: the model before hardening.
        seconds: time of all nodes, those of earlier runs included; of an interrupted one, its last part and what was kept before.
        peak_memory_bytes: the most that any node used.
        judge: whose verdicts `as_shipped` and `defenses` rest on.
        defenses: by name, in the study's order.
        judges: by name of a further judge, the same as `defenses` with its verdicts.
    """

    model_config = ConfigDict(populate_by_name=True)

    version: Literal[2] = Field(2, alias="schema")
    model: str
    threat: str
    judge: str
    seeds: list[int]
    as_shipped: ShippedSummary
    defenses: dict[str, DefenseSummary] = Field(min_length=1)
    judges: dict[str, dict[str, DefenseSummary]] = Field(default_factory=dict)
    seconds: float = Field(ge=0, le=1e12)
    peak_memory_bytes: int = Field(ge=0, lt=2**63)


def write_summary(folder: Path, summary: Summary) -> None:
    """Write `summary.json`.

    Raises:
        UserError: it would not be readable, which is a mistake of this package, or the disk is full.
    """
    content = summary.model_dump(by_alias=True)
    try:
        Summary.model_validate(content)  # a copy with other values is not checked when it is made
    except ValidationError as error:
        raise UserError(
            f"{folder / SUMMARY} is not written, since it has no valid value at {invalid_place(error)}: this is "
            "a bug, please report it."
        ) from error
    write_json(folder / SUMMARY, content)


def read_summary(folder: Path) -> Summary:
    """Read `summary.json`.

    Raises:
        UserError: it is missing, damaged, or of another schema.
    """
    return read_run_file(folder / SUMMARY, Summary, schema=SCHEMA)
