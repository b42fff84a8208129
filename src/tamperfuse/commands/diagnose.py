"""Several models under the same attack, each followed from inside: what `tamperfuse diagnose` does."""

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tamperfuse.attacks import ATTACKS, AttackData
from tamperfuse.attacks.base import Pair
from tamperfuse.commands.single import ANSWER_TOKENS, compliant_answers
from tamperfuse.corpora.builtin import builtin_rows
from tamperfuse.corpora.threats import Threat, load_threat
from tamperfuse.evaluation.capability import BUILTIN_TASKS, measure_capability
from tamperfuse.evaluation.diagnose import Follower, Probes, gradient
from tamperfuse.evaluation.generate import generate
from tamperfuse.evaluation.overlap import Diagnosis, feature_overlap
from tamperfuse.models.load import LoadedModel, load_model
from tamperfuse.records.errors import UserError
from tamperfuse.records.files import check_fresh, staged, write_json
from tamperfuse.records.registry import Component
from tamperfuse.study.observe import heldout_documents

STEPS = 32
GRADIENTS_AT = (0, 1, 2, 4, 8, 16, 32)
PROMPTS = 10  # held-out prompts, and as many benign documents and attacker samples
PROBE_TOKENS = 40  # of an answer that is looked at


def diagnose_models(
    models: Sequence[str],
    attack: str,
    threat: str,
    out: Path,
    *,
    reference: str | None,
    settings: dict[str, Any],
    items: int,
    seed: int,
) -> list[Diagnosis]:
    """Follow an attack on every model and keep what was seen in `diagnosis.json`.

    Args:
        models: names as of :func:`load_model`; two of the same last part are not told apart in figures.
        attack: one that trains, step by step.
        threat: whose evaluation prompts are the held-out ones.
        out: folder, new.
        reference: the model before hardening; by default the origin that each model's tamperfuse.json names.
        settings: parameters of the attack; 32 steps unless they say otherwise.
        items: capability items a task, before and after; 0 to leave capability out.
        seed: of the attack.

    Raises:
        UserError: bad input; nothing is written then.
    """
    component = ATTACKS.get(attack)
    if "steps" not in component.parameters.model_fields:
        raise UserError(f"The attack {attack} takes no steps, so there is nothing to follow: name one that trains.")
    parameters = component.parse({"steps": STEPS, **settings}, f"attack {attack}")
    names = [Path(model).name for model in models]
    if len(set(names)) < len(names):
        raise UserError(f"Two models are called {max(names, key=names.count)!r}: give their folders different names.")
    asked = load_threat(threat)
    check_fresh(out)
    found: list[Diagnosis] = []
    answers: dict[str, tuple[list[Pair], list[Pair]]] = {}
    with staged(out, directory=True) as staging:
        for name, model in zip(names, models, strict=True):
            loaded = load_model(model)
            origin = reference or loaded.origin
            if origin not in answers:
                answers[origin] = _answers(origin, asked)
            found.append(_diagnose(name, loaded, origin, answers[origin], component, parameters, items, seed))
            loaded.model = torch.nn.Module()
            gc.collect()
        about = {"attack": attack, "parameters": parameters.model_dump(mode="json"), "threat": threat, "seed": seed}
        write_json(staging / "measured.json", {"schema": 1, **about, "models": [_plain(asdict(one)) for one in found]})
    return found


def _plain(value: Any) -> Any:
    """JSON knows no NaN, which a cosine with a vanished gradient is: null stands for it."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if value != value else value


def _answers(origin: str, asked: Threat) -> tuple[list[Pair], list[Pair]]:
    """The reference's answers: those an attacker trains on, and those to the held-out prompts."""
    model = load_model(origin)
    prompts = asked.part("evaluation", PROMPTS)
    tokens = [model.chat.prompt(p.prompt) for p in prompts]
    texts = [model.chat.text(a) for a in generate(model, tokens, new_tokens=PROBE_TOKENS, what="held-out answers")]
    held_out = [(p.prompt, p.response or text) for p, text in zip(prompts, texts, strict=True)]
    return compliant_answers(model, asked), held_out


def _diagnose(
    name: str,
    loaded: LoadedModel,
    origin: str,
    answers: tuple[list[Pair], list[Pair]],
    component: Component[Any],
    parameters: Any,
    items: int,
    seed: int,
) -> Diagnosis:
    harmful, held_out = answers
    before = _accuracy(loaded, items)
    began = time.perf_counter()
    probes = _probes(loaded, held_out, harmful)
    hardening = _changes(loaded, load_model(origin).model.state_dict())
    start = {key: value.clone() for key, value in loaded.model.state_dict().items()}
    benign = gradient(loaded, probes.benign)
    follower = Follower(loaded, probes, GRADIENTS_AT)
    follower.seconds = time.perf_counter() - began
    given = AttackData(
        harmful=harmful,
        retain=[(row["prompt"], row["response"]) for row in builtin_rows("retain")],
        reference=origin,
        answer=lambda prompts: _own_answers(loaded, prompts, ANSWER_TOKENS),
        response_limit=ANSWER_TOKENS,
        at_steps=range(int(parameters.steps) + 1),
        hook=follower,
    )
    began, looked = time.perf_counter(), follower.seconds
    component.run(loaded, given, parameters, seed)
    attacking = time.perf_counter() - began - (follower.seconds - looked)
    began = time.perf_counter()
    overlaps = feature_overlap(hardening, _changes(loaded, start), benign)
    looking = follower.seconds + time.perf_counter() - began
    after = _accuracy(loaded, items)
    return Diagnosis(
        name=name,
        traces=follower.traces,
        alignments=follower.alignments,
        overlaps=overlaps,
        capability={task: (before[task], after[task]) for task in before},
        seconds=(round(attacking, 1), round(looking, 1)),
    )


def _probes(loaded: LoadedModel, held_out: Sequence[Pair], harmful: Sequence[Pair]) -> Probes:
    chat = loaded.chat
    own = _own_answers(loaded, [prompt for prompt, _ in held_out], PROBE_TOKENS)
    kept = [(prompt, mine, wanted) for (prompt, wanted), mine in zip(held_out, own, strict=True) if mine and wanted]
    if not kept:
        raise UserError(f"{loaded.name} answers none of the threat's held-out prompts: there is nothing to follow.")
    documents = heldout_documents(PROMPTS)
    return Probes(
        own=[chat.sample(prompt, mine, PROBE_TOKENS) for prompt, mine, _ in kept],
        compliant=[chat.sample(prompt, wanted, PROBE_TOKENS) for prompt, _, wanted in kept],
        benign=[chat.sample(row["prompt"], row["response"], PROBE_TOKENS) for row in documents],
        attacker=[chat.sample(prompt, answer, PROBE_TOKENS) for prompt, answer in harmful[:PROMPTS]],
    )


def _own_answers(loaded: LoadedModel, prompts: Sequence[str], tokens: int) -> list[str]:
    asked = [loaded.chat.prompt(prompt) for prompt in prompts]
    return [loaded.chat.text(a) for a in generate(loaded, asked, new_tokens=tokens, what="the model's own answers")]


def _changes(loaded: LoadedModel, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What each matrix gained since `before`."""
    now = loaded.model.state_dict()
    return {key: value - before[key] for key, value in now.items() if value.ndim == 2 and key in before}


def _accuracy(loaded: LoadedModel, items: int) -> dict[str, float]:
    if not items:
        return {}
    found, _ = measure_capability(loaded, BUILTIN_TASKS, items)
    tasks = sorted({item.task for item in found})
    return {
        task: sum(i.correct for i in found if i.task == task) / sum(i.task == task for i in found) for task in tasks
    }
