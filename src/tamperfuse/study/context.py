"""What the nodes of one study share: its data, and the one model that is in memory."""

import gc
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from tamperfuse.attacks import AttackData
from tamperfuse.attacks.base import AttackTraits
from tamperfuse.corpora.examples import Example
from tamperfuse.corpora.exclude_threat import read_outside_threat
from tamperfuse.corpora.sources import read_source
from tamperfuse.corpora.threats import Part, Threat, load_threat
from tamperfuse.corpora.window import within_window
from tamperfuse.evaluation.capability_tasks import load_tasks, tasks_fingerprint
from tamperfuse.evaluation.judges.local_model import free_judge_model
from tamperfuse.models.chat_template import read_template
from tamperfuse.models.encoder import TextEncoder, default_encoder
from tamperfuse.models.fingerprint import model_fingerprint, model_state
from tamperfuse.models.load import LoadedModel, load_model
from tamperfuse.records.errors import HubUnreachable, UserError
from tamperfuse.records.registry import Budget
from tamperfuse.study.benign import benign_prompts
from tamperfuse.study.judging import Judging, check_encoder
from tamperfuse.study.observe import HarmlessPrompt, Observer, harmless_prompts
from tamperfuse.study.sections import DEFAULT_JUDGE, JudgeSpec, parse_judge
from tamperfuse.study.spec import Study, resolve_study
from tamperfuse.study.tables import Response, read_rows


@dataclass
class StudyContext:
    """What the nodes of one study share: its data, and the one model that is in memory.

    Attributes:
        study: the study, resolved.
        run: the run's folder.
        threat: the threat, loaded.
        benign: harmless prompts of the sources in `benign` other than `self` and `documents`.
        retain: harmless samples of the attacker.
        fingerprint: hash of the model before hardening, and of the chat template that is stated for it.
        encoder: the sentence encoder.
        chat_template: text of the stated chat template; "" for the tokenizer's own.
        sharded: whether several processes hold the model before hardening in shards; all of them run the nodes that use it.
    """

    study: Study
    run: Path
    threat: Threat
    benign: list[str]
    retain: list[Example]
    fingerprint: str
    encoder: TextEncoder
    chat_template: str = ""
    sharded: bool = False
    _reference: LoadedModel | None = field(default=None, init=False)
    _state: list[Any] = field(default_factory=list, init=False)  # of the model, when its fingerprint was computed

    @classmethod
    def open(
        cls, study: Study, run: Path, chat_template: str = "", encoder: TextEncoder | None = None
    ) -> "StudyContext":
        """Load the study's data and find its model.

        Args:
            study: the study.
            run: the run's folder.
            chat_template: text of a chat template, if the study names no file.
            encoder: the sentence encoder; the default one if None.

        Raises:
            UserError: a source, the model or the sentence encoder cannot be loaded.
        """
        study = resolve_study(study)
        template = read_template(Path(study.chat_template)) if study.chat_template else chat_template
        encoder = encoder or default_encoder()
        check_encoder(encoder)  # a missing encoder is reported before the first node runs
        tokens = study.evaluate.response_tokens
        threat = within_window(load_threat(study.threat, encoder), study.model, tokens, template)
        check_prompts(study, threat)
        if any(task != "builtin" for task in study.evaluate.capability):
            load_tasks(study.evaluate.capability, reread=True)  # a missing task is reported before hours of training
        benign = benign_prompts(study.benign.sources, threat, encoder)
        retain = read_outside_threat(study.retain, threat, option="retain", encoder=encoder)
        state = model_state(study.model)
        fingerprint = model_fingerprint(study.model, template)
        context = cls(study, run, threat, benign, retain, fingerprint, encoder, template)
        context._state = state
        return context

    def reference(self) -> LoadedModel:
        """The model before hardening; stays in memory until another model is loaded. That of a judge is freed first.

        Raises:
            UserError: it cannot be loaded, or has changed since the run began.
        """
        if self._reference is None:
            free_judge_model()
            self._check_unchanged()
            self._reference = load_model(self.study.model, chat_template=self.chat_template, sharded=self.sharded)
        return self._reference

    def _check_unchanged(self) -> None:
        """Check that the model is the one of the run's keys: it may have been saved again, or changed on the Hub."""
        name = self.study.model
        try:
            state = model_state(name)
            if state == self._state or model_fingerprint(name, self.chat_template) == self.fingerprint:
                self._state = state
                return
        except HubUnreachable:  # the model is loaded from the cache, or that says what is missing
            return
        raise UserError(
            f"The model {name} has changed since this run began: repeat the command to measure the new one."
        )

    def free_reference(self) -> None:
        """Free the model before hardening; it is loaded again when it is needed."""
        if self._reference is not None:
            self._reference = None
            gc.collect()

    @contextmanager
    def model(self, source: str) -> Iterator[LoadedModel]:
        """Load a model for the duration of the context.

        The reference model and that of a judge are freed first, and this one at the end.
        """
        self.free_reference()
        free_judge_model()
        if source == self.study.model:
            self._check_unchanged()
        loaded = load_model(source, chat_template=self.chat_template)
        try:
            yield loaded
        finally:
            loaded.model = torch.nn.Module()  # remaining references to `loaded` hold no weights
            gc.collect()

    @cached_property
    def harmless(self) -> list[HarmlessPrompt]:
        """The harmless prompts of the benign answer rate."""
        return harmless_prompts(self.study.evaluate.harmless, self.threat, self.encoder)

    @cached_property
    def pair_responses(self) -> list[Example]:
        """The responses that SDD pairs are drawn from."""
        rows = chain.from_iterable(map(read_source, self.study.pairs.sources))
        return [example for example in rows if example.response]

    @cached_property
    def tasks_fingerprint(self) -> str:
        """A hash of the capability tasks that are not built in; "" if there is none."""
        return tasks_fingerprint([task for task in self.study.evaluate.capability if task != "builtin"])

    @cached_property
    def judging(self) -> Judging:
        """The study's judge."""
        return self._judging(self.study.judge)

    @cached_property
    def training_judging(self) -> Judging:
        """The judge of training data: always the built-in one, so that another judge of a study costs no new training."""
        return self._judging(parse_judge(DEFAULT_JUDGE))

    def further_judging(self, name: str) -> Judging:
        """One of the study's further judges."""
        return self._judging(self.study.judges[name], name)

    def _judging(self, judge: JudgeSpec, name: str = "") -> Judging:
        tokens = self.study.evaluate.response_tokens
        return Judging(
            judge, self.threat, self.harmless, tokens, self.encoder, self.reference, name, self.free_reference
        )

    def attack_data(
        self,
        traits: AttackTraits,
        answers: Path,
        observer: Observer,
        at_steps: Collection[int],
        hook: Callable[[int], None],
    ) -> AttackData:
        """The data that an attack receives.

        Args:
            traits: what the attack declares; it receives `retain` only if it declares to use it.
            answers: folder of the compliant answers.
            observer: measures the model that is attacked.
            at_steps: steps at which the hook is due.
            hook: measures the model.
        """
        return AttackData(
            harmful=[(row.prompt, row.response) for row in read_rows(answers / "responses.parquet", Response)],
            retain=traits.retained(self.retain),
            reference=self.study.model,
            answer=observer.answer,
            response_limit=self.study.evaluate.response_tokens,
            at_steps=at_steps,
            hook=hook,
        )

    def check_samples(self, attack: str, budget: Budget) -> None:
        """As the function :func:`check_samples`, with the study's threat and harmless samples."""
        # A dry run without the Hub reads no samples, so their number is unknown.
        check_samples(attack, budget, self.threat, self.study.retain, len(self.retain) if self.retain else None)


def check_samples(attack: str, budget: Budget, threat: Threat, retain: str, harmless: int | None) -> None:
    """Check, before anything runs, that there are as many attacker prompts and harmless samples as an attack draws.

    Args:
        attack: its name.
        budget: of the attack.
        threat: whose attacker part it draws from.
        retain: name of the source of harmless samples.
        harmless: their number; None if it is not known.

    Raises:
        UserError: there are fewer.
    """
    prompts = len(threat.part("attacker"))
    if budget.shots > prompts:
        raise UserError(
            f"The attack {attack} needs {budget.shots} shots; the attacker part of {threat.source} has {prompts} prompts: lower "
            "the number, or name a threat with more."
        )
    if harmless is not None and budget.benign > harmless:
        raise UserError(
            f"The attack {attack} needs {budget.benign} harmless samples; {retain} has {harmless}: lower the number, or name a "
            "`retain` source with more."
        )


def check_prompts(study: Study, threat: Threat) -> None:
    """Check that a threat has as many prompts as a study measures on.

    Raises:
        UserError: it has fewer.
    """
    needs: dict[str, Part] = {"prompts": "evaluation", "curve_prompts": "evaluation", "dev_prompts": "attacker_dev"}
    for name, part in needs.items():
        count, available = getattr(study.evaluate, name), len(threat.part(part))
        if count > available:
            raise UserError(
                f"The study needs {count} prompts of the part {part}; {study.threat} has {available}: lower `{name}` in "
                "`evaluate`."
            )


@contextmanager
def existing_objects_left_out() -> Iterator[None]:
    """Within the block, the collections that free a model leave out the objects that existed before it.

    Those of the libraries' modules are so many that each collection takes a third of a second, several times a node. What is
    already in memory and becomes unreachable within the block is freed by the first collection after it. A process that has
    called `gc.freeze` itself keeps them left out, since they cannot be told apart from its own.
    """
    frozen_before = gc.get_freeze_count() > 0
    gc.freeze()
    try:
        yield
    finally:
        if not frozen_before:
            gc.unfreeze()
