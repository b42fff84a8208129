"""Descriptions of all that can be chosen: defenses, attacks, judges, built-in corpora, bundled models.

`tamperfuse list` prints them, and scripts/reference_pages.py writes them into the documentation.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tamperfuse.attacks import ATTACKS
from tamperfuse.attacks.base import AttackTraits
from tamperfuse.corpora.builtin import ABOUT
from tamperfuse.corpora.sources import BUILTIN
from tamperfuse.defenses import DEFENSES
from tamperfuse.defenses.base import DefenseTraits
from tamperfuse.evaluation.judges import JUDGES
from tamperfuse.evaluation.judges.base import JudgeTraits
from tamperfuse.models.bundled import ENCODERS, MODELS
from tamperfuse.records.errors import unknown_name
from tamperfuse.records.field_docs import FieldDoc, default_words, field_docs
from tamperfuse.records.registry import Component, Registry

REGISTRIES: dict[str, Registry[Any, Any]] = {"defenses": DEFENSES, "attacks": ATTACKS, "judges": JUDGES}
KINDS = (*REGISTRIES, "corpora", "models")
# Sizes of models for which a default that depends on the size is stated: parameters, in words.
SIZES = {135_000_000: "135 million parameters", 8_000_000_000: "8 billion"}


@dataclass(frozen=True)
class ChoiceDoc:
    """One thing to choose, in words.

    Attributes:
        name: as users write it.
        about: one sentence.
        notes: what the component declares ("needs SDD pairs"), each a few words.
        parameters: of the component; empty for a corpus or a model.
    """

    name: str
    about: str
    notes: tuple[str, ...] = ()
    parameters: tuple[FieldDoc, ...] = ()


def choices(kind: str) -> list[ChoiceDoc]:
    """All choices of a kind, by name.

    Args:
        kind: one of :data:`KINDS`.

    Raises:
        UserError: there is no such kind, or a plug-in cannot be imported.
    """
    if kind in REGISTRIES:
        return [_component(component) for component in REGISTRIES[kind].all()]
    if kind == "corpora":
        return [ChoiceDoc(f"{BUILTIN}{name}", about) for name, about in ABOUT.items()]
    if kind == "models":
        return [
            ChoiceDoc(name, model.about if model.installed else f"{model.about}; not installed: {model.install}")
            for name, model in (MODELS | ENCODERS).items()
        ]
    raise unknown_name("kind of things to list", kind, KINDS)


def choice(kind: str, name: str) -> ChoiceDoc:
    """One choice.

    Args:
        kind: one of :data:`KINDS`.
        name: its name; of a corpus also without `builtin:`.

    Raises:
        UserError: there is no such kind, or none of that name (the nearest name is suggested).
    """
    if kind in REGISTRIES:
        return _component(REGISTRIES[kind].get(name))
    by_name = {entry.name.removeprefix(BUILTIN): entry for entry in choices(kind)}
    plain = name.removeprefix(BUILTIN)
    if plain not in by_name:
        raise unknown_name("built-in corpus" if kind == "corpora" else "bundled model", plain, by_name)
    return by_name[plain]


def _component(component: Component[Any, Any]) -> ChoiceDoc:
    notes = list(_NOTES[type(component.traits)](component.traits))
    if component.distribution:
        notes.append(f"from the plug-in {component.distribution}")
    parameters = field_docs(component.parameters)
    if isinstance(component.traits, DefenseTraits):
        parameters = _with_presets(component, parameters)
    return ChoiceDoc(component.name, component.about, tuple(notes), tuple(parameters))


def _with_presets(component: Component[Any, Any], parameters: list[FieldDoc]) -> list[FieldDoc]:
    """The parameters of a defense, those that are unset by default with the values that its presets fill in."""
    unset = component.parse({}, component.name)
    resolved = {size: component.traits.resolve(unset, size) for size in SIZES}
    docs = []
    for field in parameters:
        if getattr(unset, field.name) is None:
            default = _preset_words({size: getattr(values, field.name) for size, values in resolved.items()})
            kind = field.type if default == "null" else field.type.removesuffix(" or null")
            field = replace(field, default=default, type=kind)
        docs.append(field)
    return docs


def _preset_words(by_size: Mapping[int, Any]) -> str:
    words = {size: default_words(value) for size, value in by_size.items()}
    if len(set(words.values())) == 1:
        return next(iter(words.values()))
    return ", ".join(f"{text} ({SIZES[size]})" for size, text in words.items())


def _defense_notes(traits: DefenseTraits) -> list[str]:
    needs = [("SDD pairs", traits.needs_pairs), ("compliant answers to the defender prompts", traits.needs_answers)]
    return [f"trains on {what}" for what, is_needed in needs if is_needed]


def _attack_notes(traits: AttackTraits) -> list[str]:
    notes = ["malicious" if traits.malicious else "a control: not malicious"]
    if traits.search_over:
        ranges = (f"{name} {default_words(list(values))}" for name, values in traits.search_over.items())
        notes.append(f"`search` varies {', '.join(ranges)}")
    return notes


def _judge_notes(traits: JudgeTraits) -> list[str]:
    notes = [("uses the model before hardening", traits.needs_reference), ("calibrated", traits.calibrate is not None)]
    return [note for note, applies in notes if applies]


_NOTES: dict[type, Callable[[Any], list[str]]] = {
    DefenseTraits: _defense_notes,
    AttackTraits: _attack_notes,
    JudgeTraits: _judge_notes,
}
