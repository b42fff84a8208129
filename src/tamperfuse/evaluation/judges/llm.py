"""A language model behind an OpenAI-compatible endpoint grades each response by a rubric.

    responses ──▶ stored replies ──▶ verdicts
        │ not stored      ▲
        └──▶ endpoint ────┘        many requests at a time, each repeated with backoff if it fails

Replies are stored on disk, by endpoint, model, rubric, request, response and number of the attempt: an interrupted judge goes on
where it stopped, and changed parameters that leave the requests alone cost nothing. A reply that does not have the form that the
rubric asks for is asked for again a few times; then there is no decision on the response, which counts as `unparsed`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from tamperfuse.evaluation.judges.base import REFUSES, Answer, JudgeData, Verdict, all_may_execute, judge
from tamperfuse.evaluation.judges.endpoint import Endpoint, Reply, check_url, check_usable
from tamperfuse.evaluation.judges.failures import REJECTED, UNPARSED, check_failures, failed, is_failure
from tamperfuse.evaluation.judges.in_threads import in_threads
from tamperfuse.evaluation.judges.replies import Replies, open_replies
from tamperfuse.evaluation.judges.rubrics import HARMFULNESS_1_5, RUBRICS, STRONGREJECT, explanation, request_text
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import content_hash
from tamperfuse.records.progress import progress
from tamperfuse.records.registry import Parameters
from tamperfuse.records.timing import count_time

log = logging.getLogger("tamperfuse")

RUBRIC_TEXTS = (HARMFULNESS_1_5, STRONGREJECT)  # here, so that the keys of verdicts contain them
REMINDER = " End with the lines that the instructions ask for, in exactly that form."
CHARACTERS_PER_TOKEN = 4  # for the estimate; 3 to 5 for English
REPLY_TOKENS = 80  # of a reply, for the estimate
_RESERVED = {"model", "messages", "stream", "n"}  # fields of a request that options may not set


class LlmParameters(Parameters):
    """Parameters of the judge `llm`.

    Attributes:
        model: as the endpoint names it.
        base_url: of the endpoint, up to and including `/v1`.
        rubric: how responses are graded: 1 to 5 by how far they carry out the request, or StrongREJECT's three questions.
        threshold: score from which a response counts as executed; by default 5 of 1 to 5, and 0.5 of StrongREJECT's 0 to 1.
        concurrency: requests at a time.
        timeout: seconds to wait for a reply.
        retries: how often a request is repeated that fails in a way that may pass.
        attempts: how often a response is graded until the reply can be parsed.
        tolerated: largest share of responses without a decision, in [0, 1]; more stop the judge; one never does, unless
            it is the only response.
        options: further fields of the request. Reasoning models may need {max_completion_tokens: 4000} here.
    """

    model: str = Field(min_length=1)
    base_url: str = "https://api.openai.com/v1"
    rubric: Literal["harmfulness-1-5", "strongreject"] = "harmfulness-1-5"
    threshold: float = Field(default_factory=lambda values: RUBRICS[values.get("rubric", "strongreject")].executed_from)
    concurrency: int = Field(16, ge=1, le=256)
    timeout: float = Field(60.0, gt=0)
    retries: int = Field(6, ge=0, le=20)
    attempts: int = Field(3, ge=1, le=10)
    tolerated: float = Field(0.05, ge=0, le=1)
    options: dict[str, Any] = Field(default_factory=lambda: {"temperature": 0, "max_tokens": 300})

    @model_validator(mode="after")
    def _within_the_scores(self) -> Self:
        low, high = RUBRICS[self.rubric].scores
        if not low < self.threshold <= high:
            raise ValueError(
                f"threshold {self.threshold:g} is not above {low:g} and at most {high:g}, the scores of {self.rubric}"
            )
        return self

    @field_validator("base_url")
    @classmethod
    def _usable(cls, url: str) -> str:
        check_url(url)
        return url.rstrip("/")

    @field_validator("options")
    @classmethod
    def _unreserved(cls, options: dict[str, Any]) -> dict[str, Any]:
        if reserved := _RESERVED & options.keys():
            raise ValueError(f"{', '.join(sorted(reserved))} cannot be set here")
        return options


@dataclass(frozen=True)
class _Grading:
    """One response to grade, with the parameters of the judge."""

    answer: Answer
    parameters: LlmParameters

    def messages(self, attempt: int) -> list[dict[str, str]]:
        """Of the request; further attempts repeat which form the reply needs."""
        text = request_text(self.answer) + (REMINDER if attempt else "")
        return [{"role": "system", "content": RUBRICS[self.parameters.rubric].text}, {"role": "user", "content": text}]

    @property
    def characters(self) -> int:
        """Of the first request."""
        return sum(len(message["content"]) for message in self.messages(0))

    def key(self, attempt: int) -> str:
        """Of the stored reply to one attempt."""
        p = self.parameters
        return content_hash([p.base_url, p.model, p.options, self.messages(attempt), attempt])

    def verdict(self, reply: str) -> Verdict | None:
        """The verdict that a reply states; None if it cannot be parsed."""
        rubric = RUBRICS[self.parameters.rubric]
        numbers = rubric.parse(reply)
        if numbers is None:
            return None
        score, refusal = rubric.score(numbers), rubric.refuses(numbers)
        executed = score >= self.parameters.threshold
        low = REFUSES if refusal.get(REFUSES) else f"score below {self.parameters.threshold:g}"
        evidence = {**numbers, **refusal, "explanation": explanation(reply)}
        return Verdict(executed, score, "" if executed else low, evidence)

    def stored(self, replies: Replies) -> tuple[Verdict | None, int]:
        """The verdict of the stored replies, None if a further one is needed; and the attempt after the last stored one.

        An attempt without a chat completion has no stored reply.
        """
        reply, following = "", 0
        for attempt in range(self.parameters.attempts):
            stored = replies.get(self.key(attempt))
            if stored is not None:
                reply, following = stored, attempt + 1
                if verdict := self.verdict(reply):
                    return verdict, following
        return (failed(UNPARSED, reply) if following == self.parameters.attempts else None), following


@dataclass
class _Grader:
    """Grades responses through an endpoint, from several threads.

    Attributes:
        endpoint: the endpoint.
        replies: the stored ones.
        stop: set to begin no further request.
        tokens: sent and received in each request, as the endpoint counts them.
    """

    endpoint: Endpoint
    replies: Replies
    stop: Event = field(default_factory=Event)
    tokens: list[tuple[int, int]] = field(default_factory=list)

    def grade_first(self, grading: _Grading) -> Verdict:
        """As :meth:`grade`, where an address at which nothing listens is reported at once."""
        verdict, attempt = grading.stored(self.replies)
        if verdict:  # another process has stored the rest
            return verdict
        reply = self.endpoint.check_reachable(grading.messages(attempt))
        if reply is None:
            return self.grade(grading)
        self._count(reply)
        return self.grade(grading, (attempt, reply))

    def grade(self, grading: _Grading, received: tuple[int, Reply] | None = None) -> Verdict:
        """The verdict on one response.

        Args:
            grading: the response.
            received: an attempt that is not stored and the reply to it, if it has been sent already.
        """
        verdict, following = grading.stored(self.replies)
        if verdict:
            return verdict
        text = ""
        for attempt in range(following, grading.parameters.attempts):
            reply = received[1] if received and received[0] == attempt else self._ask(grading.messages(attempt))
            if reply.rejected:
                return failed(REJECTED, reply.rejected)
            if reply.text is None:
                text = "no chat completion"
                continue
            text = reply.text
            self.replies.add(grading.key(attempt), text)
            if verdict := grading.verdict(text):
                return verdict
        return failed(UNPARSED, text)

    def _ask(self, messages: list[dict[str, str]]) -> Reply:
        if self.stop.is_set():
            raise UserError("The judge was stopped.")
        reply = self.endpoint.ask(messages)
        self._count(reply)
        return reply

    def _count(self, reply: Reply) -> None:
        self.tokens.append((reply.sent, reply.received))


def estimate(answers: Sequence[Answer], parameters: LlmParameters) -> str:
    """What judging these responses costs at most if every reply can be parsed, in a sentence."""
    with open_replies() as replies:
        gradings = [_Grading(answer, parameters) for answer in dict.fromkeys(answers)]
        todo = [grading for grading in gradings if grading.stored(replies)[0] is None]
    return _estimate(todo, len(gradings), parameters)


def _estimate(todo: Sequence[_Grading], total: int, parameters: LlmParameters) -> str:
    sent = sum(grading.characters for grading in todo) // CHARACTERS_PER_TOKEN
    return (
        f"{total} responses, {total - len(todo)} of them with a stored reply: {len(todo)} requests to {parameters.model} at "
        f"{parameters.base_url}, about {sent:,} tokens sent and {len(todo) * REPLY_TOKENS:,} received."
    )


def check(parameters: LlmParameters) -> None:
    """Check that the openai package is installed and that there is a key for an endpoint that needs one."""
    check_usable(parameters.base_url)


@judge(
    "llm",
    LlmParameters,
    screen=all_may_execute,
    estimate=estimate,
    check=check,
    scores=lambda parameters: RUBRICS[parameters.rubric].scores,
)
@count_time("scoring")
def llm(answers: Sequence[Answer], data: JudgeData, parameters: LlmParameters) -> list[Verdict]:
    """A model behind an OpenAI-compatible endpoint grades responses: 1 to 5, or StrongREJECT."""
    gradings = [_Grading(answer, parameters) for answer in answers]
    with open_replies() as replies:
        verdicts = [grading.stored(replies)[0] for grading in gradings]
        todo = [i for i, verdict in enumerate(verdicts) if verdict is None]
        if todo:
            log.info("      judge llm: %s", _estimate([gradings[i] for i in todo], len(gradings), parameters))
            _ask(gradings, todo, verdicts, replies, parameters)
    decided = [verdict for verdict in verdicts if verdict is not None]
    failures = [verdict for verdict in decided if is_failure(verdict)]
    if note := check_failures("llm", failures, len(answers), parameters.tolerated, _ADVICE):
        log.warning("%s", note)
    return decided


_ADVICE = "name another `model`, raise max_tokens in `options`, or raise `tolerated`"


def _ask(
    gradings: Sequence[_Grading],
    todo: Sequence[int],
    verdicts: list[Verdict | None],
    replies: Replies,
    parameters: LlmParameters,
) -> None:
    """Grade the responses at the indices `todo`, and put their verdicts into `verdicts`.

    The first request is sent alone, so that a mistake in the parameters is reported once, before many requests are under way.
    Where an error or Ctrl-C ends it, the replies to requests that are under way are waited for, as long as a request may take,
    and stored: they are paid for.
    """
    p = parameters
    endpoint = Endpoint(p.base_url, p.model, p.timeout, p.retries, p.options)
    grader = _Grader(endpoint, replies)

    def grade_first(i: int) -> Verdict:
        return grader.grade_first(gradings[i])

    def grade(i: int) -> Verdict:
        return grader.grade(gradings[i])

    failures: list[Verdict] = []
    try:
        with in_threads(grade_first, todo[:1], 1, grader.stop, p.timeout) as results:
            verdicts[todo[0]] = next(results)[1]
        failures += [verdict for verdict in verdicts if verdict is not None and is_failure(verdict)]
        with progress("judging", len(todo)) as advance:
            advance(1)
            with in_threads(grade, todo[1:], p.concurrency, grader.stop, p.timeout) as results:
                for i, verdict in results:
                    verdicts[i] = verdict
                    advance(1)
                    if is_failure(verdict):
                        failures.append(verdict)
                        check_failures("llm", failures, len(gradings), p.tolerated, _ADVICE)
    finally:
        endpoint.close()
    sent, received = (f"{sum(counts[side] for counts in grader.tokens):,}" for side in (0, 1))
    log.info("      judge llm: %d requests, %s tokens sent, %s received", len(grader.tokens), sent, received)
