"""Write a commented study for one's own model and prompts: what `tamperfuse init` does."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from textwrap import wrap
from typing import Any

from pydantic import BaseModel

from tamperfuse.attacks import ATTACKS
from tamperfuse.corpora.sources import BUILTIN
from tamperfuse.corpora.threats import PARTS, Threat, load_threat
from tamperfuse.corpora.window import within_window
from tamperfuse.defenses import DEFENSES
from tamperfuse.evaluation.calibrate import is_compliant
from tamperfuse.evaluation.wilson import Z
from tamperfuse.models.encoder import default_encoder
from tamperfuse.models.load import parameter_count
from tamperfuse.records.errors import UserError, quoted, unknown_name
from tamperfuse.records.field_docs import FieldDoc, field_docs
from tamperfuse.records.files import write_text
from tamperfuse.records.registry import Registry
from tamperfuse.records.yaml import flow_yaml, parse_yaml
from tamperfuse.study.sections import RESPONSE_TOKENS, BenignSpec, Evaluate, PairsSpec
from tamperfuse.study.spec import Study, parse_study

ABOUT_SIZES = {
    "quick": "ten to twenty minutes for a model of 135 million parameters on two cores with AVX-512 bf16",
    "long": "a night or more for such a model, or a GPU for a larger one",
}
# No defense stops an attacker who has that model, so it is left to the user to count it.
MERGE = "  # If the model before hardening is public, add: merge: {attack: merge}"
WIDTH = 110  # characters of a comment's line
ANSWERED = 0.6  # share of prompts without an answer that a model is expected to execute before it is hardened
FEW_PROMPTS = (
    96  # evaluation prompts below which a rate's 95% interval is wider than ten percentage points to each side
)
# By key of a study: the model whose fields the entries are, and the registry of the components that they name.
_SECTIONS: dict[str, type[BaseModel]] = {"benign": BenignSpec, "pairs": PairsSpec, "evaluate": Evaluate}
_COMPONENTS: dict[str, Registry[Any, Any]] = {"defenses": DEFENSES, "attacks": ATTACKS}

Values = dict[str, Any]


def write_study(file: Path, model: str, source: str, size: str) -> list[str]:
    """Write a study file.

    Args:
        file: to write; must not exist.
        model: the model to harden, as of :func:`tamperfuse.models.load.load_model`; only its configuration is read.
        source: source of the threat, whose prompts are counted.
        size: `quick` or `long`.

    Returns:
        Lines to print: the prompts of every part, and what to type next.

    Raises:
        UserError: the file exists or cannot be written; there is no such size; the model or the threat cannot be read.
    """
    if os.path.lexists(file):
        raise UserError(f"{file} exists: name another file for the study, or remove it first.")
    if size not in ABOUT_SIZES:
        raise unknown_name("size of a study", size, ABOUT_SIZES)
    parameter_count(model)  # a wrong name is reported now
    threat = within_window(load_threat(source, default_encoder()), model, RESPONSE_TOKENS)
    text = study_text(model, threat, size)
    parse_study(parse_yaml(text), str(file))
    write_text(file, text)
    return _next_steps(file, threat)


def study_text(model: str, threat: Threat, size: str) -> str:
    """The text of a study: every field explained, with values of one size, and those of the other in comments.

    Args:
        model: its name.
        threat: decides how many prompts are measured and trained on.
        size: `quick` or `long`.
    """
    other = next(name for name in ABOUT_SIZES if name != size)
    values, others = (study_values(model, threat, name) for name in (size, other))
    about = (
        f"A study of the size `{size}`: by estimate {ABOUT_SIZES[size]}. `tamperfuse run THIS_FILE --out DIR --dry-run` prints "
        f"the plan, and how long yours takes. Where the size `{other}` ({ABOUT_SIZES[other]}) has another value, it is in a "
        f"comment that begins with `{other}:`. Paths are relative to the folder in which `tamperfuse run` is called. All fields: "
        "docs/reference/study.md"
    )
    lines = [f"# {line}" for line in wrap(about, WIDTH)]
    for field in field_docs(Study):
        if field.name in values:
            lines += ["", *_comment(field, "")]
            lines += _entry(field.name, values[field.name], others.get(field.name), other)
            lines += [MERGE] if field.name == "attacks" else []
    return "\n".join(lines) + "\n"


def study_values(model: str, threat: Threat, size: str) -> Values:
    """The study of a size as a mapping, as its file would hold it, with no more prompts than the threat has.

    Args:
        model: its name.
        threat: the threat.
        size: `quick` or `long`.
    """
    counts = {part: len(threat.part(part)) for part in PARTS}
    long = size == "long"
    prompts = min(160 if long else 48, counts["evaluation"])
    return {
        "model": model,
        "threat": threat.source,
        "chat_template": "",
        "seeds": [0, 1, 2] if long else [0],
        "defenses": _defenses(long),
        "attacks": _attacks(long, expected_answers(threat)),
        "benign": {"sources": ["self"], "prompts": 1_000 if long else 100},
        "retain": Study.model_fields["retain"].default,
        "pairs": PairsSpec().model_dump(mode="json"),
        "judge": "builtin",
        "judges": {},
        "evaluate": {
            "at_steps": [0, 1, 2, 4, 8, 16] if long else [0, 4, 16],
            "prompts": prompts,
            "curve_prompts": min(80 if long else 24, prompts),
            "dev_prompts": min(28 if long else 12, counts["attacker_dev"]),
            "harmless": 128 if long else 32,
            "response_tokens": RESPONSE_TOKENS if long else 32,
            "capability": ["builtin"],
            "capability_items": 400 if long else 40,
            "capability_at": [0, 16],
            "heldout": 200 if long else 20,
            "epsilons": list(Evaluate().epsilons),
        },
    }


def expected_answers(threat: Threat) -> int:
    """Attacker prompts to which an attack can be expected to have an answer: the threat's own, and most of the model's."""
    prompts = threat.part("attacker")
    own_answers = sum(bool(prompt.response) and is_compliant(prompt.response) for prompt in prompts)
    unanswered = sum(not prompt.response for prompt in prompts)
    return max(2, own_answers + int(ANSWERED * unanswered))


def _defenses(long: bool) -> Values:
    """Without parameters a defense has those that were chosen on SmolLM2-135M, or of its preset for larger models."""
    if long:
        return {"refusal": {}, "sdd": {"on": "refusal"}}
    return {"refusal": {"steps": 24, "learning_rate": 9e-5}, "sdd": {"on": "refusal", "steps": 24, "batch": 12}}


def _attacks(long: bool, answers: int) -> Values:
    """Attacks that every model takes, with as many samples as there are answers; the last ones are controls.

    Args:
        long: whether all of them are run.
        answers: to attacker prompts.
    """
    full = {"shots": min(90, answers), "steps": 16, "learning_rate": 5e-5}
    attacks: Values = {
        "full": {"attack": "harmful_finetune", **full},
        "benign": {"attack": "benign_finetune", "steps": 16 if long else 8},
    }
    if not long:
        return attacks
    samples = max(2, min(100, 5 * answers))
    return {
        "full": attacks["full"],
        "few": {"attack": "harmful_finetune", "shots": min(10, answers), "batch": 5, "steps": 16},
        "lora": {"attack": "harmful_finetune", **full, "steps": 24, "method": "lora", "learning_rate": 1e-3},
        "poisoned": {
            "attack": "mixed_finetune",
            "share": 0.2,
            "samples": samples,
            "steps": 24,
            "learning_rate": 1e-4,
        },
        "prefill": {"attack": "prefill"},
        "benign": attacks["benign"],
        "int8": {"attack": "quantize", "format": "int8"},
        "prune": {"attack": "prune"},
    }


def _entry(name: str, value: Any, other_value: Any, other: str, indent: str = "") -> list[str]:
    """The lines of one key: a section with its fields, named components, or a value."""
    if name in _COMPONENTS and not indent:
        return [f"{name}:", *_component_lines(name, value, other_value, other)]
    if name in _SECTIONS and not indent:
        lines = [f"{name}:"]
        for field in field_docs(_SECTIONS[name]):
            lines += _comment(field, "  ")
            lines += _entry(field.name, value[field.name], other_value[field.name], other, "  ")
        return lines
    return [f"{indent}{name}: {flow_yaml(value)}" + _difference(value, other_value, other)]


def _difference(value: Any, other_value: Any, other: str) -> str:
    return "" if value == other_value else f"  # {other}: {flow_yaml(other_value)}"


def _component_lines(key: str, entries: Mapping[str, Values], others: Mapping[str, Values], other: str) -> list[str]:
    """Defenses or attacks by name, each with what it does; those of the other size only are in comments."""
    registry, singular = _COMPONENTS[key], _COMPONENTS[key].kind
    lines = [f"  # parameters of each: tamperfuse list {quoted(key)} NAME"]
    explained: set[str] = set()
    for name in dict.fromkeys([*others, *entries] if len(others) > len(entries) else [*entries, *others]):
        spec = entries.get(name, others.get(name, {}))
        component = registry.get(spec.get(singular, name))
        if component.name not in explained:
            lines += [f"  # {line}" for line in wrap(f"{component.name}: {component.about}", WIDTH)]
            explained.add(component.name)
        if name in entries:
            difference = _difference(spec, others[name], other) if name in others else f"  # not in {other}"
            lines.append(f"  {name}: {flow_yaml(spec)}{difference}")
        else:
            lines.append(f"  # {other}: {name}: {flow_yaml(spec)}")
    return lines


def _comment(field: FieldDoc, indent: str) -> list[str]:
    is_stated = field.range in ("", "not empty") or field.range in field.meaning
    return [
        f"{indent}# {line}"
        for line in wrap(field.meaning.removesuffix(".") + ("" if is_stated else f"; {field.range}"), WIDTH)
    ]


def _next_steps(file: Path, threat: Threat) -> list[str]:
    parts = ", ".join(f"{part} {len(threat.part(part))}" for part in PARTS)
    unanswered = sum(not prompt.response for prompt in threat.part("attacker"))
    run = f"tamperfuse run {quoted(file)} --out {quoted(Path('runs') / file.stem)}"
    lines = [f"{file} is written. Prompts of {threat.source}: {parts}."]
    if unanswered:
        other = "" if threat.source.startswith(BUILTIN) else ", or first try builtin:cooking, a harmless stand-in"
        lines.append(
            f"{unanswered} of {len(threat.part('attacker'))} attacker prompts have no `response`, so attacks train on the "
            f"model's own answers. Only if the model declines these prompts, add answers{other}."
        )
    prompts = len(threat.part("evaluation"))
    if prompts < FEW_PROMPTS:
        lines.append(
            f"Rates are measured on {prompts} prompts, to within about {100 * Z * math.sqrt(0.25 / prompts):.0f} percentage "
            f"points; on {FEW_PROMPTS} prompts it would be 10."
        )
    return [*lines, f"See the plan and the time it takes: {run} --dry-run", f"Then run it: {run}"]
