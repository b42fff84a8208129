"""Responses → thresholds → verdicts: how studies, searches and single commands judge.

attacker prompts ──▶ compliant_answers ──▶ Judging.calibrate ──▶ thresholds ─┐
responses of a model ──────────────────────────────────────────▶ Judging.verdicts ──▶ one VerdictRow a response
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np

from tamperfuse.corpora.threats import Part, Threat, ThreatPrompt
from tamperfuse.evaluation.calibrate import is_compliant
from tamperfuse.evaluation.generate import generate
from tamperfuse.evaluation.judges import JUDGES, Answer, JudgeData, Verdict
from tamperfuse.evaluation.judges.base import JudgeTraits
from tamperfuse.evaluation.judges.failures import is_failure
from tamperfuse.models.bundled import ENCODERS
from tamperfuse.models.encoder import DEFAULT_ENCODER, TextEncoder
from tamperfuse.models.load import LoadedModel
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import read_json, write_json
from tamperfuse.records.registry import Component, Parameters
from tamperfuse.study.observe import HarmlessPrompt
from tamperfuse.study.sections import JudgeSpec
from tamperfuse.study.tables import HARMLESS_PARTS, Response, VerdictRow

CALIBRATION_ANSWERS = 48  # most answers used to calibrate thresholds
# The share of the model's answers that must be more similar to their own prompt than to another one. It is 0.99 to 1 for
# SmolLM2-135M, and 0.5 for random words.
COHERENT, COHERENCE_ANSWERS = 0.8, 16  # not decided from fewer answers
THRESHOLDS = "thresholds.json"


def check_encoder(encoder: TextEncoder) -> None:
    """Check, if the encoder is the bundled one, that it is installed, without loading it.

    Raises:
        UserError: it is not.
    """
    if encoder.name == DEFAULT_ENCODER:
        ENCODERS[DEFAULT_ENCODER].path()


def write_thresholds(folder: Path, thresholds: Mapping[str, float]) -> None:
    """Write the judge's thresholds to a folder."""
    write_json(folder / THRESHOLDS, dict(thresholds))


def read_thresholds(folder: Path) -> dict[str, float]:
    """Read what :func:`write_thresholds` wrote."""
    return {str(name): float(value) for name, value in read_json(folder / THRESHOLDS).items()}


@dataclass(frozen=True)
class CompliantAnswers:
    """Answers that execute the request, to prompts of one part of a threat.

    Attributes:
        prompts: the prompts that have one, with it as their `response`.
        tokens_generated: tokens that the model generated for them.
    """

    prompts: list[ThreatPrompt]
    tokens_generated: int

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(prompt, answer), as attacks and defenses receive them."""
        return [(p.prompt, p.response) for p in self.prompts]


def compliant_answers(
    reference: Callable[[], LoadedModel],
    prompts: Sequence[ThreatPrompt],
    response_tokens: int,
    encoder: TextEncoder,
) -> CompliantAnswers:
    """Compliant answers: the threat's own, and where it has none those of the model before hardening, if they comply.

    Args:
        reference: returns the model before hardening; called only if a prompt has no answer.
        prompts: of one part of the threat.
        response_tokens: longest answer to generate, in tokens.
        encoder: compares the model's answers with their prompts.

    Raises:
        UserError: fewer than two prompts have one, or the model's answers do not belong to their prompts.
    """
    unanswered = [p for p in prompts if not p.response]
    generated: list[list[int]] = []
    answers = {p.id: p.response for p in prompts}
    loaded = reference() if unanswered else None
    if loaded:
        texts = [loaded.chat.prompt(p.prompt) for p in unanswered]
        generated = generate(loaded, texts, new_tokens=response_tokens, label="answers")
        answers |= {p.id: loaded.chat.text(tokens) for p, tokens in zip(unanswered, generated, strict=True)}
    compliant = [replace(p, response=answers[p.id]) for p in prompts if is_compliant(answers[p.id])]
    if len(compliant) < 2:
        source = f"The model before hardening ({loaded.name})" if loaded else "The threat's own data"
        raise UserError(
            f"{source} has {len(compliant)} compliant answers to {len(prompts)} prompts of the threat: name a model that "
            "executes the threat, or a threat with answers that comply."
        )
    if loaded:
        answered = [p for p in unanswered if is_compliant(answers[p.id])]
        _check_coherent(loaded.name, [p.prompt for p in answered], [answers[p.id] for p in answered], encoder)
    return CompliantAnswers(compliant, sum(map(len, generated)))


def _check_coherent(name: str, prompts: Sequence[str], answers: Sequence[str], encoder: TextEncoder) -> None:
    """Check that the model before hardening answers its prompts: the likelihood signal of judges relies on it.

    Raises:
        UserError: too few prompts are more similar to their own answer than to that of the prompt before.
    """
    if len(answers) < COHERENCE_ANSWERS:
        return
    of_prompts, of_answers = encoder.encode(prompts), encoder.encode(answers)
    matched, shifted = ((of_prompts * np.roll(of_answers, shift, axis=0)).sum(axis=1) for shift in (0, 1))
    share = float((matched > shifted).mean())
    if share < COHERENT:
        raise UserError(
            f"{name} cannot serve as the model before hardening: only {share:.0%} of its answers to the threat are more similar "
            "to their own prompt than to another one. Name a trained chat model, or a threat with answers."
        )


def _nothing_to_free() -> None:
    """For judging without a study, whose reference model belongs to the caller."""


@dataclass
class Judging:
    """One judge for the responses to one threat.

    Attributes:
        judge: name and parameters of the judge.
        threat: whose requests are judged.
        harmless: the harmless prompts of the benign answer rate.
        response_tokens: longest response, in tokens.
        encoder: the sentence encoder.
        reference: returns the model before hardening; called only for judges that need it.
        name: under which its verdicts are stored; the judge's own where "".
        free_reference: frees the model before hardening; called before a judge runs that loads another model.
    """

    judge: JudgeSpec
    threat: Threat
    harmless: Sequence[HarmlessPrompt]
    response_tokens: int
    encoder: TextEncoder
    reference: Callable[[], LoadedModel]
    name: str = ""
    free_reference: Callable[[], None] = _nothing_to_free

    @cached_property
    def component(self) -> Component[JudgeTraits, list[Verdict]]:
        """The judge."""
        return JUDGES.get(self.judge.judge)

    @cached_property
    def parameters(self) -> Parameters:
        """Its parameters, validated."""
        parameters: Parameters = self.component.parse(self.judge.parameters, f"judge {self.judge.judge}")
        return parameters

    @property
    def traits(self) -> JudgeTraits:
        """What the judge declares."""
        return self.component.traits

    def check(self) -> None:
        """Check, before anything is computed, that the judge can be used.

        Raises:
            UserError: it cannot, such as an endpoint without a key.
        """
        if self.traits.check is not None:
            self.traits.check(self.parameters)

    def calibrate(self, answers: Sequence[tuple[str, str]], part: Part = "attacker") -> tuple[dict[str, float], int]:
        """Calibrate the judge.

        Args:
            answers: (prompt, compliant answer), at least two; the first :data:`CALIBRATION_ANSWERS` are used.
            part: of the threat that the prompts belong to.

        Returns:
            Thresholds by name, empty for a judge without any, and the tokens that the reference model scored.
        """
        if self.traits.calibrate is None:
            return {}, 0
        data = self._data([p.prompt for p in self.threat.part(part)], {})
        executed = [Answer(prompt, response) for prompt, response in answers[:CALIBRATION_ANSWERS]]
        return self.traits.calibrate(executed, data, self.parameters), data.tokens_scored

    def verdicts(self, responses: Sequence[Response], thresholds: Mapping[str, float]) -> tuple[list[VerdictRow], int]:
        """Judge the responses of a model; equal (prompt, response) pairs are judged once.

        Args:
            responses: to requests of the threat and to harmless prompts, of any steps.
            thresholds: as :meth:`calibrate` returned them.

        Returns:
            A row for every response, requests of the threat before harmless prompts, and the tokens that the reference model
            scored.
        """
        rows: list[VerdictRow] = []
        tokens = 0
        for harmless in (False, True):
            part = [r for r in responses if (r.part in HARMLESS_PARTS) == harmless]
            unique = list(dict.fromkeys(Answer(r.prompt, r.response) for r in part))
            verdicts, scored = self.judge_answers(unique, thresholds, harmless=harmless)
            by_answer = dict(zip(unique, verdicts, strict=True))
            rows += [
                VerdictRow.of(r, self.name or self.judge.judge, by_answer[Answer(r.prompt, r.response)]) for r in part
            ]
            tokens += scored
        return rows, tokens

    def judge_answers(
        self, answers: Sequence[Answer], thresholds: Mapping[str, float], *, harmless: bool = False
    ) -> tuple[list[Verdict], int]:
        """Verdicts on answers to requests of the threat, or to harmless prompts, and the tokens that were scored."""
        return self._judge(answers, self._other_prompts(harmless), thresholds)

    def _judge(
        self, answers: Sequence[Answer], other_prompts: Sequence[str], thresholds: Mapping[str, float]
    ) -> tuple[list[Verdict], int]:
        if not answers:
            return [], 0
        data = self._data(other_prompts, thresholds)
        verdicts = self.component.run(answers, data, self.parameters)
        if len(verdicts) != len(answers):
            raise UserError(
                f"The judge {self.judge.judge} returned {len(verdicts)} verdicts on {len(answers)} responses: it must return "
                "one for each, in their order."
            )
        return verdicts, data.tokens_scored

    def executes_defender_requests(
        self, answers: Sequence[Answer], thresholds: Mapping[str, float]
    ) -> tuple[list[bool], int]:
        """Which answers execute requests of the defender part, judged with that part alone, and the tokens scored.

        Args:
            answers: requests of the defender part with answers.
            thresholds: of :meth:`calibrate` on the defender part.
        """
        verdicts, scored = self._judge(answers, [p.prompt for p in self.threat.part("defender")], thresholds)
        return [verdict.verdict for verdict in verdicts], scored

    def may_execute(self, responses: Sequence[Response], thresholds: Mapping[str, float]) -> list[bool]:
        """Which responses to requests of the threat may get the verdict True, computed without the reference model.

        Those on which the judge could not decide may.
        """
        answers = [Answer(r.prompt, r.response) for r in responses]
        if self.traits.screen is not None:
            data = self._data(self._other_prompts(harmless=False), thresholds)
            data.load_reference = None
            return self.traits.screen(answers, data, self.parameters)
        if self.traits.needs_reference:
            return [True] * len(answers)
        return [verdict.verdict or is_failure(verdict) for verdict in self.judge_answers(answers, thresholds)[0]]

    def _other_prompts(self, harmless: bool) -> list[str]:
        """The prompts that the likelihood of a response is compared with."""
        if harmless:
            return [p.prompt for p in self.harmless]
        return [p.prompt for p in chain(self.threat.part("evaluation"), self.threat.part("attacker_dev"))]

    def _data(self, other_prompts: Sequence[str], thresholds: Mapping[str, float]) -> JudgeData:
        """What the judge receives; called before it runs."""
        reference = self.reference if self.traits.needs_reference else None
        if reference is None and self.traits.model is not None:
            self.free_reference()
        return JudgeData(self.encoder, other_prompts, self.response_tokens, dict(thresholds), reference)
