"""Trace an attack inside several models, one after the other: the work of `tamperfuse diagnose`."""

import gc
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tamperfuse.attacks import ATTACKS, AttackData
from tamperfuse.attacks.base import AttackResult, AttackTraits, PromptResponse
from tamperfuse.corpora.exclude_threat import read_outside_threat
from tamperfuse.corpora.threats import Threat, load_threat
from tamperfuse.corpora.window import within_window
from tamperfuse.evaluation.attack_trace import AttackTracer, Probes, gradient
from tamperfuse.evaluation.capability import measure_capability
from tamperfuse.evaluation.capability_tasks import BUILTIN_TASKS
from tamperfuse.evaluation.diagnosis import BeforeAfter, Diagnosis
from tamperfuse.evaluation.feature_overlap import feature_overlap
from tamperfuse.evaluation.generate import generate
from tamperfuse.models.chat_template import read_template
from tamperfuse.models.encoder import TextEncoder, default_encoder
from tamperfuse.models.layers import outputs_first
from tamperfuse.models.load import LoadedModel, load_model, reference_name
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import check_fresh, output_folder, write_json
from tamperfuse.records.registry import Component
from tamperfuse.study.context import check_samples
from tamperfuse.study.judging import compliant_answers
from tamperfuse.study.observe import heldout_documents
from tamperfuse.study.sections import RESPONSE_TOKENS

STEPS = 32
GRADIENTS_AT = (0, 1, 2, 4, 8, 16, 32)
PROBES = 10  # number of held-out prompts, of benign documents and of attacker samples
PROBE_TOKENS = 40  # maximum length of an answer used as a probe


def diagnose_models(
    models: Sequence[str],
    attack: str,
    threat: str,
    out: Path,
    *,
    reference: str | None,
    retain: str,
    settings: dict[str, Any],
    items: int,
    seed: int,
    chat_template: Path | None = None,
) -> list[Diagnosis]:
    """Run an attack on each model, trace it, and write the measurements to `measured.json`.

    Args:
        models: names as for :func:`load_model`; their last parts name the models in tables and figures.
        attack: an attack that trains.
        threat: the threat; its evaluation prompts are the held-out ones.
        out: new folder.
        reference: the model before hardening; None for the origin in each model's tamperfuse.json.
        retain: source of the attacker's harmless samples.
        settings: parameters of the attack; `steps` defaults to 32.
        items: number of items of each capability task before and after the attack; 0 to skip capability.
        seed: of the attack.
        chat_template: file with a chat template, in place of those of the models and of their references.

    Raises:
        UserError: invalid input; nothing is written.
    """
    component = ATTACKS.get(attack)
    if not component.traits.budget(component.parse(settings, f"attack {attack}")).trains:
        raise UserError(f"The attack {attack} does not train, so it has no steps to trace: choose one that does.")
    parameters = component.parse({"steps": STEPS, **settings}, f"attack {attack}")
    names = [Path(model).name for model in models]
    if len(set(names)) < len(names):
        raise UserError(f"Two models are called {max(names, key=names.count)!r}: give their folders different names.")
    template, encoder = read_template(chat_template), default_encoder()
    loaded_threat = load_threat(threat, encoder)
    for model in models:
        loaded_threat = within_window(loaded_threat, model, RESPONSE_TOKENS, template)
    samples = read_outside_threat(retain, loaded_threat, option="retain", encoder=encoder)
    check_samples(attack, component.traits.budget(parameters), loaded_threat, retain, len(samples))
    harmless = component.traits.retained(samples)
    check_fresh(out)
    diagnoses: list[Diagnosis] = []
    answers: dict[str, tuple[list[PromptResponse], list[PromptResponse]]] = {}
    with output_folder(out) as staging:
        for name, model in zip(names, models, strict=True):
            loaded = load_model(model, chat_template=template)
            origin = reference_name(loaded, reference)
            if origin not in answers:
                answers[origin] = _reference_answers(origin, loaded.stated_template, loaded_threat, encoder)
            diagnoses.append(
                _diagnose(name, loaded, origin, answers[origin], harmless, component, parameters, items, seed)
            )
            loaded.model = torch.nn.Module()
            gc.collect()
        inputs = {
            "attack": attack,
            "parameters": parameters.model_dump(mode="json"),
            "threat": threat,
            "retain": retain,
            "seed": seed,
        }
        records = [diagnosis.to_record() for diagnosis in diagnoses]
        write_json(staging / "measured.json", {"schema": 2, **inputs, "models": records})
    return diagnoses


def _reference_answers(
    origin: str, template: str, threat: Threat, encoder: TextEncoder
) -> tuple[list[PromptResponse], list[PromptResponse]]:
    """Answers of the model before hardening: to the attacker's prompts, and to the held-out prompts."""
    model = load_model(origin, chat_template=template)
    prompts = threat.part("evaluation", PROBES)
    tokens = [model.chat.prompt(p.prompt) for p in prompts]
    texts = [model.chat.text(a) for a in generate(model, tokens, new_tokens=PROBE_TOKENS, label="held-out answers")]
    held_out = [(p.prompt, p.response or text) for p, text in zip(prompts, texts, strict=True)]
    return compliant_answers(lambda: model, threat.part("attacker"), RESPONSE_TOKENS, encoder).pairs, held_out


def _diagnose(
    name: str,
    loaded: LoadedModel,
    origin: str,
    answers: tuple[list[PromptResponse], list[PromptResponse]],
    retain: Sequence[PromptResponse],
    component: Component[AttackTraits, AttackResult],
    parameters: Any,
    items: int,
    seed: int,
) -> Diagnosis:
    harmful, held_out = answers
    accuracy_before = _accuracy(loaded, items)
    start = time.perf_counter()
    probes = _probes(loaded, held_out, harmful)
    reference = load_model(origin, chat_template=loaded.stated_template)
    hardening = _weight_changes(loaded, reference.model.state_dict())
    del reference
    before_attack = {key: value.clone() for key, value in loaded.model.state_dict().items()}
    benign = gradient(loaded, probes.benign)
    preparing = time.perf_counter() - start
    tracer = AttackTracer(loaded, probes, GRADIENTS_AT)
    data = AttackData(
        harmful=harmful,
        retain=retain,
        reference=origin,
        answer=lambda prompts: _answers(loaded, prompts, RESPONSE_TOKENS),
        response_limit=RESPONSE_TOKENS,
        at_steps=range(component.traits.budget(parameters).steps + 1),
        hook=tracer,
    )
    start = time.perf_counter()
    component.run(loaded, data, parameters, seed)
    attacking = time.perf_counter() - start - tracer.seconds
    start = time.perf_counter()
    overlaps = feature_overlap(hardening, _weight_changes(loaded, before_attack), outputs_first(loaded.model, benign))
    measuring = preparing + tracer.seconds + time.perf_counter() - start
    accuracy_after = _accuracy(loaded, items)
    return Diagnosis(
        name=name,
        points=tracer.points,
        cosines=tracer.cosines,
        overlaps=overlaps,
        capability={task: BeforeAfter(before, accuracy_after[task]) for task, before in accuracy_before.items()},
        attack_seconds=round(attacking, 1),
        diagnosis_seconds=round(measuring, 1),
    )


def _probes(loaded: LoadedModel, held_out: Sequence[PromptResponse], harmful: Sequence[PromptResponse]) -> Probes:
    chat = loaded.chat
    originals = _answers(loaded, [prompt for prompt, _ in held_out], PROBE_TOKENS)
    answered = [
        (prompt, original, compliant)
        for (prompt, compliant), original in zip(held_out, originals, strict=True)
        if original and compliant
    ]
    if not answered:
        raise UserError(
            f"{loaded.name} gives an empty answer to each of the first {PROBES} evaluation prompts, so its answers cannot be "
            "traced: choose another model or threat."
        )
    return Probes(
        original=[chat.sample(prompt, original, PROBE_TOKENS) for prompt, original, _ in answered],
        compliant=[chat.sample(prompt, compliant, PROBE_TOKENS) for prompt, _, compliant in answered],
        benign=[chat.sample(row["prompt"], row["response"], PROBE_TOKENS) for row in heldout_documents(PROBES)],
        attacker=[chat.sample(prompt, answer, PROBE_TOKENS) for prompt, answer in harmful[:PROBES]],
    )


def _answers(loaded: LoadedModel, prompts: Sequence[str], tokens: int) -> list[str]:
    chat = loaded.chat
    encoded = [chat.prompt(prompt) for prompt in prompts]
    return [chat.text(answer) for answer in generate(loaded, encoded, new_tokens=tokens, label="the model's answers")]


def _weight_changes(loaded: LoadedModel, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Difference of each weight matrix (out, in) to `before`, by name."""
    now = loaded.model.state_dict()
    changes = {key: value - before[key] for key, value in now.items() if value.ndim == 2 and key in before}
    return outputs_first(loaded.model, changes)


def _accuracy(loaded: LoadedModel, items: int) -> dict[str, float]:
    """Accuracy in [0, 1] on the built-in capability tasks."""
    if not items:
        return {}
    results, _ = measure_capability(loaded, BUILTIN_TASKS, items)
    correct = {task: [item.correct for item in results if item.task == task] for task in BUILTIN_TASKS}
    return {task: sum(values) / len(values) for task, values in correct.items()}
