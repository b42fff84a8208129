"""The answers browser: every answer of a run as compact JSON, which `browser.js` lists, filters and sets side by side."""

from dataclasses import dataclass
from typing import Any, Literal

from tamperfuse.records.errors import printable
from tamperfuse.records.results import UNDEFENDED
from tamperfuse.report.formatting import label
from tamperfuse.report.responses import ModelState, RunAnswers

PARTS = {
    "evaluation": "forbidden",
    "attacker_dev": "forbidden, of the attacker",
    "harmless_near": "harmless, near the threat",
    "harmless_far": "harmless, far from it",
}
HARMLESS = ("harmless_near", "harmless_far")
DIGITS, EXACT = 3, 9  # decimals of a value, and of one that fails, which may be near its limit


@dataclass(frozen=True)
class Criterion:
    """How a number or flag that a verdict rests on is put into words.

    Attributes:
        text: what it is, with {} for the value.
        kind: how the value is printed.
        bound: whether the judge's limit is the most or the least that passes; "" for neither.
    """

    text: str
    kind: Literal["share", "number", "flag", "text"] = "number"
    bound: Literal["most", "least", ""] = ""


#: Of the judges that come with tamperfuse; evidence of other judges is shown under its own name.
CRITERIA = {
    "refuses": Criterion("declines the request: {}", "flag"),
    "repetition": Criterion("{} of its words are in repeated passages", "share", "most"),
    "echo": Criterion("{} of its words come from the prompt", "share", "most"),
    "words": Criterion("{} words", "number", "least"),
    "similarity": Criterion("similarity to its prompt {}", "number", "least"),
    "lift": Criterion("likelier after its own prompt than after another one by {} nats a token", "number", "least"),
    "surprise": Criterion("surprise of the model before hardening {} nats a token", "number", "most"),
}


def browser_data(run_answers: RunAnswers, kinds: dict[str, str]) -> dict[str, Any]:
    """The data of the browser. Lists refer to each other by index, so that a text that repeats is there once.

    Args:
        run_answers: the answers.
        kinds: the kind of a prompt by its text, where there is one.

    Returns:
        "states", "prompts", "judges", "reasons", "criteria" (by judge), and "answers", each as
        [state, prompt, text, cut, [[judge, executed, reason, evidence, numbers of the failed evidence], …]]; `cut` is null where
        it was not recorded.
    """
    states, prompts, judges, reasons = _Index(), _Index(), _Index(), _Index()
    keys: dict[str, _Index] = {}
    answers = []
    for answer in run_answers.answers:
        verdicts = []
        for verdict in answer.verdicts:
            names = keys.setdefault(verdict.judge, _Index())
            limits = run_answers.limits.get(verdict.judge, {})
            fails = {name: _fails(name, value, limits) for name, value in verdict.evidence.items()}
            values = {
                names.of(name): _value(value, EXACT if fails[name] else DIGITS)
                for name, value in verdict.evidence.items()
            }
            failed = [names.of(name) for name in fails if fails[name]]
            evidence = [values.get(number) for number in range(max(values, default=-1) + 1)]
            judge, reason = judges.of(verdict.judge), reasons.of(printable(verdict.reason))
            verdicts.append([judge, int(verdict.executed), reason, evidence, failed])
        # Equal texts are different prompts if one is harmless and the other forbidden.
        prompt = prompts.of((answer.prompt, answer.part))
        cut = None if answer.cut is None else int(answer.cut)
        answers.append([states.of(answer.state), prompt, printable(answer.response), cut, verdicts])
    return {
        "states": [_state(state) for state in states.items],
        "prompts": [[printable(text), part, printable(kinds.get(text, ""))] for text, part in prompts.items],
        "parts": PARTS,
        "harmless": HARMLESS,
        "judges": judges.items,
        "reasons": reasons.items,
        "criteria": [
            [_criterion(name, run_answers.limits.get(judge, {})) for name in keys.get(judge, _Index()).items]
            for judge in judges.items
        ],
        "answers": answers,
    }


class _Index:
    """Numbers for values, in the order in which they appear."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._numbers: dict[Any, int] = {}

    def of(self, item: Any) -> int:
        """The number of a value; a new one for a new value."""
        if item not in self._numbers:
            self._numbers[item] = len(self.items)
            self.items.append(item)
        return self._numbers[item]


def _state(state: ModelState) -> dict[str, Any]:
    return {
        "defense": label(state.defense),
        "undefended": state.defense == UNDEFENDED,
        "attack": printable(state.attack),
        "step": state.step,
        "seed": state.seed,
        "limit": state.limit,
    }


def _criterion(name: str, limits: dict[str, float]) -> dict[str, Any]:
    criterion = CRITERIA.get(name, Criterion(printable(name).replace("_", " ") + ": {}", "text"))
    limit = limits.get(name) if criterion.bound else None
    return {"text": criterion.text, "kind": criterion.kind, "bound": criterion.bound, "limit": limit}


def _fails(name: str, value: Any, limits: dict[str, float]) -> bool:
    """Whether a number is beyond the judge's limit, before it is rounded."""
    bound, limit = CRITERIA[name].bound if name in CRITERIA else "", limits.get(name)
    if not bound or limit is None or isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value > limit if bound == "most" else value < limit


def _value(value: Any, digits: int) -> Any:
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        return round(value, digits)
    return printable(str(value))
