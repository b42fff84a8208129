"""What every judge receives and returns, and the decorator that registers one.

    @judge("length", LengthParameters)
    def length(answers, data, parameters):
        \"\"\"Any response of ten words executes the request.\"\"\"
        return [Verdict(len(answer.response.split()) >= 10) for answer in answers]

Other packages add judges through the entry-point group `tamperfuse.judges`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tamperfuse.models.encoder import TextEncoder
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError
from tamperfuse.records.registry import P, Registry

REFUSES = "refuses"


@dataclass(frozen=True)
class Answer:
    """A prompt with a model's response to it."""

    prompt: str
    response: str


@dataclass(frozen=True)
class Verdict:
    """What a judge decides about one response.

    Attributes:
        verdict: whether the response executes the request.
        score: confidence that it does, in the judge's own unit, higher for a clearer execution; None if the judge has none.
        reason: why it does not, in a few words ("refuses, incoherent"); "" where it does.
        evidence: what the decision rests on, JSON-able. A judge that detects refusals puts `refuses` (true or false) here, of
            which the refusal rate is computed.
    """

    verdict: bool
    score: float | None = None
    reason: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class JudgeData:
    """All data that a judge receives beside the responses.

    Attributes:
        encoder: the sentence encoder.
        other_prompts: prompts of the same kind as those of the responses (requests of the threat, or harmless prompts), to
            compare likelihoods with. When a judge without a reference model judges a finished run: those with responses.
        response_limit: longest response to score, in tokens.
        thresholds: what the judge's `calibrate` returned for this threat; empty for a judge without one.
        load_reference: loads the model before hardening, or returns the loaded one; None if the judge does not declare
            `needs_reference`.
        tokens_scored: a counter to which the judge adds the tokens that went through the reference model.
    """

    encoder: TextEncoder
    other_prompts: Sequence[str]
    response_limit: int
    thresholds: Mapping[str, float] = field(default_factory=dict)
    load_reference: Callable[[], LoadedModel] | None = None
    tokens_scored: int = 0

    @property
    def reference(self) -> LoadedModel:
        """The model before hardening.

        Raises:
            UserError: the judge does not declare that it needs the model.
        """
        if self.load_reference is None:
            raise UserError("The judge uses the reference model: declare needs_reference=True in its @judge decorator.")
        return self.load_reference()


JudgeFunction = Callable[[Sequence[Answer], JudgeData, P], list[Verdict]]
Calibrate = Callable[[Sequence[Answer], JudgeData, P], dict[str, float]]
Screen = Callable[[Sequence[Answer], JudgeData, P], list[bool]]
Estimate = Callable[[Sequence[Answer], P], str]
Check = Callable[[P], None]
ScoreRange = Callable[[P], tuple[float, float]]


@dataclass(frozen=True)
class JudgeTraits:
    """What a judge declares.

    Attributes:
        needs_reference: whether it uses the model before hardening, :attr:`JudgeData.reference`.
        calibrate: computes thresholds from executed requests of the attacker part; None for a judge without thresholds.
        screen: computes, without the reference model, which responses may still get the verdict True; used to stop
            attacks early while another model is in memory. None: the judge itself, if it needs no reference model, and
            otherwise every response may.
        estimate: says in a sentence what judging some responses costs, for a judge that is paid for; None if it costs nothing.
        model: names the local model or Hub id that the judge loads, whose weights its verdicts depend on; None if it loads none.
        check: raises a `UserError` if the judge cannot be used (a package or a key is missing), at once and without a request;
            called before anything is computed. None if nothing can be missing.
        scores: the lowest and the highest score of a judge that grades responses, whose mean score is reported. None for another
            judge, whose scores order responses but have no meaningful mean.
    """

    needs_reference: bool = False
    calibrate: Calibrate[Any] | None = None
    screen: Screen[Any] | None = None
    estimate: Estimate[Any] | None = None
    model: Callable[[Any], str] | None = None
    check: Check[Any] | None = None
    scores: ScoreRange[Any] | None = None


def all_may_execute(answers: Sequence[Answer], data: JudgeData, parameters: Any) -> list[bool]:
    """The screen of judges with a model of their own or an endpoint: no attack is stopped early.

    Beside the attacked model there may be no memory for another one, and requests to an endpoint cost money.
    """
    return [True] * len(answers)


JUDGES: Registry[JudgeTraits, list[Verdict]] = Registry(
    "judge", "tamperfuse.judges", frozenset({"judge", "parameters"})
)


def judge(
    name: str,
    parameters: type[P],
    *,
    needs_reference: bool = False,
    calibrate: Calibrate[P] | None = None,
    screen: Screen[P] | None = None,
    estimate: Estimate[P] | None = None,
    model: Callable[[P], str] | None = None,
    check: Check[P] | None = None,
    scores: ScoreRange[P] | None = None,
    version: int = 1,
) -> Callable[[JudgeFunction[P]], JudgeFunction[P]]:
    """Register a judge: a function of responses, data and parameters that returns one verdict a response, in order.

    Each (prompt, response) is handed to the judge once. The verdict on a response must not depend on the other responses.

    Args:
        name: as users write it.
        parameters: its parameter model.
        needs_reference: see :class:`JudgeTraits`, as for the next six.
        calibrate: likewise.
        screen: likewise.
        estimate: likewise.
        model: likewise.
        check: likewise.
        scores: likewise.
        version: raise it when a verdict can change, so that older verdicts are not reused.
    """
    traits = JudgeTraits(needs_reference, calibrate, screen, estimate, model, check, scores)
    return JUDGES.register(name, parameters, traits, version)
