"""Each attack of a study in a phrase, made from its component and its parameters: "harmful_finetune, 90 shots, 16 steps at …"."""

import re
from collections.abc import Mapping
from typing import Any

from tamperfuse.records.errors import printable
from tamperfuse.report.inputs import Run

#: Parameters of a training that say little about an attack's strength; study.yaml, which the page holds, has them.
LEFT_OUT = ("batch", "schedule", "warmup", "clip", "layers", "lora_rank", "lora_alpha", "lora_targets")
#: Values that most attacks have, which go without saying.
USUAL = {"method": "full", "optimizer": "adamw"}
CONTROL = "a control, without an attacker"
LONGEST_TEXT = 40  # characters of a parameter's value


def attack_phrases(run: Run) -> dict[str, str]:
    """The phrase of every attack and control of a run, in the order of the page; none for one that study.yaml does not have."""
    weak = run.too_weak
    ordered = [*sorted(run.attacks, key=lambda name: name in weak), *run.controls]
    phrases = {name: attack_phrase(run.attack_settings[name], name) for name in ordered if name in run.attack_settings}
    return {name: f"{text} ({CONTROL})" if name in run.controls else text for name, text in phrases.items()}


def attack_phrase(settings: Mapping[str, Any], name: str = "") -> str:
    """One attack in a phrase: its component, samples, steps, learning rate, and the parameters that make it special.

    Args:
        settings: of the attack, as study.yaml has them: `attack`, `search`, and the parameters.
        name: in the study, which is that of the component where `attack` is not set.
    """
    values = {key: value for key, value in settings.items() if key not in ("attack", "search", *LEFT_OUT)}
    parts = [_value(settings.get("attack", name))]
    parts += [_count(values.pop(key), key) for key in ("shots", "samples") if key in values]
    parts += _training(values.pop("steps", None), values.pop("learning_rate", None))
    parts += [f"{key.replace('_', ' ')} {_value(value)}" for key, value in values.items() if _is_stated(key, value)]
    search = settings.get("search")
    if isinstance(search, Mapping):
        over = search.get("over")
        names = ", ".join(key.replace("_", " ") for key in over) if isinstance(over, Mapping) else ""
        parts.append(f"searched in {_count(search.get('trials', 'several'), 'trials')}{': ' * bool(names)}{names}")
    return printable(", ".join(part for part in parts if part))


def _training(steps: Any, learning_rate: Any) -> list[str]:
    rate = "" if learning_rate is None else f"learning rate {_value(learning_rate)}"
    if steps is None:
        return [rate]
    count = _count(steps, "steps")
    return [f"{count} at {rate}" if rate else count]


def _count(number: Any, unit: str) -> str:
    return f"{_value(number)} {unit.removesuffix('s') if number == 1 else unit}"


def _is_stated(key: str, value: Any) -> bool:
    """Whether a parameter is part of the phrase: not its usual value, nor 0 or nothing, which switch a thing off."""
    return isinstance(value, str | int | float) and bool(value) and value != USUAL.get(key)


def _value(value: Any) -> str:
    """A value of study.yaml: 3e-05 as "3e-5", and a long text cut."""
    if isinstance(value, float):
        return re.sub(r"e([-+])0+", r"e\1", f"{value:g}")
    text = " ".join(str(value).split())
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"
