"""Attack one model and measure it before and after: what `tamperfuse attack` does."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tamperfuse.attacks import ATTACKS, AttackData
from tamperfuse.attacks.base import PromptResponse, check_measured
from tamperfuse.commands.measurement import (
    Measurement,
    about_judging,
    full_evaluation,
    judge_responses,
    open_judging,
    write_tables,
)
from tamperfuse.commands.training import in_shards, print_notes, resumable_beside, work_of
from tamperfuse.corpora.exclude_threat import read_outside_threat
from tamperfuse.corpora.threats import load_threat
from tamperfuse.corpora.window import within_window
from tamperfuse.models.chat_template import read_template
from tamperfuse.models.conversion import absolute_name
from tamperfuse.models.encoder import default_encoder
from tamperfuse.models.fingerprint import model_fingerprint
from tamperfuse.models.load import LoadedModel, load_model, reference_name, write_checkpoint
from tamperfuse.records.files import check_fresh, content_hash, output_folder, write_json
from tamperfuse.records.provenance import Provenance, versions
from tamperfuse.study.context import check_samples
from tamperfuse.study.judging import CompliantAnswers, Judging, check_encoder, compliant_answers
from tamperfuse.study.observe import Observer
from tamperfuse.study.sections import RESPONSE_TOKENS, JudgeSpec


def attack_model(
    model: str,
    attack: str,
    threat: str,
    out: Path,
    *,
    reference: str | None,
    retain: str,
    keep: bool,
    settings: dict[str, Any],
    seed: int,
    report_to: Sequence[str] = (),
    judge: JudgeSpec | None = None,
    prompts: int | None = None,
    chat_template: Path | None = None,
) -> list[str]:
    """Attack a model, and measure it before the attack and after its last step.

    Writes `attack.json` (see :class:`Measurement`) and the tables behind it.

    Args:
        model: the model, as of :func:`load_model`.
        attack: name of the attack.
        threat: source of the threat.
        out: folder to write; must not exist, or be empty.
        reference: the model before hardening; None for the origin that the model's tamperfuse.json names.
        retain: source of the attacker's harmless samples.
        keep: whether to keep the attacked weights, in the subfolder `attacked`.
        settings: parameters of the attack.
        seed: of the attack.
        report_to: trackers that trainings report to.
        judge: the judge with its parameters; None for the default one.
        prompts: number of evaluation prompts, at least 2 and at most as many as the threat has; None for all.
        chat_template: file with a chat template, in place of that of the model and of its reference.

    Returns:
        Lines to print.

    Raises:
        UserError: bad input; nothing is written then.
    """
    component = ATTACKS.get(attack)
    parameters = component.parse(settings, f"attack {attack}")
    template, encoder = read_template(chat_template), default_encoder()
    requests = within_window(load_threat(threat, encoder), model, RESPONSE_TOKENS, template)
    evaluate = full_evaluation(requests, prompts=prompts)
    harmless = read_outside_threat(retain, requests, option="retain", encoder=encoder)
    budget = component.traits.budget(parameters)
    check_samples(attack, budget, requests, retain, len(harmless))
    check_fresh(out)
    check_encoder(encoder)
    work = {
        **work_of(component, parameters, seed),
        "threat": requests.fingerprint,
        "data": content_hash([(e.prompt, e.response) for e in harmless]),
        "measured": evaluate.model_dump(mode="json"),
        "reference": reference,
    }
    values = parameters.model_dump(mode="json")
    with resumable_beside(out, report_to, work, budget) as unfinished, output_folder(out) as staging:
        sharded = in_shards(budget)
        loaded = load_model(model, chat_template=template, sharded=sharded)
        origin = reference_name(loaded, reference)
        judging = open_judging(requests, evaluate, origin, encoder, judge, loaded.stated_template, sharded=sharded)
        # The reference model is loaded for these answers, and again by the judge, so that it is not in memory during the attack.
        tokens = evaluate.response_tokens
        load_origin = partial(load_model, origin, chat_template=loaded.stated_template, sharded=sharded)
        answers = compliant_answers(load_origin, requests.part("attacker"), tokens, encoder)
        measured = unfinished / _measured_name(loaded, model_fingerprint(model, template), origin, work, judging)
        observer = Observer(loaded, requests, evaluate, measured)
        data = _data(observer, judging, answers, component.traits.retained(harmless), origin, budget.steps or 1)
        print_notes(component.run(loaded, data, parameters, seed).notes)
        check_measured(attack, data.at_steps, {response.step for response in observer.responses})
        verdicts, thresholds = judge_responses(judging, observer, answers.pairs)
        write_tables(staging, observer, verdicts)
        if keep:
            (staging / "attacked").mkdir()
            made_by, source = f"{attack} (seed {seed})", absolute_name(model)
            provenance = Provenance(origin=origin, made_by=made_by, source=source, parameters=values)
            write_checkpoint(loaded, staging / "attacked", provenance)
        measurement = Measurement.of(observer, verdicts)
        about = {
            "model": model,
            "attack": attack,
            "parameters": values,
            "seed": seed,
            "threat": threat,
            "reference": origin,
            **about_judging(judging, thresholds),
        }
        write_json(staging / "attack.json", {**about, **measurement.to_json()})
    return measurement.lines(trains=budget.trains)


def _data(
    observer: Observer,
    judging: Judging,
    answers: CompliantAnswers,
    retain: Sequence[PromptResponse],
    origin: str,
    steps: int,
) -> AttackData:
    """The attack's data, with a hook that measures the model before its first step and after its last."""

    def hook(step: int) -> None:
        observer.once(step, lambda o: o.ask(step, observer.evaluate.prompts, 0, judging.harmless))

    return AttackData(
        harmful=answers.pairs,
        retain=retain,
        reference=origin,
        answer=observer.answer,
        response_limit=observer.evaluate.response_tokens,
        at_steps=(0, steps),
        hook=hook,
    )


def _measured_name(
    loaded: LoadedModel, fingerprint: str, origin: str, work: Mapping[str, Any], judging: Judging
) -> str:
    """Name of the folder for the measurements of an interrupted attack: another for whatever would change them."""
    key = {
        "model": fingerprint,
        "work": work,
        "reference": model_fingerprint(origin, loaded.stated_template),
        "harmless": [prompt.prompt for prompt in judging.harmless],
        "versions": versions(),
    }
    return f"measured-{content_hash(key)[:16]}"
